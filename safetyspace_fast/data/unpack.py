"""Opening a text file: gzip and zip are unpacked, UTF-16 becomes UTF-8."""

import codecs
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from ..errors import DataError

MAX_LINE_BYTES = 8 << 20
"""More than any model reads at once; a longer line is damage or an attack."""
MAX_ZIP_RATIO = 200
"""How many times its packed size a file in a zip may be; text packs 3 to 20 times smaller."""
MIN_ZIP_BOMB_BYTES = 64 << 20
"""Smaller files may be of any ratio."""

# Those of the standard library for damaged, encrypted and unknown archives.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, EOFError, IndexError),
    *(struct.error, OSError),
)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Lines(Protocol):
    """What the readers of text formats use of a file."""

    def readline(self, limit: int, /) -> bytes:
        """The next line in UTF-8, with its end; a part of it if it has more bytes than `limit`."""


@contextmanager
def open_lines(path: Path, file_name: str) -> Iterator[Lines]:
    """Open a text file as lines of UTF-8, without a byte order mark.

    Lines end in a line feed; in a file that has none, in a carriage return.

    Args:
        path: the file; `.gz` and `.zip` are unpacked while it is read.
        file_name: its name in messages.

    Raises:
        DataError: it cannot be read: damaged, encrypted, a zip of no or several data files or one
            that unpacks to too much, or an encoding that is not read.
    """
    try:
        with _unpacked(path, file_name) as file:
            first = _in_utf8(file, file_name, newline="\n").readline(MAX_LINE_BYTES + 1)
        newline = None if b"\r" in first.rstrip(b"\r") and b"\n" not in first else "\n"
        with _unpacked(path, file_name) as file:
            yield _in_utf8(file, file_name, newline=newline)
    except UnicodeError as error:
        raise DataError(f"{file_name}: broken UTF-16: save it as UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        kind = "zip" if path.suffix.lower() == ".zip" else "gzip"
        raise DataError(f"{file_name}: damaged {kind} file ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"{file_name}: cannot be read ({error.strerror or error})") from error


def inside_zip(path: Path, file_name: str) -> str:
    """The name of the one data file in a zip; hidden files and folders of macOS do not count.

    Raises:
        DataError: there is none or more than one, or the zip cannot be read.
    """
    with _archive(path, file_name) as archive:
        return _only_member(archive, file_name).filename


def _in_utf8(file: io.BufferedReader, file_name: str, *, newline: str | None) -> Lines:
    """The lines of a file that has just been opened; `newline` None also ends them in `\\r`."""
    head = file.peek(64)[:64]
    if head.startswith(_UTF32):
        raise _wrong_encoding(file_name, "UTF-32")
    if head.startswith(_UTF16):
        return _Decoded(file, "utf-16", "strict", newline)
    for name, zeros, others in (
        ("UTF-16BE", head[::2], head[1::2]),
        ("UTF-16LE", head[1::2], head[::2]),
    ):
        if len(head) >= 8 and not any(zeros) and all(others):
            raise _wrong_encoding(file_name, f"{name} without a byte order mark")
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    return file if newline else _Decoded(file, "utf-8", "surrogateescape", newline)


def _wrong_encoding(file_name: str, encoding: str) -> DataError:
    return DataError(f"{file_name}: its encoding is {encoding}: save it as UTF-8")


@contextmanager
def _unpacked(path: Path, file_name: str) -> Iterator[io.BufferedReader]:
    suffix = path.suffix.lower()
    if suffix == ".zip":
        with _archive(path, file_name) as archive:
            member = _only_member(archive, file_name)
            try:
                packed = archive.open(member)
            except _ZIP_ERRORS as error:
                raise _not_unpacked(file_name) from error
            with packed:
                yield _buffered(packed)
    elif suffix == ".gz":
        with gzip.open(path, "rb") as unpacked:
            yield _buffered(unpacked)
    else:
        with path.open("rb") as file:
            yield file


def _buffered(file: object) -> io.BufferedReader:
    """A reader that can peek; typeshed gives packed files no type of raw ones."""
    return io.BufferedReader(cast(io.RawIOBase, file))


@contextmanager
def _archive(path: Path, file_name: str) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        raise _not_unpacked(file_name) from error
    with archive:
        yield archive


def _not_unpacked(file_name: str) -> DataError:
    return DataError(
        f"{file_name}: cannot be unpacked, as it is damaged, encrypted or of an unknown kind: "
        "unpack it first, or fetch it again"
    )


def _only_member(archive: zipfile.ZipFile, file_name: str) -> zipfile.ZipInfo:
    members = [
        member
        for member in archive.infolist()
        if not member.filename.endswith("/")
        and not any(part.startswith((".", "__MACOSX")) for part in member.filename.split("/"))
    ]
    if len(members) != 1:
        raise DataError(
            f"{file_name}: a zip of {len(members)} files, expected one data file: unpack it, and "
            "name a file or the folder"
        )
    (member,) = members
    allowed = max(MIN_ZIP_BOMB_BYTES, MAX_ZIP_RATIO * member.compress_size)
    if member.file_size > allowed:
        raise DataError(
            f"{file_name}: unpacks to {member.file_size} bytes, {MAX_ZIP_RATIO} times its size or "
            "more: unpack it first if you trust it"
        )
    return member


class _Decoded:
    """The lines of a file in another encoding or with other line ends, in UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str, errors: str, newline: str | None) -> None:
        self._text = io.TextIOWrapper(file, encoding, errors, newline)
        self._errors = errors

    def readline(self, limit: int, /) -> bytes:
        return self._text.readline(limit).encode(errors=self._errors)
