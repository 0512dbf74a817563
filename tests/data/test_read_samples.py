"""Formats, columns, labels, errors and exclusions."""

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from safetyspace_fast.data import Exclusion, read_samples
from safetyspace_fast.errors import ConfigError, DataError

Records = Sequence[dict[str, Any]]

GOOD = [
    {"text": "a kind word", "label": 0, "lang": "en", "pair": "1"},
    {"text": 'a "rude", word', "label": 1, "lang": "en", "pair": "1"},
    {"text": "zwei\nZeilen", "label": 0, "lang": "de", "pair": None},
    {"text": "grob\tund laut", "label": 1, "lang": "de", "pair": None},
]


def write_jsonl(path: Path, records: Records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_jsonl_gz(path: Path, records: Records) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(lines.encode()))
    return path


def write_separated(path: Path, records: Records) -> Path:
    with path.open("w", newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)
    return path


def write_parquet(path: Path, records: Records) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return path


WRITERS: dict[str, Callable[[Path, Records], Path]] = {
    "x.jsonl": write_jsonl,
    "x.jsonl.gz": write_jsonl_gz,
    "x.csv": write_separated,
    "x.tsv": write_separated,
    "x.parquet": write_parquet,
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Records], Path]:
    """Write records to a file of each format in turn."""
    return lambda records: WRITERS[request.param](tmp_path / request.param, records)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[Records], Path]:
    return lambda records: write_jsonl(tmp_path / "x.jsonl", records)


def with_rest(*records: dict[str, Any]) -> list[dict[str, Any]]:
    """Add two good rows, so that what is left out leaves something."""
    good = [{"text": "good", "label": 0, "lang": "en"}, {"text": "bad", "label": 1, "lang": "en"}]
    return [*records, *good]


def test_every_format_gives_the_same_samples(
    write: Callable[[Records], Path], jsonl: Callable[[Records], Path]
) -> None:
    samples = read_samples(write(GOOD))
    assert samples.name == "x"
    assert samples.languages == ("de", "en")
    assert samples.texts == ["zwei\nZeilen", "grob\tund laut", "a kind word", 'a "rude", word']
    assert samples.labels.tolist() == [0, 1, 0, 1]
    assert samples.pair.tolist() == [-1, -1, 0, 0]
    assert samples.excluded == ()
    assert samples.sha256 == read_samples(jsonl(GOOD)).sha256


def test_positions_lead_back_to_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = ["", json.dumps(GOOD[0]), "", json.dumps(GOOD[1])]
    path.write_text("\n".join(lines))
    samples = read_samples(path)
    assert [json.loads(lines[i])["text"] for i in samples.file_position] == samples.texts


def test_csv_positions_count_lines_not_rows(tmp_path: Path) -> None:
    samples = read_samples(write_separated(tmp_path / "x.csv", [GOOD[2], GOOD[3], *GOOD[:2]]))
    # Line 0 is the header; the first text stands on lines 1 and 2.
    assert samples.file_position.tolist() == [1, 3, 4, 5]


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label,lang\r\nhi,0,en\r\nho,1,en\r\n")
    assert read_samples(path).texts == ["hi", "ho"]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, GOOD)).encode())
    assert len(read_samples(path)) == 4


def test_toxic_is_understood_as_the_label(write: Callable[[Records], Path]) -> None:
    records = [{"text": t, "toxic": y, "lang": "en"} for t, y in (("good", 0), ("awful", 1))]
    assert read_samples(write(records)).labels.tolist() == [0, 1]


def test_a_row_of_two_sentences_is_a_pair(write: Callable[[Records], Path]) -> None:
    row = {"toxic_sentence": "shut up", "neutral_sentence": "be silent", "lang": "en"}
    other = {"toxic_sentence": "get lost", "neutral_sentence": "please go", "lang": "en"}
    samples = read_samples(write([row, other, row]))
    sides: dict[int, set[tuple[str, int]]] = {}
    for text, label, pair in zip(samples.texts, samples.labels, samples.pair, strict=True):
        sides.setdefault(int(pair), set()).add((text, int(label)))
    shut = {("shut up", 1), ("be silent", 0)}
    assert sorted(sides) == [0, 1, 2]
    assert sorted(map(sorted, sides.values())) == sorted(
        map(sorted, [shut, shut, {("get lost", 1), ("please go", 0)}])
    )
    assert len(set(samples.file_position.tolist())) == 3


@pytest.mark.parametrize(
    ("harmful", "harmless"),
    [(1, 0), (True, False), ("1", "0"), ("true", "false"), ("True", "FALSE"), (1.0, 0.0)],
)
def test_labels_that_are_understood(
    write: Callable[[Records], Path], harmful: object, harmless: object
) -> None:
    records = [
        {"text": "no", "label": harmless, "lang": "en"},
        {"text": "yes", "label": harmful, "lang": "en"},
    ]
    assert read_samples(write(records)).labels.tolist() == [0, 1]


@pytest.mark.parametrize("label", [2, -1, 0.5, "toxic", "yes", "01", [1], {"a": 1}])
def test_unknown_labels_are_errors(jsonl: Callable[[Records], Path], label: object) -> None:
    path = jsonl([*GOOD, {"text": "what", "label": label, "lang": "en"}])
    with pytest.raises(DataError, match=r"^x\.jsonl:5: label is .*: expected 1 \(harmful\) or 0"):
        read_samples(path)


def test_item_joins_languages(jsonl: Callable[[Records], Path]) -> None:
    records = [
        {"text": f"{lang} {item} {label}", "label": label, "lang": lang, "item": item}
        for lang in ("de", "en")
        for item in ("a", "b")
        for label in (0, 1)
    ]
    samples = read_samples(jsonl(records))
    items = dict(zip(samples.texts, samples.item.tolist(), strict=True))
    assert items["de a 0"] == items["en a 1"] != items["de b 0"] == items["en b 1"]


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (("sentence", "toxicity", "lang"), "'sentence', 'toxicity', 'lang'"),
        (("text", "lang", "score"), "'text', 'lang', 'score'"),
        (("label", "lang"), "'label', 'lang'"),
        (("toxic_sentence", "lang"), "'toxic_sentence', 'lang'"),
    ],
)
def test_missing_columns_are_named(
    write: Callable[[Records], Path], names: tuple[str, ...], listed: str
) -> None:
    with pytest.raises(DataError, match=r"the columns are .*: expected text, label") as caught:
        read_samples(write([dict.fromkeys(names, "1")]))
    shown = str(caught.value).partition("columns are ")[2].partition(": expected")[0]
    assert sorted(shown.split(", ")) == sorted(listed.split(", "))


def test_no_language_anywhere_says_what_to_do(write: Callable[[Records], Path]) -> None:
    with pytest.raises(
        DataError, match=r"no language: give --lang or --lang-column, add a lang column"
    ):
        read_samples(write([{"text": "hi", "label": 0}, {"text": "ho", "label": 1}]))


@pytest.mark.parametrize(
    "lang",
    [
        *(
            "../../etc",
            "/en",
            "en/de",
            "C:",
            "zarr.json",
            "__en",
        ),  # names with a meaning in a store
        *("e", "en.", "en--us", "english (US)", "en\n", "e" * 40, "\u202een", 7),
    ],
)
def test_language_names_are_names(jsonl: Callable[[Records], Path], lang: object) -> None:
    path = jsonl([*GOOD, {"text": "what", "label": 0, "lang": lang}])
    with pytest.raises(DataError, match=r"^x\.jsonl:5: lang is .*: expected a BCP 47") as e:
        read_samples(path)
    assert str(e.value).isprintable()


@pytest.mark.parametrize("lang", ["en", "hin", "pt-BR", "zh-Hans-CN", "deu_Latn", "zh_CN"])
def test_languages_that_are_understood(jsonl: Callable[[Records], Path], lang: str) -> None:
    records = [{"text": str(label), "label": label, "lang": lang} for label in (0, 1)]
    assert read_samples(jsonl(records)).languages == (lang,)


NUL = "NUL character in text"
SURROGATE = "broken UTF-8 or a lone surrogate in "


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": ""}, "empty text"),
        ({"text": " \t\n\u3000"}, "empty text"),
        ({"text": None}, "no text"),
        ({"text": 7}, "text is not a string but int"),
        ({"text": ["a"]}, "text is not a string but list"),
        ({"text": "a\0b"}, NUL),
        ({"text": "a\ud800b"}, SURROGATE + "text"),
        ({"label": None}, "no label"),
        ({"label": ""}, "no label"),
        ({"pair": "\udfff"}, SURROGATE + "pair"),
        ({"pair": 1.5}, "pair is not a string or integer but float"),
        ({"item": True}, "item is not a string or integer but bool"),
    ],
)
def test_unusable_rows_are_listed(
    jsonl: Callable[[Records], Path], change: dict[str, Any], reason: str
) -> None:
    path = jsonl(with_rest({"text": "odd", "label": 0, "lang": "en"} | change))
    samples = read_samples(path)
    assert samples.texts == ["bad", "good"]
    assert samples.excluded == (Exclusion("x.jsonl", 1, reason),)
    with pytest.raises(DataError, match=rf"^x\.jsonl:1: {reason} \(strict: no row"):
        read_samples(path, strict=True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff", "label": 0, "lang": "en"}', "broken UTF-8"),
        (b'{"text": "half', "not JSON: Invalid control character at column 15"),
        (b'["text", 0, "en"]', "not a JSON object"),
        (b"null", "not a JSON object"),
        (
            b'{"text": "a", "label": 0, "label": 1, "lang": "en"}',
            "a key occurs twice in the object",
        ),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"label": ' + b"9" * 10_000 + b"}", "not JSON that can be read"),
        (b'{"label": 0, "lang": "en"}', "no text"),
        (b'{"text": "a", "lang": "en"}', "no label"),
    ],
)
def test_unreadable_lines_are_listed(tmp_path: Path, line: bytes, reason: str) -> None:
    good = "\n".join(map(json.dumps, GOOD)).encode()
    path = tmp_path / "x.jsonl"
    path.write_bytes(good + b"\n" + line + b"\n")
    samples = read_samples(path)
    assert len(samples) == 4
    assert samples.excluded == (Exclusion("x.jsonl", 5, reason),)


def test_broken_utf8_in_csv_and_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,label,lang\ngood,0,en\nb\xffd,1,en\nbad,1,en\n")
    samples = read_samples(path)
    assert samples.texts == ["bad", "good"]
    assert samples.excluded == (Exclusion("x.csv", 3, SURROGATE + "text"),)

    raw = pyarrow.array([b"good", b"b\xffd", b"bad"], pyarrow.binary())
    texts = pyarrow.StringArray.from_buffers(3, *raw.buffers()[1:])
    table = pyarrow.table({"text": texts, "label": [0, 1, 1], "lang": ["en"] * 3})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    samples = read_samples(tmp_path / "x.parquet")
    assert samples.texts == ["bad", "good"]
    assert samples.excluded == (Exclusion("x.parquet", 2, SURROGATE + "text"),)


def test_csv_rows_of_another_width_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,label,lang\ngood,0,en\n\nbad, really,1,en\nbad,1,en\nshort\n")
    assert [(e.line, e.reason) for e in read_samples(path).excluded] == [
        (4, "4 fields where the header has 3"),
        (6, "1 fields where the header has 3"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'text,label,lang\n"never closed, and,0,en\nx,1,en\n',
            r"x\.csv:2: unexpected end of data",
        ),
        (
            'text,label,lang\nx,1,en\n"a"b, c,0,en\n',
            r"x\.csv:3: .* expected after .*: double the quotes",
        ),
        ("text,label,lang,text\nx,1,en,y\n", r"x\.csv:1: a column name occurs twice"),
        ("", "x: no usable texts: it is empty"),
        ("\n\n", "x: no usable texts: it is empty"),
        ("text,label,lang\n", "x: no usable texts: it is empty"),
    ],
)
def test_csv_that_cannot_be_trusted(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_samples(path)


def test_a_text_with_both_labels_is_left_out(jsonl: Callable[[Records], Path]) -> None:
    torn = [{"text": "torn", "label": label, "lang": "en"} for label in (0, 1)]
    elsewhere = [
        {"text": "torn", "label": 1, "lang": "de"},
        {"text": "ja", "label": 0, "lang": "de"},
    ]
    path = jsonl([torn[0], *elsewhere, torn[1], *with_rest()])
    samples = read_samples(path)
    assert sorted(samples.texts) == ["bad", "good", "ja", "torn"]
    reason = "the same text has both labels"
    assert samples.excluded == (Exclusion("x.jsonl", 1, reason), Exclusion("x.jsonl", 4, reason))
    with pytest.raises(DataError, match=rf"^x\.jsonl:1: {reason}"):
        read_samples(path, strict=True)


def test_repeated_rows_stay(jsonl: Callable[[Records], Path]) -> None:
    assert read_samples(jsonl(with_rest() * 3)).texts == ["bad"] * 3 + ["good"] * 3


@pytest.mark.parametrize(
    ("sides", "counts"),
    [
        ([(1, "en")], "1 harmful and 0 harmless"),
        ([(1, "en"), (1, "en")], "2 harmful and 0 harmless"),
        ([(1, "en"), (0, "en"), (0, "en")], "1 harmful and 2 harmless"),
        ([(1, "en"), (0, "en")] * 2, "2 harmful and 2 harmless"),
    ],
)
def test_pairs_need_one_text_of_each_label(
    jsonl: Callable[[Records], Path], sides: list[tuple[int, str]], counts: str
) -> None:
    broken = [
        {"text": f"side {i}", "label": label, "lang": lang, "pair": "p"}
        for i, (label, lang) in enumerate(sides)
    ]
    samples = read_samples(jsonl(with_rest(*broken)))
    assert samples.texts == ["bad", "good"]
    assert [e.line for e in samples.excluded] == list(range(1, len(sides) + 1))
    assert {e.reason for e in samples.excluded} == {
        f"its pair has {counts} usable texts, not 1 and 1"
    }


def test_a_pair_loses_both_sides_when_one_is_unusable(jsonl: Callable[[Records], Path]) -> None:
    pair = [{"text": "", "label": 1, "lang": "en", "pair": 4}, GOOD[0] | {"pair": "4"}]
    samples = read_samples(jsonl(with_rest(*pair)))
    assert samples.texts == ["bad", "good"]
    assert len(samples.excluded) == 2


def test_pair_ids_count_within_a_language(jsonl: Callable[[Records], Path]) -> None:
    records = [
        {"text": f"{lang} {label}", "label": label, "lang": lang, "pair": 0}
        for lang in ("de", "en")
        for label in (0, 1)
    ]
    assert read_samples(jsonl(records)).pair.tolist() == [0, 0, 1, 1]


def test_a_language_of_one_class_is_left_out(jsonl: Callable[[Records], Path]) -> None:
    alone = [{"text": f"allein {i}", "label": 1, "lang": "de"} for i in range(3)]
    path = jsonl(with_rest(*alone))
    notes: list[str] = []
    samples = read_samples(path, on_note=notes.append)
    assert samples.languages == ("en",)
    assert {e.reason for e in samples.excluded} == {"all usable de texts are harmful"}
    assert notes == ["x: 3 texts left out: 3 x all usable de texts are harmful (x.jsonl:1)"]
    with pytest.raises(DataError, match="no usable texts: 3 texts left out: 3 x all usable de"):
        read_samples(path, languages=["de"])


def test_languages_are_chosen(jsonl: Callable[[Records], Path]) -> None:
    path = jsonl([*GOOD, {"text": "", "label": "?", "lang": "fr"}])
    samples = read_samples(path, languages=["en"])
    assert samples.languages == ("en",)
    assert samples.excluded == ()
    with pytest.raises(DataError, match="x: no texts in it, sw: its languages are de, en, fr"):
        read_samples(path, languages=["en", "sw", "it"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "limit 0: expected at least 1"),
        ({"languages": "en"}, "languages 'en': expected several names"),
        ({"languages": []}, "languages: none named"),
        ({"languages": ["../en"]}, "language '../en': expected a BCP 47 name"),
        ({"revision": "main"}, "revision 'main': only a hub data set has one"),
    ],
)
def test_wrong_arguments(
    jsonl: Callable[[Records], Path], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_samples(jsonl(GOOD), **arguments)


def test_the_text_is_in_no_message(jsonl: Callable[[Records], Path]) -> None:
    secret = "unrepeatable"
    records = [
        {"text": secret, "label": 0, "lang": "en"},
        {"text": secret, "label": 1, "lang": "en"},
        {"text": f"{secret} \0", "label": 1, "lang": "en"},
        {"text": [secret], "label": 1, "lang": "en"},
        {"text": f"{secret} pair", "label": 1, "lang": "en", "pair": secret},
        {"text": f"{secret} de", "label": 1, "lang": "de"},
    ]
    notes: list[str] = []
    samples = read_samples(jsonl(with_rest(*records)), on_note=notes.append)
    assert len(samples.excluded) == len(records)
    assert secret not in f"{samples.excluded} {notes}"


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    write_jsonl_gz(cut, GOOD * 1000)
    cut.write_bytes(cut.read_bytes()[:-20])
    no_gzip = tmp_path / "no.csv.gz"
    no_gzip.write_text("text,label,lang\n")
    parquet = write_parquet(tmp_path / "x.parquet", GOOD)
    parquet.write_bytes(parquet.read_bytes()[:-20])
    for path, message in (
        (cut, "damaged gzip"),
        (no_gzip, "damaged gzip"),
        (parquet, "not a complete Parquet file, rows read: 0"),
    ):
        with pytest.raises(DataError, match=f"^{path.name}: {message}") as caught:
            read_samples(path)
        assert "\n" not in str(caught.value)


def test_importing_is_light() -> None:
    script = (
        "import sys, safetyspace_fast.data; "
        "print([m for m in ('torch', 'pyarrow', 'huggingface_hub', 'zarr') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
