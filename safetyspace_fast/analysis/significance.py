"""Is a difference more than chance, alone and among all that are printed?"""

import math

import torch
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
