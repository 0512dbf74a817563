"""How far apart the classes of every model, layer, pooling and language are."""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from .definitions import Metric, choose

if TYPE_CHECKING:
    import xarray

    from ..store import Run

CONFOUNDS = {
    "tokens0": "mean tokens of a harmless text",
    "tokens1": "mean tokens of a harmful text; where it differs from tokens0, length alone tells "
    "the classes apart",
    "chars_per_token": "characters a token of the language stands for: few where the tokenizer "
    "does not know the language",
    "truncated": "share of the texts that were cut to fit",
    "duplicates": "share of the texts that are copies of another one",
    "harmful": "share of harmful texts: class balance",
}
"""What may differ between languages beside the model's view of them, by (model, lang)."""

Progress = Callable[[int, int], None]
"""Called with the (model, language) steps done and their number."""

UNPAIRED_WARNING = (
    "languages {langs} are paired, and an unpaired analysis was asked for: shuffling labels freely "
    "keeps what the two texts of a pair share as noise, so that its null and intervals are far too "
    "wide (a toy case: null mean 0.041 against an observed 0.0003); leave out --unpaired "
    "(paired=False in Python)"
)


def separation(
    run: "Run",
    *,
    models: Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    poolings: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    bootstraps: int = 200,
    permutations: int = 200,
    seed: int = 0,
    paired: bool | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> "xarray.Dataset":
    """Compute metrics for every model, layer, pooling and language of a store.

    Args:
        run: an open store.
        models, layers, poolings, languages: names to keep; None keeps all.
        metrics: names, `all`, or None for the default ones; see `METRICS`.
        bootstraps, permutations: resamples behind intervals and p.
        seed: of the resamples; the same for every model.
        paired: None resamples pairs as wholes where every text of a language has its partner;
            False ignores pairs, with a warning.
        force: compute covariances in more components than a tenth of the texts of a class.
        progress: called after every language of a model.

    Returns:
        Variables value, low, high, floor, p, p_family (p of the largest statistic over all layers
        and languages shown), refused (metric, model, layer, pooling, lang), n0, n1
        (model, layer, pooling, lang) and, because languages come from different corpora, what may
        confound them (model, lang): see `CONFOUNDS`. `low`, `high` hold the mean of the value at
        this number of texts with 95 %; where the floor is above zero the excess over it is what
        estimates the population. NaN stands only where `refused` says why, or where the metric's
        `interval`, `null` or `floor` is "none".

    Raises:
        ConfigError: a name is not in the store, or there is no such metric.
        StoreError: an array cannot be read.
    """
    import torch
    import xarray

    from ..parallel import in_parallel
    from . import engine

    chosen_models = names_in("models", models, run.models)
    chosen_langs = names_in("languages", languages, run.languages)
    with_pairs = check_paired(run, chosen_langs, paired)
    family = choose(metrics)
    if metrics is None and (not with_pairs or paired is False):
        family = tuple(m for m in family if not m.paired)
    stores = {name: run.model(name) for name in chosen_models}
    hookpoints = _union([stores[name].hookpoints for name in chosen_models])
    chosen_layers = names_in("layers", positions(layers, hookpoints), hookpoints)
    chosen_poolings = names_in(
        "poolings", poolings, _union([stores[name].poolings for name in chosen_models])
    )

    shape = (len(chosen_models), len(chosen_layers), len(chosen_poolings), len(chosen_langs))
    columns = {
        name: np.full((len(family), *shape), np.nan)
        for name in ("value", "low", "high", "floor", "p", "p_family")
    }
    statistics = np.full((len(family), *shape, 1 + permutations), np.nan, np.float32)
    refused = np.full((len(family), *shape), "the model has no such layer or pooling", object)
    counts = np.zeros((2, *shape), np.int64)

    def fill(i_model: int, i_lang: int) -> None:
        store = stores[chosen_models[i_model]]
        layer_place = _places(store.hookpoints, chosen_layers)
        pooling_place = _places(store.poolings, chosen_poolings)
        for block in engine.blocks(
            run,
            chosen_models[i_model],
            chosen_langs[i_lang],
            layers=list(layer_place),
            poolings=list(pooling_place),
            bootstraps=bootstraps,
            permutations=permutations,
            seed=seed,
            paired=paired is not False,
            force=force,
        ):
            at = (
                [layer_place[layer] for layer, _ in block.cells],
                [pooling_place[pooling] for _, pooling in block.cells],
            )
            counts[:, i_model, at[0], at[1], i_lang] = block.count.numpy()[:, None]
            for i_metric, entry in enumerate(family):
                found, reasons = engine.estimate(block, entry)
                place = (i_metric, i_model, *at, i_lang)
                for name in ("value", "low", "high", "floor", "p"):
                    columns[name][place] = getattr(found, name).numpy()
                refused[place] = reasons
                if found.null is not None:
                    labellings = torch.cat([found.null[0][:, None], found.null[1]], -1)
                    largest = labellings.abs().amax(-1, keepdim=True).clamp_min(1e-300)
                    statistics[place] = labellings / largest  # every cell is scaled later anyway

    jobs = [(i, j) for i in range(len(chosen_models)) for j in range(len(chosen_langs))]
    in_parallel(fill, jobs, progress)
    if permutations:
        columns["p_family"] = family_p(statistics, refused != "")

    dims = ("metric", "model", "layer", "pooling", "lang")
    return xarray.Dataset(
        {
            **{name: (dims, column) for name, column in columns.items()},
            "refused": (dims, refused.astype(str)),
            "n0": (dims[1:], counts[0]),
            "n1": (dims[1:], counts[1]),
            **confounds(run, chosen_models, chosen_langs),
        },
        coords={
            "metric": [m.name for m in family],
            "model": list(chosen_models),
            "layer": list(chosen_layers),
            "pooling": list(chosen_poolings),
            "lang": list(chosen_langs),
            **_describe(family),
            "paired": (
                "lang",
                [lang in with_pairs and paired is not False for lang in chosen_langs],
            ),
        },
        attrs={
            "confidence": 0.95,
            "bootstraps": bootstraps,
            "permutations": permutations,
            "seed": seed,
        },
    )


def family_p(
    statistics: np.ndarray[Any, np.dtype[Any]], refused: np.ndarray[Any, np.dtype[np.bool_]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """p over the family of all layers and languages of a metric, model and pooling."""
    import torch

    from .uncertainty import largest_p

    found = np.full(refused.shape, np.nan)
    n_metrics, n_models, _, n_poolings, _ = refused.shape
    for place in np.ndindex(n_metrics, n_models, n_poolings):
        at = (place[0], place[1], slice(None), place[2])
        cells = np.where(refused[at][..., None], np.nan, statistics[at]).astype(np.float64)
        flat = torch.from_numpy(cells.reshape(-1, cells.shape[-1]))
        found[at] = largest_p(flat[:, 0], flat[:, 1:]).numpy().reshape(cells.shape[:-1])
    return found


def confounds(
    run: "Run", models: Sequence[str], langs: Sequence[str]
) -> dict[str, tuple[tuple[str, str], Any, dict[str, str]]]:
    """The variables of `CONFOUNDS` (model, lang)."""
    found = {name: np.full((len(models), len(langs)), np.nan) for name in CONFOUNDS}
    for j, lang in enumerate(langs):
        span = run.lang_range(lang)
        label = np.asarray(run.samples.label[span])
        texts = np.asarray(run.samples.text_sha256[span])
        chars = np.asarray(run.samples.n_chars[span])
        copies = 1 - len(np.unique(texts, axis=0)) / max(1, len(texts))
        for i, model in enumerate(models):
            tokens = run.model(model).read("n_tokens", samples=span)
            for c in (0, 1):
                if (label == c).any():
                    found[f"tokens{c}"][i, j] = tokens[label == c].mean()
            found["truncated"][i, j] = run.model(model).read("truncated", samples=span).mean()
            found["duplicates"][i, j] = copies
            found["chars_per_token"][i, j] = chars.sum() / max(1, tokens.sum())
            found["harmful"][i, j] = label.mean() if len(label) else np.nan
    dims = ("model", "lang")
    return {name: (dims, column, {"definition": CONFOUNDS[name]}) for name, column in found.items()}


def _describe(family: Sequence[Metric]) -> dict[str, tuple[str, list[Any]]]:
    """The definitions as coordinates along `metric`, so that every number carries its own."""
    fields = (
        "title", "space", "kind", "unit", "definition", "source", "interval", "null", "alias_of",
    )  # fmt: skip
    return {name: ("metric", [getattr(m, name) for m in family]) for name in fields}


def names_in(field: str, asked: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The names asked for, in the store's order.

    Raises:
        ConfigError: one is unknown.
    """
    if asked is None:
        return tuple(known)
    wanted = asked.split(",") if isinstance(asked, str) else list(asked)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"{field}: no {name!r} in the store; it has {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def positions(asked: str | Sequence[str] | None, known: Sequence[str]) -> list[str] | None:
    """Hookpoint names, where `-1` is the last of `known`, `-2` the one before, ..."""
    if asked is None or asked == "all":
        return None
    names = asked.split(",") if isinstance(asked, str) else list(asked)
    ends = {str(i - len(known)): name for i, name in enumerate(known)}
    return [ends.get(name, name) for name in names]


def _places(known: Sequence[str], chosen: Sequence[str]) -> dict[int, int]:
    """Index of a name in the store -> index in the result, ascending."""
    return {i: chosen.index(name) for i, name in enumerate(known) if name in chosen}


def _union(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names of all lists, in the order of the longest; those it lacks at the end."""
    ordered = sorted(lists, key=len, reverse=True)
    return tuple(dict.fromkeys(name for names in ordered for name in names))


def check_paired(run: "Run", langs: Sequence[str], paired: bool | None) -> list[str]:
    """The languages whose texts are paired; warns if that was asked to be ignored."""
    found = [lang for lang in langs if _is_paired(run, lang)]
    if paired is False and found:
        warnings.warn(UNPAIRED_WARNING.format(langs=", ".join(found)), stacklevel=3)
    return found


def _is_paired(run: "Run", lang: str) -> bool:
    """Whether every text of a language has exactly one partner."""
    pair = np.asarray(run.samples.pair[run.lang_range(lang)])
    _, sizes = np.unique(pair, return_counts=True)
    return bool(len(pair)) and bool((pair >= 0).all()) and bool((sizes == 2).all())
