"""Changing files so that no crash, power cut or full disk loses what was reported as written.

New content is written to a temporary file, synced, renamed over the old file, and the folder is
synced; only then does the function return. *Durable* means: it survives a power cut. Every change
of a local store and of its work folder goes through this module's `os`; tests replace it by one
that fails on purpose.
"""

import errno
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError

Bytes = bytes | bytearray | memoryview

_NO_RESERVE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems say that cannot keep room for a file."""
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}
"""What file systems say that cannot sync a folder or a file: some of FUSE, of networks, of NAS."""

_NO_LINK = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV}
"""What file systems say that have no hard links: FAT, some of FUSE and of networks."""


def replace(path: Path, content: Bytes) -> None:
    """Replace the content of a file, atomically and durably; its folder must exist.

    Raises:
        StoreError: it cannot be written; the old content is kept.
    """
    temporary = path.with_name(path.name + ".tmp")
    with _named(path):
        try:
            _write(temporary, os.O_TRUNC, (content,), sync=True)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(path.parent)


def create(path: Path, content: Bytes) -> bool:
    """Make a file with its content, atomically and durably; its folder must exist.

    Where a file system has no links, two processes at the same moment may both make it.

    Returns:
        Whether this call has made it; False: it was there.

    Raises:
        StoreError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    with _named(path):
        try:
            _write(temporary, os.O_EXCL, (content,), sync=True)
            created = _named_once(temporary, path)
        finally:
            with suppress(OSError):
                os.unlink(temporary)
        _sync(path.parent)
    return created


def _named_once(temporary: Path, path: Path) -> bool:
    """Give a file another name too, unless that is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


def append(path: Path, *pieces: Bytes) -> None:
    """Append to a file; `sync` makes it durable."""
    with _named(path):
        _write(path, os.O_APPEND, pieces, sync=False)


def reserve(path: Path, n_bytes: int) -> None:
    """Make a file of this size whose place on the disk is taken.

    Raises:
        StoreError: there is no room for it.
    """
    with _named(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        try:
            try:
                os.posix_fallocate(descriptor, 0, n_bytes)
            except (AttributeError, OSError) as error:  # not on every system and file system
                if isinstance(error, OSError) and error.errno not in _NO_RESERVE:
                    raise
                os.ftruncate(descriptor, n_bytes)
        finally:
            os.close(descriptor)


def write_at(path: Path, offset: int, content: Bytes) -> None:
    """Write over a part of a file that is there; not durable."""
    with _named(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            rest = memoryview(content).cast("B")
            while rest:
                n_bytes = os.pwrite(descriptor, rest, offset)
                rest, offset = rest[n_bytes:], offset + n_bytes
        finally:
            os.close(descriptor)


def sync(path: Path) -> None:
    """Make a file and its name durable."""
    with _named(path):
        _sync(path)
        _sync(path.parent)


def sync_all() -> None:
    """Make everything durable that a killed process left in the caches of the system."""
    os.sync()


def truncate(path: Path, n_bytes: int) -> None:
    """Cut a file to its first bytes."""
    with _named(path):
        if os.path.islink(path):
            raise OSError(errno.ELOOP, "a link; remove it")
        os.truncate(path, n_bytes)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with _named(path):
        with suppress(FileExistsError):  # another thread made it
            os.mkdir(path)
        _sync(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename a folder, atomically and durably; the new name must be free."""
    with _named(target):
        os.rename(source, target)
        _sync(target.parent)
        _sync(source.parent)


def remove(path: Path) -> None:
    """Delete a file, if it exists."""
    with _named(path), suppress(FileNotFoundError):
        os.unlink(path)


def remove_tree(path: Path) -> None:
    """Delete a folder with its content; links are deleted, not followed."""
    with _named(path):
        for folder, folders, names in os.walk(path, topdown=False):
            if os.path.islink(path):
                break
            for name in names:
                os.unlink(os.path.join(folder, name))
            for name in folders:
                _remove_folder(os.path.join(folder, name))
        _remove_folder(path)
        _sync(path.parent)


def _remove_folder(path: str | Path) -> None:
    os.unlink(path) if os.path.islink(path) else os.rmdir(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written: {error.strerror or error}; finished work is kept, "
            "so run again with --resume"
        ) from error


def _write(path: Path, flag: int, pieces: tuple[Bytes, ...], *, sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flag, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece).cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        if sync:
            _fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:  # a folder that may be written to, but not opened
        _refuse_failed_sync(error)
        return
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        _refuse_failed_sync(error)


def _refuse_failed_sync(error: OSError) -> None:
    """Warn of a file system that cannot sync; raise what says that data are lost."""
    if error.errno not in _NO_SYNC:
        raise error
    warnings.warn(
        f"this file system cannot sync files or folders ({error.strerror}): a power cut may lose "
        "what was written last; a crash of the program does not",
        stacklevel=1,
    )
