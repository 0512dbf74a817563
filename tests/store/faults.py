"""A machine that fails on purpose: the `os` that `safetyspace_fast.store.files` is given in tests.

`FaultyOS` does what it is asked to, counts the calls that change a disk, and fails one of them:
with EIO or ENOSPC, with a write that takes only a part, by killing the process, or by a power cut.
For a power cut it keeps a log, out of which `leave` makes a disk on which only what was made
durable is certain: of each folder's other changes since its last fsync any may have happened, and
of each file's other bytes any part may be there.
"""

import errno
import os
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAULTS = ("eio", "enospc", "short", "kill", "power")


class PowerCutError(BaseException):
    """The machine is off; nothing after this changes the disk."""


@dataclass
class _File:
    """One file's content: what is durable, and the writes since."""

    durable: bytes = b""
    content: bytes = b""


class FaultyOS:
    """Stands in for `os`; the `fail_at`-th change fails."""

    def __init__(self, root: Path, fault: str | None = None, fail_at: int = -1) -> None:
        """Watch the changes below a folder.

        Args:
            root: the folder, whose present content is durable.
            fault: one of FAULTS, or None to count only.
            fail_at: which change fails, from 0.
        """
        self._root, self._fault, self._fail_at = root, fault, fail_at
        self.changes = 0
        self.struck = ""
        self._paths: dict[int, str] = {}
        self._files: dict[str, _File] = {}  # what a path leads to now
        self._durable: dict[str, _File | None] = {}  # and after a power cut; None: not there
        self._pending: dict[str, list[dict[str, _File | None]]] = {}  # changes by folder
        self._new_folders: dict[str, str] = {}  # whose names are not durable: path and parent
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                content = Path(path).read_bytes()
                self._files[path] = self._durable[path] = _File(content, content)

    def __getattr__(self, name: str) -> Any:
        """Everything that changes nothing is `os`'s own."""
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        writes = flags & os.O_CREAT
        if writes:
            self._step("open", path)
        descriptor = os.open(path, flags, mode)
        path = os.fspath(path)
        self._paths[descriptor] = path
        if writes and path not in self._files:
            self._files[path] = _File()
            self._change({path: self._files[path]})
        elif flags & os.O_TRUNC:
            self._files[path].content = b""
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        fault = self._step("write", self._paths[descriptor])
        if fault == "short" or (fault and len(data) > 1):
            taken = os.write(descriptor, data[: max(1, len(data) // 2)])
            self._files[self._paths[descriptor]].content += bytes(data[:taken])
            if fault != "short":
                self._strike(fault, self._paths[descriptor])
            return taken
        taken = os.write(descriptor, data)
        self._files[self._paths[descriptor]].content += bytes(data[:taken])
        return taken

    def fsync(self, descriptor: int) -> None:
        path = self._paths[descriptor]
        self._step("fsync", path)
        if path in self._files:
            self._files[path].durable = self._files[path].content
        for change in self._pending.pop(path, ()):
            self._durable.update(change)
        for folder in [new for new, parent in self._new_folders.items() if parent == path]:
            del self._new_folders[folder]

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def replace(self, source: Any, target: Any) -> None:
        self._step("replace", target)
        os.replace(source, target)
        source, target = os.fspath(source), os.fspath(target)
        self._files[target] = self._files.pop(source)
        self._change({target: self._files[target], source: None})

    def link(self, source: Any, target: Any) -> None:
        """Give a file another name too."""
        self._step("link", target)
        os.link(source, target)
        source, target = os.fspath(source), os.fspath(target)
        self._files[target] = self._files[source]
        self._change({target: self._files[target]})

    def rename(self, source: Any, target: Any) -> None:
        """Give a folder another name; all that is in it is durable."""
        self._step("rename", target)
        os.rename(source, target)
        source, target = os.fspath(source), os.fspath(target)
        inside = source + os.sep
        assert not any(folder.startswith(inside) for folder in (*self._pending, *self._new_folders))
        change: dict[str, _File | None] = {}
        for path in [path for path in self._files if path.startswith(inside)]:
            moved = target + path.removeprefix(source)
            self._files[moved] = self._files.pop(path)
            change |= {path: None, moved: self._files[moved]}
        self._pending.setdefault(os.path.dirname(target), []).append(change)

    def mkdir(self, path: Any) -> None:
        self._step("mkdir", path)
        os.mkdir(path)
        self._new_folders[os.fspath(path)] = os.path.dirname(path)

    def unlink(self, path: Any) -> None:
        self._step("unlink", path)
        os.unlink(path)
        self._files.pop(os.fspath(path), None)
        self._change({os.fspath(path): None})

    def rmdir(self, path: Any) -> None:
        self._step("rmdir", path)
        os.rmdir(path)
        path = os.fspath(path)  # when it is durably gone, so is what was in it
        self._pending.setdefault(os.path.dirname(path), []).extend(self._pending.pop(path, ()))

    def truncate(self, path: Any, size: int) -> None:
        self._step("truncate", path)
        os.truncate(path, size)
        file = self._files[os.fspath(path)]
        file.content = file.content[:size]

    def sync(self) -> None:
        for file in self._files.values():
            file.durable = file.content
        for changes in self._pending.values():
            for change in changes:
                self._durable.update(change)
        self._pending.clear()
        self._new_folders.clear()

    def leave(self, draw: random.Random) -> None:
        """Put on the disk what a power cut may leave of it."""
        state = dict(self._durable)
        for changes in self._pending.values():
            for change in changes:
                if draw.random() < 0.5:
                    state.update(change)
        lost = [folder + os.sep for folder in self._new_folders if draw.random() < 0.5]
        for entry in self._root.iterdir():
            shutil.rmtree(entry)
        for path, file in state.items():
            if file is not None and not path.startswith(tuple(lost)):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                Path(path).write_bytes(_torn(file, draw))

    def _change(self, change: dict[str, _File | None]) -> None:
        self._pending.setdefault(os.path.dirname(next(iter(change))), []).append(change)

    def _step(self, call: str, path: Any) -> str | None:
        """Count a change; return the fault that a write must carry out itself."""
        if self.struck and self._fault == "power":
            raise PowerCutError
        self.changes += 1
        if self.changes - 1 != self._fail_at or self._fault is None:
            return None
        if call == "write":
            return self._fault
        self._strike(self._fault, path, call)
        return None

    def _strike(self, fault: str, path: Any, call: str = "write") -> None:
        self.struck = f"{call} {os.path.relpath(path, self._root)}"
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "power":
            raise PowerCutError
        if fault != "short":
            raise OSError(errno.EIO if fault == "eio" else errno.ENOSPC, "on purpose", str(path))


def _torn(file: _File, draw: random.Random) -> bytes:
    """A content after a power cut: the durable bytes, and of what came after them any part."""
    if not file.content.startswith(file.durable):  # cut, and perhaps written anew
        return draw.choice([file.durable, file.content, b""])
    rest = len(file.content) - len(file.durable)
    tail = bytearray(file.content[len(file.durable) :][: draw.randint(0, rest)])
    if tail and draw.random() < 0.5:  # a block that was allocated and never written
        start = draw.randrange(len(tail))
        tail[start : start + 4096] = bytes(len(tail[start : start + 4096]))
    return file.durable + bytes(tail)
