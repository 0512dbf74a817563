"""Who writes what: a file that is locked while its process lives, and says whose it is."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from ..errors import StoreError


class Claim:
    """The right to write one model: a context, at whose end or the process's it is given up."""

    def __init__(self, folder: Path, what: str) -> None:
        """Take the claim, if need be from a process of this machine that is gone.

        Args:
            folder: the model's folder in the store's work folder, made if need be.
            what: what is claimed, as an error calls it.

        Raises:
            StoreError: another process holds it.
        """
        _refuse_link(folder.parent)
        self._path = folder / "owner.json"
        self._descriptor = _locked(self._path, what)
        self.left_by = _owner(self._descriptor)
        """The owner, now gone, that did not release it; None if there is none."""
        host = socket.gethostname()
        if self.left_by and self.left_by["host"] != host:
            os.close(self._descriptor)
            raise StoreError(
                f"{what}: {_held_by(self.left_by)}, another host; if that process is gone, "
                f"delete {self._path} and try again"
            )
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        owner = json.dumps({"pid": os.getpid(), "host": host, "started": started})
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, owner.encode(), 0)

    def __enter__(self) -> Self:
        """Hold the claim."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give it up, and delete the folder and the work folder if nothing else is in them."""
        _unlock(self._path, self._descriptor)
        with suppress(OSError):
            self._path.parent.parent.rmdir()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with the same folder."""
    path = folder / ".lock"
    descriptor = _locked(path)
    try:
        yield
    finally:
        _unlock(path, descriptor)


def _locked(path: Path, what: str | None = None) -> int:
    """Lock a file, made if need be; wait for it, or raise if `what` is given."""
    _refuse_link(path.parent)
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:  # the last owner is just deleting the folder
            continue
        except OSError as error:
            raise StoreError(f"{path}: cannot be locked: {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if what else 0))
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BlockingIOError as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise StoreError(f"{what}: {_held_by(owner)}; wait for it, or stop it") from error
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its owner deleted it meanwhile


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():  # what lies at its end is not ours to clear
        raise StoreError(f"{folder}: a link, where unfinished work is kept; remove it")


def _unlock(path: Path, descriptor: int) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)
    with suppress(OSError):  # something else is in it
        path.parent.rmdir()


def _owner(descriptor: int) -> dict[str, Any] | None:
    content = os.pread(descriptor, 4096, 0)
    try:
        owner = json.loads(content)
        return {key: owner[key] for key in ("pid", "host", "started")}
    except (ValueError, KeyError, TypeError):
        return None


def _held_by(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "being written by another process"
    return "being written by process {pid} on {host} since {started}".format_map(owner)
