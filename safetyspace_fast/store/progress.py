"""What an unfinished run knows: pooled states on disk, and a journal of what is done.

Both live beside the store, in `<store>.work/<model>/`, and go when the model is complete.

A *segment* holds the pooled states of one shard as a log of records, one a batch. A record is a
header (magic, rows, checksum, payload bytes), the row numbers, and float32 values
`[layer, pooling, rows, hidden + proj]`, so that one layer and pooling is one piece. A record that
was cut short by a crash fails its checksum and is dropped, with all after it; so resume loses at
most the batch that was being written.
"""

import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_HEADER = struct.Struct("<4sIIQ")
_MAGIC = b"SSF1"


def work_folder(store: Path) -> Path:
    """The folder beside a store that holds what unfinished runs need."""
    return store.with_name(store.name + ".work")


@dataclass(frozen=True)
class Record:
    """One batch in a segment; its values stay on disk until they are read."""

    rows: Array
    """`[n] int64`, samples in canonical order."""
    path: Path
    offset: int
    shape: tuple[int, int, int, int]

    @property
    def end(self) -> int:
        """Where the next record starts."""
        return self.offset + 4 * math.prod(self.shape)

    def read(self, layer: int, pooling: int) -> Array:
        """One layer and pooling: `[n, hidden + proj] float32`."""
        _, poolings, rows, width = self.shape
        start = self.offset + 4 * (layer * poolings + pooling) * rows * width
        values = np.fromfile(self.path, np.float32, rows * width, offset=start)
        return values.reshape(rows, width)


class Progress:
    """The segments and the journal of one model."""

    def __init__(self, store: Path, model: str, row_shape: tuple[int, int, int]) -> None:
        """Open or make the work folder.

        Args:
            store: path of the store.
            model: the model's name.
            row_shape: `(layer, pooling, hidden + proj)`, what is kept of one sample.
        """
        self.folder = work_folder(store) / model
        self.folder.mkdir(parents=True, exist_ok=True)
        self._row_shape = row_shape
        self._journal = self.folder / "journal.jsonl"
        if self._journal.exists():  # a crash may have cut the last line short
            os.truncate(self._journal, self._journal.read_bytes().rfind(b"\n") + 1)

    def append(self, shard: int, rows: Array, values: Array) -> None:
        """Add one batch to a shard's segment.

        Args:
            shard: the shard.
            rows: `[n] int64`, samples in canonical order.
            values: `[layer, pooling, n, hidden + proj] float32`.
        """
        ids = np.ascontiguousarray(rows, np.int64)
        payload = np.ascontiguousarray(values, np.float32)
        checksum = zlib.crc32(payload.data, zlib.crc32(ids.data))
        header = _HEADER.pack(_MAGIC, len(ids), checksum, payload.nbytes)
        with self._segment(shard).open("ab") as file:
            file.write(header + ids.tobytes())
            file.write(payload.data)

    def rows_done(self, shard: int) -> set[int]:
        """Samples of a shard whose states are on disk; cuts off a damaged tail."""
        done: set[int] = set()
        end = 0
        for record in self._scan(shard, verify=True):
            done.update(record.rows.tolist())
            end = record.end
        path = self._segment(shard)
        if path.exists() and path.stat().st_size > end:
            os.truncate(path, end)
        return done

    def records(self, shard: int) -> list[Record]:
        """What a shard's segment holds."""
        return list(self._scan(shard, verify=False))

    def sync(self, shard: int) -> None:
        """Make a shard's segment durable."""
        path = self._segment(shard)
        if path.exists():
            _fsync(path)

    def drop(self, shard: int) -> None:
        """Delete a shard's segment, which nothing needs any more."""
        self._segment(shard).unlink(missing_ok=True)

    def record(self, **event: Any) -> None:
        """Append one line to the journal, durably."""
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """The journal's lines."""
        if not self._journal.exists():
            return []
        return [json.loads(line) for line in self._journal.read_text("utf-8").splitlines()]

    def save(self, name: str, **arrays: Array) -> None:
        """Keep a few arrays until the model is complete."""
        temporary = self.folder / f"{name}.tmp"
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        _fsync(temporary)
        temporary.rename(self.folder / f"{name}.npz")

    def load(self, name: str) -> dict[str, Array]:
        """The arrays that `save` kept."""
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    def close(self) -> None:
        """The model is complete: delete everything."""
        shutil.rmtree(self.folder)
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _segment(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.seg"

    def _scan(self, shard: int, *, verify: bool) -> Iterator[Record]:
        path = self._segment(shard)
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


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
