"""Do languages share one harm direction? Cosines with their ceiling, and transfer, as matrices."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..parallel import in_parallel
from . import engine as e
from . import metrics as m
from . import uncertainty as u
from .separation import Progress, confounds, names_in, positions

if TYPE_CHECKING:
    import xarray

    from ..store import Run

HIGH_RESOURCE = ("en", "ru", "de", "zh", "ja", "es", "fr", "it", "nl", "pl", "pt", "vi")
LOW_RESOURCE = (
    "am", "ar", "bn", "he", "hi", "hin", "jv", "ka", "km", "ko", "lo", "ml", "mr", "ne", "si",
    "sw", "ta", "te", "th", "tt", "uk", "ur", "yo", "zu",
)  # fmt: skip
"""Languages above and below one hundredth of Common Crawl's pages, the line that Deng et al. 2024
(arXiv 2310.06474) draws; a language in neither is in no group. `groups` overrides the table."""
GROUPS = {"high": HIGH_RESOURCE, "low": LOW_RESOURCE}
GROUP_DEFINITION = (
    "mean over the languages of a group that have a number, and the mean of `high` less that of "
    "`low`; the interval holds for these languages: texts are drawn again, languages are not"
)

DEFINITIONS = {
    "direction_cosine": "cosine of the differences of class means of two languages, full width",
    "direction_ceiling": "cosine that two equal directions would show with the noise of these "
    "texts: sqrt of the product of 1 - tr V/|d|^2",
    "transfer_auc": "AUC of the texts of `lang` along the difference of class means of "
    "`other_lang`, in the projection; on the diagonal held out, fold by fold",
    "transfer_low": "95 % interval of transfer_auc by DeLong's placements, the direction given",
    "transfer_high": "see transfer_low",
}
"""Variables of `directions`."""


def directions(
    run: "Run",
    *,
    models: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    poolings: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> "xarray.Dataset":
    """Compare the harm directions of all languages with each other, within every model.

    Args:
        run: an open store.
        models, layers, poolings, languages, progress: as in `separation`; layers and poolings must
            be the same in all models.

    Returns:
        The variables of `DEFINITIONS` (model, layer, pooling, lang, other_lang); NaN where a class
        of either language has fewer than ten texts or its states do not vary. And those of
        `CONFOUNDS` (model, lang).

    Raises:
        ConfigError: a name is not in the store.
        StoreError: an array cannot be read.
    """
    import xarray

    names = _chosen(run, models, layers, poolings, languages)
    chosen_models, chosen_layers, chosen_poolings, langs = names
    names = (*names, langs)
    shape = tuple(len(values) for values in names)
    columns = {name: np.full(shape, np.nan) for name in DEFINITIONS}

    def fill(i_model: int, i_layer: int) -> None:
        store = run.model(chosen_models[i_model])
        by_lang = [
            {
                cell: (block, i)
                for block in e.blocks(
                    run,
                    chosen_models[i_model],
                    lang,
                    layers=[store.hookpoints.index(chosen_layers[i_layer])],
                    poolings=[store.poolings.index(name) for name in chosen_poolings],
                    bootstraps=0,
                    permutations=0,
                    seed=0,
                    paired=True,
                    force=False,
                )
                if not block.constant and int(block.count.min()) >= e.MIN_TEXTS
                for i, cell in enumerate(block.cells)
            }
            for lang in langs
        ]
        for i_lang, ours in enumerate(by_lang):
            for i_other, theirs in enumerate(by_lang):
                for cell in ours.keys() & theirs.keys():
                    pooling = chosen_poolings.index(store.poolings[cell[1]])
                    found = _pair(*ours[cell], *theirs[cell])
                    for name, value in found.items():
                        columns[name][i_model, i_layer, pooling, i_lang, i_other] = value

    jobs = [(i, j) for i in range(len(chosen_models)) for j in range(len(chosen_layers))]
    in_parallel(fill, jobs, progress)
    dims = ("model", "layer", "pooling", "lang", "other_lang")
    return xarray.Dataset(
        {
            name: (dims, column, {"definition": DEFINITIONS[name]})
            for name, column in columns.items()
        }
        | confounds(run, chosen_models, langs),
        coords={dim: list(values) for dim, values in zip(dims, names, strict=True)},
    )


def _chosen(
    run: "Run",
    models: Sequence[str] | None,
    layers: Sequence[str] | None,
    poolings: Sequence[str] | None,
    languages: Sequence[str] | None,
) -> tuple[tuple[str, ...], ...]:
    """The names asked for: models, layers, poolings and languages."""
    chosen = names_in("models", models, run.models)
    first = run.model(chosen[0])
    return (
        chosen,
        names_in("layers", positions(layers, first.hookpoints), first.hookpoints),
        names_in("poolings", poolings, first.poolings),
        names_in("languages", languages, run.languages),
    )


def _pair(ours: e.Block, i: int, theirs: e.Block, j: int) -> dict[str, float]:
    """One cell of two languages: texts of `ours` along the direction of `theirs`."""
    a, b = ours.gap[i], theirs.gap[j]
    x = ours.projected[i]
    if ours is theirs:
        scores = m.heldout_scores(x, x, ours.labels, ours.fold)
        fold = ours.fold
    else:
        y = theirs.projected[j]
        low, high = (y[theirs.labels == c].mean(0) for c in (0, 1))
        scores = x @ (high - low)
        fold = torch.zeros_like(ours.fold)
    auc, influence = m.fold_auc(scores, ours.labels, fold)
    deviation = u.influence_variance(influence, ours.unit).sqrt()
    lower, upper = u.interval(auc, deviation)
    ceiling = (_reliability(ours, i) * _reliability(theirs, j)).sqrt()
    return {
        "direction_cosine": float((a @ b) / (a.norm() * b.norm())),
        "direction_ceiling": float(ceiling),
        "transfer_auc": float(auc),
        "transfer_low": float(lower),
        "transfer_high": float(upper),
    }


def _reliability(block: e.Block, i: int) -> Tensor:
    """Share of |d|^2 that is not noise."""
    noise = block.unit_shift[i].square().sum()
    return (1 - noise / block.shift_sq[i]).clamp_min(0)


PARALLEL = {
    "semantic": "silhouette of the texts grouped by content: by parallel item where there is one, "
    "else by pair; in the projection",
    "language": "silhouette of the same texts grouped by language, in the projection",
}
"""Variables of `parallel`, each with low and high: which of the two a layer orders texts by."""
PARALLEL_ENDS = ("", "_low", "_high")


def parallel(
    run: "Run",
    *,
    models: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    poolings: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> "xarray.Dataset":
    """Silhouette by content and by language of parallel data, layer by layer.

    Args:
        run: an open store.
        models, layers, poolings, languages, progress: as in `directions`.

    Returns:
        The variables of `PARALLEL` and their 95 % intervals (normal, from the spread of whole
        contents) as `_low`, `_high` (model, layer, pooling); NaN where no text has a partner, or
        all are of one language.

    Raises:
        ConfigError: a name is not in the store.
        StoreError: an array cannot be read.
    """
    import xarray

    names = _chosen(run, models, layers, poolings, languages)
    chosen_models, chosen_layers, chosen_poolings, langs = names
    dims = ("model", "layer", "pooling")
    names = names[:3]
    shape = tuple(len(values) for values in names)
    columns = {f"{name}{end}": np.full(shape, np.nan) for name in PARALLEL for end in PARALLEL_ENDS}
    content = _contents(run)
    among = np.isin(run.samples.lang_index, [run.languages.index(lang) for lang in langs])
    _, place, size = np.unique(content, return_inverse=True, return_counts=True)
    used = np.flatnonzero(among & (content >= 0) & (size[place] > 1))
    by = {"semantic": content[used], "language": np.asarray(run.samples.lang_index)[used]}

    def fill(i_model: int, i_layer: int) -> None:
        store = run.model(chosen_models[i_model])
        layer = store.hookpoints.index(chosen_layers[i_layer])
        states = torch.from_numpy(np.ascontiguousarray(store.read("projected", layer=layer)))
        for i_pooling, pooling in enumerate(chosen_poolings):
            x = states[store.poolings.index(pooling), torch.from_numpy(used)].double()
            finite = x.isfinite().all(-1)
            x = x[finite] - x[finite].mean(0)
            groupings = {
                name: torch.from_numpy(np.unique(groups[finite.numpy()], return_inverse=True)[1])
                for name, groups in by.items()
            }
            unit = groupings["semantic"]
            for name, group in groupings.items():
                if len(group) == 0 or int(group.max()) == 0:
                    continue
                value = m.grouped_silhouettes(x, group)
                mean = value.mean()
                spread = u.influence_variance((value - mean) / len(value), unit).sqrt()
                numbers = (mean, *u.interval(mean, spread))
                for end, number in zip(PARALLEL_ENDS, numbers, strict=True):
                    columns[f"{name}{end}"][i_model, i_layer, i_pooling] = float(number)

    if len(used):
        jobs = [(i, j) for i in range(shape[0]) for j in range(shape[1])]
        in_parallel(fill, jobs, progress)
    return xarray.Dataset(
        {
            name: (dims, column, {"definition": PARALLEL[name.split("_")[0]]})
            for name, column in columns.items()
        },
        coords={dim: list(values) for dim, values in zip(dims, names, strict=True)},
    )


def _contents(run: "Run") -> "np.ndarray[Any, np.dtype[np.int64]]":
    """A number for the content of every text: its item, else its pair, else -1."""
    item = np.asarray(run.samples.item).astype(np.int64)
    pair = np.asarray(run.samples.pair).astype(np.int64)
    of_pair = np.where(pair >= 0, pair + item.max(initial=0) + 1, -1)
    return np.where(item >= 0, item, of_pair)


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
        raise ConfigError("groups: expected high=A,B,.. and low=C,D,.. without a language in both")
    langs = [str(lang) for lang in dataset["lang"].to_numpy()]
    inside = {name: [lang for lang in langs if lang in chosen[name]] for name in GROUPS}
    if not all(inside.values()):
        return dataset
    middle = "difference" if "difference" in dataset else "value"
    mean, variance = {}, {}
    for name, members in inside.items():
        part = dataset.sel(lang=members)
        squares = ((part["high"] - part["low"]) / (2 * u.Z95)) ** 2
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
            group_low=values - u.Z95 * spreads,
            group_high=values + u.Z95 * spreads,
        )
        .assign_attrs({f"group_{name}": ",".join(members) for name, members in inside.items()})
    )
