"""Files as streams of rows: JSON Lines, CSV, TSV and Parquet."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import DataError, first_line

MAX_LINE_BYTES = 8 << 20
"""More than any model reads at once; a longer line is damage or an attack."""
MAX_ROWS = 10_000_000
"""About 4 GiB of rows in memory, and days of extraction."""
MAX_ROW_GROUP_BYTES = 1 << 30
"""The largest unpacked size that a Parquet row group may declare."""
MAX_UNPACKING_BYTES = 5 * MAX_ROW_GROUP_BYTES
"""Memory for unpacking. Arrow takes 2.4 to 4.6 times the declared size; more means a false size."""
PARQUET_BATCH_ROWS = 256

COLUMNS = ("text", "label", "toxic", "lang", "pair", "item", "toxic_sentence", "neutral_sentence")
"""The columns that are read, in any format; others are ignored."""

Record = dict[str, Any] | str
"""A row's values by column, of whatever type the file gives; or why the row cannot be read."""


def split_format(name: str) -> tuple[str, str | None]:
    """Split a file name into stem and format: "jsonl", "csv", "tsv", "parquet", or None."""
    stem, _, suffix = name.removesuffix(".gz").rpartition(".")
    suffix = suffix.lower()
    if stem and (suffix in ("jsonl", "csv", "tsv") or (suffix == "parquet" and name[-3:] != ".gz")):
        return stem, suffix
    return name, None


def read_records(path: Path, file_name: str) -> Iterator[tuple[int, Record]]:
    """Stream the rows of one file.

    Args:
        path: the file.
        file_name: its name in messages.

    Yields:
        (line, record); lines (in Parquet, rows) are counted from 1.

    Raises:
        DataError: the rest of the file cannot be trusted; the message names file and line.
    """
    _, kind = split_format(path.name)
    try:
        if kind == "parquet":
            yield from _parquet(path, file_name)
            return
        # GzipFile and BufferedReader both read bytes; typeshed gives them no common line type.
        with cast(BinaryIO, (gzip.open if path.suffix == ".gz" else open)(path, "rb")) as file:
            if kind == "jsonl":
                yield from _json_lines(file)
            else:
                yield from _separated(file, "\t" if kind == "tsv" else ",", file_name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file_name}: damaged gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"{file_name}: cannot be read ({error.strerror or error})") from error


def _json_lines(file: BinaryIO) -> Iterator[tuple[int, Record]]:
    decode = json.JSONDecoder(object_pairs_hook=_unique_keys).decode
    line = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        if len(raw) > MAX_LINE_BYTES:
            while not raw.endswith(b"\n") and (raw := file.readline(MAX_LINE_BYTES)):
                pass
            yield line, f"line of more than {MAX_LINE_BYTES} bytes"
            continue
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.isspace():
            continue
        try:
            record = decode(raw.decode())
        except UnicodeDecodeError:
            yield line, "broken UTF-8"
        except _RepeatedKeyError:
            yield line, "a key occurs twice in the object"
        except json.JSONDecodeError as error:
            yield line, f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        except (ValueError, RecursionError):  # a number of thousands of digits; too deep nesting
            yield line, "not JSON that can be read"
        else:
            yield line, record if isinstance(record, dict) else "not a JSON object"


class _RepeatedKeyError(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise _RepeatedKeyError
    return record


def _separated(file: BinaryIO, delimiter: str, file_name: str) -> Iterator[tuple[int, Record]]:
    reader = csv.reader(_decoded_lines(file, file_name), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error).replace("\t", "\\t")
            raise DataError(
                f"{file_name}:{line}: {reason}: double the quotes inside a quoted field, "
                "or write JSON Lines"
            ) from error
        if not fields:  # a blank line
            continue
        if header is None:
            header = fields
            if len(set(header)) < len(header):
                raise DataError(f"{file_name}:{line}: a column name occurs twice: rename one")
        elif len(fields) == len(header):
            yield line, dict(zip(header, fields, strict=True))
        else:
            yield line, f"{len(fields)} fields where the header has {len(header)}"


def _decoded_lines(file: BinaryIO, file_name: str) -> Iterator[str]:
    """Decode line by line; bytes that are not UTF-8 become surrogates, refused later."""
    line = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        if len(raw) > MAX_LINE_BYTES:
            raise DataError(
                f"{file_name}:{line}: line of more than {MAX_LINE_BYTES} bytes: shorten it"
            )
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        yield raw.decode(errors="surrogateescape")


def _parquet(path: Path, file_name: str) -> Iterator[tuple[int, Record]]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    held_before = pyarrow.total_allocated_bytes()
    try:
        schema = pyarrow.parquet.read_schema(path)
        if len(set(schema.names)) < len(schema.names):
            raise DataError(f"{file_name}: a column name occurs twice: rename one")
        names = [name for name in schema.names if name in COLUMNS]
        others = dict.fromkeys(name for name in schema.names if name not in COLUMNS)
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
