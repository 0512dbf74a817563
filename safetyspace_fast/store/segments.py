"""Pooled states on a local disk, until their language is complete.

The plan cuts a language into parts. A part has one file, its *segment*, to which each batch appends
a record: a header (magic, number of rows, checksum, bytes of the values), the row numbers, and the
values `[layer, pooling, rows, hidden + proj]` in float32, so that one layer and pooling is read in
one piece. A record that a crash cut short does not match its checksum; it is dropped with all that
follows. So a crash costs at most the batch that was being written, and a power cut what came after
the last sync.
"""

import math
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import files

SUFFIX = ".seg"
_SYNC_SECONDS = 5.0
"""A segment that grows is synced so often: by size, fast writers would wait for the disk."""
_HEADER = struct.Struct("<4sIIQ")
_MAGIC = b"SSF1"


@dataclass(frozen=True)
class Record:
    """One batch in a segment; `read` reads its values."""

    rows: NDArray[np.int64]
    """`[n]`, numbers of its samples in canonical order."""
    path: Path
    offset: int
    shape: tuple[int, int, int, int]

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.offset + 4 * math.prod(self.shape)

    def read(self, layer: int, pooling: int) -> NDArray[np.float32]:
        """Read one layer and pooling: `[n, hidden + proj]`."""
        _, poolings, rows, width = self.shape
        start = self.offset + 4 * (layer * poolings + pooling) * rows * width
        values = np.fromfile(self.path, np.float32, rows * width, offset=start)
        return values.reshape(rows, width)


class Segments:
    """The segments of one model."""

    def __init__(self, folder: Path, row_shape: tuple[int, int, int]) -> None:
        """Give their folder.

        Args:
            folder: of the model; it must exist.
            row_shape: `(layer, pooling, hidden + proj)`, the values of one sample.
        """
        self._folder = folder
        self._row_shape = row_shape
        self._synced = time.monotonic()

    def append(self, part: int, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Append one batch to the segment of its part.

        Args:
            part: number of the part in the plan.
            rows: `[n] int64`, numbers of the samples in canonical order.
            values: `[layer, pooling, n, hidden + proj] float32`.
        """
        ids = np.ascontiguousarray(rows, np.int64)
        payload = np.ascontiguousarray(values, np.float32)
        checksum = zlib.crc32(payload.data, zlib.crc32(ids.data))
        header = _HEADER.pack(_MAGIC, len(ids), checksum, payload.nbytes)
        files.append(self._path(part), header + ids.tobytes(), payload.data)
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            self.sync(part)

    def rows_done(self, part: int) -> set[int]:
        """Samples of a part whose states are on disk; a damaged end of the file is cut off."""
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
        """All records of a part."""
        return list(self._scan(part, verify=False))

    def sync(self, part: int) -> None:
        """Make a part's segment durable."""
        files.sync(self._path(part))
        self._synced = time.monotonic()

    def drop(self, part: int) -> None:
        """Delete the segment of a part."""
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
