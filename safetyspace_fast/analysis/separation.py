"""How far apart the classes of every model, layer, pooling and language are."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..parallel import in_parallel
from .cells import read_cells
from .confounds import confounds
from .families import choose
from .metric import Metric
from .selection import check_paired, select
from .uncertainty import family_p

if TYPE_CHECKING:
    import xarray

    from ..store import Run

_NUMBERS = ("value", "low", "high", "floor", "p")
"""What an `Estimate` holds of every cell."""


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
        family = tuple(metric for metric in family if not metric.paired)
    axes = (chosen.models, chosen.layers, chosen.poolings, chosen.languages)
    shape = (len(family), *(len(names) for names in axes))
    columns = {name: np.full(shape, np.nan) for name in (*_NUMBERS, "p_family")}
    statistics = np.full((*shape, 1 + permutations), np.nan, np.float32)
    refused = np.full(shape, "the model has no such layer or pooling", object)
    counts = np.zeros((2, *shape[1:]), np.int64)

    def fill(i_model: int, i_lang: int) -> None:
        for (cells,) in read_cells(
            run,
            [chosen.models[i_model]],
            chosen.languages[i_lang],
            layers=chosen.layers,
            poolings=chosen.poolings,
            bootstraps=bootstraps,
            permutations=permutations,
            seed=seed,
            paired=paired is not False,
            force=force,
        ):
            i_layers, i_poolings = chosen.positions(cells.names)
            counts[:, i_model, i_layers, i_poolings, i_lang] = cells.count.numpy()[:, None]
            for i_metric, metric in enumerate(family):
                estimate, reasons = metric.estimate(cells)
                at = (i_metric, i_model, i_layers, i_poolings, i_lang)
                for name in _NUMBERS:
                    columns[name][at] = getattr(estimate, name).numpy()
                refused[at] = reasons
                if estimate.null is not None:
                    largest = estimate.null.abs().amax(-1, keepdim=True).clamp_min(1e-300)
                    statistics[at] = estimate.null / largest  # every cell is scaled later anyway

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
            "metric": [metric.name for metric in family],
            **{dim: list(names) for dim, names in zip(dims[1:], axes, strict=True)},
            **_described(family),
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


def _described(family: Sequence[Metric]) -> dict[str, tuple[str, list[Any]]]:
    """The definitions as coordinates along `metric`, so that every number carries its own."""
    fields = (
        "title", "space", "kind", "unit", "definition", "source", "interval", "null", "alias_of",
    )  # fmt: skip
    return {name: ("metric", [getattr(metric, name) for metric in family]) for name in fields}
