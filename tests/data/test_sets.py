"""Known data sets: files of the published shapes, with made-up texts, are read by name."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safetyspace_fast.data import describe_sets, read_samples
from safetyspace_fast.data.columns import RECOGNISED
from safetyspace_fast.data.labels import rules
from safetyspace_fast.data.sets import known_sets
from safetyspace_fast.data.sources import is_language
from safetyspace_fast.errors import DataError

LABELS = [1, 0, 1, 0, 0, 1]
JIGSAW = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
HATE = ("non-hateful", "hateful")
TOLD = ("homophobia", "obscene", "insult", "racism", "misogyny", "xenophobia")

Row = dict[str, Any]


def table(row: Callable[[int, int], Row], delimiter: str = ",", header: bool = True) -> str:
    rows = [row(i, label) for i, label in enumerate(LABELS)]
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue()


def lines(row: Callable[[int, int], Row]) -> str:
    return "".join(json.dumps(row(i, label)) + "\n" for i, label in enumerate(LABELS))


def flags(names: tuple[str, ...], i: int, label: int, high: object, low: object) -> Row:
    return {name: high if label and k == i else low for k, name in enumerate(names)}


def votes(i: int, label: int) -> list[Row]:
    said = ("hatespeech", "offensive") if i % 2 else ("offensive", "hatespeech")
    return [{"label": said[k // 2] if label else "normal", "annotator_id": k} for k in range(3)]


# Set: (file name, content, languages).
FILES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "textdetox": ("en.jsonl", lines(lambda i, y: {"text": f"t{i}", "toxic": y}), ("en",)),
    "davidson": (
        "labeled_data.csv",
        table(lambda i, y: {"": i, "count": 3, "class": i % 2 * y if y else 2, "tweet": f"t{i}"}),
        ("en",),
    ),
    "olid": (
        "olid-training-v1.0.tsv",
        table(
            lambda i, y: {"id": i, "tweet": f"t{i}", "subtask_a": "OFF" if y else "NOT", "b": "x"},
            "\t",
        ),
        ("en",),
    ),
    "hatexplain": (
        "dataset.json",
        json.dumps(
            {
                f"{i}_gab": {"post_id": i, "annotators": votes(i, y), "post_tokens": [f"t{i}"]}
                for i, y in enumerate(LABELS)
            }
        ),
        ("en",),
    ),
    "jigsaw": (
        "train.csv",
        table(lambda i, y: {"id": i, "comment_text": f"t{i}", **flags(JIGSAW, i, y, 1, 0)}),
        ("en",),
    ),
    "germeval2018": (
        "germeval2018.training.txt",
        table(
            lambda i, y: {"a": f"t{i}", "b": "OFFENSE" if y else "OTHER", "c": "x"}, "\t", False
        ),
        ("de",),
    ),
    "told-br": (
        "ToLD-BR.csv",
        table(lambda i, y: {"text": f"t{i}", **flags(TOLD, i, y, 2.0, 0.0)}),
        ("pt-BR",),
    ),
    "hatecheck": (
        "test_suite_cases.csv",
        table(lambda i, y: {"": i, "test_case": f"t{i}", "label_gold": HATE[y]}),
        ("en",),
    ),
    "multilingual-hatecheck": (
        "hatecheck_cases_final_mandarin.csv",
        table(lambda i, y: {"test_case": f"t{i}", "label_gold": HATE[y]}),
        ("zh",),
    ),
    "xstest": (
        "xstest_prompts.csv",
        table(lambda i, y: {"prompt": f"t{i}", "type": "x", "label": "unsafe" if y else "safe"}),
        ("en",),
    ),
    "beavertails": (
        "train.jsonl",
        lines(lambda i, y: {"prompt": f"t{i}", "response": "r", "is_safe": not y, "category": {}}),
        ("en",),
    ),
    "toxicchat": (
        "toxic-chat_annotation_train.csv",
        table(lambda i, y: {"user_input": f"t{i}", "model_output": "m", "toxicity": y}),
        ("en",),
    ),
    "rtp-lx": (
        "RTP_LX_ZH-Hans.json",
        lines(lambda i, y: {"Prompt": f"t{i}", "PromptAnnotations": {"Toxicity": 1 + 2 * y}}),
        ("zh-Hans",),
    ),
    "polyglotoxicityprompts": (
        "ptp-de/small.jsonl",
        lines(lambda i, y: {"text": f"t{i}", "toxicity": 0.2 + 0.6 * y}),
        ("de",),
    ),
}  # fmt: skip
HARMFUL: dict[str, Row] = {
    "advbench": {"goal": "t{i}", "target": "x"},
    "harmbench": {"Behavior": "t{i}", "FunctionalCategory": "standard"},
    "aya-redteaming": {"prompt": "t{i}", "language": "English"},
}


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_read_by_name(tmp_path: Path, name: str) -> None:
    file, content, languages = FILES[name]
    write(tmp_path / "set" / file, content)
    source = tmp_path / "set" if "/" in file else tmp_path / "set" / file
    samples = read_samples(f"{name}:{source}", strict=True)
    assert samples.languages == languages
    found = dict(zip(samples.texts, samples.labels.tolist(), strict=True))
    assert found == {f"t{i}": label for i, label in enumerate(LABELS)}


@pytest.mark.parametrize("name", HARMFUL)
def test_sets_of_harmful_prompts_need_harmless_ones(tmp_path: Path, name: str) -> None:
    rows = [{k: v.format(i=i) for k, v in HARMFUL[name].items()} for i in range(3)]
    path = write(tmp_path / "x.json", json.dumps(rows))
    with pytest.raises(DataError, match="add the other class, as in --data harmful=FILE --data h"):
        read_samples(f"{name}:{path}")
    other = write(tmp_path / "y.json", json.dumps([{"instruction": f"k{i}"} for i in range(3)]))
    for source in (f"{name}:{path}", f"harmful={name}:{path}"):
        samples = read_samples([source, f"harmless={other}"], text_column="instruction", lang="en")
        assert dict(zip(samples.texts, samples.labels.tolist(), strict=True)) == {
            f"{letter}{i}": letter == "t" for letter in "tk" for i in range(3)
        }


def test_multijail_has_a_column_a_language(tmp_path: Path) -> None:
    rows = [{"id": i, "en": f"e{i}", "sw": f"s{i}", "tags": "x"} for i in range(3)]
    path = write(tmp_path / "MultiJail.json", json.dumps(rows))
    kind = [{"text": f"k{i}", "lang": lang} for i in range(2) for lang in ("en", "sw")]
    other = write(tmp_path / "k.json", json.dumps(kind))
    samples = read_samples([f"multijail:{path}", f"harmless={other}"])
    assert samples.languages == ("en", "sw")
    items = dict(zip(samples.texts, samples.item.tolist(), strict=True))
    assert items["e0"] == items["s0"] != items["e1"]


def test_jailbreakbench_is_labelled_by_its_file_names(tmp_path: Path) -> None:
    for name in ("harmful", "benign"):
        rows = "".join(f"{i},{name} {i},t\n" for i in range(3))
        write(tmp_path / f"{name}-behaviors.csv", "Index,Goal,Target\n" + rows)
    samples = read_samples(f"jailbreakbench:{tmp_path}")
    assert dict(zip(samples.texts, samples.labels.tolist(), strict=True)) == {
        f"{name} {i}": name == "harmful" for name in ("harmful", "benign") for i in range(3)
    }


def test_multiparadetox_is_pairs(tmp_path: Path) -> None:
    rows = [{"toxic_sentence": f"t{i}", "neutral_sentence": f"n{i}"} for i in range(3)]
    path = write(tmp_path / "am.json", json.dumps(rows))
    samples = read_samples(f"multiparadetox:{path}")
    assert (samples.pair >= 0).all()


def test_what_is_typed_comes_before_what_a_set_says(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", FILES["davidson"][1])
    samples = read_samples(f"davidson:{path}", harmful="0", harmless="2")
    assert {e.reason for e in samples.excluded} == {"class is in neither list"}
    assert read_samples(f"davidson:{path}", lang="en-US").languages == ("en-US",)
    path = write(
        tmp_path / "y.jsonl", lines(lambda i, y: {"prompt": "p", "response": f"r{i}", "is_safe": y})
    )
    assert "r0" in read_samples(f"beavertails:{path}", text_column="response").texts


def test_a_text_column_that_no_file_has_is_an_error(tmp_path: Path) -> None:
    content = lines(lambda i, y: {"prompt": f"p{i}", "response": f"r{i}", "is_safe": not y})
    path = write(tmp_path / "x.jsonl", content)
    other = write(tmp_path / "y.jsonl", lines(lambda i, y: {"response": f"k{i}"}))
    for source in (f"beavertails:{path}", [f"beavertails:{path}"] * 2):
        with pytest.raises(DataError, match=r"x\.jsonl:1: no column 'respnse'.*mean 'response'"):
            read_samples(source, text_column="respnse")
    with pytest.raises(DataError, match=r"y\.jsonl:1: no column 'respnse'.*mean 'response'"):
        read_samples([f"beavertails:{path}", f"harmless={other}"], text_column="respnse")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("olod:x.tsv", "no known data set 'olod': expected one of .*; did you mean 'olid'"),
        ("ptp:x", "no known data set 'ptp'.*; did you mean 'polyglotoxicityprompts'"),
        ("MHC:x", "no known data set 'MHC'.*; did you mean 'multilingual-hatecheck'"),
        ("olid", "olid: a known data set: name its file too, as in olid:FILE"),
        ("olid:nowhere.tsv", "^nowhere.tsv: no such file"),
        ("harmful=nowhere.csv", "^nowhere.csv: no such file"),
    ],
)
def test_names_of_sets_that_match_nothing(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_samples(source)


def test_a_path_with_a_colon_or_an_equals_sign_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("olid:en.jsonl", "harmful=en.jsonl"):
        write(tmp_path / name, lines(lambda i, y: {"text": f"t{i}", "label": y, "lang": "en"}))
        assert len(read_samples(name)) == len(LABELS)


def test_records_of_sets_make_sense() -> None:
    for name, known in known_sets().items():
        columns = known.columns
        assert known.title
        assert known.source.startswith("https://")
        assert not columns.lang or is_language(columns.lang), name
        assert all(map(is_language, columns.languages.values())), name
        assert bool(columns.harmful) == bool(columns.harmless), name
        assert not set(rules(columns.harmful)) & set(rules(columns.harmless)), name
        assert columns.every in ("", "harmful"), name
        assert not set(columns.label) <= set(RECOGNISED) or columns.harmful or not columns.label
        assert name in describe_sets()
    assert max(map(len, describe_sets().splitlines())) <= 130  # an address is never broken
