"""JSON Lines, JSON arrays of objects, and JSON objects that hold records."""

import codecs
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..errors import DataError
from .unpack import MAX_LINE_BYTES, Lines

BROKEN_UTF8 = "broken UTF-8"

_CHUNK_BYTES = 1 << 16
_SPACE = " \t\r\n"

Records = Iterator[tuple[int, dict[str, Any] | str]]


def read_json(file: Lines, file_name: str, *, lines_only: bool) -> Records:
    """Stream the records of a JSON file: JSON Lines or an array of objects.

    Args:
        file: from its beginning.
        file_name: its name in messages.
        lines_only: a first line that holds an object is a record. If not, the file may also be one
            object whose values are the records or the columns, or one of whose values is the array
            of them.

    Yields:
        (line, record), as `read_records` does; in an array or object, records are counted.

    Raises:
        DataError: the rest of the file cannot be trusted.
    """
    lines = _filled_lines(file)
    first = next(lines, None)
    if first is None:
        return
    start = first[1].lstrip()[:1]
    if start == b"[":
        yield from _array(_Values(first[1], file, file_name))
        return
    if start == b"{" and not lines_only:
        second = next(lines, None) if _is_complete(first[1]) else None
        if second is None:
            yield from _object(_Values(first[1], file, file_name))
            return
        lines = chain([second], lines)
    yield from _json_lines(chain([first], lines), file)


def _filled_lines(file: Lines) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, counted from 1; of one that is too long, the beginning."""
    line = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        if not raw.isspace():
            yield line, raw


def _json_lines(lines: Iterator[tuple[int, bytes]], file: Lines) -> Records:
    decode = json.JSONDecoder(object_pairs_hook=_unique_keys).decode
    for line, raw in lines:
        if len(raw) > MAX_LINE_BYTES:
            while not raw.endswith(b"\n") and (raw := file.readline(MAX_LINE_BYTES)):
                pass
            yield line, f"line of more than {MAX_LINE_BYTES} bytes"
            continue
        try:
            record = decode(raw.decode())
        except UnicodeDecodeError:
            yield line, BROKEN_UTF8
        except _RepeatedKeyError:
            yield line, "a key occurs twice in the object"
        except json.JSONDecodeError as error:
            yield line, f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        except (ValueError, RecursionError):  # a number of thousands of digits; too deep nesting
            yield line, "not JSON that can be read"
        else:
            yield line, record if isinstance(record, dict) else "not a JSON object"


def _array(values: "_Values") -> Records:
    """The objects of an array."""
    row = 0
    for _ in values.items("[", "]"):
        row += 1
        record = values.next(row)
        if values.repeats_a_key:
            yield row, "a key occurs twice in the object"
        else:
            yield row, record if isinstance(record, dict) else "not a JSON object"
    values.finish(row)


def _object(values: "_Values") -> Records:
    """The records of an object: the array that is one of its values, the objects that are its
    values, or the rows of columns that are, which tables are written as."""
    row = 0
    array = None
    columns: dict[str, list[Any]] = {}
    for _ in values.items("{", "}"):
        name = values.key(row)
        if values.is_array_of_objects():
            if array is not None or row:
                raise values.wrong(row, "records in more than one place of an object")
            array = name
            for row, record in _array(values):
                yield row, record
            continue
        value = values.next(row + 1)
        if isinstance(value, list):
            columns[name] = value
        elif isinstance(value, dict) and value and all(map(str.isdecimal, value)):
            columns[name] = list(value.values())
        elif isinstance(value, dict) and array is None:
            row += 1
            yield row, "a key occurs twice in the object" if values.repeats_a_key else value
    values.finish(row)
    if row:
        return
    if not columns or len(set(map(len, columns.values()))) > 1:
        raise values.wrong(row, "an object without records")
    for row, fields in enumerate(zip(*columns.values(), strict=True), 1):
        yield row, dict(zip(columns, fields, strict=True))


def _is_complete(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class _RepeatedKeyError(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise _RepeatedKeyError
    return record


class _Values:
    """Decodes the values of one long JSON text in turn, each of at most MAX_LINE_BYTES.

    repeats_a_key: whether an object in the last value names a key twice.
    """

    def __init__(self, first: bytes, file: Lines, file_name: str) -> None:
        self.repeats_a_key = False
        self._file = file
        self._file_name = file_name
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._scan = json.JSONDecoder(object_pairs_hook=self._noted).raw_decode
        self._text = self._decode(first)
        self._at = 0
        self._depth = 0

    def wrong(self, row: int, reason: str) -> DataError:
        return DataError(
            f"{self._file_name}:{max(row, 1)}: {reason}: expected an array of objects, or JSON "
            "Lines"
        )

    def items(self, opening: str, closing: str) -> Iterator[None]:
        """Step through an array or object; the caller decodes what lies between two steps."""
        self._take(opening)
        self._depth += 1
        if self.peek() != closing:
            yield
            while self.peek() == ",":
                self._at += 1
                yield
        self._take(closing)
        self._depth -= 1

    def key(self, row: int) -> str:
        name = self.next(row)
        if not isinstance(name, str):
            raise self.wrong(row, "not JSON")
        self._take(":")
        return name

    def next(self, row: int) -> Any:
        """Decode the next value."""
        self.peek()
        while True:
            self.repeats_a_key = False
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MAX_LINE_BYTES:
                    raise self.wrong(
                        row, f"not JSON, or a record of more than {MAX_LINE_BYTES} bytes"
                    ) from error
                if not self._read():
                    raise self.wrong(row, "not complete JSON") from error
                continue
            except (ValueError, RecursionError) as error:
                raise self.wrong(row, "not JSON that can be read") from error
            # A number may go on behind what has been read, as 1 does in "1.", "1e" and "1e-".
            is_number = isinstance(value, int | float)
            if is_number and end >= len(self._text) - 2 and self._read():
                continue
            self._at = end
            return value

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def is_array_of_objects(self) -> bool:
        """Whether the next value is an array whose first entry is an object."""
        if self.peek() != "[":
            return False
        while True:
            inside = self._text[self._at + 1 : self._at + 1 + _CHUNK_BYTES].lstrip(_SPACE)
            if inside or len(self._text) - self._at > _CHUNK_BYTES or not self._read():
                return inside[:1] == "{"

    def finish(self, row: int) -> None:
        """Check that nothing follows the outermost value."""
        if not self._depth and self.peek():
            raise self.wrong(row, "text behind the end of the array or object")

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise self.wrong(0, f"not complete JSON: no {character!r} where one belongs")
        self._at += 1

    def _read(self) -> bool:
        """Read on, twice as far as what waits to be decoded; drop what has been decoded."""
        rest = self._text[self._at :]
        pieces = [rest]
        wanted = max(_CHUNK_BYTES, len(rest))
        while wanted > 0 and (raw := self._file.readline(wanted)):
            pieces.append(self._decode(raw))
            wanted -= len(raw)
        if len(pieces) == 1:
            return False
        self._text, self._at = "".join(pieces), 0
        return True

    def _noted(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        self.repeats_a_key |= len(record) < len(pairs)
        return record
