"""Means over groups of languages, and how far apart two groups are."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..names import primary_language
from .glossary import GROUP_VARIABLES, GROUPS, LEAST_LANGUAGES
from .intervals import Z95, student, t_reach
from .selection import listed, meant

if TYPE_CHECKING:
    import xarray

Floats = NDArray[np.float64]


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


def with_groups(
    dataset: "xarray.Dataset",
    groups: Mapping[str, Sequence[str]],
    correlations: NDArray[np.float64],
) -> "xarray.Dataset":
    """Add the means over groups of languages to a result.

    Args:
        dataset: values and intervals of `separation`, or differences and intervals of `compare`.
        groups: what `choose_groups` returned.
        correlations: [.., lang, lang] of the values, whose dimensions come before `lang`.

    Returns:
        The dataset with the variables of `GROUP_VARIABLES`, which have `group` (high, low,
        high - low) where others have `lang`; without them if a group has no language here. The
        attributes `group_high`, `group_low` and `group_none` name the languages of each group, and
        those in neither.
    """
    langs = [str(lang) for lang in dataset["lang"].to_numpy()]
    inside = {name: [lang for lang in langs if lang in groups[name]] for name in GROUPS}
    neither = [lang for lang in langs if not any(lang in names for names in inside.values())]
    dataset = dataset.assign_attrs(
        {f"group_{name}": ",".join(names) for name, names in (inside | {"none": neither}).items()}
    )
    if not all(inside.values()):
        return dataset
    middle = "difference" if "difference" in dataset else "value"
    value = dataset[middle].transpose(..., "lang")
    spread = ((dataset["high"] - dataset["low"]) / (2 * Z95)).transpose(..., "lang").to_numpy()
    shape = value.shape[:-1]
    member = np.array([[lang in names for lang in langs] for names in inside.values()])
    flat = value.to_numpy().reshape(-1, len(langs))
    deviation = spread.reshape(flat.shape)
    rho = correlations.reshape(len(flat), len(langs), len(langs))
    columns: dict[str, NDArray[Any]] = {
        name: np.full((len(flat), 3), np.nan) for name in GROUP_VARIABLES
    }
    columns["group_without"] = np.full((len(flat), 3), "", object)
    # Cells with numbers of the same languages are computed together.
    alike: dict[bytes, list[int]] = {}
    for i, known in enumerate(~np.isnan(flat)):
        alike.setdefault(known.tobytes(), []).append(i)
    for mask, at in alike.items():
        known = np.frombuffer(mask, bool)
        y = flat[at][:, known]
        covariance = rho[at][:, known][:, :, known]
        covariance = covariance * deviation[at][:, known, None] * deviation[at][:, None, known]
        names = np.array(langs)[known]
        for i_group, rows in enumerate(([0], [1], [0, 1])):
            design = member[rows][:, known].T.astype(float)
            if not design.any(0).all():
                continue
            some = design.any(1)
            contrast = np.array([1.0, -1.0][: len(rows)])
            part = y[:, some], covariance[:, some][:, :, some], design[some], contrast
            numbers = _these(*part, names[some]) | _like(*part)
            for name, column in numbers.items():
                columns[name][at, i_group] = column
    dims = (*value.dims[:-1], "group")
    return dataset.assign_coords(group=["high", "low", "high - low"]).assign(
        {
            name: (
                dims,
                column.astype(str if name == "group_without" else float).reshape(*shape, 3),
                {"definition": GROUP_VARIABLES[name]},
            )
            for name, column in columns.items()
        }
    )


Numbers = dict[str, NDArray[Any]]


def _these(
    y: Floats, covariance: Floats, design: Floats, contrast: Floats, names: NDArray[np.str_]
) -> Numbers:
    """Mean of exactly these languages, or difference of two means, and what each language does.

    Args:
        y: [cell, k] values; covariance: [cell, k, k], of their noise.
        design: [k, p], 1 for the languages of each of p groups.
        contrast: [p], weights of the means of the groups.
        names: [k].
    """
    weight = design / design.sum(0) @ contrast
    value = y @ weight
    deviation = np.sqrt(np.maximum(np.einsum("a,cab,b->c", weight, covariance, weight), 0))
    numbers = {
        "group_value": value,
        "group_low": value - Z95 * deviation,
        "group_high": value + Z95 * deviation,
    }
    without = []
    for i in range(len(names)):
        rest = np.delete(design, i, 0)
        if rest.any(0).all():
            without.append((i, np.delete(y, i, 1) @ (rest / rest.sum(0) @ contrast)))
    if without:
        left = np.stack([one for _, one in without])
        most = np.abs(left - value).argmax(0)
        numbers["group_without_low"], numbers["group_without_high"] = left.min(0), left.max(0)
        numbers["group_without"] = names[np.array([i for i, _ in without])[most]]
    return numbers


def _like(y: Floats, covariance: Floats, design: Floats, contrast: Floats) -> Numbers:
    """Mean of all languages like these, or difference of two means; arguments as in `_these`.

    Random effects: languages differ by tau^2 (restricted maximum likelihood) beside the noise of
    their texts. Interval of Knapp & Hartung 2003: Student's t with k - p degrees of freedom. There
    is nothing with fewer than `LEAST_LANGUAGES` in a group, or where a value has no interval.
    """
    freedom = len(design) - design.shape[1]
    usable = np.isfinite(covariance.sum((1, 2)))
    if design.sum(0).min() < LEAST_LANGUAGES or not usable.any():
        return {}
    y, covariance = y[usable], covariance[usable]
    tau_sq = between_languages(y, covariance, design)
    whole = covariance + tau_sq[:, None, None] * np.eye(len(design))
    # Equal languages without noise have no inverse; their mean needs none.
    whole = whole + 1e-12 * (np.abs(y).max(1) ** 2 + 1e-300)[:, None, None] * np.eye(len(design))
    weight = np.linalg.solve(whole, np.broadcast_to(design, (len(y), *design.shape)))
    precision = design.T @ weight
    mean = np.linalg.solve(precision, np.einsum("ckp,ck->cp", weight, y)[..., None])[..., 0]
    rest = y - mean @ design.T
    scale = np.einsum("ck,ck->c", rest, np.linalg.solve(whole, rest[..., None])[..., 0]) / freedom
    value = mean @ contrast
    variance = scale * np.einsum("p,cpq,q->c", contrast, np.linalg.inv(precision), contrast)
    deviation = np.sqrt(np.maximum(variance, 0))
    reach = t_reach(freedom)
    numbers = {
        "group_like_value": value,
        "group_like_low": value - reach * deviation,
        "group_like_high": value + reach * deviation,
        "group_tau": np.sqrt(tau_sq),
    }
    if len(contrast) > 1:
        t, p = student(freedom)
        score = np.divide(np.abs(value), deviation, out=np.zeros_like(value), where=deviation > 0)
        numbers["group_like_p"] = np.interp(score, t, p)
    else:
        new = t_reach(freedom - 1) * np.sqrt(deviation**2 + tau_sq)
        numbers |= {"group_predict_low": value - new, "group_predict_high": value + new}
    columns = {name: np.full(len(usable), np.nan) for name in numbers}
    for name, column in columns.items():
        column[usable] = numbers[name]
    return columns


def between_languages(y: Floats, covariance: Floats, design: Floats) -> Floats:
    """tau^2 of random effects by restricted maximum likelihood: [cell].

    In coordinates orthogonal to the means of the groups in which the noise has the variances l_i,
    the likelihood is that of independent w_i with variances l_i + tau^2. Its maximum is found on a
    grid, then by golden section.

    Args:
        y: [cell, k] values; covariance: [cell, k, k], of their noise; design: [k, p].
    """
    p = design.shape[1]
    free = np.linalg.qr(design, mode="complete")[0][:, p:]
    noise, axes = np.linalg.eigh(free.T @ covariance @ free)
    square = np.einsum("cji,cj->ci", axes, y @ free) ** 2
    noise = np.maximum(noise, 1e-12 * square.max(1, keepdims=True) + 1e-300)

    def badness(tau_sq: Floats) -> Floats:
        variance = noise[:, None] + tau_sq[..., None]
        total: Floats = (np.log(variance) + square[:, None] / variance).sum(-1)
        return total

    most = np.maximum(square.max(1), 1e-300)
    grid = most[:, None] * np.concatenate([[0.0], np.geomspace(1e-8, 2, 120)])
    best = badness(grid).argmin(1)
    row = np.arange(len(y))
    low, high = grid[row, np.maximum(best - 1, 0)], grid[row, np.minimum(best + 1, 120)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        one, other = high - golden * (high - low), low + golden * (high - low)
        left = badness(np.stack([one, other], 1))
        nearer = left[:, 0] < left[:, 1]
        low, high = np.where(nearer, low, one), np.where(nearer, other, high)
    middle = (low + high) / 2
    at_zero = badness(np.stack([np.zeros_like(middle), middle], 1))
    return np.where(at_zero[:, 0] <= at_zero[:, 1], 0.0, middle)
