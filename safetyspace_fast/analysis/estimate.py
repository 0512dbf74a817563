"""A number with its floor, its interval and its p, from what each text or each draw adds to it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cells import Cells
from .uncertainty import (
    DRAWS_EXCESS,
    INFLUENCE_EXCESS,
    common_share,
    influence_variance,
    interval,
    linear_variance,
    permutation_p,
    spread,
)

Ends = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Makes an interval of value and deviation."""


@dataclass(frozen=True)
class Square:
    """A part of an estimate that is quadratic in noise; see `uncertainty.INFLUENCE_EXCESS`."""

    variance: Tensor
    """[cell]."""
    noise: Callable[[], Tensor]
    """[cell, unit, any], what every unit adds to that noise, in any units."""
    common: Callable[[Tensor, Tensor], Tensor] = common_share
    """Correlation of this part of two estimates, from the noise of each."""


@dataclass(frozen=True)
class Estimate:
    """One metric for every cell; all tensors [cell] float64 unless said."""

    value: Tensor
    floor: Tensor
    p: Tensor
    low: Tensor
    high: Tensor
    influence: Tensor | None = None
    """[cell, n], what every text adds; None where the interval comes from draws or is none."""
    draws: Tensor | None = None
    """[cell, bootstraps]."""
    linear: Tensor | None = None
    """Variance less that of the quadratic parts."""
    squares: tuple[Square, ...] = ()
    null: Tensor | None = None
    """[cell, 1 + permutations], test statistic of the labels as they are, then of every
    permutation; large is far apart."""

    @property
    def variance(self) -> Tensor:
        """[cell], of an estimate with an interval."""
        assert self.linear is not None
        return sum((part.variance for part in self.squares), self.linear)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Estimate":
        """The same estimate on another, monotone scale."""
        low, high = function(self.low), function(self.high)
        return Estimate(
            function(self.value),
            function(self.floor),
            self.p,
            torch.minimum(low, high),
            torch.maximum(low, high),
            null=self.null,
        )


def make_estimate(
    cells: Cells,
    value: Tensor,
    *,
    null: Tensor | None = None,
    floor: Tensor | float | None = None,
    influence: Tensor | None = None,
    draws: Tensor | None = None,
    squares: tuple[Square, ...] = (),
    ends: Ends = interval,
) -> Estimate:
    """Put an estimate together.

    Args:
        cells: where it was made.
        value: [cell].
        null, influence, draws, squares: see `Estimate`; the interval comes from influences or from
            draws, and there is none without them.
        floor: the value without any difference between the classes; None takes the mean of the
            permutations.
        ends: the interval's ends from value and deviation.
    """
    nothing = torch.full_like(value, torch.nan)
    p, level = nothing, nothing
    if null is not None and null.shape[-1] > 1:
        p, level = permutation_p(null[:, 0], null[:, 1:]), null[:, 1:].nanmean(-1)
    if floor is not None:
        level = torch.as_tensor(floor, dtype=value.dtype).expand_as(value)
    low, high, linear = nothing, nothing, None
    square = sum((part.variance for part in squares), torch.zeros_like(value))
    if influence is not None:
        seen = influence_variance(influence, cells.unit)
        linear = linear_variance(seen, square, INFLUENCE_EXCESS)
    elif draws is not None and draws.shape[-1] > 1:
        linear = linear_variance(spread(draws).square(), square, DRAWS_EXCESS)
    if linear is not None:
        low, high = ends(value, (linear + square).sqrt())
    return Estimate(value, level, p, low, high, influence, draws, linear, squares, null)


def swap_floor(cells: Cells, exact: float, null: Tensor) -> float | None:
    """An exact floor for independent texts; on paired data what label swaps leave."""
    return None if cells.paired and null.shape[-1] > 1 else exact
