"""CSV, TSV and the like: which character delimits, and what quotation marks mean, is found."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice

from ..config import Quoting
from ..errors import ConfigError, DataError
from ..names import nearest
from .unpack import MAX_LINE_BYTES, Lines

DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
_NO_DELIMITER = "\x1f"
"""In a file whose lines are its texts: a character that texts do not hold."""
_OF_PLAIN_LINES = ("\t", _NO_DELIMITER)
_LINES_TO_TRY = 50
_CHARACTERS_TO_TRY = 1 << 20

_LINE_ADVICE = "--delimiter tab if each line is one text"

Opener = Callable[[], AbstractContextManager[Lines]]


def delimiter_named(name: str) -> str:
    """The character that `comma`, `tab`, `semicolon`, `pipe` or itself names.

    Raises:
        ConfigError: it is neither a known name nor one character.
    """
    character = DELIMITERS.get(name, "\t" if name == "\\t" else name)
    if len(character) != 1 or character in '"\r\n':
        raise ConfigError(
            f"delimiter {name!a}: expected {', '.join(DELIMITERS)} or one character"
            f"{nearest(name, DELIMITERS)}"
        )
    return character


def read_separated(
    opened: Opener,
    file_name: str,
    *,
    default: str,
    delimiter: str | None,
    quoting: Quoting,
    named: Sequence[str],
    lines_are_texts: bool,
    on_note: Callable[[str], None],
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Stream the rows of a separated file, which is first read to find its delimiter and quoting.

    Args:
        opened: opens the file from its beginning.
        file_name: its name in messages.
        default: the delimiter that its name suggests.
        delimiter: the one that was named, if any.
        quoting: `auto`, `csv` or `none`.
        named: columns that were named. If all are numbers, and the first row does not hold all, the
            file has no header: its columns are named by number, from 1.
        lines_are_texts: that of column 1, the only one that is read, each line is the whole, unless
            tabs divide all lines alike.
        on_note: called with a line where the file can be read in two ways.

    Yields:
        (line, record), as `read_records` does.

    Raises:
        DataError: the rest of the file cannot be trusted.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    is_found = delimiter is None
    if delimiter is None:
        with opened() as file:
            head = _head(_decoded(file, file_name))
        delimiter = _find_delimiter(head, default, named)
        if lines_are_texts and (delimiter != "\t" or not _is_even(head, delimiter)):
            delimiter = _NO_DELIMITER
    quoted = quoting == "csv"
    if quoting == "auto":
        with opened() as file:
            quoted = _is_quoted(_decoded(file, file_name), delimiter, file_name, on_note)
    header: list[str] | None = None
    with opened() as file:
        lines = _decoded(file, file_name)
        for line, fields in _rows(lines, delimiter, quoted, file_name):
            if header is None:
                header = [name.strip() for name in fields]
                if named and all(map(str.isdecimal, named)) and not set(named) <= set(header):
                    header = [str(i) for i in range(1, len(fields) + 1)]
                    on_note(f"{file_name}: read without a header, since columns are numbered")
                    is_cut = is_found and delimiter not in _OF_PLAIN_LINES and len(header) > 1
                    if is_cut and set(named) == {"1"}:
                        on_note(
                            f"{file_name}: lines are split at each {_name_of(delimiter)}, and only "
                            f"the first of {len(header)} columns is read; {_LINE_ADVICE}"
                        )
                else:
                    if len(set(header)) < len(header):
                        raise DataError(
                            f"{file_name}:{line}: a column name occurs twice: rename one, or name "
                            "columns by number if the file has no header"
                        )
                    continue
            if len(fields) == len(header):
                yield line, dict(zip(header, fields, strict=True))
            else:
                is_one = len(header) == 1 or set(named) == {"1"}
                is_cut = is_one and delimiter not in _OF_PLAIN_LINES
                advice = f" ({_LINE_ADVICE})" if is_cut else ""
                yield line, f"{len(fields)} fields where the header has {len(header)}{advice}"


def _head(lines: Iterator[str]) -> list[str]:
    """The first lines of a file, of a bounded length together."""
    head: list[str] = []
    for line in islice(lines, _LINES_TO_TRY):
        head.append(line)
        if sum(map(len, head)) > _CHARACTERS_TO_TRY:
            break
    return head


def _find_delimiter(lines: Sequence[str], default: str, named: Sequence[str]) -> str:
    """The delimiter under which the first row holds a named column, else under which the first
    rows are equally wide, of two columns or more; the default comes first."""
    candidates = [default, *(other for other in DELIMITERS.values() if other != default)]
    for candidate in candidates:
        rows = _rows_of(lines, candidate)
        if rows and not set(named).isdisjoint(map(str.strip, rows[0])):
            return candidate
    return next((c for c in candidates if _is_even(lines, c)), default)


def _rows_of(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """The rows of the first lines; none if they cannot be read."""
    try:
        return [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:
        return []


def _is_even(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the first rows are all of one width, of two columns or more."""
    rows = _rows_of(lines, delimiter)
    # The last row may be cut off within quotation marks.
    widths = {len(row) for row in rows[:-1] or rows}
    return len(widths) == 1 < max(widths)


def _name_of(delimiter: str) -> str:
    return next((name for name, c in DELIMITERS.items() if c == delimiter), ascii(delimiter))


def _is_quoted(
    lines: Iterator[str], delimiter: str, file_name: str, on_note: Callable[[str], None]
) -> bool:
    """Whether fields of a file stand in quotation marks, by reading it in both ways.

    Without quoting, each line is a row. A reading fits if all rows have the width of the first.
    Quoting is proved by quotation marks that always enclose a field, or are doubled within one.
    It is in doubt where a field in quotation marks spans lines of which most are whole rows.

    With tabs or without a delimiter: quoting if it is proved or fits better, and is not in doubt.
    With other delimiters: quoting, unless the other reading fits and quoting is an error or in
    doubt; that all lines of a single column are rows proves nothing.
    """
    seen = _Readings(lines, delimiter)
    if delimiter in _OF_PLAIN_LINES:
        if seen.error or seen.doubtful_rows:
            return False
        return seen.proved or seen.quoted_misfits < seen.plain_misfits
    in_doubt = seen.doubtful_rows and not (seen.width == 1 and seen.proved)
    if not seen.plain_misfits and (seen.error or in_doubt):
        on_note(
            f"{file_name}: read with quotation marks as part of the texts; --quoting csv if they "
            "enclose fields"
        )
        return False
    if seen.doubtful_rows and not seen.error:
        on_note(
            f"{file_name}: {seen.doubtful_rows} lines were joined into others, as quotation marks "
            "enclose them; --quoting none if each line is a row"
        )
    return True


class _Readings:
    """What reading a file with and without quoting finds.

    error: with quoting, it cannot be read to its end.
    proved: no quotation mark stands where a writer that quotes would not put it.
    doubtful_rows: lines that quoting joins to others although they are whole rows.
    width: number of fields of the first row.
    quoted_misfits, plain_misfits: rows of another width.
    """

    def __init__(self, lines: Iterator[str], delimiter: str) -> None:
        self.error = False
        self.proved = True
        self.doubtful_rows = self.quoted_misfits = self.plain_misfits = 0
        self.width = 0
        self._delimiter = delimiter
        any_quote = False
        field = f'(?:"[^"]*(?:""[^"]*)*"|[^"{re.escape(delimiter)}]*)'
        proper = re.compile(f"{field}(?:{re.escape(delimiter)}{field})*")
        row: list[str] = []  # the lines of the row that is being read

        def kept() -> Iterator[str]:
            for line in lines:
                row.append(line)
                yield line

        reader = csv.reader(kept(), delimiter=delimiter, strict=True)
        while not self.error:
            row.clear()
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error:
                self.error = True
                fields = row[0].rstrip("\r\n").split(delimiter)
            if not fields:
                continue
            self.width = self.width or len(fields)
            self.quoted_misfits += len(fields) != self.width
            whole = sum(map(self._is_whole, row))
            self.plain_misfits += len(row) - whole
            if 1 < len(row) < 2 * whole:
                self.doubtful_rows += len(row) - 1
            if any('"' in line for line in row):
                any_quote = True
                self.proved &= proper.fullmatch("".join(row).rstrip("\r\n")) is not None
        self.plain_misfits += sum(not self._is_whole(line) for line in lines if line.strip("\r\n"))
        self.proved &= any_quote and not self.error

    def _is_whole(self, line: str) -> bool:
        return line.count(self._delimiter) + 1 == self.width


def _rows(
    lines: Iterator[str], delimiter: str, quoted: bool, file_name: str
) -> Iterator[tuple[int, list[str]]]:
    """The fields of every row that is not blank, with the number of its first line."""
    if not quoted:
        for line, raw in enumerate(lines, 1):
            content = raw.removesuffix("\n").removesuffix("\r")
            if content:
                yield line, content.split(delimiter)
        return
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error).replace("\t", "\\t")
            if "field limit" in reason:
                reason = f"a field of more than {MAX_LINE_BYTES} bytes"
            raise DataError(
                f"{file_name}:{line}: {reason}: double the quotes inside a quoted field, or give "
                "--quoting none if quotation marks are part of the texts"
            ) from error
        if fields:
            yield line, fields


def _decoded(file: Lines, file_name: str) -> Iterator[str]:
    """Decode line by line; bytes that are not UTF-8 become surrogates, refused later."""
    line = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        if len(raw) > MAX_LINE_BYTES:
            raise DataError(
                f"{file_name}:{line}: line of more than {MAX_LINE_BYTES} bytes: shorten it"
            )
        yield raw.decode(errors="surrogateescape")
