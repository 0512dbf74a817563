"""Means over groups of languages, and how far apart two groups are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from .glossary import GROUP_DEFINITION, GROUPS
from .uncertainty import Z95

if TYPE_CHECKING:
    import xarray


def with_groups(
    dataset: "xarray.Dataset", groups: Mapping[str, Sequence[str]] | None = None
) -> "xarray.Dataset":
    """Add the means over groups of languages to what `separation` or `compare` returned.

    Args:
        dataset: see there.
        groups: `high` and `low`, each with its languages; None takes `GROUPS`.

    Returns:
        The same with group_value, group_low, group_high over `group` (high, low, high - low) in
        place of `lang`; unchanged where either group has no language here. Of `compare` it is the
        difference that is averaged.

    Raises:
        ConfigError: the groups are not `high` and `low`, or share a language.
    """
    import xarray

    chosen = dict(GROUPS if groups is None else groups)
    if set(chosen) != set(GROUPS) or set(chosen["high"]) & set(chosen["low"]):
        raise ConfigError("groups: expected high=A,B,.. and low=C,D,.., without a language in both")
    langs = [str(lang) for lang in dataset["lang"].to_numpy()]
    inside = {name: [lang for lang in langs if lang in chosen[name]] for name in GROUPS}
    if not all(inside.values()):
        return dataset
    middle = "difference" if "difference" in dataset else "value"
    mean, variance = {}, {}
    for name, members in inside.items():
        part = dataset.sel(lang=members)
        squares = ((part["high"] - part["low"]) / (2 * Z95)) ** 2
        mean[name] = part[middle].mean("lang")
        # Languages without a number are left out; one without an interval leaves none.
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
