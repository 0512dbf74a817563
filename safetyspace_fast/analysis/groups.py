"""Means over groups of languages, and how far apart two groups are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from ..names import primary_language
from .glossary import GROUP_DEFINITION, GROUPS
from .selection import listed, meant
from .uncertainty import Z95

if TYPE_CHECKING:
    import xarray


def choose_groups(
    groups: Mapping[str, Sequence[str] | str] | None, known: Sequence[str]
) -> dict[str, list[str]]:
    """The languages of a store that are in `high` and in `low`, as they are written there.

    A name of a group means what it means in `--languages`. A group that is not given is that of
    `GROUPS`, by primary subtag, without the languages of the group that is given.

    Raises:
        ConfigError: a group has another name, a name means no language, or both share a language.
    """
    if groups is not None and not isinstance(groups, Mapping):
        raise ConfigError(f"groups: got {groups!r}, expected {{'high': [..], 'low': [..]}}")
    given = {
        name: {lang for asked in listed(langs) for lang in meant(f"groups: {name}", asked, known)}
        for name, langs in (groups or {}).items()
        if name in GROUPS
    }
    both = given["high"] & given["low"] if len(given) == len(GROUPS) else set()
    if both or set(groups or {}) - set(GROUPS):
        raise ConfigError("groups: expected high=A,B,.. and low=C,D,.., without a language in both")
    taken = set().union(*given.values())
    return {
        name: [
            lang
            for lang in known
            if (lang in given[name] if name in given else lang not in taken and _is_in(lang, langs))
        ]
        for name, langs in GROUPS.items()
    }


def _is_in(lang: str, group: Sequence[str]) -> bool:
    return primary_language(lang) in {primary_language(name) for name in group}


def with_groups(dataset: "xarray.Dataset", groups: Mapping[str, Sequence[str]]) -> "xarray.Dataset":
    """Add the means over groups of languages to a result.

    Args:
        dataset: values and intervals of `separation`, or differences and intervals of `compare`.
        groups: what `choose_groups` returned.

    Returns:
        The dataset with group_value, group_low, group_high, which have `group` (high, low,
        high - low) where others have `lang`; without them if a group has no language here. The
        attributes `group_high`, `group_low` and `group_none` name the languages of each group, and
        those in neither.
    """
    import xarray

    langs = [str(lang) for lang in dataset["lang"].to_numpy()]
    inside = {name: [lang for lang in langs if lang in groups[name]] for name in GROUPS}
    neither = [lang for lang in langs if not any(lang in names for names in inside.values())]
    dataset = dataset.assign_attrs(
        {f"group_{name}": ",".join(names) for name, names in (inside | {"none": neither}).items()}
    )
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
    return dataset.assign_coords(group=["high", "low", "high - low"]).assign(
        group_value=values.assign_attrs(definition=GROUP_DEFINITION),
        group_low=values - Z95 * spreads,
        group_high=values + Z95 * spreads,
    )
