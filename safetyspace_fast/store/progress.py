"""What an unfinished run knows: pooled states on disk, and a journal of what is done.

Both live beside the store, in `<store>.work/<model>/`, and go when the model is complete.

A *segment* holds the pooled states of one shard as a log of records, one a batch. A record is a
header (magic, rows, checksum, payload bytes), the row numbers, and float32 values
`[rows, layer, pooling, hidden + proj]`. A record that was cut short by a crash fails its checksum
and is dropped, with all after it; so resume loses at most the batch that was being written.
"""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_HEADER = struct.Struct("<4sIIQ")
_MAGIC = b"SSF1"


def work_folder(store: Path) -> Path:
    """The folder beside a store that holds what unfinished runs need."""
    return store.with_name(store.name + ".work")


class Progress:
    """The segments and the journal of one model."""

    def __init__(self, store: Path, model: str, row_shape: tuple[int, int, int]) -> None:
        """Open or make the work folder.

        Args:
            store: path of the store.
            model: the model's name.
            row_shape: `(layer, pooling, hidden + proj)`, the shape of one sample's record.
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
            values: `[n, layer, pooling, hidden + proj] float32`.
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
        for stop, rows, _ in self._records(shard, verify=True):
            done.update(rows.tolist())
            end = stop
        path = self._segment(shard)
        if path.exists() and path.stat().st_size > end:
            os.truncate(path, end)
        return done

    def records(self, shard: int) -> list[tuple[Array, Array]]:
        """What a shard's segment holds, without copying the values.

        Returns:
            for each batch its samples `[n] int64` and `[n, layer, pooling, hidden + proj] float32`,
            the latter mapped from the file.
        """
        return [(rows, values) for _, rows, values in self._records(shard, verify=False)]

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

    def _records(self, shard: int, *, verify: bool) -> Iterator[tuple[int, Array, Array]]:
        path = self._segment(shard)
        if not path.exists() or path.stat().st_size == 0:
            return
        data = np.memmap(path, np.uint8, mode="r")
        start = 0
        while start + _HEADER.size <= len(data):
            magic, n_rows, checksum, n_bytes = _HEADER.unpack_from(data.data, start)
            first = start + _HEADER.size
            middle = first + 8 * n_rows
            end = middle + n_bytes
            expected = 4 * n_rows * int(np.prod(self._row_shape))
            if magic != _MAGIC or n_bytes != expected or end > len(data):
                return
            if verify and zlib.crc32(data.data[first:end]) != checksum:
                return
            rows = data[first:middle].view(np.int64)
            values = np.ndarray((n_rows, *self._row_shape), np.float32, data, middle)
            yield end, rows, values
            start = end


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
