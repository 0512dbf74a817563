"""How far apart the classes of every model, layer, pooling and language are."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..config import LABELLINGS
from ..threads import in_parallel
from .confounds import confounds, dominance
from .families import choose
from .groups import choose_groups, with_groups
from .items import SharedItems
from .metric import Metric, Metrics
from .reading import read_cells
from .selection import Names, paired_languages, require_permutations, select
from .settings import told
from .significance import false_discovery, family_p

if TYPE_CHECKING:
    import xarray

    from ..store import Run

_NUMBERS = ("value", "low", "high", "floor", "p")
"""What an `Estimate` holds of every cell."""


def separation(
    run: "Run",
    *,
    models: Names = None,
    metrics: Metrics = None,
    layers: Names = None,
    poolings: Names = None,
    languages: Names = None,
    groups: Mapping[str, Sequence[str] | str] | None = None,
    bootstraps: int = 200,
    permutations: int = LABELLINGS,
    seed: int = 0,
    paired: bool | None = None,
    force: bool = False,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> "xarray.Dataset":
    """Compute metrics for all models, layers, poolings and languages of a store.

    Args:
        run: an open store.
        models, layers, poolings, languages: names; None selects all. The layer `-1` is the last.
        metrics: names, `all`, or None for the default ones; the README of this folder lists them.
            Metrics in components exist for any K up to 16, as in `rho_pc7`; a type checker knows
            only K = 10 and 2.
        groups: languages of `high` and of `low`; a group that is not given is that of `GROUPS`, by
            primary subtag: `zh-CN` and `zho_Hans` are `zh`.
        bootstraps: number of resamples behind the intervals of metrics in components.
        permutations: number of labellings behind p, at most `LABELLINGS`; p does not depend on
            `bootstraps` or `seed`.
        seed: of the bootstraps; all models see the same ones.
        paired: None resamples pairs as units in languages whose texts all have a partner; False
            ignores pairs, with a warning.
        force: compute covariances even with fewer than ten texts per class and component.
        device: `cpu`, or a GPU for the matrix products of the resampling; the numbers differ by
            rounding.
        progress: called with the number of (model, language) steps that are done, and of all.

    Returns:
        Variables (metric, model, layer, pooling, lang): `value`, `low`, `high`, `floor`, `p`,
        `p_family`, `q`, `refused`. A number is NaN only if `refused` says why, or if the
        `interval`, the `null` or the floor of the metric is "none". `low` and `high` are a 95 %
        interval for the mean of the value over samples of this many texts; if the floor is above
        zero, the value minus the floor estimates the population.

        `n0`, `n1` and the variables of `DOMINANCE` (model, layer, pooling, lang), and those of
        `CONFOUNDS` (model, lang): the texts of different languages differ in more than the
        language.

        With languages of both groups also `group_value`, `group_low`, `group_high`, which have
        `group` (high, low, high - low) where others have `lang`. The attributes `group_high`,
        `group_low` and `group_none` hold the languages of each and of neither; `run_as` and
        `settings_differ` say how the models were run. `explain NAME` defines each.

    Raises:
        ConfigError: a name is not in the store, a metric does not exist, or the groups share a
            language.
        StoreError: an array cannot be read.
    """
    import xarray

    require_permutations(permutations)
    chosen = select(run, models=models, layers=layers, poolings=poolings, languages=languages)
    chosen_groups = choose_groups(groups, run.languages)
    with_pairs = paired_languages(run, chosen.languages, paired)
    family = choose(metrics)
    if metrics is None and not with_pairs:
        family = tuple(metric for metric in family if not metric.paired)
    axes = (chosen.models, chosen.layers, chosen.poolings, chosen.languages)
    shape = (len(family), *(len(names) for names in axes))
    columns = {name: np.full(shape, np.nan) for name in (*_NUMBERS, "p_family")}
    statistics = np.full((*shape, 1 + permutations), np.nan, np.float32)
    refused = np.full(shape, "the model has no such layer or pooling", object)
    counts = np.zeros((2, *shape[1:]), np.int64)
    shared = SharedItems(run, chosen.languages, shape, bootstraps)
    projected = [False] * len(chosen.models)

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
            device=device,
        ):
            i_layers, i_poolings = chosen.positions(cells.names)
            counts[:, i_model, i_layers, i_poolings, i_lang] = cells.count.numpy()[:, None]
            for i_metric, metric in enumerate(family):
                estimate, reasons = metric.estimate(cells)
                at = (i_metric, i_model, i_layers, i_poolings, i_lang)
                for name in _NUMBERS:
                    columns[name][at] = getattr(estimate, name).numpy()
                refused[at] = reasons
                shared.add(at, i_lang, cells.kept, cells.unit, estimate.influence, estimate.draws)
                if estimate.null is not None:
                    largest = estimate.null.abs().amax(-1, keepdim=True).clamp_min(1e-300)
                    statistics[at] = estimate.null / largest  # every cell is scaled later anyway
                projected[i_model] |= not cells.has_null

    jobs = [(i, j) for i in range(len(chosen.models)) for j in range(len(chosen.languages))]
    in_parallel(fill, jobs, progress)
    if permutations:
        columns["p_family"] = family_p(statistics, refused != "")
    columns["q"] = false_discovery(torch.from_numpy(columns["p"])).numpy()

    dims = ("metric", "model", "layer", "pooling", "lang")
    dataset = xarray.Dataset(
        {
            **{name: (dims, column) for name, column in columns.items()},
            "refused": (dims, refused.astype(str)),
            "n0": (dims[1:], counts[0]),
            "n1": (dims[1:], counts[1]),
            **confounds(run, chosen.models, chosen.languages),
            **dominance(run, chosen.models, chosen),
        },
        coords={
            "metric": [metric.name for metric in family],
            "resamples": ("metric", [permutations if x.permuted else np.inf for x in family]),
            **{dim: list(names) for dim, names in zip(dims[1:], axes, strict=True)},
            **_described(family),
            "paired": ("lang", [lang in with_pairs for lang in chosen.languages]),
        },
        attrs={
            "confidence": 0.95,
            "bootstraps": bootstraps,
            "permutations": permutations,
            "seed": seed,
            "p_in_projection": ",".join(
                name for name, here in zip(chosen.models, projected, strict=True) if here
            ),
            **told(run, chosen.models, chosen.poolings),
        },
    )
    return with_groups(dataset, chosen_groups, shared.correlations())


def _described(family: Sequence[Metric]) -> dict[str, tuple[str, list[str]]]:
    """The definitions as coordinates along `metric`, so that every number carries its own."""
    fields = (
        "title", "space", "kind", "unit", "definition", "source", "interval", "null", "alias_of",
    )  # fmt: skip
    described = {name: ("metric", [getattr(metric, name) for metric in family]) for name in fields}
    asks = ["any difference" if metric.any_difference else "means" for metric in family]
    return described | {"p_asks": ("metric", asks)}
