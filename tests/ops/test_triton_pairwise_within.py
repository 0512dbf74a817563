import pytest
import torch
from device_runner import WHERE, run
from implementations import normal

from safetyspace_fast.ops import reference
from safetyspace_fast.ops.triton import pairwise_within as kernels

VALUES = [("euclidean", None), ("sqeuclidean", None), ("cosine", None), ("euclidean", 0.02)]


def draw_masks(N, R, seed=0):
    return (torch.rand(N, R, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def check(where, x, masks, metric="euclidean", gamma=None, shift=0.7):
    """Every distance within 1e-5 of the truth, so sums of them too. Layers have what is theirs."""
    layers = torch.arange(1, len(x) + 1)
    shifts = shift / layers
    gammas = None if gamma is None else gamma * layers.double()
    center = reference.center_of(x, metric)
    result = run(where, kernels.pairwise_within, x, center, masks, metric, gammas, shifts)
    exact = (x.double(), center, masks.double(), metric, gammas)
    expected = reference.pairwise_within(*exact, shifts)
    unshifted = reference.pairwise_within(*exact, torch.zeros_like(shifts))
    shifted = 2.0**-23 * shift * x.shape[1] ** 2  # each difference is rounded to float32
    for got, wanted, scale in zip(result, expected, unshifted, strict=True):
        assert got.dtype == torch.float64
        assert torch.equal(got.isnan(), wanted.isnan())
        # exp(-gamma d^2) errs by at most 2e-5 gamma d^2 exp(-gamma d^2) <= 2e-5 / e a pair.
        floor = 0.0 if gamma is None else 1e-5 * x.shape[1] ** 2
        allowed = 1e-5 * scale.nan_to_num(0) + floor + shifted
        assert ((got - wanted).abs().nan_to_num(0) <= allowed).all()
    return result


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("metric", "gamma"), VALUES)
def test_matches_float64(where, metric, gamma):
    """Two tiles, the last not full, and more sets than a program multiplies at a time."""
    check(where, normal(1, 75, 70), draw_masks(75, 70), metric, gamma)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("metric", "gamma"), VALUES)
def test_layers(where, metric, gamma):
    """In one launch; each with its own kernel, shift, near pairs and bad rows, as if alone."""
    x = normal(3, 69, 19) * torch.tensor([1.0, 3.0, 0.2])[:, None, None]
    x[0, 66] = x[0, 5]
    x[1, 68] = torch.nan
    x[2, 3] = x[2, 2]
    masks = draw_masks(69, 5)
    together = check(where, x, masks, metric, gamma)
    alone = check(where, x[:1], masks, metric, gamma)
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[:1], part)
        assert whole.isnan().flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_and_strides(where, dtype):
    check(where, normal(2, 33, 40).to(dtype).transpose(1, 2), draw_masks(40, 3))


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("N", "R"), [(1, 1), (2, 0), (0, 3)])
def test_smallest(where, N, R):
    center = torch.zeros(1, 3, dtype=torch.float64)
    shift = torch.tensor([0.5])
    arguments = (normal(1, N, 3), center, torch.ones(N, R), "euclidean", None, shift)
    total, within = run(where, kernels.pairwise_within, *arguments)
    expected = reference.pairwise_within(*arguments)
    torch.testing.assert_close(total, expected[0])
    torch.testing.assert_close(within, expected[1])


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("metric", "gamma"), VALUES)
def test_equal_and_nearly_equal_rows(where, metric, gamma):
    """Computed again from differences, in the tile on the diagonal and in another one."""
    x = normal(1, 80, 24)
    x[:, 5] = x[:, 3]
    x[:, 70] = x[:, 3]
    x[:, 71] = x[:, 66] * (1 + 1e-6)
    x[..., :4] += 3000
    check(where, x, draw_masks(80, 5), metric, gamma)


@pytest.mark.parametrize("where", WHERE)
def test_all_rows_equal(where):
    total, within = check(where, torch.ones(1, 70, 5), draw_masks(70, 2), shift=0.0)
    assert (total == 0).all()
    assert (within == 0).all()


@pytest.mark.parametrize("where", WHERE)
def test_a_bad_row_is_seen(where):
    x = normal(1, 70, 5)
    x[0, 66, 1] = torch.inf
    total, within = check(where, x, draw_masks(70, 2))
    assert total.isnan().all()
    assert within.isnan().all()


@pytest.mark.needs_cuda
def test_large():
    """Twice the same bytes, and right, under an offset and with a thousand sets."""
    x = normal(1, 3000, 500) + 100
    first = check("cuda", x, draw_masks(3000, 1000), shift=30.0)
    again = check("cuda", x, draw_masks(3000, 1000), shift=30.0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_reasons():
    x = normal(1, 3, 3).double()
    reasons = kernels.supports(x, x[:, 0], torch.ones(3, 2), "euclidean", None, torch.zeros(1))
    assert reasons == [
        "x is on cpu, not on a GPU",
        "x are torch.float64, not float32, bfloat16 or float16",
    ]
