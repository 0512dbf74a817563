"""How far a kernel may be from the truth: one rule for the whole suite."""

import torch
from torch import Tensor

EPSILON = 2.0**-24  # half a unit in the last place of float32

FLOORS = {
    # The kernel repeats the reference's rounding or does better.
    "none": 0.0,
    # One result in float32 differs from the exact one by this much however it was computed.
    "rounding": EPSILON,
    # A distance is the root of a float32 sum of three terms; see NEAR in reference.py.
    "distance": 1e-5,
}


def assert_as_accurate(actual: Tensor, reference: Tensor, exact: Tensor, floor: str) -> None:
    """Assert that errors against float64 stay within twice the reference's own, plus a floor.

    exact: float64. NaN and infinities must be where `exact` has them. The floor is a share of the
    largest exact value.
    """
    assert exact.dtype == torch.float64
    assert actual.shape == exact.shape
    assert reference.shape == exact.shape
    finite = exact.isfinite()
    for name, values in (("actual", actual), ("reference", reference)):
        special = values.double()[~finite]
        assert torch.equal(special.isnan(), exact[~finite].isnan()), f"{name}: NaN elsewhere"
        infinite = ~special.isnan()
        assert torch.equal(special[infinite], exact[~finite][infinite]), f"{name}: other infinity"
    if not finite.any():
        return
    truth = exact[finite]
    error = (actual.double()[finite] - truth).abs().max()
    own = (reference.double()[finite] - truth).abs().max()
    allowed = 2 * own + FLOORS[floor] * truth.abs().max()
    assert error <= allowed, f"error {error:.3g} > {allowed:.3g} = 2 x {own:.3g} + floor {floor}"
