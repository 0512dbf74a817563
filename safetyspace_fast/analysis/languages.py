"""Do languages share one harm direction? Cosines with their ceiling, and transfer, as matrices."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..parallel import in_parallel
from . import engine as e
from . import metrics as m
from . import uncertainty as u
from .confounds import confounds
from .glossary import DIRECTIONS, PARALLEL, PARALLEL_ENDS
from .selection import select

if TYPE_CHECKING:
    import xarray

    from ..store import Run


def directions(
    run: "Run",
    *,
    models: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    poolings: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "xarray.Dataset":
    """Compare the harm directions of all languages with each other, within every model.

    Args:
        run: an open store.
        models, layers, poolings, languages, progress: as in `separation`; layers and poolings must
            be the same in all models.

    Returns:
        The variables of `DIRECTIONS` (model, layer, pooling, lang, other_lang); NaN where a class
        of either language has fewer than ten texts or its states do not vary. And those of
        `CONFOUNDS` (model, lang).

    Raises:
        ConfigError: a name is not in the store.
        StoreError: an array cannot be read.
    """
    import xarray

    chosen = select(run, models=models, layers=layers, poolings=poolings, languages=languages)
    langs = chosen.languages
    names = (chosen.models, chosen.layers, chosen.poolings, langs, langs)
    shape = tuple(len(values) for values in names)
    columns = {name: np.full(shape, np.nan) for name in DIRECTIONS}

    def fill(i_model: int, i_layer: int) -> None:
        store = run.model(chosen.models[i_model])
        by_lang = [
            {
                cell: (block, i)
                for block in e.blocks(
                    run,
                    chosen.models[i_model],
                    lang,
                    layers=[store.hookpoints.index(chosen.layers[i_layer])],
                    poolings=[store.poolings.index(name) for name in chosen.poolings],
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
                    pooling = chosen.poolings.index(store.poolings[cell[1]])
                    found = _pair(*ours[cell], *theirs[cell])
                    for name, value in found.items():
                        columns[name][i_model, i_layer, pooling, i_lang, i_other] = value

    jobs = [(i, j) for i in range(len(chosen.models)) for j in range(len(chosen.layers))]
    in_parallel(fill, jobs, progress)
    dims = ("model", "layer", "pooling", "lang", "other_lang")
    return xarray.Dataset(
        {name: (dims, column, {"definition": DIRECTIONS[name]}) for name, column in columns.items()}
        | confounds(run, chosen.models, langs),
        coords={dim: list(values) for dim, values in zip(dims, names, strict=True)},
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


def parallel(
    run: "Run",
    *,
    models: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    poolings: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
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

    chosen = select(run, models=models, layers=layers, poolings=poolings, languages=languages)
    dims = ("model", "layer", "pooling")
    names = (chosen.models, chosen.layers, chosen.poolings)
    shape = tuple(len(values) for values in names)
    columns = {f"{name}{end}": np.full(shape, np.nan) for name in PARALLEL for end in PARALLEL_ENDS}
    content = _contents(run)
    among = np.isin(
        run.samples.lang_index, [run.languages.index(lang) for lang in chosen.languages]
    )
    _, place, size = np.unique(content, return_inverse=True, return_counts=True)
    used = np.flatnonzero(among & (content >= 0) & (size[place] > 1))
    by = {"semantic": content[used], "language": np.asarray(run.samples.lang_index)[used]}

    def fill(i_model: int, i_layer: int) -> None:
        store = run.model(chosen.models[i_model])
        layer = store.hookpoints.index(chosen.layers[i_layer])
        states = torch.from_numpy(np.ascontiguousarray(store.read("projected", layer=layer)))
        for i_pooling, pooling in enumerate(chosen.poolings):
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
