"""Marks of numbers: what is chance, what is significant, and where to be careful."""

import math
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .columns import CHANCE
from .glossary import SPACES

if TYPE_CHECKING:
    import xarray

    Flags = xarray.DataArray
    """Whether a number has a mark; dimensions are those of the view that was given."""

MARK_RESAMPLES = math.ceil(1 / CHANCE) - 1
"""With fewer resamples, of which the smallest p is 1/(1 + R), no number is marked."""
ELSEWHERE = tuple(f"difference_{space}" for space in SPACES)

LIKELY_CHANCE, SIGNIFICANT, ANY, CLOSE, DISAGREE = "~", "*", "+", "?", "^"
MEANINGS = {
    LIKELY_CHANCE: f"consistent with chance (p > {CHANCE})",
    SIGNIFICANT: "significant after correction over all numbers of this result (p_family <= "
    f"{CHANCE})",
    ANY: "the same, but a difference of spread alone is enough (`explain p_asks`)",
    CLOSE: f"p is so near {CHANCE} that other permutations could change the mark",
    DISAGREE: "in other components the difference has the other sign",
}


def is_chance(view: "xarray.Dataset", prefix: str = "") -> "Flags":
    """Whether a number has `~`; arguments as for `is_significant`."""
    return (view[f"{prefix}p"] > CHANCE) & (view["resamples"] >= MARK_RESAMPLES)


def is_significant(view: "xarray.Dataset", prefix: str = "") -> "Flags":
    """Whether a number has `*` or `+`.

    Args:
        view: of `separation` or `compare`, or a part of one.
        prefix: `excess_` for differences of differences.
    """
    return (view[f"{prefix}p_family"] <= CHANCE) & (view["resamples"] >= MARK_RESAMPLES)


def is_close(view: "xarray.Dataset") -> "Flags":
    """Whether the Monte-Carlo error of p (two standard deviations) reaches `CHANCE`.

    Args:
        view: of `separation`, or a part of one. Infinite `resamples` say that p comes from none.
    """
    resamples = view["resamples"]
    reach = 2 * np.sqrt(CHANCE * (1 - CHANCE) / resamples.clip(min=1))
    return (abs(view["p"] - CHANCE) <= reach) & (resamples >= MARK_RESAMPLES)


def disagrees(view: "xarray.Dataset", name: str) -> "Flags":
    """Whether a difference and that in other components, where it is known, differ in sign.

    Differences of the level of rounding have no sign.

    Args:
        view: of `compare`, or a part of one.
        name: one of `ELSEWHERE`, without the components of the view itself.
    """
    return (view["difference"] * view[name] < 0) & ~(view["rounding_share"] >= 1)


def marks(
    view: "xarray.Dataset", prefix: str = ""
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """What stands before and behind each number of a result, for tables and figures alike.

    Args:
        view: of `separation` or `compare`, or a part of one.
        prefix: `excess_` for differences of differences, which have `~` and `*` only.

    Returns:
        Two arrays of strings, with the dimensions of `p` in their order: of `^`, `?` and `~` those
        that hold, and `*`, `+` or "".
    """
    p = view[f"{prefix}p"]

    def where(flags: "Flags", mark: str) -> NDArray[np.object_]:
        laid = flags.broadcast_like(p).transpose(*p.dims)
        return np.where(laid, mark, "").astype(object)

    before = where(is_chance(view, prefix), LIKELY_CHANCE)
    significant = is_significant(view, prefix)
    if "value" in view:
        of_means = view["p_asks"] == "means"
        behind = where(significant & of_means, SIGNIFICANT) + where(significant & ~of_means, ANY)
        return where(is_close(view), CLOSE) + before, behind
    if not prefix:
        elsewhere = (disagrees(view, name) for name in ELSEWHERE if name in view)
        before = where(reduce(or_, elsewhere, p < 0), DISAGREE) + before
    return before, where(significant, SIGNIFICANT)
