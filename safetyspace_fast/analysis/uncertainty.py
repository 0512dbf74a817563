"""Resamples, intervals, p values: how sure a number is.

Texts are resampled in units: a pair is one unit, and so are equal texts of one label, with all
pairs that they are in; any other text is a unit by itself. Draws depend on the language and the
seed, not on the model: all models of a store see the same resamples, so that the difference of two
models has an interval of its own.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Resamples:
    """Bootstrap counts and permuted labels of the texts of one language.

    labels: [n] int64;
    unit, pair, copy: [n] int64, texts of one unit, of one pair, and equal texts of one label share
        a number; a text without partner or without copies has its own;
    counts: [bootstraps, n] uint8, how often each text is in a resample;
    permuted: [permutations, n] uint8, labels of every permutation.
    """

    labels: Tensor
    unit: Tensor
    pair: Tensor
    copy: Tensor
    counts: Tensor
    permuted: Tensor

    def keep(self, kept: Tensor) -> "Resamples":
        """The same draws, of some of the texts only: kept [n] bool."""
        unit, pair, copy = (
            torch.unique(number[kept], return_inverse=True)[1]
            for number in (self.unit, self.pair, self.copy)
        )
        return Resamples(
            self.labels[kept], unit, pair, copy, self.counts[:, kept], self.permuted[:, kept]
        )

    @cached_property
    def labellings(self) -> Tensor:
        """The true labels, then every permutation: [1 + permutations, n] float64."""
        return torch.cat([self.labels[None].to(torch.uint8), self.permuted]).double()

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor]:
        """Bootstrap counts of the texts of class 0 and of class 1, float64."""
        return self._of_class(0).double(), self._of_class(1).double()

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
        ones = self.labellings @ x
        swapped = torch.stack([x.sum(-2, keepdim=True) - ones, ones], -2)
        if not bootstrap:
            return swapped
        drawn = torch.stack(
            [self._drawn[label] @ x[..., self.labels == label, :] for label in (0, 1)], -2
        )
        return torch.cat([swapped[..., :1, :, :], drawn, swapped[..., 1:, :, :]], -3)


def draw(
    labels: Tensor,
    pair: Tensor,
    text: Tensor,
    *,
    bootstraps: int,
    permutations: int,
    seed: int,
    key: str,
) -> Resamples:
    """Draw the resamples of one language.

    A bootstrap draws units: those with pairs among each other, all others within their class. A
    permutation swaps the labels inside a unit with pairs, and shuffles the labels of the others.
    So that it keeps the sizes of the classes, only units with the same number of texts exchange
    labels (Winkler et al. 2015), and a unit with more texts of one label than of the other, as a
    pair with a copy of one of its texts outside of pairs, keeps its labels.

    Args:
        labels: [n] int64, 1 harmful, 0 harmless.
        pair: [n] int64, the same number for both texts of a pair, negative for no pair; a number
            that only one text has counts as no pair.
        text: [n] int64, the same number for equal texts.
        bootstraps, permutations: how many.
        seed: of the random numbers.
        key: name of the language; it goes into the seed.
    """
    y, p = labels.numpy(), pair.numpy().astype(np.int64)
    n = len(y)
    _, inverse, sizes = np.unique(p, return_inverse=True, return_counts=True)
    joined = (p >= 0) & (sizes[inverse] == 2)
    partner = _numbered(np.where(joined, p, p.max(initial=0) + 1 + np.arange(n)))
    copy = _numbered(2 * text.numpy() + y)
    unit = connected(partner, copy)
    size, harmful = np.bincount(unit), np.bincount(unit, weights=y)
    with_pairs = np.bincount(unit, weights=joined) > 0
    balanced = 2 * harmful == size
    first = np.unique(unit, return_index=True)[1]
    rng = np.random.Generator(np.random.PCG64([seed, *key.encode()]))
    drawn = np.zeros((bootstraps, len(size)), np.uint8)
    permuted = np.tile(y.astype(np.uint8), (permutations, 1))
    if many := int(with_pairs.sum()):
        drawn[:, with_pairs] = rng.multinomial(many, np.full(many, 1 / many), size=bootstraps)
        swapped = np.zeros((permutations, len(size)), np.uint8)
        swapped[:, with_pairs] = rng.integers(0, 2, size=(permutations, many), dtype=np.uint8)
        permuted ^= (swapped & balanced.astype(np.uint8))[:, unit]
    for label in (0, 1):
        alone = ~with_pairs & (y[first] == label)
        if many := int(alone.sum()):
            drawn[:, alone] = rng.multinomial(many, np.full(many, 1 / many), size=bootstraps)
    of_unit = permuted[:, first]
    for number in np.unique(size[~with_pairs]):
        alike = ~with_pairs & (size == number)
        of_unit[:, alike] = rng.permuted(of_unit[:, alike], axis=1)
    alone = ~with_pairs[unit]
    permuted[:, alone] = of_unit[:, unit[alone]]
    arrays = (unit, partner, copy, drawn[:, unit], permuted)
    return Resamples(labels, *(torch.from_numpy(array) for array in arrays))


def _numbered(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers 0, 1, .. in place of the values, in their order."""
    return np.unique(values, return_inverse=True)[1]


def connected(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the groups of what is linked, over any number of steps, by equal `first` or `second`.

    Args:
        first, second: [n], numbers 0, 1, ..

    Returns:
        [n]; the same as `first` if no two values of `second` are equal.
    """
    group = first
    while True:
        before = group
        for link in (second, first):
            least = np.full(len(group), len(group))
            np.minimum.at(least, link, group)
            group = least[link]
        if np.array_equal(group, before):
            return _numbered(group)


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


def interval(value: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Normal 95 % interval of the same shape as `value`."""
    return value - Z95 * deviation, value + Z95 * deviation


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


def t95(freedom: float) -> float:
    """How many standard deviations a 95 % interval reaches, for `freedom` (at least 1)."""
    t, p = student(freedom)
    return float(np.interp(-0.05, -p, t))


def t_interval(value: Tensor, deviation: Tensor, freedom: float) -> tuple[Tensor, Tensor]:
    """95 % interval of Student's t, of the same shape as `value`."""
    reach = t95(freedom) * deviation
    return value - reach, value + reach


def share_interval(
    value: Tensor, deviation: Tensor, freedom: float, number: float
) -> tuple[Tensor, Tensor]:
    """95 % interval of a share or an AUC, inside [0, 1] and never of width 0.

    Wilson's score interval (1927) with a quantile of Student's t, for the number of trials
    p (1 - p)/variance that would give this variance (Korn & Graubard 1998). One trial in `number`
    is added that went the other way, to the variance (`unseen_share`) and here: near 0 and 1 the
    variance says little, and at 0 and 1 nothing. The end that is nearer to 0 or 1 is that of a
    share which is up to half a trial nearer to it (2p - 1 of this half), because shares jump.

    Args:
        value: [...]; deviation: [...], with the added trial in it.
        freedom: degrees of freedom of the deviation.
        number: trials, as many as there are independent texts (or pairs).
    """
    square = t95(freedom) ** 2
    per_trial = square * deviation.square() / (value * (1 - value) + 1 / number)
    nearer = (value + (value - 0.5) / number).clamp(0, 1)

    def end(share: Tensor, side: int) -> Tensor:
        reach = (per_trial * (share * (1 - share) + per_trial / 4)).sqrt()
        return ((share + per_trial / 2 + side * reach) / (1 + per_trial)).clamp(0, 1)

    return end(torch.minimum(value, nearer), -1), end(torch.maximum(value, nearer), 1)


def unseen_share(number: float) -> float:
    """Variance of one trial in `number` that would have gone the other way."""
    return 1 / number**2


def inverse_interval(value: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Normal 95 % interval of a positive number on 1/value; its upper end may be infinite."""
    low, high = interval(1 / value, deviation / value.square())
    return 1 / high, torch.where(low > 0, 1 / low, torch.inf)


def difference_interval(
    first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor], rho: Tensor
) -> tuple[Tensor, Tensor]:
    """95 % interval of second - first from the interval of each and their correlation.

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


def two_sided(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Two-sided normal p of a value from its 95 % interval; 1 where value and interval are 0."""
    deviation = torch.where(value > 0, value - low, high - value) / Z95
    score = (value.abs() / deviation).nan_to_num(0.0)
    return torch.where(deviation.isnan(), torch.nan, torch.erfc(score / math.sqrt(2)))


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


def largest_p(observed: Tensor, null: Tensor) -> Tensor:
    """p corrected for a family of cells: how often the largest of them reaches this one.

    Each cell is scaled by mean and deviation of its own null, then compared with the largest cell
    of the same permutation (Westfall & Young 1993, single step).

    Args:
        observed: [F], null: [F, R]; cells that are NaN are left out.

    Returns:
        [F], NaN where `observed` is.
    """
    centre = null.nanmean(-1)
    scale = spread(null)
    usable = ~observed.isnan() & (scale > 0)
    score = torch.where(usable, (observed - centre) / scale, torch.nan)
    scores = torch.where(usable[:, None], (null - centre[:, None]) / scale[:, None], -torch.inf)
    largest = scores.nan_to_num(torch.inf, torch.inf, -torch.inf).amax(0)
    return torch.where(usable, permutation_p(score, largest.expand(len(score), -1)), torch.nan)


def family_p(statistics: NDArray[np.floating], refused: NDArray[np.bool_]) -> NDArray[np.float64]:
    """p corrected over all layers and languages of each metric, model and pooling.

    Args:
        statistics: [metric, model, layer, pooling, lang, 1 + R], the observed one first.
        refused: [metric, model, layer, pooling, lang] bool; what is refused is left out.
    """
    p = np.full(refused.shape, np.nan)
    n_metrics, n_models, _, n_poolings, _ = refused.shape
    for i_metric, i_model, i_pooling in np.ndindex(n_metrics, n_models, n_poolings):
        at = (i_metric, i_model, slice(None), i_pooling)
        cells = np.where(refused[at][..., None], np.nan, statistics[at]).astype(np.float64)
        flat = torch.from_numpy(cells.reshape(-1, cells.shape[-1]))
        p[at] = largest_p(flat[:, 0], flat[:, 1:]).numpy().reshape(cells.shape[:-1])
    return p
