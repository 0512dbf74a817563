"""How far apart the classes of every model, layer, pooling and language are."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..parallel import in_parallel
from . import engine
from .confounds import confounds
from .definitions import Metric, choose
from .selection import check_paired, select
from .uncertainty import family_p

if TYPE_CHECKING:
    import xarray

    from ..store import Run


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
    progress: Callable[[int, int], None] | None = None,
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
        progress: called with the (model, language) steps done and their number.

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
    import xarray

    chosen = select(run, models=models, layers=layers, poolings=poolings, languages=languages)
    with_pairs = check_paired(run, chosen.languages, paired)
    family = choose(metrics)
    if metrics is None and (not with_pairs or paired is False):
        family = tuple(m for m in family if not m.paired)
    axes = (chosen.models, chosen.layers, chosen.poolings, chosen.languages)
    shape = tuple(len(names) for names in axes)
    columns = {
        name: np.full((len(family), *shape), np.nan)
        for name in ("value", "low", "high", "floor", "p", "p_family")
    }
    statistics = np.full((len(family), *shape, 1 + permutations), np.nan, np.float32)
    refused = np.full((len(family), *shape), "the model has no such layer or pooling", object)
    counts = np.zeros((2, *shape), np.int64)

    def fill(i_model: int, i_lang: int) -> None:
        store = run.model(chosen.models[i_model])
        layer_place = _places(store.hookpoints, chosen.layers)
        pooling_place = _places(store.poolings, chosen.poolings)
        for block in engine.blocks(
            run,
            chosen.models[i_model],
            chosen.languages[i_lang],
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

    jobs = [(i, j) for i in range(len(chosen.models)) for j in range(len(chosen.languages))]
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
            **confounds(run, chosen.models, chosen.languages),
        },
        coords={
            "metric": [m.name for m in family],
            "model": list(chosen.models),
            "layer": list(chosen.layers),
            "pooling": list(chosen.poolings),
            "lang": list(chosen.languages),
            **_describe(family),
            "paired": (
                "lang",
                [lang in with_pairs and paired is not False for lang in chosen.languages],
            ),
        },
        attrs={
            "confidence": 0.95,
            "bootstraps": bootstraps,
            "permutations": permutations,
            "seed": seed,
        },
    )


def _places(known: Sequence[str], chosen: Sequence[str]) -> dict[int, int]:
    """Index of a name in the store -> index in the result, ascending."""
    return {i: chosen.index(name) for i, name in enumerate(known) if name in chosen}


def _describe(family: Sequence[Metric]) -> dict[str, tuple[str, list[Any]]]:
    """The definitions as coordinates along `metric`, so that every number carries its own."""
    fields = (
        "title", "space", "kind", "unit", "definition", "source", "interval", "null", "alias_of",
    )  # fmt: skip
    return {name: ("metric", [getattr(m, name) for m in family]) for name in fields}
