"""States of batches between two blocks of a model that is streamed from disk, in one file.

The file has a slot for each batch: a header, the states that the next block reads, and the averages
of the layers so far. A batch's header is written last, with a checksum of both. So a run that was
killed goes on at the block where it stopped; a batch that was being written begins again.

Layout: the length of the description as 8 bytes, the description in JSON (`key`, `slots`), then the
slots where it says.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import files

SUFFIX = ".scratch"
_HEADER = struct.Struct("<4sIIIQ")
_MAGIC = b"SSB1"
Bytes = bytes | bytearray | memoryview


class Slot(NamedTuple):
    """Where a batch is in the file, and the sizes of what it keeps."""

    offset: int
    state_bytes: int
    average_bytes: int


class _Progress(NamedTuple):
    level: int = 0
    averages_crc: int = 0
    average_bytes: int = 0


def slot_bytes(state_bytes: int, average_bytes: int) -> int:
    """What a batch takes in the file."""
    return _HEADER.size + state_bytes + average_bytes


class Scratch:
    """The file, from the point where an earlier run stopped."""

    def __init__(self, path: Path, key: str, sizes: Mapping[int, tuple[int, int]]) -> None:
        """Make the file at its full size, or go on with the one that is there.

        Args:
            path: of the file.
            key: whatever decides the states; a file with another key is replaced.
            sizes: for each batch, by the number of its first sample, the bytes of its states and of
                the averages of all layers. A file that has all of them is kept.

        Raises:
            StoreError: there is no room for it.
        """
        self._path = path
        self._slots = left_slots(path, key)
        if not self._slots or not sizes.keys() <= self._slots.keys():
            self._make(key, sizes)
        self._progress = {name: self._read_progress(slot) for name, slot in self._slots.items()}

    def level(self, batch: int) -> int:
        """How many blocks a batch has gone through."""
        return self._progress[batch].level

    def states(self, batch: int) -> NDArray[np.uint8]:
        """The bytes that the next block reads."""
        slot = self._slots[batch]
        return self._bytes(slot.offset + _HEADER.size, slot.state_bytes)

    def averages(self, batch: int) -> NDArray[np.float32]:
        """The averages of the layers so far, one behind the other."""
        slot = self._slots[batch]
        start = slot.offset + _HEADER.size + slot.state_bytes
        return self._bytes(start, self._progress[batch].average_bytes).view(np.float32)

    def save(self, batch: int, level: int, states: Bytes, averages: Bytes) -> None:
        """Keep what a block has made of a batch.

        Args:
            batch: by the number of its first sample.
            level: blocks that it has gone through.
            states: behind the block.
            averages: of the layers at this block.

        Raises:
            StoreError: the disk refuses.
        """
        slot, before = self._slots[batch], self._progress[batch]
        start = slot.offset + _HEADER.size
        crc = zlib.crc32(averages, before.averages_crc)
        n_bytes = before.average_bytes + len(averages)
        header = _HEADER.pack(_MAGIC, level, zlib.crc32(states), crc, n_bytes)
        files.write_at(self._path, start + slot.state_bytes + before.average_bytes, averages)
        files.write_at(self._path, start, states)
        files.write_at(self._path, slot.offset, header)
        self._progress[batch] = _Progress(level, crc, n_bytes)

    def remove(self) -> None:
        """Delete the file."""
        files.remove(self._path)

    def _make(self, key: str, sizes: Mapping[int, tuple[int, int]]) -> None:
        files.remove(self._path)
        relative, end = {}, 0
        for name, (state_bytes, average_bytes) in sizes.items():
            relative[name] = Slot(end, state_bytes, average_bytes)
            end += slot_bytes(state_bytes, average_bytes)
        # Offsets count from the end of the description, so they do not change its length.
        text = json.dumps({"key": key, "slots": relative}).encode()
        try:
            files.reserve(self._path, 8 + len(text) + end)
            files.write_at(self._path, 0, struct.pack("<Q", len(text)) + text)
        except BaseException:
            self.remove()
            raise
        self._slots = left_slots(self._path, key)

    def _read_progress(self, slot: Slot) -> _Progress:
        header = self._bytes(slot.offset, _HEADER.size).tobytes()
        if len(header) < _HEADER.size:
            return _Progress()
        magic, level, states_crc, averages_crc, n_bytes = _HEADER.unpack(header)
        if magic != _MAGIC or n_bytes > slot.average_bytes:
            return _Progress()
        start = slot.offset + _HEADER.size
        states = self._bytes(start, slot.state_bytes)
        averages = self._bytes(start + slot.state_bytes, n_bytes)
        whole = zlib.crc32(states.data) == states_crc and zlib.crc32(averages.data) == averages_crc
        return _Progress(level, averages_crc, n_bytes) if whole else _Progress()

    def _bytes(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        return np.fromfile(self._path, np.uint8, n_bytes, offset=offset)


def left_slots(path: Path, key: str) -> dict[int, Slot]:
    """The slots of a file by batch; none if there is no file with this key."""
    try:
        with path.open("rb") as file:
            (n_bytes,) = struct.unpack("<Q", file.read(8))
            description = json.loads(file.read(min(n_bytes, path.stat().st_size)))
        if description["key"] != key:
            return {}
        start = 8 + n_bytes
        return {
            int(name): Slot(start + offset, *sizes)
            for name, (offset, *sizes) in description["slots"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return {}
