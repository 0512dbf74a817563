"""Files that are random, enormous or made to harm: a clear error or a listed exclusion."""

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from safetyspace_fast.data import (
    Samples,
    checks,
    formats,
    json_rows,
    read,
    read_samples,
    separated,
    unpack,
)
from safetyspace_fast.data.columns import RECOGNISED
from safetyspace_fast.data.read import MAX_LANGUAGES
from safetyspace_fast.errors import ConfigError, DataError

SUFFIXES = [
    *("jsonl", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz"),
    *("json", "csv.zip", "utf16.csv", "quoted.tsv"),
]

# The folder is reused between examples: each overwrites the file.
FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["0", "1", "en", "de", "", "a", "b", "\ud800", "\0", "\u202e"]),
    st.text(),
    st.lists(st.integers(), max_size=2),
)
RECORDS = st.lists(st.dictionaries(st.sampled_from([*RECOGNISED, "other"]), VALUES), max_size=12)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.one_of(st.sampled_from(["a", "b", "c", "é"]), VALUES),
            "label": st.sampled_from([0, 1, True, "0", None]),
            "lang": st.sampled_from(["en", "de", "pt-BR"]),
        },
        optional={"pair": st.sampled_from([None, "p", "q", 1]), "item": st.sampled_from([1, "i"])},
    ),
    max_size=40,
)


# Options that fit the files below, and some that fit none.
DATA_OPTIONS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "text_column": st.sampled_from(["text", ("x", "text"), "txet", "1", "text.a"]),
        "label_column": st.sampled_from(["label", ("label", "pair"), "2", "lang"]),
        "harmful": st.sampled_from(["1", ("1", "OFF"), ">=1", "label>0.5", "en", ("label", "2")]),
        "harmless": st.sampled_from(["0", ("0", "NOT"), "<1", "label<=0.5", "pair==1"]),
        "lang": st.sampled_from(["en", "../x"]),
        "lang_column": st.sampled_from(["lang", "text", "3"]),
        "split": st.sampled_from(["fuzz", "train"]),
        "delimiter": st.sampled_from(["comma", "tab", ";", "\0", "é"]),
        "quoting": st.sampled_from(["auto", "csv", "none"]),
        "languages": st.sampled_from([("en",), ("eng", "de")]),
    },
)


def check_error(error: Exception) -> None:
    message = str(error)
    assert message
    assert message.isprintable(), ascii(message)
    assert "fuzz" in message or isinstance(error, ConfigError)


def read_or_refuse(path: Path, options: dict[str, Any] | None = None) -> Samples | None:
    """Read a file; anything but samples in order or an error of one line fails."""
    notes: list[str] = []
    try:
        samples = read_samples(path, on_note=notes.append, **options or {})
    except (ConfigError, DataError) as error:
        check_error(error)
        return None
    assert all(note.isprintable() and "fuzz" in note for note in notes), ascii(notes)
    assert len(samples) >= 2
    for lang in samples.languages:
        assert set(samples.labels[samples.lang_range(lang)].tolist()) == {0, 1}
    for text, digest in zip(samples.texts, samples.text_sha256, strict=True):
        assert text.strip()
        assert hashlib.sha256(text.encode()).digest() == digest.tobytes()
    assert all(e.file == path.name and e.line > 0 and e.reason for e in samples.excluded)
    return samples


@pytest.mark.parametrize("suffix", [*SUFFIXES, "txt", "zip"])
@FUZZ
@given(data=st.binary(max_size=400))
@example(data=b"text,label,lang\n\xff,0,en\n\0,1,en\n")
@example(data=b"text\tlabel\tlang\na\t0\ten\r\nb\t1\ten\rc\t1\ten\n")
@example(data=b'""\0')
@example(data=b"\xff\xfet\0e\0x\0t\0")
def test_random_bytes(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"fuzz.{suffix}"
    path.write_bytes(data)
    read_or_refuse(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@FUZZ
@given(rows=st.text(alphabet=list('"\n\r,\t01aé\0\u202e\ud800'), max_size=80))
def test_random_rows_below_a_good_header(tmp_path: Path, suffix: str, rows: str) -> None:
    path = tmp_path / f"fuzz.{suffix}"
    header = "text,label\nx,0\ny,1\n".replace(",", "," if suffix == "csv" else "\t")
    path.write_bytes((header + rows).encode(errors="surrogatepass"))
    read_or_refuse(path)


@FUZZ
@given(records=RECORDS)
def test_random_json(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    path = tmp_path / "fuzz.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    read_or_refuse(path)


@FUZZ
@given(rows=ROWS)
def test_every_row_is_kept_or_listed(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "fuzz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = read_or_refuse(path)
    if samples is not None:
        kept = samples.file_position.tolist()
        left_out = [exclusion.line - 1 for exclusion in samples.excluded]
        assert sorted(kept + left_out) == list(range(len(rows)))
        assert [rows[i]["text"] for i in kept] == samples.texts


@FUZZ
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@example(place=313.5 / 998, flip=1)  # damage at which asking for a column's size aborts
def test_flipped_bytes_in_parquet(tmp_path: Path, place: float, flip: int) -> None:
    path = tmp_path / "fuzz.parquet"
    rows = {"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1], "lang": ["en"] * 4}
    pyarrow.parquet.write_table(pyarrow.table(rows), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= flip
    path.write_bytes(data)
    read_or_refuse(path)


def edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Flip, put in, cut out, repeat or end somewhere."""
    for kind, place, piece in edits:
        at = int(place * len(data))
        stop = at + len(piece)
        change = {
            "flip": bytes(a ^ b for a, b in zip(data[at:stop], piece, strict=False)) + data[stop:],
            "insert": piece + data[at:],
            "delete": data[stop:],
            "repeat": data[at:stop] * 2 + data[stop:],
            "end": b"",
        }
        data = data[:at] + change[kind]
    return data


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "repeat", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=12),
            st.sampled_from(
                [b"\0", b"\n", b'"', b",", b"\t", b"\\ud800", b"\xff", b"\xe2\x80\xae"]
            ),
        ),
    ),
    max_size=4,
)
FEW_ROWS = {
    "text": ["a", 'b "c", d', "e\nf", "é\u202e", "g", "h"],
    "label": [0, 1, 0, 1, 0, 1],
    "lang": ["en"] * 4 + ["de"] * 2,
    "pair": ["p", "p", None, None, "q", "q"],
}


def good_file(suffix: str) -> bytes:
    rows = [dict(zip(FEW_ROWS, row, strict=True)) for row in zip(*FEW_ROWS.values(), strict=True)]
    if suffix == "json":
        return json.dumps({"data": rows, "n": 6.5}, indent=1).encode()
    if suffix == "parquet":
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(FEW_ROWS), sink, compression="zstd")
        return sink.getvalue()
    text = io.StringIO(newline="")
    if suffix.startswith("jsonl"):
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        quoting = csv.QUOTE_ALL if suffix == "quoted.tsv" else csv.QUOTE_MINIMAL
        delimiter = "\t" if suffix.endswith("tsv") else ","
        writer = csv.DictWriter(text, FEW_ROWS, delimiter=delimiter, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode("utf-16" if suffix == "utf16.csv" else "utf-8")
    if suffix == "csv.zip":
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
            members.writestr(zipfile.ZipInfo("train.csv"), data)
        return archive.getvalue()
    return gzip.compress(data, mtime=0) if suffix.endswith("gz") else data


def read_edited(
    folder: Path, suffix: str, edits: list[tuple[str, float, bytes]], options: dict[str, Any]
) -> None:
    """Whatever is read of an edited file stands there, in the line that the samples name."""
    path = folder / f"fuzz.{suffix}"
    data = edited(good_file(suffix), edits)
    path.write_bytes(data)
    samples = read_or_refuse(path, options)
    if samples is not None and suffix == "jsonl" and not options.keys() - {"lang", "languages"}:
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        for text, label, i_line in zip(
            samples.texts, samples.labels, samples.file_position, strict=True
        ):
            row = json.loads(lines[i_line])
            assert row["text"] == text
            assert (
                str(row.get("label", row.get("toxic"))).lower()
                in (
                    ("0", "false", "0.0", "-0.0"),
                    ("1", "true", "1.0"),
                )[label]
            )


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(FUZZ, max_examples=100)
@given(edits=EDITS, options=st.one_of(st.just({}), DATA_OPTIONS))
def test_edited_files(
    tmp_path: Path, suffix: str, edits: list[tuple[str, float, bytes]], options: dict[str, Any]
) -> None:
    read_edited(tmp_path, suffix, edits, options)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(FUZZ, max_examples=10_000)
@given(edits=EDITS, options=st.one_of(st.just({}), DATA_OPTIONS))
def test_many_edited_files(
    tmp_path: Path, suffix: str, edits: list[tuple[str, float, bytes]], options: dict[str, Any]
) -> None:
    read_edited(tmp_path, suffix, edits, options)


@pytest.mark.parametrize("other", ["EN-us", "en_US"])
def test_one_language_in_two_spellings_is_refused(tmp_path: Path, other: str) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"text": str(i), "label": i % 2, "lang": ("en-US", other)[i // 2]} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=rf"^x\.jsonl:3: lang is '{other}', earlier 'en-US': use"):
        read_samples(path)


def test_too_many_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_LANGUAGES", 3)
    path = tmp_path / "x.jsonl"
    rows = [{"text": str(i), "label": i % 2, "lang": "a" + "abcd"[i // 2]} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    assert len(read_samples(path).languages) == 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"^x\.jsonl:7: more than 3 languages"):
        read_samples(path)
    assert np.iinfo(np.int16).max > 10_000 == MAX_LANGUAGES


def test_bidirectional_overrides_are_kept_and_shown_nowhere(tmp_path: Path) -> None:
    override, isolate = "\u202edlrow olleh", "\u2067ok\u2069"
    path = tmp_path / "x.jsonl"
    rows = [
        {"text": override, "label": 1, "lang": "en"},
        {"text": isolate, "label": 0, "lang": "en"},
        {"text": "x", "label": "\u202eevil", "lang": "en"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert set(read_samples(path).texts) == {override, isolate}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="label is a value of 5 characters") as caught:
        read_samples(path)
    assert not any(unicodedata.category(c) == "Cf" for c in str(caught.value))


def test_long_lines_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checks, json_rows, separated):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 100)
    rows = [{"text": "x" * n, "label": n % 2, "lang": "en"} for n in (1, 2, 70, 350, 3)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = read_samples(path)
    assert list(map(len, samples.texts)) == [1, 2, 3]
    reason = "line of more than 100 bytes"
    assert samples.excluded == (("x.jsonl", 3, reason), ("x.jsonl", 4, reason))
    path = tmp_path / "x.csv"
    path.write_text("text,label,lang\n" + "".join(f"{r['text']},{r['label']},en\n" for r in rows))
    with pytest.raises(DataError, match=r"^x\.csv:5: line of more than 100 bytes: shorten it"):
        read_samples(path)
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read_samples(path).excluded == (("x.parquet", 4, "text of more than 100 bytes"),)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    rows = [{"text": str(i), "label": i % 2, "lang": "en"} for i in range(20)]
    path = tmp_path / f"x.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for module in (formats, read):
        monkeypatch.setattr(module, "MAX_ROWS", 20)
    assert len(read_samples(path)) == 20
    for module in (formats, read):
        monkeypatch.setattr(module, "MAX_ROWS", 19)
    with pytest.raises(DataError, match=r"(more than|20 rows, at most) 19.*: split the data"):
        read_samples(path)


def test_too_much_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_TOTAL_BYTES", 1000)
    rows = [{"text": "x" * 100 + str(i % 2), "label": i % 2, "lang": "en"} for i in range(20)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"^x\.jsonl:10: over 1000 bytes of text: split the data"):
        read_samples(path)


def test_parquet_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"text": ["x" * 100_000, "y" * 100_000], "label": [0, 1], "lang": ["en", "en"]}
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table(rows), path, compression="zstd")
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(formats, "MAX_ROW_GROUP_BYTES", 300_000)
    assert len(read_samples(path)) == 2
    monkeypatch.setattr(formats, "MAX_ROW_GROUP_BYTES", 150_000)
    with pytest.raises(DataError, match=r"^x\.parquet: row group 0 unpacks to 20\d{4} bytes"):
        read_samples(path)


def test_parquet_that_unpacks_to_more_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{i:06d}" + "x" * 20_000 for i in range(2000)]
    table = pyarrow.table({"text": texts, "label": [0, 1] * 1000, "lang": ["en"] * 2000})
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    size = pyarrow.parquet.read_metadata(path).row_group(0).total_byte_size
    honest, lie = varint(2 * size), varint(2 * 1000)  # zigzag, as Thrift writes integers
    data = path.read_bytes()
    at = data.rindex(honest)
    lie = bytes([*(byte | 0x80 for byte in lie), *[0x80] * (len(honest) - len(lie) - 1), 0])
    path.write_bytes(data[:at] + lie + data[at + len(honest) :])
    assert pyarrow.parquet.read_metadata(path).row_group(0).total_byte_size == 1000
    assert len(read_samples(path)) == 2000
    monkeypatch.setattr(formats, "MAX_UNPACKING_BYTES", 25_000_000)
    with pytest.raises(DataError, match=r"^x\.parquet:\d+: unpacks to more than its footer says"):
        read_samples(path)


def varint(number: int) -> bytes:
    digits = []
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


PEAK = """
import pathlib, re, sys, time
from safetyspace_fast.data import read_samples
import pyarrow.parquet

def status(key):  # ru_maxrss would begin with what the parent process held
    return int(re.search(key + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
start = time.process_time()
try:
    result = len(read_samples(sys.argv[1]))
except ValueError as error:
    result = str(error)
print(result)
print((status("VmHWM") - before) / 1024, time.process_time() - start)
"""


def read_in_new_process(path: Path) -> tuple[str, float, float]:
    """Return the result or error, the added peak memory in MiB, and the processor seconds."""
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    answer, figures = result.stdout.splitlines()
    memory_mib, time_s = map(float, figures.split())
    return answer, memory_mib, time_s


def test_a_line_of_100_mb_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write('{"text": "good", "label": 0, "lang": "en"}\n{"text": "')
        for _ in range(100):
            file.write("x" * 1_000_000)
        file.write('", "label": 1, "lang": "en"}\n{"text": "bad", "label": 1, "lang": "en"}\n')
    answer, memory_mib, time_s = read_in_new_process(path)
    assert answer == "2"
    assert memory_mib < 64
    assert time_s < 10


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_line_of_100_mb_in_every_format(tmp_path: Path, suffix: str) -> None:
    texts = ["good", "x" * 100_000_000, "bad"]
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        table = {"text": texts, "label": [0, 1, 1], "lang": ["en"] * 3}
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    elif suffix == "csv":
        lines = [f"{text},{i},en\n" for text, i in zip(texts, (0, 1, 1), strict=True)]
        path.write_text("".join(["text,label,lang\n", *lines]))
    else:
        rows = [
            {"text": text, "label": i, "lang": "en"}
            for text, i in zip(texts, (0, 1, 1), strict=True)
        ]
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if suffix == "jsonl" else "[" + ",\n".join(lines) + "]")
    answer, memory_mib, time_s = read_in_new_process(path)
    print(f"{suffix}: {answer}, {time_s:.1f} s, {memory_mib:.0f} MiB")
    refused = {
        "csv": f"x.csv:3: line of more than {unpack.MAX_LINE_BYTES} bytes: shorten it",
        "json": f"x.json:2: not JSON, or a record of more than {unpack.MAX_LINE_BYTES} bytes: "
        "expected an array of objects, or JSON Lines",
    }
    assert answer == refused.get(suffix, "2")
    assert memory_mib < (900 if suffix == "parquet" else 64)  # Arrow and Python hold copies


@pytest.mark.slow
def test_one_long_text_repeated_in_parquet(tmp_path: Path) -> None:
    """A file of some kilobytes whose texts would fill 80 GB: refused while one copy is held."""
    words = pyarrow.array(["x" * 8_000_000, "y" * 8_000_000])
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1] * 5000, "int32"), words)
    table = pyarrow.table({"text": texts, "label": [0, 1] * 5000, "lang": ["en"] * 10_000})
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 100_000
    answer, memory_mib, _ = read_in_new_process(path)
    assert answer == "x.parquet:537: over 4294967296 bytes of text: split the data"
    assert memory_mib < 256


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_million_rows(tmp_path: Path, suffix: str) -> None:
    n = 1_000_000
    path = tmp_path / f"x.{suffix}"
    langs = ("de", "en", "fr", "zh")
    texts = [f"{'word ' * (i % 23)}{i}" for i in range(n)]
    if suffix == "parquet":
        table = {
            "text": texts,
            "label": [(i // 4) % 2 for i in range(n)],
            "lang": list(langs) * (n // 4),
        }
        pyarrow.parquet.write_table(
            pyarrow.table(table | {"pair": [f"p{i // 8}-{i % 4}" for i in range(n)]}), path
        )
    else:
        pattern = "{},{},{}\n" if suffix == "csv" else '{{"text": "{}", "label": {}, "lang": "{}"}}'
        between = {"csv": "", "jsonl": "\n", "json": ","}[suffix]
        with path.open("w") as file:
            file.write({"csv": "text,label,lang\n", "jsonl": "", "json": "["}[suffix])
            for i, text in enumerate(texts):
                file.write(between if i else "")
                file.write(pattern.format(text, (i // 4) % 2, langs[i % 4]))
            file.write("]" if suffix == "json" else "")
    answer, memory_mib, time_s = read_in_new_process(path)
    print(f"{suffix}: {answer} rows, {time_s:.1f} s, {memory_mib:.0f} MiB")
    assert answer == str(n)
    assert memory_mib < 1500
    assert time_s < 60
