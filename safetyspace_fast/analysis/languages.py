"""Do languages share one harm direction? Do layers group texts by content or by language?"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import connected, equal_rows
from ..threads import in_parallel
from .auc import auc_with_ends
from .cells import Cells
from .confounds import confounds
from .crossfit import direction_cosine, fold_means
from .families.distances import grouped_silhouettes
from .glossary import DIRECTIONS, ENDS, PARALLEL
from .intervals import Z95, symmetric_ends
from .probe import fold_texts
from .reading import read_cells
from .selection import Names, select
from .settings import told
from .uncertainty import influence_variance

if TYPE_CHECKING:
    import xarray

    from ..store import Run


def directions(
    run: "Run",
    *,
    models: Names = None,
    layers: Names = None,
    poolings: Names = None,
    languages: Names = None,
    progress: Callable[[int, int], None] | None = None,
) -> "xarray.Dataset":
    """Compare the harm directions of all languages with each other, in each model.

    Args:
        run: an open store.
        models, layers, poolings, languages, progress: as in `separation`.

    Returns:
        The variables of `DIRECTIONS` (model, layer, pooling, lang, other_lang); NaN where a class
        of either language has fewer than ten texts, its states do not vary, the model has no such
        layer or pooling, or a direction is not reliable. And those of `CONFOUNDS` (model, lang).

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
        model, layer = chosen.models[i_model], chosen.layers[i_layer]
        by_lang = [
            {
                pooling: (cells, i)
                for (cells,) in read_cells(
                    run, [model], lang, layers=[layer], poolings=chosen.poolings
                )
                if not cells.refusal()
                for i, (_, pooling) in enumerate(cells.names)
            }
            for lang in langs
        ]
        for i_lang, texts in enumerate(by_lang):
            for i_other, directions in enumerate(by_lang):
                for pooling in texts.keys() & directions.keys():
                    at = (i_model, i_layer, chosen.poolings.index(pooling), i_lang, i_other)
                    for name, value in _pair(*texts[pooling], *directions[pooling]).items():
                        columns[name][at] = value

    jobs = [(i, j) for i in range(len(chosen.models)) for j in range(len(chosen.layers))]
    in_parallel(fill, jobs, progress)
    dims = ("model", "layer", "pooling", "lang", "other_lang")
    return xarray.Dataset(
        {name: (dims, column, {"definition": DIRECTIONS[name]}) for name, column in columns.items()}
        | confounds(run, chosen.models, langs),
        coords={dim: list(values) for dim, values in zip(dims, names, strict=True)},
        attrs=told(run, chosen.models, chosen.poolings),
    )


def _pair(texts: Cells, i: int, fitted: Cells, j: int) -> dict[str, float]:
    """Compare cell i of one language with cell j of another, which gives the direction."""
    scores = _transferred(texts, i, fitted, j)
    auc, lower, upper = auc_with_ends(scores, texts.labels, texts.unit, texts.fold, copy=texts.copy)
    first, second = fold_means(texts), fold_means(fitted)
    directions = {}
    if first is not None and second is not None:
        cosine = direction_cosine(first.cell(i), second.cell(j))
        directions = {
            "direction_cosine": float(cosine.value),
            "direction_low": float(cosine.low),
            "direction_high": float(cosine.high),
            "direction_reliability": float(cosine.reliability),
        }
    return directions | {
        "transfer_auc": float(auc),
        "transfer_low": float(lower),
        "transfer_high": float(upper),
    }


def _transferred(texts: Cells, i: int, fitted: Cells, j: int) -> Tensor:
    """Texts of cell i along the difference of class means of cell j, without the fold of the text.

    Equal texts and texts of one item are in one fold in all languages: what a text is judged by
    holds neither the text itself nor its translation.

    Returns:
        [n] float64; only scores of one fold can be compared.
    """
    x, y = texts.projected[i], fitted.projected[j]
    scores = torch.empty(len(x), dtype=x.dtype)
    for inside in fold_texts(texts.fold):
        rest = fitted.fold != texts.fold[inside[0]]
        low, high = (y[rest & (fitted.labels == c)].mean(0) for c in (0, 1))
        scores[inside] = x[inside] @ (high - low)
    return scores


def parallel(
    run: "Run",
    *,
    models: Names = None,
    layers: Names = None,
    poolings: Names = None,
    languages: Names = None,
    progress: Callable[[int, int], None] | None = None,
) -> "xarray.Dataset":
    """Silhouette by content and by language of parallel data, layer by layer.

    Args:
        run: an open store.
        models, layers, poolings, languages, progress: as in `directions`.

    Returns:
        The variables of `PARALLEL` of the texts without their copies, and 95 % intervals (normal,
        from the spread over contents) as `_low`, `_high` (model, layer, pooling); NaN where no text
        has a partner, all are of one language, or the model has no such layer or pooling.

    Raises:
        ConfigError: a name is not in the store.
        StoreError: an array cannot be read.
    """
    import xarray

    chosen = select(run, models=models, layers=layers, poolings=poolings, languages=languages)
    dims = ("model", "layer", "pooling")
    names = (chosen.models, chosen.layers, chosen.poolings)
    shape = tuple(len(values) for values in names)
    columns = {f"{name}{end}": np.full(shape, np.nan) for name in PARALLEL for end in ENDS}
    content = _contents(run)
    among = np.isin(
        run.samples.lang_index, [run.languages.index(lang) for lang in chosen.languages]
    )
    _, i_content, size = np.unique(content, return_inverse=True, return_counts=True)
    used = np.flatnonzero(among & (content >= 0) & (size[i_content] > 1))
    by = {"semantic": content[used], "language": np.asarray(run.samples.lang_index)[used]}

    def fill(i_model: int, i_layer: int) -> None:
        store = run.model(chosen.models[i_model])
        if chosen.layers[i_layer] not in store.hookpoints:
            return
        layer = store.hookpoints.index(chosen.layers[i_layer])
        states = torch.from_numpy(np.ascontiguousarray(store.read("projected", layer=layer)))
        for i_pooling, pooling in enumerate(chosen.poolings):
            if pooling not in store.poolings:
                continue
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
                value = grouped_silhouettes(x, group)
                mean = value.mean()
                spread = influence_variance((value - mean) / len(value), unit).sqrt()
                numbers = (mean, *symmetric_ends(mean, Z95 * spread))
                for end, number in zip(ENDS, numbers, strict=True):
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
        attrs=told(run, chosen.models, chosen.poolings),
    )


def _contents(run: "Run") -> NDArray[np.int64]:
    """A number for the content of each text: of its item, else of its pair, else -1.

    Contents with a text in common in one language are one. Of copies, all but the first have -1.
    """
    item = np.asarray(run.samples.item).astype(np.int64)
    pair = np.asarray(run.samples.pair).astype(np.int64)
    of_pair = np.where(pair >= 0, pair + item.max(initial=0) + 1, -1)
    content = np.where(item >= 0, item, of_pair)
    known = np.flatnonzero(content >= 0)
    lang = np.asarray(run.samples.lang_index)[known].astype(np.int64)
    text = equal_rows(run.samples.text_sha256[known]) + lang * len(known)
    _, first, number = np.unique(text, return_index=True, return_inverse=True)
    merged = connected(np.unique(content[known], return_inverse=True)[1], number)
    content = np.full(len(content), -1, np.int64)
    content[known[first]] = merged[first]
    return content
