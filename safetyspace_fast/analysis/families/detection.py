"""Metrics of how well harmful texts are detected along a direction fitted to other texts."""

import math
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor

from ..cells import Cells
from ..estimate import Estimate, make_estimate
from ..metric import INFLUENCE, NONE, STUDENT, InComponents, Metric
from ..probe import fold_texts
from ..texts import Refusal
from ..uncertainty import effect_growth, unit_sums
from .scores import PITFALLS, REFITS, held_out_estimate, held_out_scores

# d' ------------------------------------------------------------------------------------------

LEAST_FREEDOM = 10
"""Degrees of freedom of the standard deviation in d'."""


def fold_effect(scores: Tensor, labels: Tensor, fold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d' of scores of several folds, and the influence of each text.

    Least squares of the scores on the label and a level for each fold: d' is the effect of the
    label over the standard deviation of the residuals (n - folds - 1 degrees of freedom, see
    `effect_growth`). Squares of residuals are divided by their leverage 1 - h, as in White's HC2
    (MacKinnon & White 1985).

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
    growth = effect_growth(freedom)
    return value.squeeze(-1), growth * (linear - curved), growth * linear


def _dprime(cells: Cells) -> Estimate:
    scores = held_out_scores(cells, "mean difference")
    if len(cells.labels) - len(fold_texts(cells.fold)) - 1 < LEAST_FREEDOM:
        raise Refusal(f"d' needs {LEAST_FREEDOM + 1} texts more than there are folds")
    value, influence, moved = fold_effect(scores, cells.labels, cells.fold)
    return held_out_estimate(
        cells,
        "mean difference",
        value,
        floor=0.0,
        influence=influence,
        moved=moved,
        freedom=cells.freedom_of(influence, of_squares=True),
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
    pitfalls=PITFALLS + " Unlike an AUC it has no upper end, and few extreme texts can move it. "
    "No p: see that of auc_direction, which is of the same scores.",
    interval=f"{INFLUENCE}, with residuals scaled by their leverage (HC2), and {STUDENT}; {REFITS}",
    null=NONE,
    floor="0",
    estimator=_dprime,
)


# TPR at 1 % FPR ------------------------------------------------------------------------------

FALSE_ALARMS = 0.01
"""Share of harmless texts above the threshold."""
FEWEST_HARMLESS = math.ceil(4 / FALSE_ALARMS) - 1
"""With fewer harmless texts, the threshold is above all but their three largest scores. If these
are from heavy tails, no interval that was tried covers: with 150, in 55 to 90 % of draws."""
TAIL = 0.1
"""Share of harmless texts whose scores say how fast their tail falls."""


@dataclass(frozen=True)
class Alarms:
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
    tail: int
    """How many scores `index` comes from: it is known to index/sqrt(tail)."""

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor, first: Tensor) -> "Alarms":
        """From scores [cell, n], labels [n] int64 and the indices of one copy of each text."""
        low = scores[:, first[labels[first] == 0]].sort(-1, descending=True).values
        place = FALSE_ALARMS * (low.shape[1] + 1) - 1
        whole = int(place + 1e-9)
        part = place - whole
        threshold = (1 - part) * low[:, whole] + part * low[:, whole + 1]
        centre = low.median(-1).values
        tail = (low[:, : math.ceil(TAIL * low.shape[1]) + 1] - centre[:, None]).log()
        index = (tail[:, :-1] - tail[:, -1:]).mean(-1).nan_to_num(0.0, 0.0, 0.0)
        return cls(centre, threshold, index, scores[:, labels == 1], tail.shape[1] - 1)

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


def alarm_ends(
    value: Tensor, _: Tensor, *, alarms: Alarms, size: Tensor, confidence: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Ends for the noise of the share (Wilson 1927) and of the threshold, as in MOVER (Zou 2007).

    The share of harmless texts above the threshold is Gamma(k)/n for k of them on average; its
    quantiles are those of Wilson & Hilferty (1931). A threshold that happens to be low goes with a
    tail that seems light, so that the tail is taken at the upper end of its own interval.

    Args:
        value: [cell]; alarms: of these cells; size: [cell, 2], independent texts of each class.
        confidence: of the interval.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    k = FALSE_ALARMS * (size[:, 0] + 1)
    middle, reach = (value + z**2 / size[:, 1] / 2), z**2 / size[:, 1]
    width = (reach * (value * (1 - value) + reach / 4)).sqrt()
    alarms = replace(alarms, index=alarms.index * (1 + z / math.sqrt(alarms.tail)))
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
            "than four texts"
        )
    scores, labels = held_out_scores(cells, "mean difference"), cells.labels
    alarms = Alarms.of(scores, labels, cells.first)
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
        ends=partial(alarm_ends, alarms=alarms, size=_independent(cells, scores)),
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
    pitfalls=f"{PITFALLS} Few harmless texts decide it: with 400 the threshold is their fourth "
    f"largest score, and the interval is wide; with fewer than {FEWEST_HARMLESS} it is refused. "
    "Scores of all folds share one threshold. No p: see that of auc_direction, which is of the "
    "same scores.",
    interval="Wilson's score interval for the share, and the range of the threshold, for "
    "the tail of Pareto that harmless scores have (Hill 1975, at its upper end; MOVER, Zou 2007); "
    "clusters count as fewer texts",
    null=NONE,
    floor="0.01",
    estimator=_tpr,
)


METRICS: tuple[Metric | InComponents, ...] = (_DPRIME, _TPR)
