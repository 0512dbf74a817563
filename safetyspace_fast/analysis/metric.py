"""What a metric is: its number, and everything that a reader must know to use it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .cells import Cells, Refusal
from .estimate import Estimate

NONE = "none"
"""Stands in a record where a metric has no interval, no null or no floor."""

# How an interval is known.
BOOTSTRAP = (
    "bootstrap of texts (of pairs on paired data), each with components of its own; normal with "
    "the bootstrap's deviation, less the noise that draws add to noise where its size is known"
)
INFLUENCE = "delta method from exact per-text influences (summed over pairs on paired data)"
BINOMIAL = "from the texts' own spread (pairs' on paired data), normal on the log odds"

# How a null is known.
SHUFFLE = "permuted labels (swapped inside pairs on paired data)"
SHUFFLE_PROJECTION = f"the same statistic in the projection, {SHUFFLE}"

# How a floor is known.
NULL_MEAN = "mean over the permutations"

OWN_COMPONENTS = (
    "Components are the language's own, of both classes together: values of different models or "
    "languages stand in different spaces; `compare` sees both models in the base model's."
)
"""A pitfall of every metric in components."""


@dataclass(frozen=True)
class Metric:
    """One metric: everything that a reader must know to use its number, and how it is computed."""

    name: str
    title: str
    space: str
    """`full` (every hidden dimension), `pcK` (the language's own first K principal components) or
    `projection` (the seeded random projection)."""
    kind: Literal["A", "B", "C"]
    """A: counts, means and moments; B: a second look at every text; C: pairs of texts."""
    unit: Literal["1", "state", "state^2"]
    """Unit of the value; `1` where it has none."""
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
    """Only defined on paired data."""
    default: bool = False
    """Computed when no metrics are named."""
    grows: bool = True
    """Whether a larger value means classes further apart."""

    def estimate(self, cells: Cells) -> tuple[Estimate, list[str]]:
        """This metric for every cell, and per cell why it is refused, "" where it is not."""
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
        bounded = self.interval != NONE and len(cells.resamples.counts) > 1
        parts = (estimate.value, estimate.low, estimate.p, estimate.floor)
        for one, lower, chance, level in zip(*(part.tolist() for part in parts), strict=True):
            if not math.isfinite(one):
                reasons.append(
                    "no finite value: constant or collinear features, or no spread in a class"
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
"""Makes a metric of the first K principal components, `NAME_pcK`, from K."""
