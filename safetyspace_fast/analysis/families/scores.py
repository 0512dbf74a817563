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
from ..auc import grow, noise_growth
from ..cells import Cells, once
from ..estimate import Estimate, Square, make_estimate, make_share
from ..metric import SHUFFLE, SHUFFLE_FULL
from ..moments import shift_influence, shift_noise
from ..probe import fold_texts, logistic_scores
from ..texts import Refusal
from ..uncertainty import common_held_out, influence_variance
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


def whiten_inside(inside: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Turn and scale coordinates so that the covariance Sp inside the classes is the identity.

    In these coordinates the direction Sp^-1 d of a probe is d itself.

    Args:
        inside: [..., n, P] float64, the texts less their class means; others: [..., any, P].

    Returns:
        All of them in the new coordinates. The square length of a text is its leverage.
    """
    within = inside.transpose(-1, -2) @ inside
    scale = within.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)[..., None, :]
    # Like the penalty of the probe: directions without variance must not count as noise.
    ridge = 4 / inside.shape[-2] * torch.eye(inside.shape[-1], dtype=inside.dtype)
    factor = torch.linalg.cholesky(within / (scale.transpose(-1, -2) * scale) + ridge)

    def white(x: Tensor) -> Tensor:
        columns = (x / scale).transpose(-1, -2)
        turned: Tensor = torch.linalg.solve_triangular(factor, columns, upper=False)
        return turned.transpose(-1, -2)

    return tuple(white(x) for x in (inside, *others))


@once
def _whitened(cells: Cells) -> tuple[Tensor, Tensor, Tensor]:
    """The shift and its noise, in coordinates that are whitened inside the classes.

    Returns:
        d [cell, P]; the influence of each unit on it [cell, unit, P]; and [cell], the mean leverage
        of a text, of all copies together.
    """
    inside, shift, unit = whiten_inside(
        cells.about_class_means(cells.projected), cells.projected_shift[:, None], cells.unit_shift
    )
    most = len(cells.first) - 2.0
    leverage = inside.square().sum((-1, -2)) / most
    return shift[:, 0], unit, leverage.clamp_max(1 - 1 / most)


def probe_noise(shift: Tensor, unit: Tensor, leverage: Tensor) -> Tensor:
    """Share of the direction Sp^-1 d of a probe that is noise of d or of Sp: [...].

    Products of two texts that are whitened by an Sp which holds both are too small by 1 - h, for a
    mean leverage h. Of a direction whose d has the share s of noise, (1 - s)(1 - h) lies along the
    true one, in square length (E W^-1 and E W^-2 of a Wishart matrix W, Haff 1979).

    Args:
        shift: [..., P], unit: [..., unit, P], leverage: [...]: see `_whitened`.
    """
    along = (unit @ shift[..., None]).square().sum((-1, -2))
    share = shift_noise(unit, 0) / (1 - leverage) / along
    return 1 - (1 - share.clamp_max(1).nan_to_num(1.0)) * (1 - leverage)


def _direction_shift(cells: Cells, direction: Direction) -> Tensor:
    """[cell, unit, P], influence of each unit on the direction (whitened for a probe)."""
    if direction == "equal length":
        return equal_length_noise(cells)
    return _whitened(cells)[1] if direction == "probe" else cells.unit_shift


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
        return probe_noise(*_whitened(cells))
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
    influence, variance = grow(influence, moved, cells.unit, noise)
    square = Square(
        variance,
        lambda: _direction_shift(cells, direction),
        partial(common_held_out, folds=len(fold_texts(cells.fold))),
        growth=noise_growth(noise),
    )
    if trials is None:
        return make_estimate(
            cells, value, null=null, floor=floor, influence=influence, squares=(square,),
            freedom=cells.freedom if freedom is None else freedom, class_means=False,
        )  # fmt: skip
    return make_share(
        cells, value, trials, null=null, floor=floor, influence=influence, squares=(square,)
    )


# Words ---------------------------------------------------------------------------------------

REFITS = (
    "widened for the noise of the fitted directions (to 2.2 times the variance if they are noise)"
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
