"""One writer for each model: a locked file that names its process, and is free when it ends.

Workers that write a model together share the claim; `leases` says which of them does what.
"""

import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from ..errors import StoreError

_NO_LOCKS = (
    "this file system has no file locks ({}): let only one process at a time write a model of a "
    "store"
)
_ATTEMPTS = 100


class Claim:
    """The right to write one model, for as long as a `with` block or the process lasts."""

    def __init__(self, folder: Path, what: str, *, shared: bool = False) -> None:
        """Take the claim; the system gives back that of a process that has ended, on any host.

        Where a file system has no locks, the file says who has the claim: a process of this host
        that has ended gives it up, a process of another host must have deleted it.

        Args:
            folder: the model's folder in the store's work folder; made if it is missing.
            what: the model's name in an error.
            shared: others may have it too, if they share it.

        Raises:
            StoreError: another process has the claim.
        """
        _refuse_link(folder.parent)
        self._path = folder / "owner.json"
        self._shared = shared
        self._descriptor, locked = _locked(self._path, what, shared=shared)
        self.left_by = _owner(self._descriptor)
        """The owner that ended without giving it up; None if there is none."""
        host = socket.gethostname()
        together = shared and bool(self.left_by and self.left_by["shared"])
        if self.left_by and not locked and not together and _may_live(self.left_by, host):
            os.close(self._descriptor)
            raise StoreError(
                f"{what}: {_held_by(self.left_by)}, and there are no file locks to ask; if that "
                f"process has ended, delete {self._path} and try again"
            )
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        owner = json.dumps({"pid": os.getpid(), "host": host, "started": started, "shared": shared})
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, owner.encode(), 0)

    def __enter__(self) -> Self:
        """Return the claim."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give it up; delete the folder and the work folder if they are empty."""
        if self._shared and not _is_last(self._descriptor):
            os.close(self._descriptor)
            return
        _unlock(self._path, self._descriptor)
        with suppress(OSError):
            self._path.parent.parent.rmdir()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Run a `with` block while no other process runs one with the same folder; waits for that.

    Where a file system has no locks, nothing is waited for.
    """
    path = folder / ".lock"
    descriptor, _ = _locked(path)
    try:
        yield
    finally:
        _unlock(path, descriptor)


def _locked(path: Path, what: str | None = None, *, shared: bool = False) -> tuple[int, bool]:
    """Lock a file, which is made if it is missing.

    Args:
        path: the file.
        what: its name in the error that is raised if another process has the lock; None: wait.
        shared: others may have the lock too, if they share it.

    Returns:
        Descriptor of the file, and whether it is locked: some network file systems have no locks.
    """
    _refuse_link(path.parent)
    attempts = iter(range(_ATTEMPTS))
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            # Its last owner is deleting the folder; or no folder can be made, as in /proc.
            if isinstance(error, FileNotFoundError) and next(attempts, None) is not None:
                continue
            raise StoreError(f"{path}: cannot be locked: {error.strerror or error}") from error
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | (fcntl.LOCK_NB if what else 0))
            locked = True
        except BlockingIOError as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise StoreError(f"{what}: {_held_by(owner)}; wait for it, or stop it") from error
        except OSError as error:  # Lustre without -o flock, NFS without lockd
            locked = False
            warnings.warn(_NO_LOCKS.format(error.strerror), stacklevel=1)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor, locked
        os.close(descriptor)  # its owner has deleted the file since


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():  # files at its target are not ours to delete
        raise StoreError(f"{folder}: a link, expected the folder of unfinished work; remove it")


def _unlock(path: Path, descriptor: int) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)
    with suppress(OSError):  # not empty
        path.parent.rmdir()


def _is_last(descriptor: int) -> bool:
    """Whether nobody shares a lock any more; it is given up if somebody does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no file locks
        pass
    return True


def _owner(descriptor: int) -> dict[str, object] | None:
    """What a locked file says of its owner: pid, host, start, and whether others share it."""
    content = os.pread(descriptor, 4096, 0)
    try:
        owner = json.loads(content)
        known = {key: owner[key] for key in ("pid", "host", "started")}
        return {**known, "shared": owner.get("shared", False)}
    except (ValueError, KeyError, TypeError):
        return None


def _may_live(owner: dict[str, object], host: str) -> bool:
    """Whether a process may still run, as far as this host can know."""
    if owner["host"] != host or not isinstance(pid := owner["pid"], int):
        return True
    if pid == os.getpid():  # of the same container, started again
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _held_by(owner: dict[str, object] | None) -> str:
    if owner is None:
        return "being written by another process"
    return "being written by process {pid} on {host} since {started}".format_map(owner)
