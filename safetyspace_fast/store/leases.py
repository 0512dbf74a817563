"""Leases: files that say which worker does what, so that others take over when it has gone.

A lease is a file that names its worker. It is made exclusively, so only one worker gets it, and its
worker touches it every few seconds. A lease that nobody has touched for long is taken over; at once
if its process is of this machine and has ended. Ages are differences of two times that the file
system has set, so the clocks of the machines do not matter, and no file locks are needed. A lease
from the future is taken over when it was watched for as long without being touched.

A lease is removed only by the worker that has made the guard beside it, `NAME.lease.guard`, and has
looked again since: nobody removes a lease that another has just taken.

A worker that slept for long may find that another has its lease (`holds`). Until then both may have
done the same work; they write the same bytes, and readers check them.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from ..errors import StoreError

SUFFIX = ".lease"
_GUARD = ".guard"
WORKERS = ".workers"
"""The folder with a lease for each worker; no model has a name that begins with a dot."""
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""A lease of this age is taken over. Network file systems may show a time that is a minute old."""


class Leases:
    """The leases of one worker on one store. Use it in a `with` block, which gives all back."""

    def __init__(self, work: Path, about: Mapping[str, object] | None = None) -> None:
        """Enter the worker's own lease, which says that it is there.

        Args:
            work: the store's work folder; made if it is missing.
            about: what other workers may want to know of this one; see `others`.

        Raises:
            StoreError: nothing can be written there.
        """
        self._work = work
        self._owner: dict[str, object] = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "processes": _process_namespace(),
            "worker": uuid.uuid4().hex[:12],
            **(about or {}),
        }
        self._held: set[str] = set()
        self._watched: dict[Path, tuple[float, float]] = {}
        """When a lease was touched last, and since when, by this machine's clock, that is known."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.worker = f"{WORKERS}/{self._owner['worker']}"
        """The name of the worker's own lease."""
        self._touch(self.worker)
        self._own_file = f"{self._owner['worker']}{SUFFIX}"
        self._held.add(self.worker)
        self._heart = threading.Thread(target=self._beat, name="safetyspace-leases", daemon=True)
        self._heart.start()

    def __enter__(self) -> Self:
        """Return the leases."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give everything back; delete what workers left that have gone, and empty folders."""
        self._ended.set()
        self._heart.join()
        for path in sorted((self._work / WORKERS).glob("*")):
            with suppress(OSError):  # the next worker that ends deletes it
                self._remove(path, self._is_left)
        for name in sorted(self._held, key=lambda name: name == self.worker):  # that one at last
            self.release(name)
        for folder in (self._work / WORKERS, self._work):
            with suppress(OSError):  # not empty
                folder.rmdir()

    def claim(self, name: str) -> bool:
        """Take a lease, if nobody who is alive has it.

        Args:
            name: path in the work folder, without the suffix; False if its folder is not there.

        Raises:
            StoreError: nothing can be written there.
        """
        path = self._path(name)
        if self._is_left(path) and not self._remove(path, self._is_left):
            return False
        if not _make(path, json.dumps(self._owner).encode()):
            return False
        self._held.add(name)
        return True

    def holds(self, name: str) -> bool:
        """Whether the worker still has a lease that it took."""
        return name in self._held and self._is_mine(self._path(name))

    def release(self, name: str) -> None:
        """Give a lease back; one that cannot be deleted, as on a sick disk, becomes stale."""
        with self._lock:  # or the heart makes it again
            self._held.discard(name)
            with suppress(OSError):
                self._remove(self._path(name), self._is_mine)

    def is_free(self, name: str) -> bool:
        """Whether nobody who is alive has a lease."""
        return self._alive(self._path(name)) is None

    def owners(self, name: str) -> int:
        """How many workers that are alive have a lease `NAME-WORKER` beside their own."""
        return sum(
            path.name.rpartition("-")[0] == name and self._alive(path) is not None
            for path in (self._work / WORKERS).glob("*" + SUFFIX)
        )

    def others(self) -> Iterator[dict[str, object]]:
        """What the other workers that are alive say of themselves."""
        for path in sorted((self._work / WORKERS).glob("*" + SUFFIX)):
            owner = self._alive(path)
            if owner and path.name == f"{owner.get('worker')}{SUFFIX}" != self._own_file:
                yield owner

    def _path(self, name: str) -> Path:
        return self._work / (name + SUFFIX)

    def _is_mine(self, path: Path) -> bool:
        owner = _read(path)
        return owner is not None and owner[0].get("worker") == self._owner["worker"]

    def _alive(self, path: Path) -> dict[str, object] | None:
        """The owner of a lease; None if there is none or it has gone."""
        read = _read(path)
        return None if read is None or self._has_gone(path, *read) else read[0]

    def _is_left(self, path: Path) -> bool:
        """Whether a lease is there and its owner has gone."""
        read = _read(path)
        return read is not None and self._has_gone(path, *read)

    def _has_gone(self, path: Path, owner: dict[str, object], touched: float) -> bool:
        now = time.monotonic()
        before, since = self._watched.get(path, (None, now))
        if before != touched:
            since = now
            self._watched[path] = touched, since
        return (
            _has_ended(owner)
            or now - since > STALE_SECONDS
            or self._now() - touched > STALE_SECONDS
        )

    def _now(self) -> float:
        """The file system's time: that of the worker's own lease, which is touched now."""
        path = self._path(self.worker)
        try:
            self._touch(self.worker)
            return path.stat().st_mtime
        except StoreError:
            raise
        except OSError as error:
            raise _unwritable(path, error) from error

    def _touch(self, name: str) -> None:
        """Keep a lease fresh; one that only this worker can have is made again if it is gone.

        Others delete what a worker has left, also if it has only slept, and the folder if it is
        empty then.
        """
        path = self._path(name)
        if self._is_mine(path):
            os.utime(path)
        elif name.endswith(str(self._owner["worker"])):
            while not _make(path, json.dumps(self._owner).encode()) and not os.path.lexists(path):
                _make_folder(path.parent)

    def _remove(self, path: Path, is_to_go: Callable[[Path], bool]) -> bool:
        """Remove a lease, if that is to be; False: it is not, or another worker is about it.

        Raises:
            StoreError: it cannot be removed.
        """
        if not is_to_go(path):
            return False
        guard = path.with_name(path.name + _GUARD)
        self._remove(guard, self._is_left)  # its worker was killed
        if not _make(guard, b""):
            return False
        try:
            if not is_to_go(path):  # any more
                return False
            _unlink(path)
        finally:
            _unlink(guard)
        self._watched.pop(path, None)
        return True

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._keep_fresh()

    def _keep_fresh(self) -> None:
        for name in tuple(self._held):
            with self._lock, suppress(OSError):  # taken over; `holds` says so
                if name in self._held:
                    self._touch(name)


def _make(path: Path, content: bytes) -> bool:
    """Make a file; False if it is there, or its folder is not.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    except (FileExistsError, FileNotFoundError):
        return False
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        os.write(descriptor, content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    finally:
        os.close(descriptor)
    return True


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be made: {error.strerror or error}") from error


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _read(path: Path) -> tuple[dict[str, object], float] | None:
    """What a lease says, and when it was touched; opened, so that no cache answers.

    Returns:
        Its worker, and the time; of a lease that cannot be read the time only. None: there is none.
    """
    try:
        with path.open("rb") as file:
            content, touched = file.read(), os.fstat(file.fileno()).st_mtime
    except OSError:  # not there, or of another user
        try:
            return {}, path.lstat().st_mtime
        except OSError:
            return None
    try:
        owner = json.loads(content)
    except ValueError:  # is being written, or its worker was killed then
        owner = {}
    return (owner if isinstance(owner, dict) else {}), touched


def _process_namespace() -> str:
    """Tells containers with the same host name apart."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _has_ended(owner: Mapping[str, object]) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    pid = owner.get("pid")
    same = owner.get("host") == socket.gethostname()
    if not same or owner.get("processes") != _process_namespace() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: cannot be written: {error.strerror or error}; finished work is kept, "
        "so run again with --resume"
    )
