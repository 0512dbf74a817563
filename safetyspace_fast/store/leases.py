"""Leases: files that say which worker does what, so that others take over when it has gone.

A lease is a file that names its worker. It is made atomically, so only one worker gets it, and its
worker touches it every few seconds. A lease that nobody has touched for long is taken over; at once
if its process is of this machine and has ended. Ages are differences of two times that the file
system has set, so the clocks of the machines do not matter, and no file locks are needed.

A worker that slept for long may find that another has its lease (`holds`). Until then both may have
done the same work; they write the same bytes, and readers check them.
"""

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from ..errors import StoreError

SUFFIX = ".lease"
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
        self._ended = threading.Event()
        self.worker = f"{WORKERS}/{self._owner['worker']}"
        """The name of the worker's own lease."""
        try:
            (work / WORKERS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{work}: cannot be made: {error.strerror or error}") from error
        self._own_file = f"{self._owner['worker']}{SUFFIX}"
        self.claim(self.worker)
        self._heart = threading.Thread(target=self._beat, name="safetyspace-leases", daemon=True)
        self._heart.start()

    def __enter__(self) -> Self:
        """Return the leases."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give everything back; delete what workers left that have gone, and empty folders."""
        self._ended.set()
        self._heart.join()
        for path in (self._work / WORKERS).glob("*" + SUFFIX):
            if self._is_left(path):
                self._bury(path)
        for name in sorted(self._held):
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
        if self._is_left(path) and not self._bury(path):
            return False
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            os.write(descriptor, json.dumps(self._owner).encode())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise _unwritable(path, error) from error
        finally:
            os.close(descriptor)
        self._held.add(name)
        return True

    def holds(self, name: str) -> bool:
        """Whether the worker still has a lease that it took."""
        return name in self._held and self._is_mine(self._path(name))

    def release(self, name: str) -> None:
        """Give a lease back."""
        self._held.discard(name)
        if self._is_mine(self._path(name)):
            self._path(name).unlink(missing_ok=True)

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
            if owner and path.name == f"{owner['worker']}{SUFFIX}" != self._own_file:
                yield owner

    def _path(self, name: str) -> Path:
        return self._work / (name + SUFFIX)

    def _is_mine(self, path: Path) -> bool:
        owner = _read(path)
        return owner is not None and owner[0].get("worker") == self._owner["worker"]

    def _alive(self, path: Path) -> dict[str, object] | None:
        """The owner of a lease; None if there is none or it has gone."""
        read = _read(path)
        return None if read is None or self._has_gone(*read) else read[0]

    def _is_left(self, path: Path) -> bool:
        """Whether a lease is there and its owner has gone."""
        read = _read(path)
        return read is not None and self._has_gone(*read)

    def _has_gone(self, owner: dict[str, object], touched: float) -> bool:
        return _has_ended(owner) or self._now() - touched > STALE_SECONDS

    def _now(self) -> float:
        """The file system's time: that of a file which is touched now."""
        path = self._path(self.worker)
        try:
            os.utime(path)
            return path.stat().st_mtime
        except OSError:  # not made yet, or its folder is gone
            probe = path.with_suffix(".now")
            try:
                probe.write_bytes(b"")
                now = probe.stat().st_mtime
                probe.unlink()
            except OSError as error:
                raise _unwritable(path, error) from error
            return now

    def _bury(self, path: Path) -> bool:
        """Take the lease of a worker that has gone out of the way; False: another was faster."""
        grave = path.with_name(f"{path.name}.{self._owner['worker']}.tmp")
        try:
            os.rename(path, grave)
        except OSError:
            return False
        buried = self._is_left(grave)
        if not buried:  # its new owner took it in between: give it back
            with suppress(OSError):
                os.link(grave, path)
        grave.unlink(missing_ok=True)
        return buried

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            for name in tuple(self._held):
                with suppress(OSError):  # taken over; `holds` says so
                    if self._is_mine(self._path(name)):
                        os.utime(self._path(name))


def _read(path: Path) -> tuple[dict[str, object], float] | None:
    """What a lease says, and when it was touched; opened, so that no cache answers."""
    try:
        with path.open("rb") as file:
            content, touched = file.read(), os.fstat(file.fileno()).st_mtime
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
