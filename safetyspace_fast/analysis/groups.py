"""Means over groups of languages, and how far apart two groups are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from .glossary import GROUP_DEFINITION, GROUPS
from .selection import listed
from .uncertainty import Z95

if TYPE_CHECKING:
    import xarray


def choose_groups(groups: Mapping[str, Sequence[str] | str] | None) -> dict[str, list[str]]:
    """The languages of `high` and `low`; a group that is not given is that of `GROUPS`.

    Raises:
        ConfigError: a group has another name, or both share a language.
    """
    chosen = {name: listed(langs) for name, langs in {**GROUPS, **(groups or {})}.items()}
    if set(chosen) != set(GROUPS) or set(chosen["high"]) & set(chosen["low"]):
        raise ConfigError("groups: expected high=A,B,.. and low=C,D,.., without a language in both")
    return chosen


def with_groups(dataset: "xarray.Dataset", groups: Mapping[str, Sequence[str]]) -> "xarray.Dataset":
    """Add the means over groups of languages to a result.

    Args:
        dataset: values and intervals of `separation`, or differences and intervals of `compare`.
        groups: what `choose_groups` returned.

    Returns:
        The dataset with group_value, group_low, group_high, which have `group` (high, low,
        high - low) where others have `lang`; without them if a group has no language here.
    """
    import xarray

    langs = [str(lang) for lang in dataset["lang"].to_numpy()]
    inside = {name: [lang for lang in langs if lang in groups[name]] for name in GROUPS}
    if not all(inside.values()):
        return dataset
    middle = "difference" if "difference" in dataset else "value"
    mean, variance = {}, {}
    for name, members in inside.items():
        part = dataset.sel(lang=members)
        squares = ((part["high"] - part["low"]) / (2 * Z95)) ** 2
        mean[name] = part[middle].mean("lang")
        # A language without a number is left out; one without an interval leaves none.
        squares = squares.where(part[middle].notnull(), 0)
        variance[name] = squares.sum("lang", skipna=False) / part[middle].count("lang") ** 2
    values = xarray.concat([mean["high"], mean["low"], mean["high"] - mean["low"]], "group")
    spreads = xarray.concat(
        [variance["high"], variance["low"], variance["high"] + variance["low"]], "group"
    ).pipe(np.sqrt)
    return (
        dataset.assign_coords(group=["high", "low", "high - low"])
        .assign(
            group_value=values.assign_attrs(definition=GROUP_DEFINITION),
            group_low=values - Z95 * spreads,
            group_high=values + Z95 * spreads,
        )
        .assign_attrs({f"group_{name}": ",".join(members) for name, members in inside.items()})
    )
