"""Shards that are encoded here against those that Zarr writes."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from safetyspace_fast.store.layout import SHARD_SAMPLES
from safetyspace_fast.store.shard import encode_shard


@pytest.mark.parametrize("grid", [(1, 1), (5, 2), (3, 4)])
@pytest.mark.parametrize("rest", [(), (2,), (3, 16)])
@pytest.mark.parametrize(
    ("dtype", "fill"), [("float32", np.nan), ("float64", np.nan), ("int32", 0)]
)
@pytest.mark.parametrize("n", [1, SHARD_SAMPLES])
def test_a_shard_has_the_bytes_that_zarr_writes(
    tmp_path: Path, grid: tuple[int, int], rest: tuple[int, ...], dtype: str, fill: float, n: int
) -> None:
    rows = (100 * np.random.default_rng(0).standard_normal((*grid, n, *rest))).astype(dtype)
    array = zarr.create_array(
        tmp_path / "array",
        shape=rows.shape,
        dtype=dtype,
        chunks=(1, 1, SHARD_SAMPLES, *rest),
        shards=(*grid, SHARD_SAMPLES, *rest),
        compressors=[
            BloscCodec(
                cname="zstd",
                clevel=1,
                shuffle=BloscShuffle.bitshuffle,
                typesize=np.dtype(dtype).itemsize,
            ),
            Crc32cCodec(),
        ],
        fill_value=fill,
        config={"write_empty_chunks": True},
    )
    array[...] = rows
    (file,) = (path for path in (tmp_path / "array" / "c").rglob("*") if path.is_file())
    assert encode_shard(rows, fill) == file.read_bytes()


def test_a_large_chunk_has_the_same_bytes_in_each_try() -> None:
    """On the main thread, where Blosc's threads would write its blocks in any order."""
    rows = np.random.default_rng(0).standard_normal((1, 1, SHARD_SAMPLES, 64)).astype("float32")
    assert len({encode_shard(rows, np.nan) for _ in range(200)}) == 1
