"""AUC of held-out scores: its value within folds, the influence of each text, its interval."""

import torch
from torch import Tensor

from ..data import NUM_FOLDS
from ..ops import equal_units
from .intervals import share_interval
from .probe import fold_texts
from .uncertainty import (
    INFLUENCE_EXCESS,
    influence_variance,
    linear_variance,
    share_freedom,
    trials,
    unit_sums,
    unseen_trial,
)


def fold_auc(
    scores: Tensor, labels: Tensor, fold: Tensor, copy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """AUC within folds, weighted by their number of text pairs, and the influence of each text.

    Scores of different folds belong to different directions and are not compared. Ties count half.

    A text that wins against s of the m texts of the other class of its fold has the influence
    (s - m AUC)/P, P the number of all text pairs (DeLong, DeLong & Clarke-Pearson 1988, with one
    mean for all folds: a fold may hold one text of a class). The squares of these count what is
    particular to each pair of texts once in either class: it is taken out once, as in the unbiased
    variance of a U-statistic (Hoeffding 1948), by one factor for all texts.

    Args:
        scores: [..., n] float64, labels: [n] int64, fold: [n] int64.
        copy: [n] int64, equal texts of one label share a number; None if there are none.

    Returns:
        auc [...], influence [..., n]; NaN if no fold holds both classes, or a score is NaN.
    """
    copy = torch.arange(len(labels)) if copy is None else copy
    pairs, equal_pairs = 0.0, 0.0
    wins = torch.zeros_like(scores)
    others = torch.zeros(len(labels), dtype=scores.dtype)
    for inside in fold_texts(fold):
        low, high = (inside[labels[inside] == label] for label in (0, 1))
        if not low.numel() or not high.numel():
            continue
        pairs += low.numel() * high.numel()
        equal_pairs += _equal_pairs(copy[low]) * _equal_pairs(copy[high])
        others[low], others[high] = float(high.numel()), float(low.numel())
        wins[..., high] = _share_below(scores[..., high], scores[..., low]) * low.numel()
        wins[..., low] = (1 - _share_below(scores[..., low], scores[..., high])) * high.numel()
    auc = wins.sum(-1) / 2 / pairs if pairs else torch.full_like(wins[..., 0], torch.nan)
    auc[scores.isnan().any(-1)] = torch.nan
    influence = wins - auc[..., None] * others
    linear = along_scores(influence, scores, labels, labels)
    rest = influence - linear
    particular = auc * (1 - auc) * equal_pairs
    left = 1 - particular / unit_sums(rest, copy).square().sum(-1)
    once = left.clamp_min(0).nan_to_num(0.0).sqrt()[..., None]
    return auc, (linear + once * rest) / pairs


def auc_with_ends(
    scores: Tensor,
    labels: Tensor,
    unit: Tensor,
    fold: Tensor,
    *,
    copy: Tensor | None = None,
    noise: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`fold_auc` of scores that need no cells, with its 95 % interval.

    The influences are those of DeLong, the interval is Wilson's (`share_interval`).

    Args:
        scores: [n] float64; labels, fold, copy: as in `fold_auc`.
        unit: [n] int64, texts of one unit of evidence share a number.
        noise: see `noise_growth`; 0 along directions that these texts had no part in.

    Returns:
        auc, low, high, [] each.
    """
    auc, influence = fold_auc(scores, labels, fold, copy)
    influence, square = along_fitted(influence, scores, labels, unit, noise)
    seen = influence_variance(influence, unit)
    units = equal_units(labels, unit)
    number, most = trials(units), max(float(units.min()) - 1, 1.0)
    added = unseen_trial(influence, unit)
    freedom = share_freedom(influence, unit, added, most)
    variance = linear_variance(seen, square, INFLUENCE_EXCESS) + square + added / number**2
    return auc, *share_interval(auc, variance.sqrt(), freedom, added / number)


def along_fitted(
    influence: Tensor, scores: Tensor, labels: Tensor, unit: Tensor, noise: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Influences on an AUC, and the variance of its quadratic part, along a fitted direction.

    Args:
        influence: [..., n], along a fixed direction; scores [..., n], labels, unit: as in
            `auc_with_ends`.
        noise: [...], see `noise_growth`.

    Returns:
        What `grow` gives.
    """
    moved = along_scores(influence, scores, labels, labels)
    return grow(influence, moved, unit, torch.as_tensor(noise, dtype=scores.dtype))


def grow(influence: Tensor, moved: Tensor, unit: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Influences on a held-out number, and the variance of its quadratic part.

    Args:
        influence: [..., n], along a fixed direction.
        moved: [..., n], the part of it that is linear in the scores.
        unit: [n] int64; noise: [...], see `noise_growth`.

    Returns:
        [..., n] and [...]; see `uncertainty.INFLUENCE_EXCESS`.
    """
    turned, meeting = _growth_parts(noise)
    square = influence_variance(moved, unit) * noise.clamp_max(1) * (turned + meeting) / 2
    return influence - moved + noise_growth(noise)[..., None] * moved, square


def _equal_pairs(copy: Tensor) -> float:
    """Pairs of equal texts, of a text with itself too: copy [n] int64."""
    return float(torch.bincount(copy).square().sum())


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """Share of `others` below each of `values`, ties half."""
    ordered = others.sort(-1).values.contiguous()
    values = values.contiguous()
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / (2 * others.shape[-1])


def along_scores(influence: Tensor, scores: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """The part of an influence that is linear in the scores, by regression in each class.

    Args:
        influence, scores: [..., n] float64; labels: [n] int64.
        group: [n] int64, scores are centred in each: a class, or a part of it.
    """

    def sums(values: Tensor, index: Tensor) -> Tensor:
        zeros = values.new_zeros(*values.shape[:-1], int(index.max()) + 1)
        return zeros.index_add(-1, index, values)

    centred = scores - (sums(scores, group) / torch.bincount(group))[..., group]
    slope = sums(influence * centred, labels) / sums(centred.square(), labels)
    return slope.nan_to_num(0.0, 0.0, 0.0)[..., labels] * centred


def noise_growth(noise: Tensor) -> Tensor:
    """How much more a held-out statistic varies with the scores than along a fixed direction.

    Args:
        noise: [...], see `direction_noise`. A |d|^2 below its own noise is no scale to measure
            with: from 1 on, less is added.
    """
    turned, meeting = _growth_parts(noise)
    return (turned + noise.clamp_max(1) * meeting).sqrt()


def _growth_parts(noise: Tensor) -> tuple[Tensor, float]:
    """What makes the square of `noise_growth`: the direction, and what a fold has against it.

    The direction of a fold lacks the noise of the fold: their product has the mean 0, and the mean
    of K of these products the variance 2 tr V^2/(K - 1), V the covariance of d.
    """
    turned = torch.where(noise < 1, (1 + noise).square(), 2 * (1 + noise))
    return turned, 4 / (NUM_FOLDS - 1)


def lexical_noise(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of noise in the weights of held-out scores whose training class means are 1 apart.

    It is what their held-out class means are less than 1 apart; see `noise_growth`.

    Args:
        scores: [n] float64; labels: [n] int64.

    Returns:
        [], 0 to 2.
    """
    low, high = (scores[labels == label].mean() for label in (0, 1))
    return (1 - (high - low)).clamp(0, 2)
