"""Pooled states on a local disk, until the language that they belong to is finished.

A *segment* holds the states of one part of the plan as a log of records, one a batch. A record is a
header (magic, rows, checksum, payload bytes), the row numbers, and float32 values
`[layer, pooling, rows, hidden + proj]`, so that one layer and pooling is one piece. A record that
was cut short by a crash fails its checksum and is dropped, with all after it; so resume loses at
most the batch that was being written.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import files

SUFFIX = ".seg"
_SYNC_BYTES = 4 << 20
"""A segment is made durable each time it grew by this much."""
_HEADER = struct.Struct("<4sIIQ")
_MAGIC = b"SSF1"


@dataclass(frozen=True)
class Record:
    """One batch in a segment; its values stay on disk until they are read."""

    rows: NDArray[np.int64]
    """`[n]`, samples in canonical order."""
    path: Path
    offset: int
    shape: tuple[int, int, int, int]

    @property
    def end(self) -> int:
        """Where the next record starts."""
        return self.offset + 4 * math.prod(self.shape)

    def read(self, layer: int, pooling: int) -> NDArray[np.float32]:
        """One layer and pooling: `[n, hidden + proj]`."""
        _, poolings, rows, width = self.shape
        start = self.offset + 4 * (layer * poolings + pooling) * rows * width
        values = np.fromfile(self.path, np.float32, rows * width, offset=start)
        return values.reshape(rows, width)


class Segments:
    """The segments of one model."""

    def __init__(self, folder: Path, row_shape: tuple[int, int, int]) -> None:
        """Say where they lie.

        Args:
            folder: the model's, which is there.
            row_shape: `(layer, pooling, hidden + proj)`, what is kept of one sample.
        """
        self._folder = folder
        self._row_shape = row_shape
        self._unsynced = 0

    def append(self, part: int, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Add one batch to a part's segment.

        Args:
            part: its number in the plan.
            rows: `[n] int64`, samples in canonical order.
            values: `[layer, pooling, n, hidden + proj] float32`.
        """
        ids = np.ascontiguousarray(rows, np.int64)
        payload = np.ascontiguousarray(values, np.float32)
        checksum = zlib.crc32(payload.data, zlib.crc32(ids.data))
        header = _HEADER.pack(_MAGIC, len(ids), checksum, payload.nbytes)
        files.append(self._path(part), header + ids.tobytes(), payload.data)
        self._unsynced += payload.nbytes
        if self._unsynced >= _SYNC_BYTES:
            self.sync(part)

    def rows_done(self, part: int) -> set[int]:
        """Samples of a part whose states are on disk; cuts off a damaged tail."""
        done: set[int] = set()
        end = 0
        for record in self._scan(part, verify=True):
            done.update(record.rows.tolist())
            end = record.end
        path = self._path(part)
        if path.exists() and path.stat().st_size > end:
            files.truncate(path, end)
        return done

    def records(self, part: int) -> list[Record]:
        """What a part's segment holds."""
        return list(self._scan(part, verify=False))

    def sync(self, part: int) -> None:
        """Make a part's segment durable."""
        files.sync(self._path(part))
        self._unsynced = 0

    def drop(self, part: int) -> None:
        """Delete a part's segment, which nothing needs any more."""
        files.remove(self._path(part))

    def _path(self, part: int) -> Path:
        return self._folder / f"part-{part:06d}{SUFFIX}"

    def _scan(self, part: int, *, verify: bool) -> Iterator[Record]:
        path = self._path(part)
        if not path.exists():
            return
        size = path.stat().st_size
        with path.open("rb") as file:
            while len(header := file.read(_HEADER.size)) == _HEADER.size:
                magic, n_rows, checksum, n_bytes = _HEADER.unpack(header)
                shape = (*self._row_shape[:2], n_rows, self._row_shape[2])
                ids = file.read(8 * n_rows)
                if magic != _MAGIC or n_bytes != 4 * math.prod(shape) or len(ids) != 8 * n_rows:
                    return
                record = Record(np.frombuffer(ids, np.int64), path, file.tell(), shape)
                if record.end > size:
                    return
                if verify and zlib.crc32(file.read(n_bytes), zlib.crc32(ids)) != checksum:
                    return
                yield record
                file.seek(record.end)
