"""Is a difference more than chance, alone and among all that are printed?"""

import math
import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ops.scores import student_score


def student_p(t: Tensor, freedom: Tensor) -> Tensor:
    """Two-sided p of Student's t; arguments as in `ops.scores.student_score`."""
    return torch.erfc(student_score(t, freedom) / math.sqrt(2))


def welch_freedom(influence: Tensor, group: Tensor) -> Tensor:
    """Degrees of freedom of the variance of a sum over independent units (Satterthwaite 1946).

    Args:
        influence: [..., U] float64, of each unit, on average 0 in each group.
        group: [U] int64, units whose influences have one variance: those of a class.
    """
    size = torch.bincount(group).to(influence.dtype)
    sums = influence.new_zeros(*influence.shape[:-1], len(size))
    variance = sums.index_add_(-1, group, influence.square())
    parts = (variance.square() / (size - 1).clamp_min(1)).sum(-1)
    freedom = variance.sum(-1).square() / parts
    return torch.where(parts > 0, freedom, influence.shape[-1] - 1).clamp_min(1)


def bounded(t: Tensor, freedom: Tensor) -> Tensor:
    """Student's t on the scale of a sum of random signs, of which it is the largest that it can be.

    Let c be the contributions of n units to a difference. Their sum over the root of the sum of
    c^2, which random signs do not change, is t/sqrt(1 + t^2/n), with n = freedom + 1.
    """
    return (1 / (t.square().reciprocal() + 1 / (freedom + 1))).sqrt()


def sign_scores(influence: Tensor, signs: Tensor) -> Tensor:
    """Scores of a difference if there was none: sums of influences with random signs, scaled.

    Args:
        influence: [..., U] float64, of each unit; signs: [R, U], 1 or -1.

    Returns:
        [..., R] of variance 1; 0 where nothing varies.
    """
    scale = influence.square().sum(-1, keepdim=True).sqrt()
    return torch.where(scale > 0, influence @ signs.T / scale, 0.0)


def largest_p(score: Tensor, null: Tensor) -> Tensor:
    """p corrected for all numbers of a family: how often the largest of them reaches this one.

    (1 + #>=)/(1 + R) over random signs (Westfall & Young 1993, single step; Hemerik, Goeman & Finos
    2020).

    Args:
        score: [F], NaN for what is not in the family; null: [F, R].
    """
    largest = torch.where(score.isnan()[:, None], 0.0, null.abs()).amax(0)
    reached = (largest >= score.abs()[:, None] * (1 - 1e-9)).sum(-1)
    p = (1 + reached).double() / (1 + null.shape[-1])
    return torch.where(score.isnan(), torch.nan, p)


def false_discovery(p: Tensor) -> Tensor:
    """The false discovery rate at which each p is found (Benjamini & Hochberg 1995).

    Args:
        p: [...], one family; NaN does not count.

    Returns:
        [...], the least over all larger p of p F/rank, F how many there are; NaN where p is.
    """
    known = ~p.isnan()
    if not known.any():
        return torch.full_like(p, torch.nan)
    ordered, order = p[known].sort(descending=True)
    rank = torch.arange(len(ordered), 0, -1, dtype=p.dtype)
    q = torch.full_like(p, torch.nan)
    rates = torch.empty_like(ordered)
    rates[order] = (ordered * len(ordered) / rank).clamp_max(1).cummin(0).values
    q[known] = rates
    return q


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


def permutation_p(observed: Tensor, null: Tensor) -> Tensor:
    """Share of labellings that are at least as extreme: (1 + #(null >= observed))/(1 + R).

    It is never zero (Phipson & Smyth 2010). Values equal within rounding count as equal; a
    permutation without a value counts as extreme.

    Args:
        observed: [...], null: [..., R]; larger means further apart.
    """
    below = null < (observed - 1e-12 * observed.abs())[..., None]
    return (1 + (~below).sum(-1)).double() / (1 + null.shape[-1])


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
