"""Metrics of what the states tell beyond the characters of a text."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..auc import along_fitted, fold_auc, lexical_noise
from ..cells import Cells
from ..estimate import Estimate, Square, make_estimate
from ..metric import InComponents, Metric
from ..significance import one_sided_p
from ..texts import Refusal
from ..uncertainty import (
    INFLUENCE_EXCESS,
    common_held_out,
    influence_variance,
    linear_variance,
    unit_sums,
    unseen_trial,
)
from .scores import direction_noise, held_out_scores

LEAST_FOLDS = 4
"""Of which each class must have texts: two are left out at a time."""


def combined_scores(scores: Tensor, labels: Tensor, fold: Tensor) -> Tensor:
    """One score from several, by Fisher's discriminant of the other folds; and without each fold.

    Args:
        scores: [cell, n, k] float64; labels: [n] int64; fold: [n] int64, numbers 0, 1, .. of folds
            with texts of both classes.

    Returns:
        [1 + folds, cell, n]: of all texts, then as if the texts of fold 0, 1, .. did not exist.
    """
    n_folds, n_cells = int(fold.max()) + 1, len(scores)
    group = torch.nn.functional.one_hot(2 * fold + labels, 2 * n_folds).double()
    size = group.sum(0).view(n_folds, 2, 1)
    sums = (group.T @ scores).view(n_cells, n_folds, 2, -1)
    cross = torch.stack(
        [scores[:, fold == f].transpose(1, 2) @ scores[:, fold == f] for f in range(n_folds)], 1
    )
    # Fit (a, b) leaves out the folds a - 1 and b; a = 0 leaves out b alone.
    left_out = torch.eye(n_folds, dtype=torch.float64)
    left_out = torch.cat([torch.zeros(1, n_folds).double(), left_out])[:, None] + left_out
    kept = (left_out == 0).double()
    number = torch.einsum("abf,fcx->abcx", kept, size)
    total = torch.einsum("abf,nfck->nabck", kept, sums)
    within = torch.einsum("abf,nfkl->nabkl", kept, cross)
    within = within - (total / number).transpose(-1, -2) @ total
    means = total / number
    shift = means[..., 1, :] - means[..., 0, :]
    scale = within.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    within = within / (scale[..., None] * scale[..., None, :])
    ridge = 1e-9 * torch.eye(scores.shape[-1], dtype=torch.float64)
    weights = torch.linalg.solve(within + ridge, shift / scale) / scale  # [cell, a, b, k]
    return torch.einsum("cank,cnk->acn", weights[:, :, fold], scores)


def increments(lexical: Tensor, state: Tensor, labels: Tensor, fold: Tensor) -> Tensor:
    """AUC of both scores less that of the first alone, within folds; and without each fold.

    Args:
        lexical: [n] float64, state: [cell, n] float64, labels, fold: as in `combined_scores`.

    Returns:
        [1 + folds, cell].
    """
    both = torch.stack([lexical.expand_as(state), state], -1)
    gains = []
    for left_out, scores in enumerate(combined_scores(both, labels, fold), -1):
        kept = fold != left_out
        auc, _ = fold_auc(scores[:, kept], labels[kept], fold[kept])
        alone, _ = fold_auc(lexical[kept], labels[kept], fold[kept])
        gains.append(auc - alone)
    return torch.stack(gains)


def partial_effect(
    lexical: Tensor, state: Tensor, labels: Tensor, fold: Tensor
) -> tuple[Tensor, Tensor]:
    """How far apart the classes are in one score where they are alike in another, and influences.

    Least squares of the state score on the label, the lexical score and a level for each fold.
    Residuals are divided by the root of their leverage 1 - h (HC2, MacKinnon & White 1985).

    Args:
        lexical: [n] float64, state: [cell, n] float64, labels, fold: as in `combined_scores`.

    Returns:
        [cell] and [cell, n].
    """
    size = torch.bincount(fold)[fold].double()
    of_fold = torch.nn.functional.one_hot(fold).double() / torch.bincount(fold)

    def centred(x: Tensor) -> Tensor:
        return x - (x @ of_fold)[..., fold]

    design = torch.stack([centred(labels.double()), centred(lexical)], -1)
    solve = torch.linalg.pinv(design)
    y = centred(state)
    weights = y @ solve.T
    rest = y - weights @ design.T
    left = (1 - 1 / size - (design * solve.T).sum(-1)).clamp_min(0)
    scaled = torch.where(left > 1e-9, left.rsqrt(), 0.0) * rest
    return weights[:, 0], solve[0] * scaled


def _auc_increment(cells: Cells) -> Estimate:
    if cells.lexical is None or bool(cells.lexical.isnan().any()):
        raise Refusal("the store has no lexical scores of these texts")
    state = held_out_scores(cells, "mean difference")
    fold = torch.unique(cells.fold, return_inverse=True)[1]
    least = min(int(torch.unique(fold[cells.labels == c]).numel()) for c in (0, 1))
    if least < LEAST_FOLDS:
        raise Refusal(f"needs texts of both classes in {LEAST_FOLDS} folds; one has {least}")
    every = increments(cells.lexical, state, cells.labels, fold)
    value, others = every[0], every[1:]
    spread = (others - others.mean(0)).square().sum(0) * (len(others) - 1) / len(others)

    lexical = cells.lexical.expand_as(state)
    both = combined_scores(torch.stack([lexical, state], -1), cells.labels, fold)[0]
    of_both, of_lexical = (
        fold_auc(scores, cells.labels, fold, cells.copy)[1] for scores in (both, lexical)
    )
    influence = of_both - of_lexical
    seen = influence_variance(influence, cells.unit)
    influence = influence * (spread / seen).sqrt().nan_to_num(0.0, 0.0, 0.0)[:, None]
    added = unseen_trial(influence, cells.unit) / cells.trials**2
    of_weights = _refits(cells, of_lexical, lexical, lexical_noise(cells.lexical, cells.labels))
    of_direction = _refits(cells, of_both, both, direction_noise(cells, "mean difference"))
    estimate = make_estimate(
        cells,
        value,
        floor=0.0,
        influence=influence,
        squares=(
            Square(added, lambda: unit_sums(state, cells.unit)[..., None], unseen=True),
            Square(of_weights, lambda: unit_sums(lexical, cells.unit)[..., None], unseen=True),
            Square(
                of_direction,
                lambda: cells.unit_shift,
                partial(common_held_out, folds=len(others)),
                unseen=True,
            ),
        ),
        freedom=len(others) - 1.0,
        class_means=False,
    )
    return replace(estimate, p=_partial_p(cells, cells.lexical, state, fold))


def _refits(cells: Cells, influence: Tensor, scores: Tensor, noise: Tensor) -> Tensor:
    """[cell], what the noise in the weights behind scores adds to the variance of their AUC.

    The jackknife does not see it: scores of other folds stay when a fold is left out.
    """
    wide, square = along_fitted(influence, scores, cells.labels, cells.unit, noise)
    linear = linear_variance(influence_variance(wide, cells.unit), square, INFLUENCE_EXCESS)
    return (linear + square - influence_variance(influence, cells.unit)).clamp_min(0)


def _partial_p(cells: Cells, lexical: Tensor, state: Tensor, fold: Tensor) -> Tensor:
    """[cell], p of `partial_effect`: one-sided, Student's t, allowing for the direction's noise.

    Let V be the covariance of d. If the states hold nothing more, the effect is a product of d and
    of noise that is also in d: its variance is d'Vd + tr V^2. Influences give the first part.
    """
    effect, influence = partial_effect(lexical, state, cells.labels, fold)
    wider = 1 + direction_noise(cells, "mean difference")
    t = effect / (influence_variance(influence, cells.unit) * wider).sqrt()
    return one_sided_p(t, cells.freedom)


_AUC_INCREMENT = Metric(
    name="auc_increment",
    title="held-out AUC beyond characters",
    space="full",
    kind="B",
    unit="1",
    definition="AUC of two scores, the lexical one (see auc_lexical) and that of auc_direction, "
    "combined by Fisher's discriminant of the other folds, less the AUC of the lexical one alone; "
    "both within folds",
    source="Fisher 1936; DeLong et al. 1988; Demler, Pencina & D'Agostino 2012",
    pitfalls="Where characters tell the classes apart almost perfectly there is nothing to add. If "
    "the states hold nothing more it averages 0 or less, and more than 0 where the characters hold "
    "nothing either. An AUC hardly shows what a second score adds: p, which asks for the same from "
    "the scores themselves, sees much smaller additions than the interval, so believe p. It does "
    "not count in p_family.",
    interval="Student's t, from the jackknife over folds: each leaves out all texts of a fold, in "
    "the discriminants too; and the noise in the weights of the characters and in the direction; "
    "and part of a trial where few texts make the variance",
    null="one-sided t test of the label in a regression of the state score on label, lexical "
    "score and fold, from the influence of each unit (HC2), widened for the noise of the "
    "direction. Of nested models DeLong's paired test is not nominal (Demler et al. 2012): in "
    "simulations it rejects in 0 to 12 %",
    floor="0",
    estimator=_auc_increment,
)

METRICS: tuple[Metric | InComponents, ...] = (_AUC_INCREMENT,)
