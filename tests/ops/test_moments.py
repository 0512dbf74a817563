import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import normal

from safetyspace_fast import ops
from safetyspace_fast.errors import ConfigError


def moments_of(x, cells, C):
    return ops.class_moments(x, cells, C)


def test_definition():
    x, cells = normal(40, 6), torch.arange(40) % 3
    count, mean, moment2 = vars(moments_of(x, cells, 4)).values()
    assert count.tolist() == [14, 13, 13, 0]
    for cell in range(3):
        members = x[cells == cell].double()
        torch.testing.assert_close(mean[cell], members.mean(0), rtol=1e-14, atol=1e-15)
        covariance = moment2[cell] / (count[cell] - 1)
        torch.testing.assert_close(covariance, members.T.cov(), rtol=1e-12, atol=1e-14)
    assert (mean[3] == 0).all()
    assert (moment2[3] == 0).all()


def test_leading_dimensions():
    x, cells = normal(2, 3, 20, 4), torch.arange(20) % 2
    together = moments_of(x, cells, 2)
    alone = moments_of(x[1, 2], cells, 2)
    # A library may sum a batch of products in another order than one alone: equal to rounding.
    assert torch.equal(together.mean[1, 2], alone.mean)
    torch.testing.assert_close(together.moment2[1, 2], alone.moment2, rtol=1e-14, atol=1e-14)


def test_the_number_of_threads_changes_no_bit(threads):
    """Wide enough that the library's product and the sums are really dealt out to threads."""
    x, cells = normal(3, 4000, 96), torch.arange(4000) % 7 % 4
    threads(1)
    expected = moments_of(x, cells, 4)
    for count in (2, 4):
        threads(count)
        actual = moments_of(x, cells, 4)
        for a, b in zip(vars(actual).values(), vars(expected).values(), strict=True):
            assert torch.equal(a, b)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 6), st.floats(-1e6, 1e6))
def test_any_merge_order_agrees_to_1e_12(seed, N, parts, shift):
    generator = torch.Generator().manual_seed(seed)
    x = normal(N, 5, seed=seed, dtype=torch.float64) + shift
    cells = torch.randint(0, 4, (N,), generator=generator)
    part = torch.randint(0, parts, (N,), generator=generator)
    pieces = [moments_of(x[part == p], cells[part == p], 4) for p in range(parts)]
    whole = moments_of(x, cells, 4)
    for order in (torch.arange(parts), torch.randperm(parts, generator=generator)):
        merged = pieces[order[0]]
        for p in order[1:]:
            merged = merged.merge(pieces[p])
        assert torch.equal(merged.count, whole.count)
        scale = max(1.0, abs(shift))
        assert (merged.mean - whole.mean).abs().max() < 1e-12 * scale
        # Shifting the data costs moments the digits of the shift in the input, not in the sums.
        assert (merged.moment2 - whole.moment2).abs().max() < 1e-12 * scale * max(10, N)


@pytest.mark.parametrize(
    ("x", "cells", "message"),
    [
        (torch.ones(3), torch.zeros(3).long(), r"projected: expected \[..., N, P\]"),
        (torch.ones(3, 2).int(), torch.zeros(3).long(), "projected: expected"),
        (torch.ones(3, 2), torch.zeros(3), r"cells: expected \[3\] int64"),
        (torch.ones(3, 2), torch.zeros(2).long(), r"cells: expected \[3\] int64"),
        (torch.ones(3, 2), torch.tensor([0, 1, 2]), "cells: expected 0 .. 1, got 0 .. 2"),
        (torch.ones(3, 2), torch.tensor([0, -1, 0]), "got -1 .. 0"),
    ],
)
def test_wrong_arguments_are_named(x, cells, message):
    with pytest.raises(ConfigError, match=message):
        ops.class_moments(x, cells, 2)


def test_cells_are_needed():
    with pytest.raises(ConfigError, match="num_cells: expected at least 1, got -1"):
        ops.class_moments(torch.ones(0, 2), torch.zeros(0).long(), -1)
