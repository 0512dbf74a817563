"""One shard as bytes: what Zarr writes, without the time that Zarr takes.

A shard has a chunk for each layer and pooling, a kilobyte or a few. Zarr hands each of them to a
thread and back, which takes ten times as long as compressing it.
"""

import google_crc32c  # comes with zarr
import numpy as np
from numcodecs import blosc
from numcodecs.blosc import Blosc
from zarr.core.indexing import morton_order_iter

from .layout import SHARD_SAMPLES, Array

blosc.use_threads = False  # else those of the main thread write the blocks of a chunk in any order


def encode_shard(rows: Array, fill_value: float) -> bytes:
    """Encode a whole shard as the codecs of `writer` do (Zarr's codec `sharding_indexed`, 1.0).

    Each chunk is compressed and followed by its checksum. Behind the chunks stand the offset and
    length of each, and a checksum of these.

    Args:
        rows: `[layer, pooling, n, ...]`, little-endian, n at most `SHARD_SAMPLES`.
        fill_value: of the rows behind the last one.
    """
    grid, missing = rows.shape[:2], SHARD_SAMPLES - rows.shape[2]
    if missing:
        shape = (*grid, missing, *rows.shape[3:])
        rows = np.concatenate([rows, np.full(shape, fill_value, rows.dtype)], 2)
    codec = Blosc("zstd", clevel=1, shuffle=Blosc.BITSHUFFLE, typesize=rows.dtype.itemsize)
    chunks, index, end = [], np.empty((*grid, 2), "<u8"), 0
    for cell in morton_order_iter(grid):
        chunks.append(_checked(codec.encode(np.ascontiguousarray(rows[cell]))))
        index[cell] = end, len(chunks[-1])
        end += len(chunks[-1])
    return b"".join([*chunks, _checked(index.tobytes())])


def _checked(content: bytes) -> bytes:
    """Some bytes and their checksum."""
    return content + int(google_crc32c.value(content)).to_bytes(4, "little")
