"""Do languages share one harm direction? Cosines with their ceiling, and transfer, as matrices."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import Progress, names_in, positions
from . import engine as e
from . import metrics as m
from . import uncertainty as u

if TYPE_CHECKING:
    import xarray

    from ..store import Run

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
        of either language has fewer than ten texts or its states do not vary.

    Raises:
        ConfigError: a name is not in the store.
        StoreError: an array cannot be read.
    """
    import xarray

    chosen_models = names_in("models", models, run.models)
    langs = names_in("languages", languages, run.languages)
    first = run.model(chosen_models[0])
    chosen_layers = names_in("layers", positions(layers, first.hookpoints), first.hookpoints)
    chosen_poolings = names_in("poolings", poolings, first.poolings)
    shape = (len(chosen_models), len(chosen_layers), len(chosen_poolings), len(langs), len(langs))
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
    e.in_parallel(fill, jobs, progress)
    dims = ("model", "layer", "pooling", "lang", "other_lang")
    names = (chosen_models, chosen_layers, chosen_poolings, langs, langs)
    return xarray.Dataset(
        {
            name: (dims, column, {"definition": DEFINITIONS[name]})
            for name, column in columns.items()
        },
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
