"""The models, layers, poolings and languages that a user asked for."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..config import LABELLINGS, layer_name, names_of
from ..data import PAIRED_SHARE, Units, connected, equal_rows, find_units, kinds, numbered
from ..errors import ConfigError
from ..names import languages_meant, nearest
from .resamples import SharedUnits

if TYPE_CHECKING:
    from ..store import Run

Names = Sequence[str] | str | None
"""Names of a store, in a list or in one string with commas; None selects all."""

UNPAIRED_WARNING = (
    "languages {langs} are paired, but pairs are ignored: what both texts of a pair share then "
    "counts as noise, and nulls and intervals are far too wide (in a toy case the mean of the null "
    "is 0.041 for a value of 0.0003). To use pairs, leave out --unpaired (paired=False in Python)"
)


@dataclass(frozen=True)
class Selection:
    """Names of a store, each in the store's order."""

    models: tuple[str, ...]
    layers: tuple[str, ...]
    poolings: tuple[str, ...]
    languages: tuple[str, ...]

    def positions(self, names: Iterable[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Indices of the layers and of the poolings of (layer, pooling) pairs in this selection."""
        pairs = [
            (self.layers.index(layer), self.poolings.index(pooling)) for layer, pooling in names
        ]
        return [layer for layer, _ in pairs], [pooling for _, pooling in pairs]


def select(
    run: "Run",
    *,
    models: Names,
    layers: Names,
    poolings: Names,
    languages: Names,
) -> Selection:
    """Look up names in a store; None selects all.

    Layers and poolings may belong to any of the selected models. `-1` is the last layer, `-2` the
    one before.

    Raises:
        ConfigError: a name is not in the store, or no model is complete.
    """
    if isinstance(run, str | Path):
        raise ConfigError(f"run: got the path {str(run)!r}, expected an open store: open_run(..)")
    if not run.models:
        raise ConfigError(
            f"{run.place}: no model is complete, so there is nothing to show; finish the run with "
            "--resume"
        )
    chosen = _named("models", models, run.models)
    stores = [run.model(name) for name in chosen]
    hookpoints = _union([store.hookpoints for store in stores])
    if layers is not None:
        layers = (
            None if layers == "all" else [layer_name(name, hookpoints) for name in listed(layers)]
        )
    return Selection(
        chosen,
        _named("layers", layers, hookpoints),
        _named("poolings", poolings, _union([store.poolings for store in stores])),
        _languages(languages, run.languages),
    )


def _named(field: str, asked: Names, known: Sequence[str]) -> tuple[str, ...]:
    """The names that were asked for, in the order of `known`."""
    if asked is None:
        return tuple(known)
    wanted = listed(asked)
    if not wanted:
        raise ConfigError(f"{field}: none named; name at least one, or leave the argument out")
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"{field}: no {name!r} in the store; it has {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    return tuple(name for name in known if name in wanted)


def _languages(asked: Names, known: Sequence[str]) -> tuple[str, ...]:
    """The languages that were asked for, in the order of `known`; `zh` means `zh-CN` too."""
    if asked is None:
        return tuple(known)
    if not listed(asked):
        raise ConfigError("languages: none named; name at least one, or leave the argument out")
    wanted = {lang for name in listed(asked) for lang in meant("languages", name, known)}
    return tuple(name for name in known if name in wanted)


def meant(field: str, name: str, known: Sequence[str]) -> list[str]:
    """The languages of a store that a name means.

    Raises:
        ConfigError: it means none; the message begins with `field`.
    """
    if langs := languages_meant(name, known):
        return langs
    raise ConfigError(
        f"{field}: no language {name!r} in the store; it has {', '.join(known)}"
        f"{nearest(name, known)}"
    )


DEFAULT_REFERENCE = "en"


def choose_reference(run: "Run", asked: str | None, langs: Sequence[str]) -> str | None:
    """The reference language, as it is written in the data; None if it is not among `langs`.

    Raises:
        ConfigError: the store has no such language, unless it is the default, or has several.
    """
    if asked is None:
        return None
    if asked == DEFAULT_REFERENCE:
        named = languages_meant(asked, langs)
        return named[0] if len(named) == 1 else None
    named = meant("reference", asked, run.languages)
    if len(named) > 1:
        raise ConfigError(f"reference: {asked!r} means {' and '.join(named)}; name one of them")
    return named[0] if named[0] in langs else None


def listed(names: Sequence[str] | str) -> list[str]:
    """A list of names, from a list or from one string with commas.

    Raises:
        ConfigError: it is neither.
    """
    return (
        names.split(",") if isinstance(names, str) else list(names_of("names", names, single=True))
    )


def _union(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names of all lists, in the order of the longest; names that it lacks come last."""
    ordered = sorted(lists, key=len, reverse=True)
    return tuple(dict.fromkeys(name for names in ordered for name in names))


def paired_languages(run: "Run", langs: Sequence[str], paired: bool | None) -> list[str]:
    """Languages to analyse as pairs.

    A warning names the languages in which some texts have a partner and others have none, and says
    which texts or pairs are not used. If `paired` is False there are no languages of pairs, with a
    warning if texts are paired.
    """
    with_pairs = [lang for lang in langs if is_paired(run, lang)]
    if paired is False and with_pairs:
        warnings.warn(UNPAIRED_WARNING.format(langs=", ".join(with_pairs)), stacklevel=3)
        return []
    for lang in langs if paired is not False else []:
        partner = partners(run, lang)
        lone, size = int((partner < 0).sum()), len(partner)
        if lone and lang in with_pairs:
            warnings.warn(
                f"language {lang}: {lone} of {size} texts have no partner and are left out; add "
                "their partners to use them, or use --unpaired (paired=False in Python)",
                stacklevel=3,
            )
        elif 0 < lone < size:
            warnings.warn(
                f"language {lang}: {size - lone} of {size} texts are in pairs, fewer than "
                f"{PAIRED_SHARE:.0%}: metrics of pairs are refused, the others take the texts as "
                "they are; leave out the texts without partner to use pairs",
                stacklevel=3,
            )
    return with_pairs


def is_paired(run: "Run", lang: str) -> bool:
    """Whether a language is one of pairs, see `data.Units.of_pairs`."""
    return units_of(run, lang).of_pairs


def partners(run: "Run", lang: str) -> NDArray[np.int64]:
    """[n], index of the partner of each text of a language, -1 without one."""
    pair = np.asarray(run.samples.pair[run.lang_range(lang)])
    _, number, sizes = np.unique(pair, return_inverse=True, return_counts=True)
    joined = np.flatnonzero((pair >= 0) & (sizes[number] == 2))
    first, second = joined[np.argsort(pair[joined], kind="stable")].reshape(-1, 2).T
    partner = np.full(len(pair), -1, np.int64)
    partner[first], partner[second] = second, first
    return partner


def equal_texts(run: "Run", lang: str) -> NDArray[np.int64]:
    """[n], the same number for equal texts of a language."""
    return equal_rows(run.samples.text_sha256[run.lang_range(lang)])


def units_of(run: "Run", lang: str, *, paired: bool = True) -> Units:
    """The units of evidence of a language; without `paired`, pairs are ignored."""
    rows, samples = run.lang_range(lang), run.samples
    labels, pair = (np.asarray(x[rows]).astype(np.int64) for x in (samples.label, samples.pair))
    cluster = samples.cluster
    return find_units(
        labels,
        pair if paired else np.full_like(pair, -1),
        equal_texts(run, lang),
        None if cluster is None else np.asarray(cluster[rows]).astype(np.int64),
    )


def shared_units(run: "Run", *, paired: bool = True) -> dict[str, SharedUnits]:
    """Contents that several languages share by `item`; empty if there are none."""
    item = np.asarray(run.samples.item).astype(np.int64)
    lang = np.asarray(run.samples.lang_index).astype(np.int64)
    known = item >= 0
    both = np.unique(np.stack([item[known], lang[known]]), axis=1)[0]
    if len(both) == len(np.unique(both)):
        return {}
    number, start = np.empty_like(item), 0
    for name in run.languages:
        unit = units_of(run, name, paired=paired).unit
        number[run.lang_range(name)] = start + unit
        start += int(unit.max(initial=-1)) + 1
    alone = item.max() + 1 + number
    group = connected(number, numbered(np.where(known, item, alone)))
    has_item = np.zeros(group.max() + 1, bool)
    has_item[group[known]] = True
    group = numbered(np.where(has_item[group], group, -1)) - int(not has_item.all())
    inside = group >= 0
    kind = kinds(np.asarray(run.samples.label)[inside], group[inside])
    return {name: SharedUnits(group[run.lang_range(name)], kind) for name in run.languages}


def require_permutations(number: int) -> None:
    """Refuse more label permutations than a store holds.

    Raises:
        ConfigError: there are more.
    """
    if number > LABELLINGS:
        raise ConfigError(
            f"permutations: got {number}, expected at most {LABELLINGS}: `run` stores that many"
        )


def has_pairs(run: "Run", lang: str) -> bool:
    """Whether a language has a pair."""
    return bool((np.asarray(run.samples.pair[run.lang_range(lang)]) >= 0).any())
