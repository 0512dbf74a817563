"""Metrics of texts that are scored along a direction fitted to other texts."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..auc import along_scores, fold_auc
from ..cells import Cells
from ..estimate import Estimate, share_p
from ..metric import BORROWED, SHARE, SHUFFLE_AUC, SPREAD_COUNTS, InComponents, Metric
from .scores import (
    PITFALLS,
    REFITS,
    REFITTED,
    REFITTED_RIDGE,
    Direction,
    held_out_estimate,
    held_out_scores,
    refitted,
)

# auc -----------------------------------------------------------------------------------------


def _spread_growth(cells: Cells, direction: Direction) -> Tensor:
    """[cell, n], factor for influences on an AUC, for few texts and for what their class lacks."""
    names = {"standardized": "standard_sqdist", "equal length": "equal_length_sqdist"}
    sqdist = cells.stored(names.get(direction, "class_sqdist"))
    return cells.growth * cells.borrowed(sqdist)


def _auc(cells: Cells, direction: Direction) -> Estimate:
    scores = held_out_scores(cells, direction)
    value, influence = fold_auc(scores, cells.labels, cells.fold, cells.copy)
    influence = influence * _spread_growth(cells, direction)
    return held_out_estimate(
        cells,
        direction,
        value,
        null=refitted(cells, direction)["score"],
        floor=0.5,
        influence=influence,
        moved=along_scores(influence, scores, cells.labels, cells.labels),
        trials=(cells.trials, scores),
    )


DELONG_T = (
    "one-sided Student's t of the distance from 1/2 over its deviation, that of the interval for a "
    "value of 1/2"
)
_DELONG = f"{SHARE}, with the influences of DeLong within folds; {REFITS}; {BORROWED}"

_AUC_DIRECTION = Metric(
    name="auc_direction",
    title="held-out AUC, mean difference",
    space="full",
    kind="B",
    unit="1",
    definition="probability that a harmful text scores higher than a harmless one along the "
    "difference of class means of the other folds; mean over folds, weighted by their text pairs",
    source="Hanley & McNeil 1982; cross-fitted",
    pitfalls=PITFALLS,
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
    pitfalls=PITFALLS + " One very large dimension cannot hide the others here; in auc_direction "
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
    influence = influence * _spread_growth(cells, "equal length")
    moved = along_scores(influence, scores, cells.labels, cells.labels)
    # What a text adds to the mean score of its class, it adds to the slopes too.
    sign = (2.0 * cells.labels - 1) / cells.count[cells.labels]
    turned = moved * cells.length_weights / sign
    estimate = held_out_estimate(
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
    pitfalls=PITFALLS + " Takes out of length only what rho_equal_length does. p does not count "
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
    pitfalls=PITFALLS,
    interval=_DELONG,
    null=REFITTED_RIDGE,
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
    return held_out_estimate(
        cells,
        direction,
        shares.mean(-1),
        null=refitted(cells, direction)["accuracy"],
        floor=0.5,
        influence=influence,
        moved=along_scores(influence, scores, labels, labels),
        trials=(cells.units, scores),
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
    pitfalls=f"{PITFALLS} {SPREAD_COUNTS}",
    interval=f"{SHARE}; here at most one more in each class; {REFITS}",
    null=REFITTED,
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
    pitfalls=f"{PITFALLS} The probe is fitted to the classes as they are: with few harmful texts "
    "it takes most texts for harmless, and the value is near 0.5; see auc_probe. " + SPREAD_COUNTS,
    interval=f"{SHARE}; here at most one more in each class; {REFITS}",
    null=REFITTED_RIDGE,
    floor="0.5",
    any_difference=True,
    estimator=partial(_accuracy, direction="probe"),
)


METRICS: tuple[Metric | InComponents, ...] = (
    _AUC_DIRECTION,
    _AUC_STANDARDIZED,
    _AUC_EQUAL_LENGTH,
    _ACCURACY_DIRECTION,
    _AUC_PROBE,
    _ACCURACY_PROBE,
)
