"""What a data set holds, in counts: from Python and from the command `data`."""

import json
import re
from pathlib import Path

import pytest

import safetyspace_fast as ssf
from safetyspace_fast.cli import main
from safetyspace_fast.data import describe_sets, read_samples

SECRET = "unrepeatable"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two languages, two splits, a pair, copies, a text with both labels and a row without one."""
    rows = {
        "train": [
            *[{"text": f"{SECRET} {i}", "label": i % 2, "lang": "en"} for i in range(6)],
            {"text": f"{SECRET} 1", "label": 1, "lang": "en"},
            {"text": f"{SECRET} both", "label": 1, "lang": "en"},
            {"text": f"{SECRET} both", "label": 0, "lang": "en"},
            {"text": f"{SECRET} none", "lang": "en"},
        ],
        "test": [
            {"text": f"{SECRET} 0", "label": 0, "lang": "en"},
            {"text": SECRET + "!", "label": 1, "lang": "pt-BR", "pair": "p"},
            {"text": SECRET + "?" * 10, "label": 0, "lang": "pt-BR", "pair": "p"},
        ],
    }
    for split, entries in rows.items():
        path = tmp_path / "set" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in entries))
    return tmp_path / "set"


def test_a_data_set_in_counts(folder: Path) -> None:
    summary = ssf.describe_data(str(folder))
    samples = read_samples(folder)
    assert (summary.name, summary.texts) == ("set", len(samples))
    assert summary.sha256 == samples.sha256
    assert summary.left_out == {"the same text has both labels": 2, "no label": 1}
    assert summary.splits == ({"test": 3, "train": 7}, 1)
    english, portuguese = summary.languages
    assert (english.lang, english.harmful, english.harmless) == ("en", 4, 4)
    assert (english.pairs, english.copies) == (0, 2)
    assert (portuguese.lang, portuguese.pairs, portuguese.copies) == ("pt-BR", 1, 0)
    assert portuguese.harmful_chars == (13, 13, 13)
    assert portuguese.harmless_chars == (22, 22, 22)
    assert [note.partition(":")[0] for note in summary.notes] == ["set", "set"]
    chosen = ssf.describe_data([str(folder)], split="test", languages=["pt"])
    assert [lang.lang for lang in chosen.languages] == ["pt-BR"]


def test_the_command_prints_counts_and_no_text(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", str(folder)]) == 0
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert "set: 10 texts" in printed.out
    assert "2 x the same text has both labels" in printed.out
    assert "splits read together: test (3 texts), train (7 texts); 1 texts" in printed.out
    assert main(["data", "--data", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert SECRET not in json.dumps(found)
    assert found["texts"] == 10
    assert found["languages"][1]["harmless_chars"] == [22, 22, 22]


def test_options_are_typed_as_lists_and_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    rows = [("a", "OFF", 0), ("b", "NOT", 0), ("c", "NOT", 1), ("d", "hate", 0), ("e", "none", 0)]
    path.write_text("words;one;two\n" + "".join(f"{a};{b};{c}\n" for a, b, c in rows))
    options = ["--text-column", "words", "--label-column", "one", "--label-column", "two"]
    options += ["--harmful", "OFF,hate", "--harmful", "1", "--harmless", "NOT,none,0"]
    assert main(["data", str(path), *options, "--lang", "en", "--json"]) == 0
    (english,) = json.loads(capsys.readouterr().out)["languages"]
    assert (english["harmful"], english["harmless"]) == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "data: no file is given"),
        (["nothing.jsonl"], 1, "nothing.jsonl: no such file"),
        (["sample:polite", "--languages", "eng_Latn,xx"], 1, "no texts in xx"),
        (["sample:polite", "--text-column", "txt"], 1, "no column 'txt'.*did you mean 'text'"),
        (["sample:polite", "--split", "train"], 1, "no split 'train'"),
    ],
)
def test_the_command_fails_in_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_the_known_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "--list-sets"])
    assert capsys.readouterr().out == describe_sets() + "\n"


@pytest.mark.parametrize("function", [ssf.verify, ssf.bench])
def test_a_string_of_languages_is_not_taken_apart(function: object) -> None:
    with pytest.raises(ssf.SafetySpaceError, match="languages 'en': expected several names"):
        function("no-model", "sample:polite", languages="en")
