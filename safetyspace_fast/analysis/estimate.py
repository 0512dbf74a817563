"""A number with its floor, interval and p value, made from influences or from bootstrap draws."""

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
"""Gives low and high from value and standard deviation."""


@dataclass(frozen=True)
class Square:
    """A part of an estimate that is quadratic in noise; see `uncertainty.INFLUENCE_EXCESS`."""

    variance: Tensor
    """[cell]."""
    noise: Callable[[], Tensor]
    """[cell, unit, any], what each unit adds to the noise, on any scale."""
    common: Callable[[Tensor, Tensor], Tensor] = common_share
    """Correlation of this part between two estimates, from the noise of each."""


@dataclass(frozen=True)
class Estimate:
    """One metric for every cell. Tensors are [cell] float64 unless noted."""

    value: Tensor
    floor: Tensor
    p: Tensor
    low: Tensor
    high: Tensor
    influence: Tensor | None = None
    """[cell, n], influence of each text; None without an interval."""
    draws: Tensor | None = None
    """[cell, bootstraps]; None if the interval comes from influences."""
    linear: Tensor | None = None
    """Variance without that of the quadratic parts; None without an interval."""
    squares: tuple[Square, ...] = ()
    null: Tensor | None = None
    """[cell, 1 + permutations], test statistic of the true labels, then of every permutation;
    larger means further apart."""

    @property
    def variance(self) -> Tensor:
        """[cell], variance of an estimate that has an interval."""
        assert self.linear is not None
        return sum((part.variance for part in self.squares), self.linear)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Estimate":
        """The estimate on another scale, by a monotone function."""
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
    in_folds: bool = False,
) -> Estimate:
    """Compute p, floor and interval of a metric.

    Args:
        cells: the cells that the value belongs to.
        value: [cell].
        null: see `Estimate`; without it there is no p.
        floor: value that is expected without any difference between the classes; None takes the
            mean of the permutations.
        influence, draws: see `Estimate`; the interval comes from draws where there are some, and
            without both there is no interval.
        squares: parts of the value that are quadratic in noise.
        ends: gives low and high from value and standard deviation.
        in_folds: the influences are deviations from means of folds, not of classes.
    """
    nothing = torch.full_like(value, torch.nan)
    p, level = nothing, nothing
    if null is not None and null.shape[-1] > 1:
        p, level = permutation_p(null[:, 0], null[:, 1:]), null[:, 1:].nanmean(-1)
    if floor is not None:
        level = torch.as_tensor(floor, dtype=value.dtype).expand_as(value)
    low, high, linear = nothing, nothing, None
    square = sum((part.variance for part in squares), torch.zeros_like(value))
    if influence is not None and cells.copy is not None and not in_folds:
        influence = influence * cells.stretch
    if draws is not None:
        if draws.shape[-1] > 1:
            linear = linear_variance(spread(draws).square(), square, DRAWS_EXCESS)
    elif influence is not None:
        seen = influence_variance(influence, cells.unit)
        linear = linear_variance(seen, square, INFLUENCE_EXCESS)
    if linear is not None:
        low, high = ends(value, (linear + square).sqrt())
    return Estimate(value, level, p, low, high, influence, draws, linear, squares, null)


def swap_floor(cells: Cells, exact: float, null: Tensor) -> float | None:
    """`floor` for `make_estimate`: exact for independent texts, from label swaps on paired data."""
    return None if cells.paired and null.shape[-1] > 1 else exact
