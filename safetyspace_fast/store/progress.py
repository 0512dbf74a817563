"""What an unfinished run knows: pooled states on disk, and a journal of what is done.

Both live in `<work>/<model>/`, on a local disk, and go when the model is complete.

A *segment* holds the pooled states of one part of the plan as a log of records, one a batch. A
record is a header (magic, rows, checksum, payload bytes), the row numbers, and float32 values
`[layer, pooling, rows, hidden + proj]`, so that one layer and pooling is one piece. A record that
was cut short by a crash fails its checksum and is dropped, with all after it; so resume loses at
most the batch that was being written. A line of the journal is a checksum and a JSON object; one
that is damaged says nothing, so that what it told of is done again.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import files
from .layout import Array
from .place import Place

_JOURNAL = "journal.jsonl"
_SYNC_BYTES = 4 << 20
"""A segment is made durable each time it grew by this much."""
_HEADER = struct.Struct("<4sIIQ")
_MAGIC = b"SSF1"


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


def clear(folder: Path) -> None:
    """Delete what a model has in its folder, but not the claim to it."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.suffix in (".seg", ".jsonl", ".tmp"):
            files.remove(path)


def written(folder: Path) -> set[int]:
    """The shards that a model's journal says are written, all arrays of their samples with them."""
    path = folder / _JOURNAL
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    pairs = [line.partition(b" ")[::2] for line in lines]
    events = [json.loads(text) for crc, text in pairs if crc == b"%08x" % zlib.crc32(text)]
    return {event["written"] for event in events}


def rewrite_journal(folder: Path, shards: set[int]) -> None:
    """Replace a model's journal."""
    files.replace(folder / _JOURNAL, b"".join(map(_line, sorted(shards))))


def _line(shard: int) -> bytes:
    text = json.dumps({"written": shard}).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


class Progress:
    """The segments and the journal of one model."""

    def __init__(self, store: str | Path, model: str, row_shape: tuple[int, int, int]) -> None:
        """Open or make the model's folder; the caller holds its claim.

        Args:
            store: path or URL of the store.
            model: the model's name.
            row_shape: `(layer, pooling, hidden + proj)`, what is kept of one sample.
        """
        self.folder = Place(store).work / model
        self._row_shape = row_shape
        self._journal = self.folder / _JOURNAL
        self._unsynced = 0
        files.make_folder(self.folder)
        for folder in (self.folder, self.folder.parent):  # a claim may have made them
            files.sync(folder)
        if self._journal.exists():  # a crash may have cut the last line short
            files.truncate(self._journal, self._journal.read_bytes().rfind(b"\n") + 1)

    def append(self, part: int, rows: Array, values: Array) -> None:
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
        files.append(self._segment(part), header + ids.tobytes(), payload.data)
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
        path = self._segment(part)
        if path.exists() and path.stat().st_size > end:
            files.truncate(path, end)
        return done

    def records(self, part: int) -> list[Record]:
        """What a part's segment holds."""
        return list(self._scan(part, verify=False))

    def sync(self, part: int) -> None:
        """Make a part's segment durable."""
        files.sync(self._segment(part))
        self._unsynced = 0

    def drop(self, part: int) -> None:
        """Delete a part's segment, which nothing needs any more."""
        files.remove(self._segment(part))

    def record(self, shard: int) -> None:
        """Say in the journal, durably, that a shard is written."""
        files.append(self._journal, _line(shard))
        files.sync(self._journal)

    def written(self) -> set[int]:
        """The shards that the journal says are written."""
        return written(self.folder)

    def close(self) -> None:
        """The model is complete: delete everything."""
        clear(self.folder)

    def _segment(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.seg"

    def _scan(self, part: int, *, verify: bool) -> Iterator[Record]:
        path = self._segment(part)
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
