"""JSON arrays and objects, packed files and encodings."""

import contextlib
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safetyspace_fast.data import json_rows, read_samples, unpack
from safetyspace_fast.errors import DataError

ROWS = [{"text": f"t{i} é\n\U0001f600", "label": i % 2, "lang": "en", "n": i} for i in range(6)]
TEXTS = [row["text"] for row in ROWS]


def texts_of(path: Path) -> list[str]:
    samples = read_samples(path, strict=True)
    placed = zip(samples.file_position.tolist(), samples.texts, strict=True)
    return [text for _, text in sorted(placed)]


FORMS: dict[str, Callable[[], str]] = {
    "array": lambda: json.dumps(ROWS),
    "indented array": lambda: json.dumps(ROWS, indent=2),
    "array, a row a line": lambda: "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "array behind blank lines": lambda: "\n \n" + json.dumps(ROWS) + "\n\n",
    "JSON Lines": lambda: "".join(json.dumps(row) + "\n" for row in ROWS),
}
OBJECTS: dict[str, Callable[[], str]] = {
    "array in an object": lambda: json.dumps({"version": 1.5, "data": ROWS, "size": 6}),
    "columns": lambda: json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "columns by number": lambda: json.dumps(
        {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}
    ),
    "columns and an array": lambda: json.dumps({"langs": ["en"], "data": ROWS, "n": [1, 2]}),
    "object of objects": lambda: json.dumps({str(i): row for i, row in enumerate(ROWS)}, indent=1),
}


@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "json.gz"])
@pytest.mark.parametrize("form", FORMS)
def test_json_in_several_forms(tmp_path: Path, form: str, suffix: str) -> None:
    data = FORMS[form]().encode()
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert texts_of(path) == TEXTS


@pytest.mark.parametrize("form", OBJECTS)
def test_objects_that_hold_records(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(OBJECTS[form]())
    assert texts_of(path) == TEXTS


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_json_is_read_alike_however_it_is_cut(tmp_path: Path, data: st.DataObject) -> None:
    """Values may go on behind any piece that is read of the file."""
    form = data.draw(st.sampled_from([*FORMS, *OBJECTS]))
    text = {**FORMS, **OBJECTS}[form]().encode()
    path = tmp_path / "x.json"
    path.write_bytes(text)

    class Cut(io.BytesIO):
        def readline(self, limit: int | None = -1, /) -> bytes:
            most = len(text) if limit is None or limit < 0 else limit
            return super().readline(min(most, rng.randint(1, 40)) if cut else most)

    cut = False
    rng = random.Random(data.draw(st.integers(0, 10**6)))

    def read() -> list[tuple[int, dict[str, Any] | str]]:
        def opened() -> contextlib.nullcontext[Cut]:
            return contextlib.nullcontext(Cut(text))

        return list(json_rows.read_json(opened, "x", lines_only=False, on_note=pytest.fail))

    whole = read()
    cut = not form.startswith("JSON")
    assert read() == whole
    assert [record["text"] for _, record in whole if isinstance(record, dict)] == TEXTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a", "label": 0}', "not complete JSON"),
        ('[{"text": "a", "lab', "not complete JSON"),
        ('[{"text": "a", "label": 0}] [', "text behind the end"),
        ('[{"text": "a" "label": 0}]', "not complete JSON"),
        ("[" * 100_000, "not JSON that can be read"),
        (
            '{"a": [{"text": "a", "label": 0}], "b": [{"text": "b", "label": 1}]}',
            "more than one place",
        ),
        ('{"text": ["a", "b"], "label": [0]}', "an object without records"),
        ('{"text": [], "label": []}', "no usable texts: it is empty"),
        ('{"version": 1}', "an object without records"),
        ("{}", "an object without records"),
        ("[]", "no usable texts: it is empty"),
        ("[1, [2], null]", "3 x not a JSON object"),
        ('[{"text": "a", "label": 0, "label": 1}]', "1 x a key occurs twice"),
    ],
)
def test_json_that_holds_no_records(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "en.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_samples(path)
    assert str(caught.value).isprintable()


def test_a_record_of_an_array_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(json_rows, "_CHUNK_BYTES", 100)
    path = tmp_path / "en.json"
    path.write_text(json.dumps([{"text": "a", "label": 0}, {"text": "b" * 3000, "label": 1}]))
    with pytest.raises(DataError, match=r"^en\.json:2: not JSON, or a record of more than 1000"):
        read_samples(path)


def zipped(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


TABLE = "text,label\na,0\nb,1\n"


@pytest.mark.parametrize("inside", ["train.csv", "folder/x.CSV", "x.txt"])
def test_a_zip_of_one_file(tmp_path: Path, inside: str) -> None:
    table = TABLE.replace(",", "\t") if inside.endswith("txt") else TABLE
    hidden = {"__MACOSX/._train.csv": "x", ".DS_Store": "x"}
    path = zipped(tmp_path / "en.zip", {inside: table, **hidden})
    assert texts_of(path) == ["a", "b"]
    named = zipped(tmp_path / "en.csv.zip", {"train.csv": TABLE})
    assert read_samples(named).languages == ("en",)


def test_packed_files_in_a_folder(tmp_path: Path) -> None:
    zipped(tmp_path / "en.csv.zip", {"train.csv": TABLE})
    (tmp_path / "de.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    assert read_samples(tmp_path).languages == ("de", "en")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "a zip of 0 files, expected one"),
        ({"a.csv": TABLE, "b.csv": TABLE}, "a zip of 2 files, expected one data file: unpack it"),
        ({"a.parquet": "x"}, "unknown file format"),
        ({"a.xlsx": "x"}, "unknown file format"),
    ],
)
def test_zips_that_are_refused(tmp_path: Path, members: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_samples(zipped(tmp_path / "en.zip", members))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "en.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.csv", b"\n" * (unpack.MIN_ZIP_BOMB_BYTES + 1))
    with pytest.raises(DataError, match=r"^en\.zip: unpacks to 67108865 bytes, 200 times its size"):
        read_samples(path)


def test_a_zip_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    size = 1_000_000
    path = zipped(tmp_path / "en.zip", {"x.csv": TABLE + "x,1\n" * (size // 4)})
    data = path.read_bytes()
    lie = data.replace((len(TABLE) + size).to_bytes(4, "little"), (24).to_bytes(4, "little"))
    assert lie != data
    path.write_bytes(lie)
    with pytest.raises(DataError, match=r"^en\.zip: damaged zip file"):
        read_samples(path)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "en.zip", {"x.csv": TABLE})
    data = bytearray(path.read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + flags] |= 1
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"^en\.zip: cannot be unpacked, as it is damaged, encrypted"
    ):
        read_samples(path)


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_encodings_that_are_read(tmp_path: Path, suffix: str, encoding: str) -> None:
    rows = [{"text": f"é\u4e0a\U0001f600 {i}", "label": i % 2} for i in range(4)]
    text = {
        "csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows),
        "json": json.dumps(rows, ensure_ascii=False),
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }[suffix.removesuffix(".gz")]
    data = text.encode(encoding)
    path = tmp_path / f"en.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert texts_of(path) == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-32", "its encoding is UTF-32: save it as UTF-8"),
        ("utf-16-le", "its encoding is UTF-16LE without a byte order mark"),
        ("utf-16-be", "its encoding is UTF-16BE without a byte order mark"),
        ("cp1252", "4 of 4 rows are not UTF-8, perhaps Windows-1252: save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_encodings_that_are_named(tmp_path: Path, encoding: str, message: str, suffix: str) -> None:
    rows: list[dict[str, Any]] = [{"text": f"é {i}", "label": i % 2} for i in range(4)]
    text = {
        "csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows),
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }[suffix]
    path = tmp_path / f"en.{suffix}"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=rf"^en\.{suffix}: {message}"):
        read_samples(path)


def test_broken_utf16(tmp_path: Path) -> None:
    path = tmp_path / "en.csv"
    path.write_bytes(("text,label\n" + "a,1\n" * 9).encode("utf-16") + b"\x00\xd8\x01")
    with pytest.raises(DataError, match=r"^en\.csv: broken UTF-16"):
        read_samples(path)


def test_json_beside_tables_is_about_them(tmp_path: Path) -> None:
    (tmp_path / "en.csv").write_text(TABLE)
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert sorted(read_samples(tmp_path).texts) == ["a", "b"]


ABOUT: dict[str, dict[str, Any]] = {
    "object before": {"info": {"name": "x", "text": "about"}, "data": ROWS},
    "several before": {"version": 1, "meta": {"n": 3}, "data": ROWS, "more": {"a": {}}},
    "other array before": {"citations": [{"doi": "x"}] * 9, "data": ROWS},
    "other array behind": {"data": ROWS, "citations": [{"doi": "x"}] * 9},
    "longest": {"examples": ROWS[:2], "data": ROWS},
    "splits": {"train": ROWS[:4], "info": {"n": 6}, "test": ROWS[4:]},
    "splits in an object": {"meta": {"a": 1}, "data": {"n": 6, "train": ROWS[:4], "dev": ROWS[4:]}},
    "columns and an array of objects": {
        **{name: [row[name] for row in ROWS] for name in ROWS[0]},
        "citations": [{"doi": "x"}],
    },
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", ABOUT)
def test_records_beside_what_is_said_about_them(
    tmp_path: Path, form: str, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK_BYTES", 8)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(ABOUT[form], indent=indent))
    notes: list[str] = []
    samples = read_samples(path, strict=True, on_note=notes.append)
    assert sorted(samples.texts) == TEXTS
    assert sorted(samples.file_position) == list(range(6))
    said = {
        "longest": "x.json: only the records of 'data' are read, of 'examples' (2), 'data' (6)",
        "splits": "x.json: splits read together: 'train' (4), 'test' (2) records",
        "splits in an object": "x.json: splits read together: 'data.train' (4), 'data.dev' (2)",
    }
    assert any(note.startswith(said[form]) for note in notes) if form in said else not notes


def test_a_named_column_tells_records(tmp_path: Path) -> None:
    rows = [{"tweet": row["text"], "label": row["label"]} for row in ROWS]
    path = tmp_path / "en.json"
    path.write_text(json.dumps({"authors": [{"text": "x", "label": 0}] * 9, "data": rows}))
    assert sorted(read_samples(path, text_column="tweet").texts) == TEXTS


@pytest.mark.parametrize("names", [("en", "de"), ("harmful", "harmless")])
def test_no_language_or_class_of_an_object_is_left_out(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    path = tmp_path / "en.json"
    path.write_text(json.dumps({names[0]: ROWS, names[1]: ROWS[:2]}))
    with pytest.raises(DataError, match=rf"in more than one place .*'{names[0]}' \(6\).*: write"):
        read_samples(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "jsonl", "json", "csv.gz"])
def test_lines_that_end_in_a_carriage_return(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"x.{suffix}"
    kind = suffix.removesuffix(".gz")
    mark = "," if kind == "csv" else "\t"
    rows = [f"é{i}{mark}{i % 2}" for i in range(4)]
    if kind.startswith("json"):
        rows = [json.dumps({"text": f"é{i}", "label": i % 2}) for i in range(4)]
    else:
        rows.insert(0, f"text{mark}label")
    for end in ("\r", "\n", "\r\n"):
        data = "".join(f"{row}{end}" for row in rows).encode(encoding)
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        samples = read_samples(path, strict=True, lang="en")
        assert sorted(samples.texts) == [f"é{i}" for i in range(4)]
