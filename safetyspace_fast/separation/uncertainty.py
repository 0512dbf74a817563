"""How sure a number is: resamples, intervals and permutation nulls.

Texts are resampled in units: the two texts of a pair are one unit, any other text is its own.
Draws depend on the language and the seed, never on the model, so that two models of one store see
the same resamples and their difference has an interval of its own.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

Z95 = NormalDist().inv_cdf(0.975)
CHUNK_BYTES = 64 << 20
"""Working memory of one chunk of resamples."""


@dataclass(frozen=True)
class Resamples:
    """Bootstrap counts and permuted labels of the texts of one language.

    labels: [n] int64; unit: [n] int64, texts of one unit share a number;
    counts: [bootstraps, n] uint8, how often a text stands in a resample;
    permuted: [permutations, n] uint8, labels of every permutation.
    """

    labels: Tensor
    unit: Tensor
    counts: Tensor
    permuted: Tensor

    def keep(self, kept: Tensor) -> "Resamples":
        """The same draws for some of the texts: kept [n] bool."""
        return Resamples(
            self.labels[kept],
            torch.unique(self.unit[kept], return_inverse=True)[1],
            self.counts[:, kept],
            self.permuted[:, kept],
        )

    def labellings(self) -> Tensor:
        """The labels as they are, then every permutation: [1 + permutations, n] float64."""
        return torch.cat([self.labels[None].to(torch.uint8), self.permuted]).double()

    def class_counts(self, *, bootstrap: bool = True) -> Tensor:
        """Texts in each class of every resample: [R, 2] float64, in the order of `class_sums`."""
        return self.class_sums(torch.ones(len(self.labels), 1).double(), bootstrap=bootstrap)[
            ..., 0
        ]

    def class_sums(self, x: Tensor, *, bootstrap: bool = True) -> Tensor:
        """Sums of rows over each class: the texts as they are, then bootstraps, then permutations.

        A bootstrap draws within classes and a permutation moves what leaves one class into the
        other, so that each takes one product with half of the texts' weights.

        Args:
            x: [..., n, k] float64, roughly centred.
            bootstrap: leave the bootstraps out if not.

        Returns:
            [..., R, 2, k] float64.
        """
        total = x.sum(-2, keepdim=True)
        drawn = []
        for label in (0, 1):
            mine = self.labels == label
            of_class = x[..., mine, :]
            parts = [of_class.sum(-2, keepdim=True)]
            if bootstrap:
                parts += _products(self.counts[:, mine], of_class)
            drawn.append(torch.cat(parts, -2))
        ones = torch.cat(
            [total.new_empty(*total.shape[:-2], 0, total.shape[-1]), *_products(self.permuted, x)],
            -2,
        )
        swapped = torch.stack([total - ones, ones], -2)
        return torch.cat([torch.stack(drawn, -2), swapped], -3)


def _products(weights: Tensor, x: Tensor) -> list[Tensor]:
    """Integer weights [R, n] times x [..., n, k], in float64, a chunk of resamples at a time."""
    size = max(1, CHUNK_BYTES // (8 * max(1, weights.shape[-1])))
    return [part.double() @ x for part in torch.split(weights, size) if len(part)]


def draw(
    labels: Tensor, pair: Tensor, *, bootstraps: int, permutations: int, seed: int, key: str
) -> Resamples:
    """Draw the resamples of one language.

    Pairs are drawn, and swap their labels, as wholes; other texts are drawn within their class and
    shuffle their labels among themselves. A pair that has lost one text counts as no pair.

    Args:
        labels: [n] int64, pair: [n] int64 (negative: none), key: the language's name.
    """
    y, p = labels.numpy(), pair.numpy().astype(np.int64)
    n = len(y)
    _, inverse, sizes = np.unique(p, return_inverse=True, return_counts=True)
    joined = (p >= 0) & (sizes[inverse] == 2)
    unit = np.unique(np.where(joined, p, p.max(initial=0) + 1 + np.arange(n)), return_inverse=True)[
        1
    ]
    rng = np.random.Generator(np.random.PCG64([seed, *key.encode()]))
    counts = np.zeros((bootstraps, n), np.uint8)
    permuted = np.tile(y.astype(np.uint8), (permutations, 1))
    if joined.any():
        pairs, place = np.unique(p[joined], return_inverse=True)
        even = np.full(len(pairs), 1 / len(pairs))
        counts[:, joined] = rng.multinomial(len(pairs), even, size=bootstraps)[:, place]
        swapped = rng.integers(0, 2, size=(permutations, len(pairs)), dtype=np.uint8)
        permuted[:, joined] ^= swapped[:, place]
    for label in (0, 1):
        alone = ~joined & (y == label)
        if many := int(alone.sum()):
            counts[:, alone] = rng.multinomial(many, np.full(many, 1 / many), size=bootstraps)
    if (~joined).any():
        permuted[:, ~joined] = rng.permuted(permuted[:, ~joined], axis=1)
    return Resamples(labels, *(torch.from_numpy(a) for a in (unit, counts, permuted)))


def unit_sums(values: Tensor, unit: Tensor) -> Tensor:
    """Sum what belongs to one unit: values [..., n], unit [n] -> [..., U]."""
    sums = torch.zeros(*values.shape[:-1], int(unit.max()) + 1, dtype=values.dtype)
    return sums.index_add_(-1, unit, values)


def influence_variance(influence: Tensor, unit: Tensor) -> Tensor:
    """Variance of an estimate from what every text adds to it.

    Args:
        influence: [..., n], first-order change of the estimate by each text, zero on average.
        unit: [n] int64.
    """
    sums = unit_sums(influence, unit)
    n = sums.shape[-1]
    return sums.square().sum(-1) * n / (n - 1)


def quadratic_variance(first_order: Tensor, square: Tensor) -> Tensor:
    """Variance of a squared length |d|^2 whose d has covariance V: 4 d'Vd + 2 tr V^2.

    Influences see the d that was measured, noise and all: their variance 4 d'Vd + 4 tr V^2 counts
    the quadratic part `square` = 2 tr V^2 twice.
    """
    return torch.maximum(first_order - square, square)


def interval(value: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Normal 95 % interval of the same shape as `value`."""
    return value - Z95 * deviation, value + Z95 * deviation


def share_interval(value: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Normal 95 % interval of a share on its log odds, so that it stays between 0 and 1.

    At 0 or 1 the log odds are infinite: there it is the plain interval, cut.
    """
    inside = (value > 0) & (value < 1)
    slope = torch.where(inside, value * (1 - value), 1.0)
    low, high = interval(value.logit(), deviation / slope)
    plain = interval(value, deviation)
    low = torch.where(inside, low.sigmoid(), plain[0].clamp(0, 1))
    high = torch.where(inside, high.sigmoid(), plain[1].clamp(0, 1))
    return low, high


def permutation_p(observed: Tensor, null: Tensor) -> Tensor:
    """Share of labellings at least as extreme: (1 + #(null >= observed))/(1 + R).

    Never zero (Phipson & Smyth 2010). A difference within rounding counts as equal, and so does
    a labelling without a value.

    Args:
        observed: [...], null: [..., R]; larger means further apart.
    """
    below = null < (observed - 1e-12 * observed.abs())[..., None]
    return (1 + (~below).sum(-1)).double() / (1 + null.shape[-1])


def spread(draws: Tensor) -> Tensor:
    """Standard deviation over the last axis; NaN where over a tenth of the draws have no value."""
    known = ~draws.isnan()
    n = known.sum(-1)
    mean = draws.nanmean(-1, keepdim=True)
    variance = torch.where(known, (draws - mean).square(), 0.0).sum(-1) / (n - 1)
    return torch.where(n >= 0.9 * draws.shape[-1], variance.sqrt(), torch.nan)


def largest_p(observed: Tensor, null: Tensor) -> Tensor:
    """p that holds for a whole family of cells: how often any cell reaches what this one shows.

    Every cell is scaled by its own null's mean and deviation, then compared with the largest of
    the family under the same permutation (Westfall & Young 1993, single step).

    Args:
        observed: [F], null: [F, R]; NaN for cells without a value, which have no part in it.

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
