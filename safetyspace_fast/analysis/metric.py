"""What a metric is: what a reader must know to use its number, and how it is computed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .cells import Cells
from .estimate import Estimate
from .texts import Refusal

NONE = "none"
"""Text of `interval`, `null` or `floor` for a metric that has none."""

# How an interval is known.
STUDENT = (
    "Student's t, with fewer degrees of freedom the fewer texts make the variance (Satterthwaite "
    "1946)"
)
BOOTSTRAP = (
    "bootstrap of texts (of pairs on paired data), with new components in each draw: the standard "
    "deviation of the draws, corrected for the noise that drawing adds where that is known, and "
    f"{STUDENT}; on the log scale (of a ratio: the score interval of B/W)"
)
BOOTSTRAP_OF_MEANS = f"{BOOTSTRAP}; on paired data the delta method instead of the bootstrap"
INFLUENCE = "delta method, from the exact influence of each text (of each pair on paired data)"
SHARE = (
    "Wilson's score interval with Student's t, for as many trials as give the spread over texts "
    "(over pairs on paired data), and at most one more that went the other way; t has as many "
    "degrees of freedom as there are texts behind the spread"
)

BORROWED = (
    "a class that spreads less than the other borrows its spread, by two standard errors of a "
    "variance at most: few texts of heavy tails usually lack the farthest"
)

# How a null is known.
SHUFFLE = "label permutations (swaps inside pairs on paired data)"
FULL = "at full width, as `run` stored it"
SHUFFLE_FULL = f"{SHUFFLE}, {FULL}"
_UNEQUAL = "classes of unequal size and spread are not taken for apart"
SHUFFLE_WELCH = f"{SHUFFLE} of |d|^2/(tr S0/n0 + tr S1/n1), {FULL}: {_UNEQUAL} (Alekseyenko 2016)"
SHUFFLE_WELCH_PC = (
    f"{SHUFFLE} of |d|^2/(tr S0/n0 + tr S1/n1) in the components: {_UNEQUAL} (Alekseyenko 2016)"
)
SHUFFLE_JAMES = f"{SHUFFLE} of d'(S0/n0 + S1/n1)^-1 d: {_UNEQUAL} (James 1954)"
SHUFFLE_AUC = (
    f"{SHUFFLE} of the AUC's distance from 1/2 in standard deviations (Neubert & Brunner 2007), "
    f"each fold fitted again, {FULL}"
)

# How a floor is known.
NULL_MEAN = "mean over the permutations"

OWN_COMPONENTS = (
    "Components are computed for each model and language, from both classes: values of different "
    "models or languages are in different spaces."
)
"""Pitfall of all metrics in components."""

SPREAD_COUNTS = (
    "A difference of spread alone also moves it, and makes p small (table mark +): it shows that "
    "the classes differ, not that their means do; see rho and auc_direction for those."
)
"""Pitfall of metrics of `any_difference`."""
SPREAD_MOVES = (
    "A difference of spread alone also moves the value, but does not make p small: that asks "
    "whether the means differ."
)
"""Pitfall of other metrics that are not about means alone."""


MetricName = Literal[
    "rho", "rho_adjusted", "calinski_harabasz", "xie_beni", "rho_standardized", "rho_equal_length",
    "rho_pc10", "rho_pc2", "mean_shift",
    "bhattacharyya_pc10", "bhattacharyya_pc2",
    "bhattacharyya_excess_pc10", "bhattacharyya_excess_pc2",
    "bhattacharyya_mean_pc10", "bhattacharyya_mean_pc2",
    "bhattacharyya_cov_pc10", "bhattacharyya_cov_pc2",
    "bhattacharyya_shrunk_pc10", "bhattacharyya_shrunk_pc2",
    "bhattacharyya_coefficient_pc10", "bhattacharyya_coefficient_pc2",
    "mahalanobis_pc10", "mahalanobis_pc2", "frechet_pc10", "frechet_pc2",
    "silhouette", "silhouette_cosine", "silhouette_pc10", "silhouette_pc2",
    "davies_bouldin", "dunn", "nn_accuracy", "energy_distance", "mmd",
    "auc_direction", "auc_standardized", "auc_equal_length", "accuracy_direction",
    "auc_probe", "accuracy_probe", "dprime", "tpr_at_1_fpr",
    "paired_accuracy", "paired_effect",
    "paired_shift", "hotelling_pc10", "hotelling_pc2", "auc_increment",
]  # fmt: skip
"""Names of all metrics, so that a type checker finds a misspelt one."""
Metrics = Sequence[MetricName] | MetricName | Literal["all"] | None
"""Which metrics to compute; None: the default ones."""


@dataclass(frozen=True)
class Metric:
    """One metric: its definition, how certain its number is, and the function that computes it."""

    name: str
    title: str
    space: str
    """`full` (every hidden dimension), `pcK` (the language's own first K principal components) or
    `projection` (the seeded random projection)."""
    kind: Literal["A", "B", "C"]
    """A: counts, means and moments; B: a second look at every text; C: pairs of texts."""
    unit: Literal["1", "state", "state^2"]
    """Unit of the value; `1` if it has none."""
    definition: str
    source: str
    pitfalls: str
    interval: str
    null: str
    floor: str
    """What `floor` holds: the value expected without any difference between the classes."""
    estimator: Callable[[Cells], Estimate]
    components: int = 0
    """K of a `pcK` space, 0 elsewhere."""
    alias_of: str = ""
    paired: bool = False
    """Defined for paired data only."""
    any_difference: bool = False
    """Whether p asks if the classes differ at all, so that spread alone makes it small."""
    default: bool = False
    """Computed if no metrics are named."""
    grows: bool = True
    """Whether a larger value means classes further apart."""

    @property
    def permuted(self) -> bool:
        """Whether p comes from label permutations, and so counts in p_family."""
        return self.null.startswith(SHUFFLE)

    def estimate(self, cells: Cells) -> tuple[Estimate, list[str]]:
        """Compute the metric in each cell, and say for each cell why it is refused, or ""."""
        try:
            if reason := cells.refusal():
                raise Refusal(reason)
            if self.paired and not cells.paired:
                raise Refusal("the texts are not paired")
            estimate = self.estimator(cells)
        except Refusal as refusal:
            nothing = torch.full((len(cells.index),), torch.nan, dtype=torch.float64)
            estimate = Estimate(nothing, nothing, nothing, nothing, nothing)
            return estimate, [str(refusal)] * len(cells.index)
        reasons = []
        bounded = estimate.linear is not None
        parts = (estimate.value, estimate.low, estimate.p, estimate.floor)
        for one, lower, chance, level in zip(*(part.tolist() for part in parts), strict=True):
            if not math.isfinite(one):
                reasons.append(
                    "no finite value: constant or collinear features, or a class without spread"
                )
            elif (bounded and math.isnan(lower)) or (not math.isnan(chance) and math.isnan(level)):
                reasons.append("too few different texts: most resamples have no finite value")
            else:
                reasons.append("")
        known = torch.tensor([not reason for reason in reasons])
        value, floor, p, low, high = (
            torch.where(known, part, torch.nan)
            for part in (estimate.value, estimate.floor, estimate.p, estimate.low, estimate.high)
        )
        return replace(estimate, value=value, floor=floor, p=p, low=low, high=high), reasons


InComponents = Callable[[int], Metric]
"""Gives the metric `NAME_pcK`, in the first K principal components, for a K."""
