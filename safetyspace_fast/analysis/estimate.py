"""A number with its floor, interval and p value, made from influences or from bootstrap draws."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .cells import Cells
from .intervals import (
    Around,
    evened,
    share_interval,
    symmetric_ends,
    t_interval,
    t_reaches,
)
from .significance import one_sided_p, permutation_p
from .uncertainty import (
    DRAWS_EXCESS,
    INFLUENCE_EXCESS,
    common_share,
    draws_covariance,
    influence_covariance,
    influence_variance,
    linear_variance,
    share_freedom,
    spread,
    unit_sums,
    unseen_trial,
    unseen_trials,
)


class Ends(Protocol):
    """Gives low and high from value and standard deviation."""

    def __call__(
        self, value: Tensor, deviation: Tensor, *, confidence: float = 0.95
    ) -> tuple[Tensor, Tensor]:
        """Both ends, of the shape of the value."""


@dataclass(frozen=True)
class Square:
    """A part of an estimate that is quadratic in noise; see `uncertainty.INFLUENCE_EXCESS`.

    Or, with `unseen`, a variance that neither influences nor draws show; `unseen_trial`.
    """

    variance: Tensor
    """[cell]."""
    noise: Callable[[], Tensor]
    """[cell, unit, any], what each unit adds to the noise, on any scale."""
    common: Callable[[Tensor, Tensor], Tensor] = common_share
    """Correlation of this part between two estimates, from the noise of each."""
    unseen: bool = False
    growth: Tensor | None = None
    """[cell], of a value along a fitted direction: how much larger the noise of the direction makes
    the influences; what it exceeds 1 by falls as 1/texts. None: the value itself is quadratic in d,
    so that its linear part varies as much as the value is large."""


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
    ends: Callable[..., tuple[Tensor, Tensor]] | None = None
    """Gives low and high for another `confidence`; None without an interval."""
    around: Around | None = None
    """Gives low and high from the value and the reach of a symmetric interval; None if more than
    these decides."""
    subtracted: Tensor | float = 0.0
    """See `intervals.t_interval`; it falls as 1/texts."""
    scored: Tensor | None = None
    """[cell], degrees of freedom of a score interval, see `intervals.growing_ends`; else None."""
    null: Tensor | None = None
    """[cell, 1 + permutations], test statistic of the true labels, then of every permutation;
    larger means further apart."""

    @property
    def variance(self) -> Tensor:
        """[cell], variance of an estimate that has an interval."""
        assert self.linear is not None
        return sum((part.variance for part in self.squares), self.linear)

    def with_ends(self, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
        """The value and its interval, as `intervals.difference_interval` takes them."""
        assert self.ends is not None
        low, high = self.ends(confidence=confidence)
        if self.scored is None:
            return self.value, low, high
        reach = t_reaches(self.scored, confidence) * self.variance.sqrt()
        return evened(self.value, low, high, reach)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Estimate":
        """The estimate on another scale, by a monotone function."""

        def ordered(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            low, high = function(low), function(high)
            return torch.minimum(low, high), torch.maximum(low, high)

        ends = self.ends
        return Estimate(
            function(self.value),
            function(self.floor),
            self.p,
            *ordered(self.low, self.high),
            ends=None if ends is None else lambda **options: ordered(*ends(**options)),
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
    around: Around = symmetric_ends,
    subtracted: Tensor | float = 0.0,
    freedom: Tensor | float | None = None,
    ends: Ends | None = None,
    scored: Tensor | None = None,
    class_means: bool = True,
) -> Estimate:
    """Compute p, floor and interval of a metric.

    Args:
        cells: the cells that the value belongs to.
        value: [cell].
        null: see `Estimate`; without it there is no p.
        floor: value that is expected without any difference between the classes; None takes the
            mean of the permutations.
        influence, draws: see `Estimate`; the variance comes from draws where there are some.
            There is no interval without influences.
        squares: parts of the value that are quadratic in noise.
        around, subtracted: see `intervals.t_interval`.
        freedom: degrees of freedom of t; None: those of the influences, `Texts.freedom_of`.
        ends: gives low and high instead of `around` and `freedom`.
        scored: see `Estimate`.
        class_means: the influences are deviations from class means, which copies draw to them.
    """
    nothing = torch.full_like(value, torch.nan)
    p, level = nothing, nothing
    if null is not None and null.shape[-1] > 1:
        p, level = permutation_p(null[:, 0], null[:, 1:]), null[:, 1:].nanmean(-1)
    if floor is not None:
        level = torch.as_tensor(floor, dtype=value.dtype).expand_as(value)
    low, high, linear, known = nothing, nothing, None, None
    zero = torch.zeros_like(value)
    unseen = sum((part.variance for part in squares if part.unseen), zero)
    square = sum((part.variance for part in squares if not part.unseen), zero)
    if influence is not None and class_means and not (cells.paired and cells.copy is None):
        influence = influence * cells.stretch
    if draws is not None:
        if draws.shape[-1] > 1:
            linear = linear_variance(spread(draws).square(), square, DRAWS_EXCESS)
    elif influence is not None:
        seen = influence_variance(influence, cells.unit)
        linear = linear_variance(seen, square, INFLUENCE_EXCESS)
    if linear is not None:
        if freedom is None:
            freedom = cells.freedom_of(known_of(influence))
        by_t = partial(t_interval, freedom=freedom, around=around, subtracted=subtracted)
        known = partial(ends or by_t, value, (linear + square + unseen).sqrt())
        low, high = known()
    return Estimate(
        value, level, p, low, high, influence, draws, linear, squares, known,
        around=None if ends else around, subtracted=subtracted, scored=scored, null=null,
    )  # fmt: skip


def make_share(
    cells: Cells,
    value: Tensor,
    trials: tuple[float | Tensor, Tensor],
    *,
    null: Tensor | None = None,
    influence: Tensor,
    floor: float | None = None,
    squares: tuple[Square, ...] = (),
) -> Estimate:
    """`make_estimate` for a share or an AUC, with the interval of `share_interval`.

    Args:
        cells, value, null, influence, floor, squares: as in `make_estimate`; no `class_means`.
        trials: how many independent trials the value is at least the share of ([2], in each class,
            if it is the mean of the shares in both), and what decides each text: [cell, n]. Of two
            models where the same decides, the added trial is the same.
    """
    number, decides = trials
    centred = cells.about_class_means(decides[..., None])
    unseen, variance = unseen_trials(influence, cells.labels, cells.unit, number)
    added = (unseen.square() / variance).clamp_max(1)
    freedom = share_freedom(influence, cells.unit, added, cells.freedom)
    added_trial = Square(
        variance,
        lambda: unit_sums(centred.squeeze(-1), cells.unit)[..., None],
        unseen=True,
    )
    return make_estimate(
        cells,
        value,
        null=null,
        floor=floor,
        influence=influence,
        squares=(*squares, added_trial),
        ends=partial(share_interval, freedom=freedom, unseen=unseen),
        class_means=False,
    )


def from_influences(estimate: Estimate, unit: Tensor) -> Estimate:
    """The estimate, with the variance of its linear part from influences where draws gave it.

    Args:
        estimate: one with influences; unit: [n] int64.
    """
    seen = influence_variance(known_of(estimate.influence), unit)
    squares = (part.variance for part in estimate.squares if not part.unseen)
    square = sum(squares, torch.zeros_like(seen))
    linear = linear_variance(seen, square, INFLUENCE_EXCESS)
    return replace(estimate, draws=None, linear=linear)


def covariances(first: Estimate, second: Estimate, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances of the parts of two estimates from the same texts, [cell] each.

    Args:
        first, second: of one metric in two models, with intervals; unit: [n] int64.

    Returns:
        Those of the linear parts, of the quadratic ones, and of the variances that are not seen.
    """
    if first.draws is not None and second.draws is not None:
        seen, excess = draws_covariance(first.draws, second.draws), DRAWS_EXCESS
    else:
        seen = influence_covariance(known_of(first.influence), known_of(second.influence), unit)
        excess = INFLUENCE_EXCESS
    common, unseen = torch.zeros_like(seen), torch.zeros_like(seen)
    for one, other in zip(first.squares, second.squares, strict=True):
        share = one.common(one.noise(), other.noise())
        both = share * (one.variance * other.variance).sqrt()
        common, unseen = (common, unseen + both) if one.unseen else (common + both, unseen)
    most = (known_of(first.linear) * known_of(second.linear)).sqrt()
    linear = (seen - (1 + excess) * common).clamp(-most, most)
    return linear, common, unseen


def known_of(tensor: Tensor | None) -> Tensor:
    """A part of an estimate that is not None."""
    assert tensor is not None
    return tensor


def share_p(cells: Cells, share: Estimate) -> Tensor:
    """p of a share or an AUC against 1/2: one-sided, Student's t, with the variance it has at 1/2.

    Args:
        cells: the cells that the share belongs to.
        share: what `make_share` gave.

    Returns:
        [cell] float64.
    """
    assert share.influence is not None
    added = unseen_trial(share.influence, cells.unit)
    per_trial = share.variance / (share.value * (1 - share.value) + added / cells.trials)
    return one_sided_p((share.value - 0.5) / (per_trial / 4).sqrt(), cells.freedom)
