from unittest.mock import patch

import pytest
import torch
import triton
import triton.language as tl
from device_runner import WHERE, run
from implementations import normal

from safetyspace_fast.errors import ConfigError
from safetyspace_fast.ops import PAIRWISE_BLOCK, reference
from safetyspace_fast.ops.triton import pairwise_reduce as whole
from safetyspace_fast.ops.triton import pairwise_update as kernels
from safetyspace_fast.ops.triton.tiles import TileConfig

# Small ones, or the interpreter takes minutes for more than one block of rows.
INTERPRETED = {"BLOCK": tl.constexpr(128), "tile_config": lambda target: TileConfig(16, 16, 4, 1)}


def tiled(function, *arguments):
    if not triton.knobs.runtime.interpret:
        return function(*arguments)
    with patch.multiple(whole, **INTERPRETED):
        return function(*arguments)


def reduce(*arguments):
    return tiled(whole.pairwise_reduce, *arguments)


def update(*arguments):
    """Start and end with the results: the test's own are in another process or on the CPU."""
    tiled(kernels.pairwise_update, *arguments)
    return arguments[-4:]


def grow(where, x, labels, C, steps, metric="euclidean", gammas=(), room=0):
    """All rows, call by call; results have room for more."""
    center = reference.center_of(x, metric)
    results = reference.pairwise_empty(x, x.shape[1] + room, C, len(gammas))
    start = 0
    for stop in steps:
        views = tuple(t[:, :stop] for t in results)
        rows, known = x[:, :stop], labels[:stop]
        for view, grown in zip(
            views,
            run(where, update, rows, center, known, start, metric, list(gammas), *views),
            strict=True,
        ):
            view.copy_(grown)
        start = stop
    return tuple(t[:, : x.shape[1]] for t in results)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    ("steps", "metric", "gammas"),
    [([1, 2, 2.2], "euclidean", (0.05,)), ([1, 1.2], "cosine", ())],
)
def test_block_by_block_gives_the_bytes_of_one_call(where, steps, metric, gammas):
    block = INTERPRETED["BLOCK"].value if where == "interpreter" else PAIRWISE_BLOCK
    steps = [int(step * block) for step in steps]
    N = steps[-1]
    x = normal(1, N, 9)
    x[:, N - 1] = x[:, 7]  # computed again from differences
    labels = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(0))
    labels[:block].clamp_(max=1)  # a class that the first block does not have
    grown = grow(where, x, labels, 3, steps, metric, gammas, room=20)
    center = reference.center_of(x, metric)
    arguments = (x, None, center, labels, 3, metric, list(gammas))
    for got, once in zip(grown, run(where, reduce, *arguments), strict=True):
        assert torch.equal(got, once)
    exact = reference.pairwise_reduce(x.double(), None, *arguments[2:])
    for got, wanted in zip(grown[:3], exact[:3], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(grown[3], exact[3], rtol=0, atol=1e-5 * N)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("C", [1, 2, 700])
def test_many_blocks_and_layers(dtype, C):
    """Classes that are missing in a block, and three layers in one launch."""
    x, labels = normal(3, 4000, 200, dtype=dtype), torch.arange(4000) * 7 // 5 % C
    steps = [PAIRWISE_BLOCK, 3 * PAIRWISE_BLOCK, 4000]
    grown = grow("cuda", x, labels, C, steps, room=96)
    center = reference.center_of(x, "euclidean")
    once = run("cuda", reduce, x, None, center, labels, C, "euclidean", [])
    assert all(torch.equal(a, b) for a, b in zip(grown, once, strict=True))


@pytest.mark.parametrize("where", WHERE)
def test_layers_do_not_see_each_other(where):
    x, labels = normal(2, 40, 9), torch.arange(40) % 2
    both = grow(where, x, labels, 2, [40], room=3)
    second = grow(where, x[1:], labels, 2, [40])
    assert all(torch.equal(a[1:], b) for a, b in zip(both, second, strict=True))


def test_another_layout_is_refused():
    x = normal(2, 5, 3)
    total, *rest = reference.pairwise_empty(x, 5, 2, 0)
    turned = total.mT.contiguous().mT
    arguments = (x, x[:, 0].double(), torch.zeros(5).long(), 0, "euclidean", [])
    with pytest.raises(ConfigError, match="sum: expected the layout of pairwise_empty"):
        kernels.pairwise_update(*arguments, turned, *rest)


def test_reasons():
    x, labels = normal(1, 3, 3), torch.zeros(3).long()
    reasons = kernels.supports(x.int(), x[:, 0], labels, 0, "euclidean", [1.0] * 5)
    assert len(reasons) == 3
    assert reasons[0] == "x is on cpu, not on a GPU"
    assert "5 gammas" in reasons[2]
