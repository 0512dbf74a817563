"""Scores of texts along a direction fitted to the other folds, and what its own noise adds.

d, the difference of the class means at full width, the same of standardised dimensions, or a
logistic probe in the projection.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ...ops import FoldLabellings
from ...ops.scores import balanced_accuracy, labelled_auc, ridge_scores
from ..auc import noise_growth
from ..cells import Cells, once
from ..estimate import Estimate, Square, make_estimate, make_share
from ..metric import SHUFFLE, SHUFFLE_FULL
from ..moments import shift_influence, shift_noise
from ..probe import fold_texts, logistic_scores
from ..texts import Refusal
from ..uncertainty import common_held_out, influence_variance, t_interval
from .ratio import equal_length, equal_length_influence, equal_length_noise, standardized

RIDGE = 1.0
"""Penalty of the ridge probe that stands for the logistic probe in nulls; the same as its own."""
FIT_BYTES = 64 << 20
"""Working memory of the logistic fits of one call."""

Direction = Literal["mean difference", "standardized", "equal length", "probe"]
"""What the texts are scored along."""


# Scores --------------------------------------------------------------------------------------


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
def refitted(cells: Cells, direction: Direction) -> dict[str, Tensor]:
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
        on_shift, _ = shift_influence(cells.sqdist, cells.shift_sq, cells.labels)
        along, noise = influence_variance(on_shift, cells.unit) / 4, cells.shift_noise
    elif direction == "standardized":
        sqdist, (shift_sq, _) = cells.stored("standard_sqdist"), standardized(cells)
        on_shift, _ = shift_influence(sqdist, shift_sq, cells.labels)
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


def held_out_estimate(
    cells: Cells,
    direction: Direction,
    value: Tensor,
    *,
    null: Tensor | None = None,
    floor: float,
    influence: Tensor,
    moved: Tensor,
    trials: tuple[float | Tensor, Tensor] | None = None,
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


# Words ---------------------------------------------------------------------------------------

REFITS = (
    "widened for the noise of the fitted directions (to twice the variance if they are only noise)"
)
REFITTED = f"{SHUFFLE_FULL}; each fold is fitted again"
REFITTED_RIDGE = (
    f"{SHUFFLE}; each fold is fitted again, in the projection, with a ridge probe instead of the "
    "logistic one"
)
PITFALLS = (
    "Measures directions fitted to nine tenths of these texts, not the best possible direction: it "
    "grows with the number of texts."
)
