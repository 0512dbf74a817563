"""Files as streams of rows: JSON, separated text and Parquet."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..config import Quoting
from ..errors import DataError, first_line
from .json_rows import TEXT_COLUMNS, read_json
from .separated import read_separated
from .unpack import inside_zip, open_lines

MAX_ROWS = 10_000_000
"""About 4 GiB of rows in memory, and days of extraction."""
MAX_ROW_GROUP_BYTES = 1 << 30
"""The largest unpacked size that a Parquet row group may declare."""
MAX_UNPACKING_BYTES = 5 * MAX_ROW_GROUP_BYTES
"""Memory for unpacking. Arrow takes 2.4 to 4.6 times the declared size; more means a false size."""
PARQUET_BATCH_ROWS = 256

FORMATS = ".jsonl, .json, .csv, .tsv (each also .gz or .zip) or .parquet"
PACKED = ("", ".gz", ".zip")
KINDS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "csv": "csv", "tsv": "tsv"}
_DEFAULT_DELIMITERS = {"csv": ",", "tsv": "\t", "txt": "\t"}

Record = dict[str, Any] | str
"""A row's values by column, of whatever type the file gives; or why the row cannot be read."""


class Form(NamedTuple):
    """What was said of how files are to be read.

    columns: those that may be read; of Parquet files, others are not.
    named: those of them that an option names.
    delimiter: of separated text; None: found.
    quoting: of separated text: `auto`, `csv` or `none`.
    """

    columns: frozenset[str]
    named: tuple[str, ...] = ()
    delimiter: str | None = None
    quoting: Quoting = "auto"

    def reads_only(self, number: str) -> bool:
        """Whether columns are numbered, and only this one is read."""
        return {*self.named} == {number} == {*filter(str.isdecimal, self.columns)}


def split_format(name: str) -> tuple[str, str | None]:
    """Split a file name into stem and format, which is None for what is no data file.

    "jsonl", "json", "csv", "tsv" or "parquet".
    """
    packed = name[-3:].lower() == ".gz" or name[-4:].lower() == ".zip"
    stem, _, suffix = (name.rpartition(".")[0] if packed else name).rpartition(".")
    kind = KINDS.get(suffix.lower(), "parquet" if suffix.lower() == "parquet" else None)
    if not stem or kind is None or (kind == "parquet" and packed):
        return name, None
    return stem, kind


def format_of(path: Path, file_name: str) -> tuple[str, str | None]:
    """Stem and format of a file that was named by itself: also of a `.txt` and of any `.zip`.

    Raises:
        DataError: a zip of no or several data files.
    """
    stem, kind = split_format(path.name)
    if kind is None and path.suffix.lower() == ".zip":
        inner = Path(inside_zip(path, file_name)).name
        kind = split_format(inner)[1] or ("txt" if inner.lower().endswith(".txt") else None)
        return path.stem, None if kind == "parquet" else kind
    plain = path.name.removesuffix(".gz")
    if kind is None and plain.lower().endswith(".txt"):
        return Path(plain).stem, "txt"
    return stem, kind


def read_records(
    path: Path, file_name: str, form: Form, on_note: Callable[[str], None]
) -> Iterator[tuple[int, Record]]:
    """Stream the rows of one file.

    Args:
        path: the file.
        file_name: its name in messages.
        form: how it is read.
        on_note: called with a line where a file can be read in two ways.

    Yields:
        (line, record); lines are counted from 1. Rows of Parquet files and objects of a JSON array
        are counted instead.

    Raises:
        DataError: the rest of the file cannot be trusted; the message names file and line.
    """
    _, kind = format_of(path, file_name)
    if kind == "parquet":
        yield from _parquet(path, file_name, form.columns)
    elif kind in ("jsonl", "json"):
        yield from read_json(
            lambda: open_lines(path, file_name),
            file_name,
            lines_only=kind == "jsonl",
            wanted=frozenset(name.partition(".")[0] for name in form.named) or TEXT_COLUMNS,
            on_note=on_note,
        )
    else:
        yield from read_separated(
            lambda: open_lines(path, file_name),
            file_name,
            default=_DEFAULT_DELIMITERS[cast(str, kind)],
            delimiter=form.delimiter,
            quoting=form.quoting,
            named=form.named,
            lines_are_texts=kind == "txt" and form.reads_only("1"),
            on_note=on_note,
        )


def _parquet(path: Path, file_name: str, asked: frozenset[str]) -> Iterator[tuple[int, Record]]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    held_before = pyarrow.total_allocated_bytes()
    try:
        schema = pyarrow.parquet.read_schema(path)
        if len(set(schema.names)) < len(schema.names):
            raise DataError(f"{file_name}: a column name occurs twice: rename one")
        wanted = {*asked, *(name.split(".")[0] for name in asked)}
        names = [name for name in schema.names if name in wanted]
        others = dict.fromkeys(name for name in schema.names if name not in wanted)
        # Text stays dictionary-encoded: a string repeated a million times is in memory once.
        texts = [name for name in names if _is_text(schema.field(name).type)]
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            _refuse_bomb(file.metadata, file_name)
            if not names and file.metadata.num_rows:
                yield 1, others
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=names):
                if pyarrow.total_allocated_bytes() - held_before > MAX_UNPACKING_BYTES:
                    raise DataError(f"{file_name}:{row + 1}: unpacks to more than its footer says")
                columns = [_values(column) for column in batch.columns]
                for values in zip(*columns, strict=True):
                    row += 1
                    yield row, dict(zip(batch.schema.names, values, strict=True)) | others
    # Arrow raises OSError for damage too, and UnicodeDecodeError for names that are not UTF-8.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = ascii(first_line(error))
        raise DataError(
            f"{file_name}: not a complete Parquet file, rows read: {row} ({reason})"
        ) from error


def _is_text(dtype: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(dtype):
        dtype = dtype.value_type
    kinds = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(is_kind(dtype) for is_kind in kinds)


def _refuse_bomb(metadata: Any, file_name: str) -> None:
    if metadata.num_rows > MAX_ROWS:
        raise DataError(
            f"{file_name}: {metadata.num_rows} rows, at most {MAX_ROWS}: split the data"
        )
    # Not the sizes of single columns: asking for them crashes the process on damaged metadata.
    for i_group in range(metadata.num_row_groups):
        size = metadata.row_group(i_group).total_byte_size
        if size > MAX_ROW_GROUP_BYTES:
            raise DataError(
                f"{file_name}: row group {i_group} unpacks to {size} bytes, at most "
                f"{MAX_ROW_GROUP_BYTES} are read: write smaller row groups"
            )


def _values(column: Any) -> list[Any]:
    from pyarrow import large_binary, types

    if not types.is_dictionary(column.type) or not _is_text(column.type):
        return cast(list[Any], column.to_pylist())
    used = column.indices.drop_null().unique()
    # Through bytes, since Arrow may hold strings that are not UTF-8.
    raw = column.dictionary.take(used).cast(large_binary()).to_pylist()
    words = [None if word is None else word.decode(errors="surrogateescape") for word in raw]
    word_at = dict(zip(used.to_pylist(), words, strict=True))
    return [word_at.get(i) for i in column.indices.to_pylist()]
