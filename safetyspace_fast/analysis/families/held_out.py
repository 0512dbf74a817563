"""Metrics of texts that are scored along a direction fitted to other texts.

The texts are in ten folds. Each fold is scored along a direction fitted to the other nine: d, the
difference of their class means at full width, the same of standardised dimensions, or a logistic
probe in the projection.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from ...ops import FoldLabellings, equal_units
from ...ops.scores import balanced_accuracy, labelled_auc, ridge_scores
from ..cells import Cells, once
from ..estimate import Estimate, Square, make_estimate, make_share, share_p
from ..metric import (
    INFLUENCE,
    NONE,
    SHARE,
    SHUFFLE,
    SHUFFLE_AUC,
    SHUFFLE_FULL,
    SPREAD_COUNTS,
    InComponents,
    Metric,
)
from ..moments import shift_influence, shift_noise
from ..texts import Refusal
from ..uncertainty import (
    INFLUENCE_EXCESS,
    common_held_out,
    influence_variance,
    linear_variance,
    share_interval,
    t_interval,
    trials,
    unit_sums,
    units_behind,
    unseen_trial,
)
from .ratio import equal_length, equal_length_influence, equal_length_noise, standardized

RIDGE = 1.0
"""Penalty of the ridge probe that stands for the logistic probe in nulls; the same as its own."""
FIT_BYTES = 64 << 20
"""Working memory of the logistic fits of one call."""

Direction = Literal["mean difference", "standardized", "equal length", "probe"]
"""What the texts are scored along."""


# Folds and scores ----------------------------------------------------------------------------


def fold_texts(fold: Tensor) -> list[Tensor]:
    """The texts of each fold that is not empty, as indices: fold [n] int64."""
    number = torch.bincount(fold)
    order = torch.argsort(fold, stable=True)
    return [part for part in torch.split(order, number.tolist()) if part.numel()]


@dataclass(frozen=True)
class _LogisticFit:
    """Penalised logistic regressions on one design: design [B, n, P], target [n]."""

    design: Tensor
    target: Tensor

    def curvature(self, curve: Tensor, design: Tensor) -> Tensor:
        """X' diag(curve) X: curve [B, F, n], design [B, n, P] -> [B, F, P, P]."""
        return (curve[..., None, :] * design.transpose(-1, -2)[:, None]) @ design[:, None]

    def minimise(
        self, weight: Tensor, train: Tensor, penalty: Tensor, hessian: Tensor | None, refresh: int
    ) -> tuple[Tensor, Tensor]:
        """Newton steps, halved while they raise the cost, until no weight changes.

        Args:
            weight, penalty: [B, F, P]; train: [F, n], 1 for the texts of a fit.
            hessian: [B, F, P, P] at the start, without the penalty; None computes it.
            refresh: compute the curvature again after this many steps.

        Returns:
            weight [B, F, P] and scores [B, F, n] of all texts.
        """
        ridge = torch.diag_embed(penalty) + 1e-10 * torch.eye(weight.shape[-1])
        both_classes = (train @ self.target > 0) & (train @ (1 - self.target) > 0)
        cost, score = self._loss(weight, train, penalty)
        factor = None if hessian is None else torch.linalg.cholesky(hessian + ridge)
        for i in range(100):
            odds = score.sigmoid()
            if factor is None or (i + 1) % refresh == 0:
                curve = train * odds * (1 - odds)
                factor = torch.linalg.cholesky(self.curvature(curve, self.design) + ridge)
            gradient = ((odds - self.target) * train) @ self.design + penalty * weight
            step = torch.cholesky_solve(gradient[..., None], factor).squeeze(-1)
            step = step * both_classes[:, None]
            size = torch.ones_like(cost)
            for _ in range(30):
                tried = weight - size[..., None] * step
                tried_cost, score = self._loss(tried, train, penalty)
                worse = tried_cost > cost + 1e-12 * cost.abs()
                if not bool(worse.any()):
                    break
                size = torch.where(worse, size / 2, size)
            weight, cost = tried, tried_cost
            if float(step.abs().max()) < 1e-8:
                break
        return weight, score

    def _loss(self, weight: Tensor, train: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
        score = weight @ self.design.transpose(-1, -2)
        cost = torch.nn.functional.softplus(score) - self.target * score
        return (cost * train).sum(-1) + (penalty * weight.square()).sum(-1) / 2, score


def logistic_scores(x: Tensor, labels: Tensor, fold: Tensor, strength: float = 1.0) -> Tensor:
    """Held-out scores of an L2 logistic probe, all layers and folds fitted together.

    Minimises sum log(1 + exp(-y s)) + strength/2 |w|^2 over the training folds with features
    standardised there (C = 1/strength in scikit-learn); the intercept is not penalised. Scaling the
    penalty by the training variances has the effect of standardising.

    Newton's method first fits all texts. Each fold starts from this fit, where its curvature is
    that of all texts minus that of the texts left out: ten folds cost little more than one.

    Args:
        x: [B, n, P] float64, labels: [n] int64, fold: [n] int64.

    Returns:
        [B, n] float64, log odds of class 1, from a probe that was not trained on the text; NaN in
        folds whose training texts are all of one class.
    """
    centred = x - x.mean(-2, keepdim=True)
    spread = centred.square().mean(-2, keepdim=True).sqrt()
    design = torch.where(spread > 0, centred / spread, 0.0)
    design = torch.cat([design, torch.ones_like(design[..., :1])], dim=-1)
    target = labels.to(x.dtype)
    folds = fold_texts(fold)
    i_fold = torch.empty_like(fold)
    for f, texts in enumerate(folds):
        i_fold[texts] = f
    train = (i_fold != torch.arange(len(folds))[:, None]).to(x.dtype)
    n_train = train.sum(-1)[:, None]
    mean = train @ design / n_train
    penalty = strength * (train @ design.square() / n_train - mean.square())
    penalty[..., -1] = 0
    # A constant feature has no variance to penalise by; its weight stays zero with any penalty.
    penalty[..., :-1] = torch.where(penalty[..., :-1] > 1e-12, penalty[..., :-1], strength)
    known = (train @ target > 0) & (train @ (1 - target) > 0)

    fit = _LogisticFit(design, target)
    everything = torch.ones(1, len(labels), dtype=x.dtype)
    whole_penalty = penalty.mean(-2, keepdim=True)
    start, score = fit.minimise(
        torch.zeros_like(whole_penalty), everything, whole_penalty, None, refresh=1
    )
    odds = score.sigmoid()
    curve = odds * (1 - odds)
    left_out = torch.stack(
        [fit.curvature(curve[..., texts], design[:, texts]).squeeze(1) for texts in folds], dim=1
    )
    hessian = left_out.sum(1, keepdim=True) - left_out
    _, score = fit.minimise(start.expand_as(penalty), train, penalty, hessian, refresh=8)
    held_out = score.gather(-2, i_fold.expand(x.shape[0], 1, -1)).squeeze(-2)
    return torch.where(known[i_fold], held_out, torch.nan)


@once
def held_out_scores(cells: Cells, direction: Direction) -> Tensor:
    """[cell, n], held-out scores: the stored ones, or the log odds of the logistic probe.

    Raises:
        Refusal: a class has all its texts in one fold.
    """
    if any(len(fold_texts(cells.fold[cells.labels == c])) < 2 for c in (0, 1)):
        raise Refusal("all texts of a class are in one fold: there is nothing to train on")
    if direction == "mean difference":
        return cells.stored("heldout_score")
    if direction == "standardized":
        if not cells.window.has("standard_score"):
            raise Refusal("the store is of an earlier version: run the model again")
        return cells.stored("standard_score")
    if direction == "equal length":
        equal_length(cells)  # refuses if the store has none
        # The noise of the slopes is in the direction too: it must not stay in the scores.
        return cells.less_length(cells.stored("equal_length_score")[..., None])[..., 0]
    n, width = cells.projected.shape[1:]
    folds = len(fold_texts(cells.fold))
    size = max(1, FIT_BYTES // (8 * folds * n * (width + 1)))
    parts = torch.split(cells.projected, size)
    return torch.cat([logistic_scores(x, cells.labels, cells.fold) for x in parts])


# The null: every labelling fitted again ------------------------------------------------------


@once
def _refitted(cells: Cells, direction: Direction) -> dict[str, Tensor]:
    """Held-out statistics of the true labels and every permutation, each fitted again.

    Returns:
        Tensors [cell, 1 + permutations]: `score`, the distance of the AUC from 1/2 in standard
        deviations, and `accuracy`.
    """
    if direction != "probe":
        name = "auc_direction_score" if direction == "mean difference" else "auc_standardized_score"
        return {"score": cells.null(name), "accuracy": cells.null("accuracy_direction")}
    of = FoldLabellings(cells.resamples.labellings, cells.fold)
    scores = [ridge_scores(x[of.order], of, RIDGE) for x in cells.projected]
    return {
        "score": torch.stack([labelled_auc(x, of)[1] for x in scores]),
        "accuracy": torch.stack([balanced_accuracy(x, of) for x in scores]),
    }


# The interval: what the direction's own noise adds -------------------------------------------


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


def whitened_shift(shift: Tensor, unit: Tensor, classes: tuple[Tensor, Tensor]) -> Tensor:
    """d and the influence of each unit on it, in coordinates where Sp is the identity.

    Sp is the covariance inside the classes. In these coordinates the direction Sp^-1 d of a probe
    is d itself.

    Args:
        shift: [P] float64, d; unit: [U, P], influence of each text (or pair) on it.
        classes: texts of each class, [n, P] float64.

    Returns:
        [1 + U, P] float64, d first.
    """
    within = sum(((x - x.mean(0)).T @ (x - x.mean(0)) for x in classes), unit.new_zeros(()))
    scale = within.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    freedom = sum(len(x) for x in classes)
    # Like the penalty of the probe: directions without variance must not count as noise.
    ridge = 4 / freedom * torch.eye(len(shift), dtype=shift.dtype)
    factor = torch.linalg.cholesky(within / (scale[:, None] * scale) + ridge)
    columns = torch.cat([shift[None], unit]) / scale
    white: Tensor = torch.linalg.solve_triangular(factor, columns.T, upper=False).T
    return white


@once
def _whitened_shift(cells: Cells) -> Tensor:
    """[cell, 1 + unit, P], `whitened_shift` of each cell."""
    parts = []
    for x, unit in zip(cells.projected, cells.unit_shift, strict=True):
        low, high = (x[cells.labels == c] for c in (0, 1))
        parts.append(whitened_shift(high.mean(0) - low.mean(0), unit, (low, high)))
    return torch.stack(parts)


def _direction_shift(cells: Cells, direction: Direction) -> Tensor:
    """[cell, unit, P], influence of each unit on the direction (whitened for a probe)."""
    if direction == "equal length":
        return equal_length_noise(cells)
    return _whitened_shift(cells)[:, 1:] if direction == "probe" else cells.unit_shift


@once
def direction_noise(cells: Cells, direction: Direction) -> Tensor:
    """[cell], share of the variance along a direction that comes from the noise of the direction.

    Let V be the covariance of d. The variance along d is d'Vd, of which tr V^2 remains without any
    difference between the classes: the share is 1 on average for noise, and 0 for a large d.
    """
    if direction == "mean difference":
        on_shift, _ = shift_influence(cells.sqdist, cells.shift_sq, cells.trace, cells.labels)
        along, noise = influence_variance(on_shift, cells.unit) / 4, cells.shift_noise
    elif direction == "standardized":
        sqdist, parts = cells.stored("standard_sqdist"), standardized(cells)
        on_shift, _ = shift_influence(sqdist, *parts, cells.labels)
        along, noise = influence_variance(on_shift, cells.unit) / 4, cells.stored("noise")[:, 1]
    elif direction == "equal length":
        on_shift, _ = equal_length_influence(cells)
        noise = cells.stored("equal_length_noise_sq")
        along = influence_variance(on_shift, cells.unit) / 4
    else:
        shift, unit = _whitened_shift(cells)[:, :1], _whitened_shift(cells)[:, 1:]
        along = (unit * shift).sum(-1).square().sum(-1)
        noise = torch.stack([shift_noise(x, 0) for x in unit])
    return (noise / along).clamp(0, 2).nan_to_num(1.0)


def noise_growth(noise: Tensor) -> Tensor:
    """How much more a held-out statistic varies with the scores than along a fixed direction.

    Args:
        noise: [...], see `direction_noise`. A |d|^2 below its own noise is no scale to measure
            with: from 1 on, less is added.
    """
    return torch.where(noise < 1, 1 + noise, (2 * (1 + noise)).sqrt())


def _held_out(
    cells: Cells,
    direction: Direction,
    value: Tensor,
    *,
    null: Tensor | None = None,
    floor: float,
    influence: Tensor,
    moved: Tensor,
    trials: tuple[float, Tensor] | None = None,
    freedom: Tensor | None = None,
) -> Estimate:
    """`make_estimate` for a held-out statistic; its interval includes the noise of the direction.

    Let V be the covariance of d and s the share of noise in |d|^2. Along the d of other folds the
    classes differ by q = |d|^2 - tr V, in units of sqrt(d'Vd). This ratio grows with q by 1 + s
    times what it would along a fixed direction, and the influences assume a fixed one.

    Args:
        cells, value, null, floor, influence: as in `make_estimate`.
        direction: what the texts are scored along.
        moved: [cell, n], the part of the influence that is linear in the scores.
        trials: of a share, see `make_share`; None if the value is none.
        freedom: [cell], degrees of freedom of the deviation; None: those of the cells.
    """
    noise = direction_noise(cells, direction)
    growth = noise_growth(noise)
    grown = growth[:, None] * moved
    square = Square(
        influence_variance(grown, cells.unit) * noise.clamp_max(1) / 2,
        lambda: _direction_shift(cells, direction),
        partial(common_held_out, folds=len(fold_texts(cells.fold))),
        growth=growth,
    )
    squares, influence = (square,), influence - moved + grown
    if trials is None:
        return make_estimate(
            cells, value, null=null, floor=floor, influence=influence, squares=squares,
            ends=partial(t_interval, freedom=cells.freedom if freedom is None else freedom),
            class_means=False,
        )  # fmt: skip
    return make_share(
        cells, value, trials, null=null, floor=floor, influence=influence, squares=squares
    )


_REFITS = (
    "widened for the noise of the fitted directions (to twice the variance if they are only noise)"
)
_REFITTED = f"{SHUFFLE_FULL}; each fold is fitted again"
_REFITTED_RIDGE = (
    f"{SHUFFLE}; each fold is fitted again, in the projection, with a ridge probe instead of the "
    "logistic one"
)
_PITFALLS = (
    "Measures directions fitted to nine tenths of these texts, not the best possible direction: it "
    "grows with the number of texts."
)


# auc -----------------------------------------------------------------------------------------


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
    noise = torch.as_tensor(noise, dtype=scores.dtype)
    auc, influence = fold_auc(scores, labels, fold, copy)
    moved = along_scores(influence, scores, labels, labels)
    growth = noise_growth(noise)
    square = influence_variance(growth * moved, unit) * noise.clamp_max(1) / 2
    influence = influence + (growth - 1) * moved
    seen = influence_variance(influence, unit)
    units = equal_units(labels, unit)
    number, freedom = trials(units), max(float(units.min()) - 1, 1.0)
    added = unseen_trial(influence, unit)
    variance = linear_variance(seen, square, INFLUENCE_EXCESS) + square + added / number**2
    return auc, *share_interval(auc, variance.sqrt(), freedom, number, added)


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


def _auc(cells: Cells, direction: Direction) -> Estimate:
    scores = held_out_scores(cells, direction)
    value, influence = fold_auc(scores, cells.labels, cells.fold, cells.copy)
    influence = influence * cells.growth
    return _held_out(
        cells,
        direction,
        value,
        null=_refitted(cells, direction)["score"],
        floor=0.5,
        influence=influence,
        moved=along_scores(influence, scores, cells.labels, cells.labels),
        trials=(cells.trials, scores),
    )


DELONG_T = (
    "one-sided Student's t of the distance from 1/2 over its deviation, that of the interval for a "
    "value of 1/2"
)
_DELONG = f"{SHARE}, with the influences of DeLong within folds; {_REFITS}"

_AUC_DIRECTION = Metric(
    name="auc_direction",
    title="held-out AUC, mean difference",
    space="full",
    kind="B",
    unit="1",
    definition="probability that a harmful text scores higher than a harmless one along the "
    "difference of class means of the other folds; mean over folds, weighted by their text pairs",
    source="Hanley & McNeil 1982; cross-fitted",
    pitfalls=_PITFALLS,
    interval=_DELONG,
    null=SHUFFLE_AUC,
    floor="0.5",
    default=True,
    estimator=partial(_auc, direction="mean difference"),
)

_AUC_STANDARDIZED = Metric(
    name="auc_standardized",
    title="held-out AUC, standardised",
    space="full",
    kind="B",
    unit="1",
    definition="as auc_direction, after dividing each hidden dimension by its scale (see "
    "rho_standardized)",
    source=_AUC_DIRECTION.source,
    pitfalls=_PITFALLS + " One very large dimension cannot hide the others here; in auc_direction "
    "it can.",
    interval=_DELONG,
    null=SHUFFLE_AUC,
    floor="0.5",
    default=True,
    estimator=partial(_auc, direction="standardized"),
)


def _auc_equal_length(cells: Cells) -> Estimate:
    scores = held_out_scores(cells, "equal length")
    value, influence = fold_auc(scores, cells.labels, cells.fold, cells.copy)
    moved = along_scores(influence, scores, cells.labels, cells.labels)
    # What a text adds to the mean score of its class, it adds to the slopes too.
    sign = (2.0 * cells.labels - 1) / cells.count[cells.labels]
    turned = moved * cells.length_weights / sign
    estimate = _held_out(
        cells,
        "equal length",
        value,
        floor=0.5,
        influence=influence - moved + turned,
        moved=turned,
        trials=(cells.trials, scores),
    )
    return replace(estimate, p=share_p(cells, estimate))


_AUC_EQUAL_LENGTH = Metric(
    name="auc_equal_length",
    title="held-out AUC at equal length",
    space="full",
    kind="B",
    unit="1",
    definition="as auc_direction, of the states less their regression on log t and 1/t, for texts "
    "of t tokens; the slopes are those inside the classes of the other folds, pooled. What their "
    "noise leaves of length in the scores is taken out by a regression of the scores",
    source=f"{_AUC_DIRECTION.source}; analysis of covariance (Cochran 1957)",
    pitfalls=_PITFALLS + " Takes out of length only what rho_equal_length does. p does not count "
    "in p_family.",
    interval=f"{_DELONG}, and for that of the slopes",
    null=DELONG_T,
    floor="0.5",
    estimator=_auc_equal_length,
)


_AUC_PROBE = Metric(
    name="auc_probe",
    title="held-out AUC, logistic probe",
    space="projection",
    kind="B",
    unit="1",
    definition="AUC of a logistic probe with an L2 penalty (C = 1, features standardised in the "
    "training folds); mean over folds, weighted by their text pairs",
    source="Alain & Bengio 2016; cross-fitted",
    pitfalls=_PITFALLS,
    interval=_DELONG,
    null=_REFITTED_RIDGE,
    floor="0.5",
    default=True,
    estimator=partial(_auc, direction="probe"),
)


# accuracy ------------------------------------------------------------------------------------


def _accuracy(cells: Cells, direction: Direction) -> Estimate:
    scores, labels = held_out_scores(cells, direction), cells.labels
    hits = torch.where(scores.isnan(), scores, ((scores > 0) == (labels > 0)).double())
    shares = torch.stack([hits[:, labels == c].mean(-1) for c in (0, 1)], -1)
    influence = (hits - shares[:, labels]) * cells.growth / (2 * cells.count)[labels]
    return _held_out(
        cells,
        direction,
        shares.mean(-1),
        null=_refitted(cells, direction)["accuracy"],
        floor=0.5,
        influence=influence,
        moved=along_scores(influence, scores, labels, labels),
        trials=(2 * cells.trials, scores),
    )


_ACCURACY_DIRECTION = Metric(
    name="accuracy_direction",
    title="held-out accuracy, mean difference",
    space="full",
    kind="B",
    unit="1",
    definition="share of texts that are closer to their own class mean than to the other, along "
    "the difference of both, with class means of the other folds; mean of the shares in both "
    "classes",
    source="nearest-centroid rule, cross-fitted; balanced accuracy (Brodersen et al. 2010)",
    pitfalls=f"{_PITFALLS} {SPREAD_COUNTS}",
    interval=f"{SHARE}; {_REFITS}",
    null=_REFITTED,
    floor="0.5",
    any_difference=True,
    estimator=partial(_accuracy, direction="mean difference"),
)

_ACCURACY_PROBE = Metric(
    name="accuracy_probe",
    title="held-out accuracy, logistic probe",
    space="projection",
    kind="B",
    unit="1",
    definition="share of texts that the logistic probe of the other folds classifies correctly; "
    "mean of the shares in both classes",
    source="Alain & Bengio 2016; cross-fitted; balanced accuracy (Brodersen et al. 2010)",
    pitfalls=f"{_PITFALLS} The probe is fitted to the classes as they are: with few harmful texts "
    "it takes most texts for harmless, and the value is near 0.5; see auc_probe. " + SPREAD_COUNTS,
    interval=f"{SHARE}; {_REFITS}",
    null=_REFITTED_RIDGE,
    floor="0.5",
    any_difference=True,
    estimator=partial(_accuracy, direction="probe"),
)


# d' ------------------------------------------------------------------------------------------

LEAST_FREEDOM = 10
"""Degrees of freedom of the standard deviation in d'."""


def fold_effect(scores: Tensor, labels: Tensor, fold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d' of scores of several folds, and the influence of each text.

    Least squares of the scores on the label and a level for each fold: d' is the effect of the
    label over the standard deviation of the residuals (n - folds - 1 degrees of freedom). Squares
    of residuals are divided by their leverage 1 - h, as in White's HC2 (MacKinnon & White 1985).

    Args:
        scores: [..., n] float64, labels: [n] int64, fold: [n] int64.

    Returns:
        d' [...]; influence [..., n], and the part of it that is linear in the scores, [..., n].
        NaN without a fold of both classes.
    """
    folds = fold_texts(fold)
    freedom = len(labels) - len(folds) - 1
    y, level = labels.to(scores.dtype), torch.empty_like(scores)
    harmful, size = torch.empty_like(y), torch.empty_like(y)
    for inside in folds:
        level[..., inside] = scores[..., inside].mean(-1, keepdim=True)
        harmful[inside], size[inside] = y[inside].mean(), float(len(inside))
    y = y - harmful
    weight = y / y.square().sum()
    effect = ((scores - level) * weight).sum(-1, keepdim=True)
    rest = scores - level - effect * y
    deviation = (rest.square().sum(-1, keepdim=True) / freedom).sqrt()
    left = (1 - 1 / size - y * weight).clamp_min(0)
    scaled = torch.where(left > 1e-9, left.rsqrt(), 0.0) * rest / deviation
    value = effect / deviation
    linear = weight * scaled
    square = scaled.square()
    curved = value * (square - square.mean(-1, keepdim=True)) / (2 * len(labels))
    return value.squeeze(-1), linear - curved, linear


def _dprime(cells: Cells) -> Estimate:
    scores = held_out_scores(cells, "mean difference")
    if len(cells.labels) - len(fold_texts(cells.fold)) - 1 < LEAST_FREEDOM:
        raise Refusal(f"d' needs {LEAST_FREEDOM + 1} texts more than there are folds")
    value, influence, moved = fold_effect(scores, cells.labels, cells.fold)
    return _held_out(
        cells,
        "mean difference",
        value,
        floor=0.0,
        influence=influence,
        moved=moved,
        freedom=units_behind(influence, cells.unit).clamp(1, cells.freedom),
    )


_DPRIME = Metric(
    name="dprime",
    title="held-out d', mean difference",
    space="full",
    kind="B",
    unit="1",
    definition="difference of the class means of the scores of auc_direction over their standard "
    "deviation inside the classes, both without differences between folds (least squares with a "
    "level for each fold)",
    source="d' of signal detection (Green & Swets 1966), cross-fitted",
    pitfalls=_PITFALLS + " Unlike an AUC it has no upper end, and few extreme texts can move it. "
    "No p: see that of auc_direction, which is of the same scores.",
    interval=f"{INFLUENCE}, with residuals scaled by their leverage (HC2) and Student's t, with as "
    f"many degrees of freedom as there are texts behind the variance; {_REFITS}",
    null=NONE,
    floor="0",
    estimator=_dprime,
)


# TPR at 1 % FPR ------------------------------------------------------------------------------

FALSE_ALARMS = 0.01
"""Share of harmless texts above the threshold."""
FEWEST_HARMLESS = math.ceil(1 / FALSE_ALARMS) - 1
"""With fewer harmless texts, the threshold would be above the largest score of all."""
TAIL = 0.1
"""Share of harmless texts whose scores say how fast their tail falls."""


@dataclass(frozen=True)
class _Alarms:
    """Scores above a threshold: centre, threshold, index [cell]; high [cell, harmful texts].

    The threshold is the score that a new harmless text exceeds with the probability `FALSE_ALARMS`
    on average (Weibull 1939: the k-th largest of n is exceeded with k/(n + 1)). The tail of the
    harmless scores is that of Pareto about their median: where their share falls to 1/e, the
    distance from the median grows by exp(`index`) (Hill 1975).
    """

    centre: Tensor
    threshold: Tensor
    index: Tensor
    high: Tensor

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor, first: Tensor) -> "_Alarms":
        """From scores [cell, n], labels [n] int64 and the indices of one copy of each text."""
        low = scores[:, first[labels[first] == 0]].sort(-1, descending=True).values
        place = FALSE_ALARMS * (low.shape[1] + 1) - 1
        whole = int(place + 1e-9)
        part = place - whole
        threshold = (1 - part) * low[:, whole] + part * low[:, whole + 1]
        centre = low.median(-1).values
        tail = (low[:, : math.ceil(TAIL * low.shape[1]) + 1] - centre[:, None]).log()
        index = (tail[:, :-1] - tail[:, -1:]).mean(-1).nan_to_num(0.0, 0.0, 0.0)
        return cls(centre, threshold, index, scores[:, labels == 1])

    def share(self, rarer: Tensor) -> Tensor:
        """[cell], share of harmful texts above another threshold.

        Args:
            rarer: [cell] or [], logarithm of the share of harmless texts above the threshold over
                that above the other one.
        """
        moved = self.centre + (self.threshold - self.centre) * (rarer * self.index).exp()
        return ((self.high - moved[:, None]).sign() + 1).mean(-1) / 2


def _independent(cells: Cells, scores: Tensor) -> Tensor:
    """[cell, 2], texts of each class without clusters whose mean score would vary as much."""
    centred = cells.about_class_means(scores[..., None])[..., 0]
    numbers = []
    for label in (0, 1):
        inside = cells.labels == label
        own, unit = centred[:, inside], torch.unique(cells.unit[inside], return_inverse=True)[1]
        effect = unit_sums(own, unit).square().sum(-1) / own.square().sum(-1)
        numbers.append(cells.count[label] / effect.nan_to_num(1.0).clamp_min(1))
    return torch.stack(numbers, -1)


def _alarm_ends(
    value: Tensor, _: Tensor, *, alarms: _Alarms, size: Tensor, confidence: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Ends for the noise of the share (Wilson 1927) and of the threshold, as in MOVER (Zou 2007).

    The share of harmless texts above the threshold is Gamma(k)/n for k of them on average; its
    quantiles are those of Wilson & Hilferty (1931).

    Args:
        value: [cell]; alarms: of these cells; size: [cell, 2], independent texts of each class.
        confidence: of the interval.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    k = FALSE_ALARMS * (size[:, 0] + 1)
    middle, reach = (value + z**2 / size[:, 1] / 2), z**2 / size[:, 1]
    width = (reach * (value * (1 - value) + reach / 4)).sqrt()
    ends = []
    for side in (-1, 1):
        share = (middle + side * width) / (1 + reach)
        quantile = (1 - 1 / (9 * k) - side * z / (3 * k.sqrt())).clamp_min(0.05).pow(3)
        moved = alarms.share(quantile.log())
        ends.append(value + side * ((share - value).square() + (moved - value).square()).sqrt())
    return ends[0].clamp_min(0), ends[1].clamp_max(1)


def _tpr(cells: Cells) -> Estimate:
    if (number := int(cells.different[0])) < FEWEST_HARMLESS:
        raise Refusal(
            f"needs {FEWEST_HARMLESS} harmless {cells.texts}, has {number}: 1 % of fewer is less "
            "than one text"
        )
    scores, labels = held_out_scores(cells, "mean difference"), cells.labels
    alarms = _Alarms.of(scores, labels, cells.first)
    value = alarms.share(torch.zeros(()))
    above = (scores > alarms.threshold[:, None]).double()
    fewer, more = (alarms.share(torch.tensor(rarer)) for rarer in (1.0, -1.0))
    slope = (more - fewer) / (2 * FALSE_ALARMS)
    per_class = torch.stack([-slope / cells.count[0], torch.ones_like(slope) / cells.count[1]], -1)
    influence = cells.about_class_means(above[..., None])[..., 0] * per_class[:, labels]
    return make_estimate(
        cells,
        value,
        floor=FALSE_ALARMS,
        influence=influence,
        ends=partial(_alarm_ends, alarms=alarms, size=_independent(cells, scores)),
        class_means=False,
    )


_TPR = Metric(
    name="tpr_at_1_fpr",
    title="held-out TPR at 1 % FPR",
    space="full",
    kind="B",
    unit="1",
    definition="share of harmful texts whose score of auc_direction exceeds the threshold that 1 % "
    "of harmless texts exceed: the k-th largest score of n0, k = (n0+1)/100",
    source="Weibull 1939 (plotting position); cross-fitted",
    pitfalls=_PITFALLS + " Few harmless texts decide it: with 100 the threshold is their largest "
    f"score, and the interval is wide; with fewer than {FEWEST_HARMLESS} it is refused. Scores of "
    "all folds share one threshold. No p: see that of auc_direction, which is of the same scores.",
    interval="Wilson's score interval for the share, and the range of the threshold, for "
    "the tail of Pareto that harmless scores have (Hill 1975; MOVER, Zou 2007); clusters count as "
    "fewer texts",
    null=NONE,
    floor="0.01",
    estimator=_tpr,
)


# Pairs ---------------------------------------------------------------------------------------


def _held_out_pairs(
    cells: Cells,
    name: str,
    value: Tensor,
    floor: float,
    influence: Tensor,
    gap: Tensor,
    trials: tuple[float, Tensor] | None = None,
) -> Estimate:
    """`_held_out` for differences of scores inside pairs.

    Args:
        cells, value, floor, trials: as in `_held_out`.
        name: of the null.
        influence, gap: [cell, pairs], influence and difference of scores of each pair.
    """
    alone = torch.zeros(gap.shape[-1], dtype=torch.int64)
    moved = along_scores(influence, gap, alone, alone)
    return _held_out(
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
    interval=f"{SHARE}; {_REFITS}",
    null=_REFITTED,
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
    interval=f"{INFLUENCE}; {_REFITS}",
    null=_REFITTED,
    floor="0",
    paired=True,
    default=True,
    estimator=_paired_effect,
)


METRICS: tuple[Metric | InComponents, ...] = (
    _AUC_DIRECTION,
    _AUC_STANDARDIZED,
    _AUC_EQUAL_LENGTH,
    _ACCURACY_DIRECTION,
    _AUC_PROBE,
    _ACCURACY_PROBE,
    _DPRIME,
    _TPR,
    _PAIRED_ACCURACY,
    _PAIRED_EFFECT,
)
