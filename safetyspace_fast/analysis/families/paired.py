"""Metrics of the differences inside pairs: harmful text minus its harmless partner."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..auc import along_scores
from ..cells import Cells
from ..estimate import Estimate, Square, make_estimate
from ..intervals import log_ends
from ..metric import (
    INFLUENCE,
    NULL_MEAN,
    OWN_COMPONENTS,
    SHARE,
    SHUFFLE,
    SHUFFLE_FULL,
    STUDENT,
    InComponents,
    Metric,
)
from ..moments import covariance, products, shift_influence
from ..uncertainty import effect_growth, unit_sums
from .gaussian import require_texts, square_length, whiten
from .ratio import FOLLOWING, make_following
from .scores import REFITS, REFITTED, held_out_estimate, held_out_scores

# Pairs with a text in common -----------------------------------------------------------------


def unit_of_pairs(cells: Cells) -> Tensor:
    """[pairs] int64, pairs that have a text in common, over any number of steps, share a number."""
    return cells.unit[cells.partners[:, 1]]


def independent_pairs(cells: Cells) -> float:
    """Pairs without a text in common whose mean would vary as much; see `Cells.effective`."""
    number = torch.bincount(unit_of_pairs(cells)).double()
    return float(number.sum() ** 2 / number.square().sum())


# paired_shift --------------------------------------------------------------------------------


def _shift(cells: Cells) -> Estimate:
    null = cells.null("paired_shift")
    value = null[:, 0]
    if not cells.has_null:  # |mean|^2 is known at full width, its noise in the projection
        value = value + cells.shift_sq - cells.projected_shift.square().sum(-1)
    on_shift, _ = shift_influence(cells.sqdist, cells.shift_sq, cells.labels)
    return make_following(cells, value, on_shift, null=null, floor=0.0)


_PAIRED_SHIFT = Metric(
    name="paired_shift",
    title="squared mean shift of pairs",
    space="full",
    kind="A",
    unit="state^2",
    definition="|mean|^2 - tr S/n of the differences inside pairs, S their covariance",
    source="Chen & Qin 2010",
    pitfalls="In squared units of the hidden state.",
    interval=FOLLOWING,
    null=SHUFFLE_FULL,
    floor="0",
    paired=True,
    default=True,
    estimator=_shift,
)


# hotelling -----------------------------------------------------------------------------------


def hotelling(diff: Tensor, weights: Tensor) -> Tensor:
    """Hotelling's T^2 per pair, mean' S^-1 mean, of every resample: [..., R].

    Args:
        diff: [..., n, k] float64, differences inside pairs.
        weights: [R, n] float64, how often a resample holds a pair; negative if labels are swapped.
    """
    times = weights.abs()
    count = times.sum(-1)
    columns = products(diff)
    k = diff.shape[-1]
    mean = weights @ columns[..., :k] / count[:, None]
    cov = covariance(times @ columns[..., k:], count, mean)
    return square_length(mean[..., None], cov)


def _t_squared(cells: Cells, k: int) -> Estimate:
    require_texts(cells, k)
    cells.components(k)  # refuses if there are fewer
    coords = cells.coords.nan_to_num(0.0).transpose(-1, -2)
    gap = cells.pair_differences(coords).transpose(-1, -2)
    n = independent_pairs(cells)
    null = _in_parts(lambda rows: hotelling(gap[..., :k], cells.flips[rows]), len(cells.flips))
    value = null[:, 0]
    square = Square(
        torch.full_like(value, 2 * k / n**2),
        lambda: _unit_noise(cells, whiten(gap[..., :k] - gap[..., :k].mean(-2, keepdim=True))),
    )
    influence = _influence(cells, gap, k)
    return make_estimate(
        cells, value, null=null, influence=influence, squares=(square,), around=log_ends
    )


def _influence(cells: Cells, gap: Tensor, k: int) -> Tensor:
    """[cell, n], first-order effect of each text on T^2/n; half of that of its pair.

    mean' S^-1 mean changes by 2 mean' S^-1 z - (mean' S^-1 z)^2 + mean' S^-1 mean with z = x - mean
    of a pair x, and as the components turn.

    Args:
        cells, k: as in `_t_squared`.
        gap: [cell, pairs, component], differences inside pairs.
    """
    turn = gap.new_zeros(len(gap), k, gap.shape[-1] - k).requires_grad_()
    turned = gap[..., :k] + gap[..., k:] @ turn.transpose(-1, -2)
    mean = turned.mean(-2, keepdim=True)
    about = turned - mean
    pairs = gap.shape[-2]
    cov = about.transpose(-1, -2) @ about / (pairs - 1)
    scale = cov.diagonal(dim1=-2, dim2=-1).sqrt()[..., None]
    weight, _ = torch.linalg.solve_ex(
        cov / (scale * scale.transpose(-1, -2)), mean.transpose(-1, -2) / scale
    )
    along = (about @ (weight / scale)).squeeze(-1)
    value = (mean @ (weight / scale)).flatten()
    (slopes,) = torch.autograd.grad(value.sum(), turn)
    of_pair = (2 * along - along.square()).detach()
    of_pair = (of_pair - of_pair.mean(-1, keepdim=True)) / pairs
    influence = cells.turning(slopes.nan_to_num(0.0, 0.0, 0.0))
    influence[:, cells.partners] += of_pair.nan_to_num(0.0)[..., None] / 2
    return influence


def _unit_noise(cells: Cells, noise: Tensor) -> Tensor:
    """Sum over the pairs of a unit: noise [cell, pairs, k] -> [cell, unit, k]."""
    if cells.copies is None:
        return noise
    return unit_sums(noise.transpose(-1, -2), unit_of_pairs(cells)).transpose(-1, -2)


def _in_parts(function: Callable[[slice], Tensor], rows: int, size: int = 256) -> Tensor:
    """Apply `function` to `size` rows at a time and join the results along the last axis."""
    starts = range(0, max(rows, 1), size)
    return torch.cat([function(slice(i, min(i + size, rows))) for i in starts], -1)


def _hotelling(k: int) -> Metric:
    return Metric(
        name=f"hotelling_pc{k}",
        title="Hotelling's T^2 of pairs, per pair",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="1",
        definition="T^2/n = mean' S^-1 mean of the differences inside pairs, S their covariance",
        source="Hotelling 1931",
        pitfalls="In-sample: it averages about k/n without any difference. " + OWN_COMPONENTS,
        interval=f"{INFLUENCE}, and {STUDENT}; on the log scale",
        null=SHUFFLE,
        floor=NULL_MEAN,
        paired=True,
        estimator=partial(_t_squared, k=k),
    )


# Scores inside pairs -------------------------------------------------------------------------


def _held_out_pairs(
    cells: Cells,
    name: str,
    value: Tensor,
    floor: float,
    influence: Tensor,
    gap: Tensor,
    trials: tuple[float, Tensor] | None = None,
) -> Estimate:
    """`held_out_estimate` for differences of scores inside pairs.

    Args:
        cells, value, floor, trials: as in `held_out_estimate`.
        name: of the null.
        influence, gap: [cell, pairs], influence and difference of scores of each pair.
    """
    alone = torch.zeros(gap.shape[-1], dtype=torch.int64)
    moved = along_scores(influence, gap, alone, alone)
    return held_out_estimate(
        cells,
        "mean difference",
        value,
        null=cells.null(name),
        floor=floor,
        influence=_spread_over_pairs(cells, influence),
        moved=_spread_over_pairs(cells, moved),
        trials=trials,
    )


def _spread_over_pairs(cells: Cells, influence: Tensor) -> Tensor:
    """Give each text of a pair half of its influence: [cell, pairs] -> [cell, n]."""
    halves = torch.empty(len(influence), cells.labels.numel(), dtype=influence.dtype)
    halves[:, cells.partners] = influence[..., None] / 2
    return halves


def _paired_accuracy(cells: Cells) -> Estimate:
    scores = held_out_scores(cells, "mean difference")
    gap = cells.pair_differences(scores)
    hits = (gap.sign() + 1) / 2
    value = hits.mean(-1)
    influence = (hits - value[:, None]) / hits.shape[-1]
    trials = (cells.trials, scores)
    return _held_out_pairs(cells, "paired_accuracy", value, 0.5, influence, gap, trials)


_PAIRED_ACCURACY = Metric(
    name="paired_accuracy",
    title="held-out sign accuracy of pairs",
    space="full",
    kind="B",
    unit="1",
    definition="share of pairs whose harmful text scores higher, along the difference of class "
    "means of the other folds; ties count half",
    source="cross-fitted",
    pitfalls="Measures directions fitted to nine tenths of these pairs, not the best possible one.",
    interval=f"{SHARE}; {REFITS}",
    null=REFITTED,
    floor="0.5",
    paired=True,
    default=True,
    estimator=_paired_accuracy,
)


def _paired_effect(cells: Cells) -> Estimate:
    gap = cells.pair_differences(held_out_scores(cells, "mean difference"))
    mean, deviation = gap.mean(-1, keepdim=True), gap.std(-1, keepdim=True)
    value = (mean / deviation).squeeze(-1)
    scaled = (gap - mean) / deviation
    influence = (scaled - value[:, None] * (scaled.square() - 1) / 2) / gap.shape[-1]
    influence = effect_growth(independent_pairs(cells) - 1) * influence
    return _held_out_pairs(cells, "paired_effect", value, 0.0, influence, gap)


_PAIRED_EFFECT = Metric(
    name="paired_effect",
    title="paired effect size",
    space="full",
    kind="B",
    unit="1",
    definition="mean/sd of the differences of held-out scores inside pairs",
    source="Cohen's d_z, cross-fitted",
    pitfalls="Along one direction only. Large if pairs differ consistently, however little.",
    interval=f"{INFLUENCE}; {REFITS}",
    null=REFITTED,
    floor="0",
    paired=True,
    default=True,
    estimator=_paired_effect,
)


METRICS: tuple[Metric | InComponents, ...] = (
    _PAIRED_ACCURACY,
    _PAIRED_EFFECT,
    _PAIRED_SHIFT,
    _hotelling,
)
