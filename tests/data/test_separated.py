"""CSV, TSV and the like: delimiters and quotation marks, found and named."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from safetyspace_fast.data import read_samples
from safetyspace_fast.errors import DataError

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DELIMITERS = [",", "\t", ";", "|"]


def texts_of(path: Path, **options: str) -> list[str]:
    """The texts of a file in the order of its lines; none may be left out."""
    samples = read_samples(path, strict=True, lang="en", **options)
    placed = zip(samples.file_position.tolist(), samples.texts, strict=True)
    return [text for _, text in sorted(placed)]


def plain(path: Path, texts: Sequence[str], delimiter: str) -> Path:
    """Write texts as they are, a line each."""
    lines = [f"{text}{delimiter}{i % 2}\n" for i, text in enumerate(texts)]
    path.write_text(f"text{delimiter}label\n" + "".join(lines), newline="")
    return path


def quoted(path: Path, texts: Sequence[str], delimiter: str, quoting: int) -> Path:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter, quoting=quoting)
    writer.writerow(["text", "label"])
    writer.writerows([text, i % 2] for i, text in enumerate(texts))
    path.write_text(sink.getvalue(), newline="")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_the_delimiter_is_found(tmp_path: Path, suffix: str, delimiter: str) -> None:
    texts = ["one, two; three | four", "well", 'she said "no"', "a, b", "c"]
    path = quoted(tmp_path / f"x.{suffix}", texts, delimiter, csv.QUOTE_MINIMAL)
    assert texts_of(path) == texts


def test_the_delimiter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text^label\na, b^0\nc^1\n")
    assert texts_of(path, delimiter="^") == ["a, b", "c"]
    path.write_text("text,id;label\na, b;0\nc,d;1\n")
    for name in ("semicolon", ";"):
        assert texts_of(path, delimiter=name, text_column="text,id") == ["a, b", "c,d"]
    path.write_text("text\tlabel\na\t0\nc\t1\n")
    assert texts_of(path, delimiter="\\t") == texts_of(path, delimiter="tab") == ["a", "c"]


def test_tweets_in_a_tsv_keep_their_quotation_marks_and_lines(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(20)]
    texts[3], texts[7], texts[11] = '"Wait, text 3', 'text 7 Bye"', 'he said "so"'
    assert texts_of(plain(tmp_path / "x.tsv", texts, "\t")) == texts


WORDS = st.lists(
    st.text(alphabet='ab" ,', min_size=1, max_size=6).filter(lambda text: text.strip()),
    min_size=2,
    max_size=12,
)


@FUZZ
@given(texts=WORDS)
@example(texts=['"a', 'b"', "c", "d"])
@example(texts=['"a', "b", 'c"', "d"])
def test_no_line_of_a_tsv_without_quoting_vanishes(tmp_path: Path, texts: list[str]) -> None:
    path = plain(tmp_path / "x.tsv", [f"{i} {text}" for i, text in enumerate(texts)], "\t")
    samples = read_samples(path, lang="en")
    assert len(samples) + len(samples.excluded) == len(texts)
    path = plain(tmp_path / "x.tsv", ["x", "y", *texts], "\t")
    samples = read_samples(path, lang="en")
    assert len(samples) + len(samples.excluded) == 2 + len(texts)


LONG = st.lists(
    st.text(alphabet='ab",;|\t\n', min_size=1, max_size=8).filter(lambda text: text.strip()),
    min_size=4,
    max_size=8,
    unique=True,
)


@FUZZ
@given(texts=LONG, delimiter=st.sampled_from(DELIMITERS))
def test_what_a_csv_writer_wrote_is_read_back_if_quoting_is_named(
    tmp_path: Path, texts: list[str], delimiter: str
) -> None:
    path = quoted(tmp_path / "x.csv", texts, delimiter, csv.QUOTE_ALL)
    options = {"delimiter": delimiter, "quoting": "csv"}
    assert texts_of(path, **options) == texts


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_quoting_is_found_where_it_is_proved(tmp_path: Path, delimiter: str, quoting: int) -> None:
    texts = ["Dear sir,\nthanks.\n\nBye; bye", 'a "word" in it', "plain", "a | b, c", '"all"']
    suffix = "tsv" if delimiter == "\t" else "csv"
    assert texts_of(quoted(tmp_path / f"x.{suffix}", texts, delimiter, quoting)) == texts


def test_lines_that_quoting_joins_are_said(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(8)]
    texts[2], texts[5] = '"Wait', 'Bye"'
    path = plain(tmp_path / "x.csv", texts, ",")
    notes: list[str] = []
    assert texts_of(path) == texts
    path.write_text(path.read_text() + "a line, of another width,1\n")
    samples = read_samples(path, lang="en", on_note=notes.append)
    assert len(samples) == 5
    assert notes[:1] == [
        "x.csv: 3 lines were joined into others, as quotation marks enclose them; --quoting none "
        "if each line is a row"
    ]
    assert len(read_samples(path, lang="en", quoting="none")) == len(texts)


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_a_list_of_prompts_loses_no_line(tmp_path: Path, suffix: str) -> None:
    lines = ['say "a"', '"open', "plain, with a comma", 'close"', "end"]
    path = tmp_path / f"prompts.{suffix}"
    path.write_text("".join(f"{line}\n" for line in lines))
    other = tmp_path / "other.txt"
    other.write_text("kind\n")
    options = {"delimiter": "tab"} if suffix == "csv" else {}
    samples = read_samples(
        [f"harmful={path}", f"harmless={other}"], text_column="1", lang="en", **options
    )
    assert {t for t, y in zip(samples.texts, samples.labels, strict=True) if y} == set(lines)


def test_quotation_marks_that_enclose_nothing_are_a_part_of_the_text(tmp_path: Path) -> None:
    texts = ['"never closed', "x", 'he said "so"', "y"]
    path = plain(tmp_path / "x.csv", texts, ",")
    notes: list[str] = []
    assert len(read_samples(path, lang="en", on_note=notes.append)) == 4
    assert notes == [
        "x.csv: read with quotation marks as part of the texts; --quoting csv if they enclose "
        "fields"
    ]
    assert texts_of(path) == texts
    with pytest.raises(DataError, match=r"^x\.csv:2: .*--quoting none"):
        texts_of(path, quoting="csv")


def test_a_long_text_in_a_csv(tmp_path: Path) -> None:
    long = "A long letter. " * 10_000
    rows = [{"text": text, "label": i % 2} for i, text in enumerate((long, "x", "y"))]
    lines = tmp_path / "en.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = quoted(tmp_path / "en.csv", [row["text"] for row in rows], ",", csv.QUOTE_MINIMAL)
    assert read_samples(table).sha256 == read_samples(lines).sha256


def test_a_quotation_mark_that_is_never_closed_is_not_held_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "en.csv"
    path.write_text('text,label\n"a, b, c,1\n' + f"{'x' * 5_000_000},0,\n" * 3)
    with pytest.raises(DataError, match=r"^en\.csv:2: a field of more than 8388608 bytes"):
        read_samples(path)


def one_class(path: Path, notes: list[str], **options: str) -> set[str]:
    """The texts of a file of harmful texts in column 1."""
    other = path.parent / "other.jsonl"
    other.write_text('{"1": "kind"}\n')
    samples = read_samples(
        [f"harmful={path}", f"harmless={other}"],
        text_column="1",
        lang="en",
        on_note=notes.append,
        **options,
    )
    return {t for t, y in zip(samples.texts, samples.labels, strict=True) if y}


@pytest.mark.parametrize("mark", [",", ";", " | ", "\t"])
def test_a_line_of_a_text_file_is_a_text(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "prompts.txt"
    lines = [f"do this{mark}then that {i}" for i in range(4)]
    lines.insert(1, "a line without it" if mark == "\t" else "")
    path.write_text("\n".join(lines))
    assert one_class(path, []) == set(filter(None, lines))
    path.write_text("\n".join(f"{i}\tx" for i in range(4)))
    assert one_class(path, []) == set("0123")


def test_columns_that_are_not_read_are_said(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("do this; then that\nand so; on\n")
    notes: list[str] = []
    assert one_class(path, notes) == {"do this", "and so"}
    assert (
        "prompts.csv: lines are split at each semicolon, and only the first of 2 columns is read; "
        "--delimiter tab if each line is one text" in notes
    )
    notes.clear()
    assert one_class(path, notes, delimiter="tab") == {"do this; then that", "and so; on"}
    assert not any("split at" in note for note in notes)


def test_commas_in_a_table_of_one_column_are_advised(tmp_path: Path) -> None:
    path = tmp_path / "goals.csv"
    path.write_text("goal\ndo this, then that\nand so, on\n")
    with pytest.raises(
        DataError, match=r"2 x 2 fields where the header has 1 .--delimiter tab if each line is one"
    ):
        read_samples(f"harmful={path}", text_column="goal", lang="en")
