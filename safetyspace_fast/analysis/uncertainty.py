"""Resamples, intervals, p values: how sure a number is.

Texts are resampled in units of evidence, see `data.units`. Draws depend on the language and the
seed, not on the model: all models of a store see the same resamples, so that the difference of two
models has an interval of its own.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import LABELLINGS
from ..data import Units, kinds, permuted_labels

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Resamples:
    """Bootstrap counts and permuted labels of the texts of one language.

    labels: [n] int64;
    unit, pair, copy: [n] int64, texts of one unit, of one pair, and equal texts of one label share
        a number; a text without partner or without copies has its own;
    counts: [bootstraps, n] uint8, how often each text is in a resample;
    permuted: [permutations, n] uint8, labels of every permutation;
    device: where sums over resamples are computed; everything else is on the CPU.
    """

    labels: Tensor
    unit: Tensor
    pair: Tensor
    copy: Tensor
    counts: Tensor
    permuted: Tensor
    device: str = "cpu"

    def keep(self, kept: Tensor) -> "Resamples":
        """The same draws, of some of the texts only: kept [n] bool."""
        unit, pair, copy = (
            torch.unique(number[kept], return_inverse=True)[1]
            for number in (self.unit, self.pair, self.copy)
        )
        labels, counts, permuted = self.labels[kept], self.counts[:, kept], self.permuted[:, kept]
        return Resamples(labels, unit, pair, copy, counts, permuted, self.device)

    @cached_property
    def labellings(self) -> Tensor:
        """The true labels, then every permutation: [1 + permutations, n] float64."""
        return torch.cat([self.labels[None].to(torch.uint8), self.permuted]).double()

    @cached_property
    def _on_device(self) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """`labellings`; bootstrap counts of each class's texts, float64; and `labels`."""
        drawn0, drawn1 = (self._of_class(c).double().to(self.device) for c in (0, 1))
        labels = self.labels.to(self.device)
        return self.labellings.to(self.device), (drawn0, drawn1), labels

    def _of_class(self, label: int) -> Tensor:
        return self.counts[:, self.labels == label]

    def class_counts(self, *, bootstrap: bool = True) -> Tensor:
        """Texts in each class of every resample: [R, 2] float64, in the order of `class_sums`."""
        ones = self.permuted.sum(-1)
        counts = [
            torch.bincount(self.labels, minlength=2)[None],
            torch.stack([self._of_class(label).sum(-1) for label in (0, 1)], -1),
            torch.stack([len(self.labels) - ones, ones], -1),
        ]
        return torch.cat(counts if bootstrap else counts[::2]).double()

    def class_sums(self, x: Tensor, *, bootstrap: bool = True) -> Tensor:
        """Sums of rows over each class: of the texts themselves, of bootstraps, of permutations.

        A bootstrap draws inside a class, and what a permutation takes from one class it adds to
        the other: each needs one matrix product with half of the weights.

        Args:
            x: [..., n, k] float64, roughly centred.
            bootstrap: False leaves the bootstraps out.

        Returns:
            [..., R, 2, k] float64.
        """
        x = x.to(self.device)
        labellings, counts, labels = self._on_device
        ones = labellings @ x
        swapped = torch.stack([x.sum(-2, keepdim=True) - ones, ones], -2)
        if not bootstrap:
            return swapped.cpu()
        drawn = torch.stack([counts[c] @ x[..., labels == c, :] for c in (0, 1)], -2)
        return torch.cat([swapped[..., :1, :, :], drawn, swapped[..., 1:, :, :]], -3).cpu()


@dataclass(frozen=True)
class SharedUnits:
    """Units of several languages with one content, such as translations of one text.

    group: [n] int64, of each text of a language: the number of its content, -1 if no other language
        has it;
    kind: [contents] int64, 0: all its texts are harmless, 1: all harmful, 2: both.
    """

    group: NDArray[np.int64]
    kind: NDArray[np.int64]


def draw(
    units: Units,
    *,
    bootstraps: int,
    permutations: int,
    seed: int,
    key: str,
    shared: SharedUnits | None = None,
    device: str = "cpu",
) -> Resamples:
    """Draw the resamples of one language.

    A bootstrap draws units: those with texts of both labels among each other, all others within
    their class. Permutations are those of `data.permuted_labels`; they do not depend on `seed`.

    Args:
        units: of the texts.
        bootstraps, permutations: how many; at most `LABELLINGS` permutations.
        seed: of the bootstraps.
        key: name of the language; it goes into the seed.
        shared: contents that are in several languages: their bootstrap counts are the same in all.
        device: see `Resamples`.
    """
    labels, unit = units.labels, units.unit
    drawn = _drawn(kinds(labels, unit), bootstraps, [seed, *key.encode()])
    if shared is not None:
        everywhere = _drawn(shared.kind, bootstraps, [seed, 2])
        inside = shared.group >= 0
        drawn[:, unit[inside]] = everywhere[:, shared.group[inside]]
    number = LABELLINGS if permutations else 0  # the first ones depend on how many there are
    permuted = permuted_labels(units, number, key)[:permutations]
    return Resamples(
        labels=torch.from_numpy(labels),
        unit=torch.from_numpy(unit),
        pair=torch.from_numpy(units.partner),
        copy=torch.from_numpy(units.copy),
        counts=torch.from_numpy(drawn[:, unit]),
        permuted=torch.from_numpy(permuted),
        device=device,
    )


def _drawn(kind: NDArray[np.int64], bootstraps: int, seeds: list[int]) -> NDArray[np.uint8]:
    """How often each bootstrap draws each unit, among those of its kind: [bootstraps, U]."""
    rng = np.random.Generator(np.random.PCG64(seeds))
    drawn = np.zeros((bootstraps, len(kind)), np.uint8)
    for number in range(3):
        alike = kind == number
        if many := int(alike.sum()):
            drawn[:, alike] = rng.multinomial(many, np.full(many, 1 / many), size=bootstraps)
    return drawn


def random_signs(unit: Tensor, number: int, *, seed: int, key: str) -> Tensor:
    """`number` random signs (1 or -1) of every unit: unit [n] int64 -> [number, U] float64."""
    rng = np.random.Generator(np.random.PCG64([seed, 1, *key.encode()]))
    drawn = rng.integers(0, 2, size=(number, int(unit.max()) + 1), dtype=np.int8)
    return torch.from_numpy(2 * drawn - 1).double()


def unit_sums(values: Tensor, unit: Tensor) -> Tensor:
    """Sum over the texts of each unit: values [..., n], unit [n] -> [..., U]."""
    sums = torch.zeros(*values.shape[:-1], int(unit.max()) + 1, dtype=values.dtype)
    return sums.index_add_(-1, unit, values)


def influence_variance(influence: Tensor, unit: Tensor) -> Tensor:
    """Variance of an estimate from the influence of every text (delta method).

    Args:
        influence: [..., n], first-order effect of each text on the estimate; its mean is zero.
        unit: [n] int64.
    """
    return influence_covariance(influence, influence, unit)


def influence_covariance(first: Tensor, second: Tensor, unit: Tensor) -> Tensor:
    """Covariance of two estimates from the same texts; arguments as in `influence_variance`."""
    products = unit_sums(first, unit) * unit_sums(second, unit)
    n = products.shape[-1]
    return products.sum(-1) * n / (n - 1)


def dyadic_variance(influence: Tensor, unit: Tensor, partner: Tensor) -> Tensor:
    """Variance of a sum over texts of what depends on each text and on a partner of it.

    Two terms of the sum go together if they share a unit, as text or as partner. Sums over all
    terms that touch a unit count those that share two units twice, which is taken out (Fafchamps &
    Gubert 2007; Aronow, Samii & Assenova 2015). It may be negative.

    Args:
        influence: [cell, n], of mean zero; unit: [n] int64; partner: [cell, n] int64, a text.

    Returns:
        [cell].
    """
    first, second = unit.expand_as(partner), unit[partner]
    others = torch.where(first == second, 0.0, influence)
    touching = unit_sums(influence, unit).scatter_add(-1, second, others)
    units = int(unit.max()) + 1
    both = torch.minimum(first, second) * units + torch.maximum(first, second)
    cell = torch.arange(len(both))[:, None]
    pair, place = torch.unique(both + cell * units**2, return_inverse=True)
    twice = others.new_zeros(len(pair)).index_add(0, place.flatten(), others.flatten()).square()
    by_cell = others.new_zeros(len(both)).index_add(0, pair // units**2, twice)
    return touching.square().sum(-1) - by_cell


def stretch(copy: Tensor) -> Tensor:
    """Factor for deviations of n texts from their mean, which a text with copies draws to itself.

    A text that is the share w_i of the mean deviates from it by 1 - 2 w_i + sum w^2 of the
    variance: (n - 1)/n without copies.

    Args:
        copy: [n] int64, equal texts share a number.

    Returns:
        [n] float64; 0 if all texts are equal.
    """
    share = torch.bincount(copy)[copy].double() / len(copy)
    left = 1 - 2 * share + share.mean()
    return torch.where(left > 1e-9, left, torch.inf).rsqrt()


INFLUENCE_EXCESS = 1.0
DRAWS_EXCESS = 2.0
"""How much of the variance of the quadratic part of |d|^2 is counted too often.

Let d have covariance V. The variance of |d|^2 is 4 d'Vd + 2 tr V^2: a linear and a quadratic part.
The influences are computed from a d that already contains noise, and give 4 d'Vd + 4 tr V^2.
Bootstrap draws add noise once more, and give 4 d'Vd + 6 tr V^2. In units of 2 tr V^2 that is one
and two too many.
"""


def linear_variance(seen: Tensor, square: Tensor, excess: float) -> Tensor:
    """Variance of the linear part, from the observed variance and that of the quadratic part.

    Args:
        seen: [...], from influences or draws; square: [...], 2 tr V^2.
        excess: `INFLUENCE_EXCESS` or `DRAWS_EXCESS`.
    """
    return (seen - (1 + excess) * square).clamp_min(0)


def common_share(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of two quadratic forms of noise, tr V12 V21 / sqrt(tr V11^2 tr V22^2); never < 0.

    Traces are sums over pairs of distinct units, which makes them unbiased.

    Args:
        first: [..., U, p], second: [..., U, q], what each unit adds to the noise of either.
    """

    def trace(a: Tensor, b: Tensor) -> Tensor:
        square = (a.transpose(-1, -2) @ b).square().sum((-1, -2))
        return square - (a.square().sum(-1) * b.square().sum(-1)).sum(-1)

    scale = (trace(first, first) * trace(second, second)).sqrt()
    return (trace(first, second) / scale).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)


HELD_OUT_DRAWS = 200
"""Random signs behind `common_held_out`."""


def common_held_out(first: Tensor, second: Tensor, *, folds: int) -> Tensor:
    """Correlation of two held-out statistics whose directions are only noise; never < 0.

    Let the direction d be noise of covariance V. Along the d of the other folds the classes differ
    by |d|^2 - tr V, in units of sqrt(d'Vd + tr V^2/(folds - 1)), because the fold itself is left
    out of d. If the noise lies in few dimensions, this root varies together with |d|^2, and the two
    statistics correlate less than their quadratic forms do. Estimated from `HELD_OUT_DRAWS` random
    signs of all units.

    Args:
        first, second: as in `common_share`.
        folds: how many.
    """
    turned = random_signs(torch.arange(first.shape[-2]), HELD_OUT_DRAWS, seed=0, key="held out")

    def judged(unit: Tensor) -> Tensor:
        d, cov = turned @ unit, unit.transpose(-1, -2) @ unit
        apart = d.square().sum(-1) - cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None]
        own = cov.square().sum((-1, -2))[..., None] / (folds - 1)
        return apart / (((d @ cov) * d).sum(-1) + own).sqrt()

    draws = judged(first), judged(second)
    scale = spread(draws[0]) * spread(draws[1])
    return (draws_covariance(*draws) / scale).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)


def student(freedom: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Student's t: values from 0 on, and the two-sided p of each.

    With t = sqrt(v) tan(a) the density is proportional to cos(a)^(v - 1), which is summed here.

    Args:
        freedom: degrees of freedom v, at least 1.
    """
    angle = np.linspace(0, min(np.pi / 2, 12 / math.sqrt(freedom)), 20_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * np.tan(angle), 1 - mass / mass[-1]


def f_tail(value: float, first: float, second: float) -> float:
    """Share of an F distribution above a value: a p value of a ratio of two mean squares.

    With F = (w/v) tan(a)^2 for v and w degrees of freedom the density is proportional to
    sin(a)^(v - 1) cos(a)^(w - 1), which is summed here, around its largest value.

    Args:
        value: at least 0.
        first, second: degrees of freedom v and w, at least 1.

    Returns:
        Above 0, also where the share is too small for a float.
    """
    mode = math.atan(math.sqrt((first - 1) / max(second - 1, 1e-9)))
    reach = 12 / math.sqrt(first + second - 1)
    low, high = max(0.0, mode - reach), min(math.pi / 2, mode + reach)
    start = math.atan(math.sqrt(value * first / second))

    def log_density(angle: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            sine = np.where(first == 1, 0.0, (first - 1) * np.log(np.sin(angle)))
            cosine = np.where(second == 1, 0.0, (second - 1) * np.log(np.cos(angle)))
        return sine + cosine

    def mass(a: float, b: float) -> float:
        middle = a + (np.arange(4000) + 0.5) * (b - a) / 4000
        return float(np.exp(log_density(middle) - peak).sum() * (b - a))

    peak = float(log_density(np.array([min(max(mode, 1e-9), math.pi / 2 - 1e-9)]))[0])
    end = min(math.pi / 2, max(high, start + reach))
    share = mass(max(start, low), end) / mass(low, high)
    return min(1.0, max(share, sys.float_info.min))


def one_sided_p(t: Tensor, freedom: float) -> Tensor:
    """Share of Student's t above each value: t [...] -> [...]; NaN stays."""
    tail = [f_tail(x * x, 1, freedom) / 2 for x in t.nan_to_num(0.0).flatten().tolist()]
    above = torch.tensor(tail, dtype=t.dtype).view(t.shape)
    return torch.where(t.isnan(), t, torch.where(t > 0, above, 1 - above))


def t_reach(freedom: float, confidence: float = 0.95) -> float:
    """How many standard deviations an interval reaches, for `freedom` (at least 1)."""
    t, p = student(freedom)
    return float(np.interp(confidence - 1, -p, t))


@lru_cache(maxsize=8)
def _reaches(confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """1/freedom from 0 to 1, and the logarithm of `t_reach`, which is smooth in it."""
    inverse = np.linspace(0, 1, 201)
    reaches = [t_reach(1 / x, confidence) for x in inverse[1:]]
    return inverse, np.log([NormalDist().inv_cdf((1 + confidence) / 2), *reaches])


def t_reaches(freedom: Tensor | float, confidence: float) -> Tensor:
    """`t_reach` of each, to 1e-4 of itself at 95 % confidence: freedom [...] -> [...] float64."""
    freedom = torch.as_tensor(freedom, dtype=torch.float64)
    return torch.as_tensor(np.exp(np.interp(1 / freedom.numpy(), *_reaches(confidence))))


Around = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Gives both ends of an interval from the value and how far a symmetric one would reach."""


def symmetric_ends(value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of an interval that is symmetric around the value."""
    return value - reach, value + reach


def t_interval(
    value: Tensor,
    deviation: Tensor,
    freedom: Tensor | float,
    confidence: float = 0.95,
    around: Around = symmetric_ends,
    subtracted: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Interval of Student's t, of the same shape as `value`.

    Args:
        value, deviation: [...]; freedom: at least 1, of each or all; confidence: of the interval.
        around: gives its ends for value + subtracted.
        subtracted: what the value has less than the number that the ends of `around` are of.
    """
    reach = t_reaches(freedom, confidence) * deviation
    low, high = around(value + subtracted, reach)
    return low - subtracted, high - subtracted


def growing_ends(
    value: Tensor,
    deviation: Tensor,
    *,
    freedom: Tensor | float,
    grows: Tensor,
    confidence: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Interval of Student's t for a number whose variance grows with it: its score interval.

    An end is t of its own deviations from the value, as in Wilson's interval of a share.

    Args:
        value, deviation, freedom, confidence: as in `t_interval`.
        grows: [...], derivative of the variance by the number.
    """
    t = t_reaches(freedom, confidence)
    middle = t.square() * grows / 2
    reach = (middle.square() + (t * deviation).square()).sqrt()
    return value + middle - reach, value + middle + reach


def logit_ends(value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of an interval inside [0, 1] that is symmetric on the logit scale, as `value` in shape.

    No end is farther from the value than two reaches: near 0 and 1 that scale stretches without
    bound, and a value that chance made small would be said to be anything.

    Args:
        value: [...], between 0 and 1; the interval of 0 and of 1 is that number alone.
        reach: [...], from the value to either end of an interval that is symmetric around it; NaN
            gives NaN.
    """
    value = value.clamp(0, 1)
    slope = value * (1 - value)
    turned = torch.where(slope == 0, 0.0, reach / slope)
    low, high = (value.logit() - turned).sigmoid(), (value.logit() + turned).sigmoid()
    return torch.maximum(low, value - 2 * reach), torch.minimum(high, value + 2 * reach)


def log_ends(value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of an interval of a positive number that is symmetric on the log scale.

    As in `logit_ends`, no end is farther from the value than two reaches; arguments as there.
    """
    turned = torch.where(value > 0, reach / value, 0.0)
    low, high = value * (-turned).exp(), value * turned.exp()
    return torch.maximum(low, value - 2 * reach), torch.minimum(high, value + 2 * reach)


def share_interval(
    value: Tensor,
    deviation: Tensor,
    freedom: Tensor | float,
    unseen: Tensor,
    confidence: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Interval of a share or an AUC, inside [0, 1] and never of width 0.

    Wilson's score interval (1927) with a quantile of Student's t, for the number of trials
    p (1 - p)/variance that would give this variance (Korn & Graubard 1998). Part of a trial that
    went the other way is added, to the variance and here: near 0 and 1 few texts make the variance,
    and at 0 and 1 none; see `unseen_trial`. The end that is nearer to 0 or 1 is that of a
    share which is nearer to it by half of what this moves, times 2p - 1: shares of few trials jump.

    Args:
        value: [...]; deviation: [...], with the variance of the added part in its square.
        freedom: degrees of freedom of the deviation, of each or all.
        unseen: [...], how far the added part moves the share; see `unseen_trials`.
        confidence: of the interval.
    """
    square = t_reaches(freedom, confidence).square()
    per_trial = square * deviation.square() / (value * (1 - value) + unseen)
    nearer = (value + unseen * (value - 0.5)).clamp(0, 1)

    def end(share: Tensor, side: int) -> Tensor:
        reach = (per_trial * (share * (1 - share) + per_trial / 4)).sqrt()
        return ((share + per_trial / 2 + side * reach) / (1 + per_trial)).clamp(0, 1)

    return end(torch.minimum(value, nearer), -1), end(torch.maximum(value, nearer), 1)


def unseen_trial(influence: Tensor, unit: Tensor) -> Tensor:
    """Part of a trial to add to a share whose variance comes from few units: 1/(1 + m), [...].

    m are the `units_behind` it: 0 if all trials went one way, and about as many as went the other
    way if those are few. Arguments as there.
    """
    return 1 / (1 + units_behind(influence, unit))


def unseen_trials(
    influence: Tensor, labels: Tensor, unit: Tensor, number: float | Tensor
) -> tuple[Tensor, Tensor]:
    """How far unseen trials would move a share, and the variance that they add: [...] each.

    A mean of the shares in both classes has an `unseen_trial` in each: if all texts of a small
    class are right, the errors of a large one do not show how much this share varies.

    Args:
        influence: [..., n]; labels, unit: [n] int64.
        number: of trials; [2], those of each class, for a mean of the shares in both.
    """
    if not isinstance(number, Tensor):
        added = unseen_trial(influence, unit)
        return added / number, added / number**2
    parts = [unseen_trial(influence * (labels == c), unit) for c in (0, 1)]
    added = torch.stack(parts, -1)
    return (added / (2 * number)).sum(-1), (added / (2 * number) ** 2).sum(-1)


def units_behind(influence: Tensor, unit: Tensor) -> Tensor:
    """How many units of equal influence would make this variance, 0 if there is none: [...].

    (sum of squares)^2/(sum of fourth powers).

    Args:
        influence: [..., n]; unit: [n] int64.
    """
    square = unit_sums(influence, unit).square()
    return (square.sum(-1).square() / square.square().sum(-1)).nan_to_num(0.0)


def trials(units: Tensor) -> float:
    """Harmonic mean of `ops.equal_units`: in an AUC, a text that loses to all costs about one."""
    return float(2 / (1 / units).sum())


def inverse_ends(value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Ends that are symmetric on 1/value, of a positive number; the upper one may be infinite."""
    low, high = symmetric_ends(1 / value, reach / value.square())
    return 1 / high, torch.where(low > 0, 1 / low, torch.inf)


def difference_interval(
    first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor], rho: Tensor
) -> tuple[Tensor, Tensor]:
    """Interval of second - first from that of each, of the same confidence, and their correlation.

    The distance from the value to an end of its interval stands for the deviation on that side
    (MOVER, Zou 2007). A share |rho| of both moves together, or against each other if rho < 0; the
    rest moves independently. For symmetric intervals of half-widths s1 and s2 this gives
    s1^2 + s2^2 - 2 rho s1 s2.

    Args:
        first, second: value, low and high, [...] each; ends may be infinite.
        rho: [...], correlation of both estimates.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    down, up = (a - a_low, b - b_low), (a_high - a, b_high - b)
    fall, rise = ((one[1] - one[0]).nan_to_num(torch.inf) for one in (down, up))

    def reach(own: Tensor, others: Tensor, alike: tuple[Tensor, Tensor]) -> Tensor:
        together = torch.where(rho < 0, own + others, torch.maximum(*alike).clamp_min(0))
        parts = ((1 - rho.abs(), own.square() + others.square()), (rho.abs(), together.square()))
        # 0 * inf is NaN: an infinite end counts only with a weight above 0.
        return sum((torch.where(w > 0, w * x, 0.0) for w, x in parts), torch.zeros(())).sqrt()

    low, high = reach(down[1], up[0], (fall, -rise)), reach(up[1], down[0], (-fall, rise))
    return b - a - low, b - a + high


def permutation_p(observed: Tensor, null: Tensor) -> Tensor:
    """Share of labellings that are at least as extreme: (1 + #(null >= observed))/(1 + R).

    It is never zero (Phipson & Smyth 2010). Values equal within rounding count as equal; a
    permutation without a value counts as extreme.

    Args:
        observed: [...], null: [..., R]; larger means further apart.
    """
    below = null < (observed - 1e-12 * observed.abs())[..., None]
    return (1 + (~below).sum(-1)).double() / (1 + null.shape[-1])


def spread(draws: Tensor) -> Tensor:
    """Standard deviation over the last axis; NaN if more than a tenth of the draws are NaN."""
    return draws_covariance(draws, draws).sqrt()


def draws_covariance(first: Tensor, second: Tensor) -> Tensor:
    """Covariance over the last axis; NaN if more than a tenth of the draws are NaN in either."""
    known = ~(first.isnan() | second.isnan())
    n = known.sum(-1)

    def centred(draws: Tensor) -> Tensor:
        mean = torch.where(known, draws, torch.nan).nanmean(-1, keepdim=True)
        return torch.where(known, draws - mean, 0.0)

    covariance = (centred(first) * centred(second)).sum(-1) / (n - 1)
    return torch.where(n >= 0.9 * known.shape[-1], covariance, torch.nan)


def family_p(statistics: NDArray[np.floating], refused: NDArray[np.bool_]) -> NDArray[np.float64]:
    """p corrected over all numbers of a result (Westfall & Young 1993, single step).

    Each number is measured from the median of its labellings, in units of the distance to their
    95th percentile, and compared with the largest number under each labelling. The true labelling
    is one of them in all three: without any difference, each is as likely to have the largest.

    Args:
        statistics: [..., 1 + R], those of the true labels first; larger means further apart.
        refused: [...] bool; what is refused is left out.

    Returns:
        [...], NaN for what is left out, and where all labellings give the same.
    """
    flat, out = statistics.reshape(-1, statistics.shape[-1]), refused.ravel()
    p = np.full(len(flat), np.nan)
    own = np.full(len(flat), np.nan)
    largest = np.full(flat.shape[-1], -np.inf)
    kept = np.flatnonzero(~out & np.isfinite(flat[:, 0]))
    for part in np.array_split(kept, max(1, flat.size // _FAMILY_PART)) if len(kept) else []:
        values = flat[part].astype(np.float64)
        centre, high = np.nanquantile(values, (0.5, 0.95), axis=-1, keepdims=True)
        known = (high > centre)[:, 0]
        scores = (values[known] - centre[known]) / (high - centre)[known]
        own[part[known]] = scores[:, 0]
        scores = np.nan_to_num(scores, nan=np.inf)  # without a value: extreme
        largest = np.maximum(largest, scores.max(0, initial=-np.inf))
    above = np.sort(largest)
    known = np.isfinite(own)
    below = np.searchsorted(above, own[known] - 1e-12 * np.abs(own[known]))
    p[known] = (len(above) - below) / len(above)
    return p.reshape(refused.shape)


_FAMILY_PART = 1 << 24
"""Numbers of `statistics` that are handled at a time."""
