"""JSON Lines, JSON arrays of objects, and JSON objects that hold records."""

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, NamedTuple

from ..errors import DataError
from ..names import is_known_code
from .unpack import MAX_LINE_BYTES, Lines

BROKEN_UTF8 = "broken UTF-8"
TEXT_COLUMNS = frozenset({"text", "toxic_sentence"})
"""The columns that tell records from what is said about them, where none is named."""

_CHUNK_BYTES = 1 << 16
_SPACE = " \t\r\n"
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Usual names of splits, of files as of arrays, with the one that each means."""
_CLASSES = {"harmful", "harmless", "benign", "toxic", "neutral", "safe", "unsafe"}

Records = Iterator[tuple[int, dict[str, Any] | str]]


def read_json(
    opened: Callable[[], AbstractContextManager[Lines]],
    file_name: str,
    *,
    lines_only: bool,
    wanted: frozenset[str] = TEXT_COLUMNS,
    on_note: Callable[[str], None],
) -> Records:
    """Stream the records of a JSON file: JSON Lines, an array of objects, or an object of records.

    Args:
        opened: opens the file from its beginning.
        file_name: its name in messages.
        lines_only: a first line that holds an object is a record. If not, the file may also be one
            object, in which the records are an array (of several, those that hold a wanted column;
            of these, all splits or the longest), the objects or the columns that are its values.
        wanted: columns that tell records from what is said about them.
        on_note: called with a line where only a part of several arrays is read, or several are.

    Yields:
        (line, record), as `read_records` does; in an array or object, records are counted.

    Raises:
        DataError: the rest of the file cannot be trusted.
    """
    with opened() as file:
        lines = _filled_lines(file)
        first = next(lines, None)
        if first is None:
            return
        start = first[1].lstrip()[:1]
        if start == b"[":
            yield from _array(_Values(first[1], file, file_name))
            return
        second = None
        if start == b"{" and not lines_only and _is_complete(first[1]):
            second = next(lines, None)
        if start != b"{" or lines_only or second:
            yield from _json_lines(chain([first], [second] if second else [], lines), file)
            return
        seen = _survey(_Values(first[1], file, file_name), wanted)
    places = seen.chosen(file_name, on_note)
    with opened() as file:
        values = _Values(next(_filled_lines(file))[1], file, file_name)
        yield from _within(values, places) if places else _object(values)


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


def _array(values: "_Values", row: int = 0) -> Records:
    """The objects of an array, which are counted on from `row`."""
    for _ in values.items("[", "]"):
        row += 1
        record = values.next(row)
        if values.repeats_a_key:
            yield row, "a key occurs twice in the object"
        else:
            yield row, record if isinstance(record, dict) else "not a JSON object"
    values.finish(row)


class _Place(NamedTuple):
    """An array of objects in an object.

    path: the keys that lead to it.
    rows: how many entries it has.
    holds: whether its first object has a wanted column.
    """

    path: tuple[str, ...]
    rows: int
    holds: bool

    @property
    def name(self) -> str:
        return ascii(".".join(self.path))


class _Survey(NamedTuple):
    """What an object holds.

    arrays: arrays of objects that are its values.
    inner: those that are values of its values.
    is_records: whether some of its values are objects, or it has columns itself, as wanted.
    """

    arrays: list[_Place]
    inner: list[_Place]
    is_records: bool

    def chosen(self, file_name: str, on_note: Callable[[str], None]) -> list[tuple[str, ...]]:
        """The paths of the arrays that are read; none if the object itself holds the records.

        Raises:
            DataError: several may be, and none is the longest, or they are classes or languages.
        """
        held = [place for place in self.arrays if place.holds]
        if not held and not self.is_records:
            held = [place for place in self.inner if place.holds] or self.arrays
        if len(held) < 2:
            return [place.path for place in held]
        sizes = ", ".join(f"{place.name} ({place.rows})" for place in held)
        names = {place.path[-1].casefold() for place in held}
        if names <= SPLIT_WORDS.keys():
            on_note(
                f"{file_name}: splits read together: {sizes} records; write each to a file of its "
                "own to choose one with --split"
            )
            return [place.path for place in held]
        held.sort(key=lambda place: -place.rows)
        divides = not names.isdisjoint(_CLASSES) or any(map(is_known_code, names))
        if divides or held[0].rows == held[1].rows:
            raise DataError(
                f"{file_name}:1: records in more than one place of an object ({sizes}): expected "
                "one array of objects, or JSON Lines: write one to a file of its own"
            )
        on_note(f"{file_name}: only the records of {held[0].name} are read, of {sizes}")
        return [held[0].path]


def _survey(values: "_Values", wanted: frozenset[str]) -> _Survey:
    """Find the arrays of objects in an object, and in the objects that are its values."""
    seen = _Survey([], [], False)
    n_records = 0
    is_records = False
    for name in values.keys(0):
        if values.is_array_of_objects():
            seen.arrays.append(_place(values, (name,), wanted))
        elif values.peek() == "{":
            n_records += 1
            for inner in values.keys(n_records):
                is_records |= inner in wanted
                if values.is_array_of_objects():
                    seen.inner.append(_place(values, (name, inner), wanted))
                else:
                    values.next(n_records)
            is_records |= name in wanted
        else:
            is_records |= isinstance(values.next(n_records + 1), list) and name in wanted
    values.finish(n_records)
    return seen._replace(is_records=is_records)


def _place(values: "_Values", path: tuple[str, ...], wanted: frozenset[str]) -> _Place:
    rows = 0
    holds = False
    for rows, record in _array(values):
        holds |= rows == 1 and isinstance(record, dict) and not wanted.isdisjoint(record)
    return _Place(path, rows, holds)


def _within(values: "_Values", paths: Sequence[tuple[str, ...]]) -> Records:
    """The records of arrays of an object, counted over all."""
    row = 0
    for name in values.keys(row):
        is_around = values.peek() == "{" and any(name == path[0] for path in paths)
        for inner in values.keys(row) if is_around else [None]:
            path = (name,) if inner is None else (name, inner)
            if path in paths:
                before = row
                for row, record in _array(values, before):
                    yield row, record
            else:
                _skip(values, row)
    values.finish(row)


def _skip(values: "_Values", row: int) -> None:
    if values.is_array_of_objects():
        for _ in _array(values, row):
            pass
    else:
        values.next(row + 1)


def _object(values: "_Values") -> Records:
    """The records of an object: the objects that are its values, or the rows of columns that are,
    which tables are written as."""
    row = 0
    columns: dict[str, list[Any]] = {}
    for name in values.keys(row):
        if values.is_array_of_objects():
            _skip(values, row)
            continue
        value = values.next(row + 1)
        if isinstance(value, list):
            columns[name] = value
        elif isinstance(value, dict) and value and all(map(str.isdecimal, value)):
            columns[name] = list(value.values())
        elif isinstance(value, dict):
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

    def keys(self, row: int) -> Iterator[str]:
        """Step through an object by its keys; the caller decodes the value of each."""
        for _ in self.items("{", "}"):
            name = self.next(row)
            if not isinstance(name, str):
                raise self.wrong(row, "not JSON")
            self._take(":")
            yield name

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
