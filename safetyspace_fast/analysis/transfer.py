"""Does a harm direction hold on other data? Chosen on one store, tested on another."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import LABELLINGS
from ..errors import ConfigError
from ..ops.labellings import FoldLabellings
from ..ops.scores import labelled_auc
from ..threads import in_parallel
from .auc import auc_with_ends, fold_auc
from .cells import Cells
from .families import metric
from .glossary import COLUMNS, TRANSFER
from .reading import read_cells
from .selection import Names, listed, require_permutations, select, units_of
from .settings import require_same_model, told
from .significance import permutation_p
from .texts import MIN_TEXTS

if TYPE_CHECKING:
    import xarray

    from ..store import ModelStore, Run

EXACT, APPROXIMATE = "full", "projection"
"""Where the texts of the second store are seen along the direction of the first."""


def transfer(
    source: "Run",
    target: "Run",
    *,
    models: Names = None,
    layers: Names = None,
    poolings: Names = None,
    languages: Names = None,
    permutations: int = LABELLINGS,
    progress: Callable[[int, int], None] | None = None,
) -> "xarray.Dataset":
    """Choose layer and harm direction on one store, and test them on the texts of another.

    In each language the layer is the one with the largest held-out AUC of `source`, and the
    direction is the difference of the class means of all its texts there. The texts of `target`
    are scored along it. Units of `target` with a text that `source` has too are left out.

    Scores are at full width if the model was run into `target` with `--basis` of `source`. Else
    they are in the random projection, which must be the same in both; `space` says which.

    Args:
        source: where layer and direction are chosen.
        target: where they are tested; the same models, on other texts.
        models, layers, poolings, languages: names; None selects all that both stores have.
        permutations: of the labels of `target`, behind p.
        progress: called with the number of (model, language) steps that are done, and of all.

    Returns:
        The variables of `TRANSFER`, `space` and `refused` (model, pooling, lang). A number is NaN
        only if `refused` says why.

    Raises:
        ConfigError: a name is not in both stores, or a model is another one in either.
        StoreError: an array cannot be read.
    """
    import xarray

    require_permutations(permutations)
    names = _in_both("models", models, source.models, target.models)
    for name in names:
        require_same_model(source, target, name)
    both = [{x for name in names for x in run.model(name).poolings} for run in (source, target)]
    axes = (
        names,
        _in_both("poolings", poolings, source.model(names[0]).poolings, both[0] & both[1]),
        _in_both("languages", languages, source.languages, target.languages),
    )
    chosen = select(source, models=names, layers=layers, poolings=axes[1], languages=axes[2])
    shape = tuple(len(axis) for axis in axes)
    words = {name: np.full(shape, "", object) for name in ("best_layer", "space", "refused")}
    columns = {name: np.full(shape, np.nan) for name in TRANSFER if name not in words}
    words["refused"][:] = "the model has no such layer and pooling in both stores"
    known = {bytes(row) for row in np.asarray(source.samples.text_sha256)}

    def fill(i_model: int, i_lang: int) -> None:
        name, lang = chosen.models[i_model], chosen.languages[i_lang]
        removed = _shared_units(target, lang, known)
        for i_pooling, pooling in enumerate(chosen.poolings):
            at = (i_model, i_pooling, i_lang)
            best = _best_layer(source, name, lang, pooling, chosen.layers)
            if best is None:
                words["refused"][at] = "no layer has an AUC in the first store, see separation"
                continue
            columns["source_auc"][at], columns["source_low"][at] = best.auc, best.low
            columns["source_high"][at], words["best_layer"][at] = best.high, best.layer
            columns["removed"][at] = int(removed.sum())
            for (cells,) in read_cells(
                target,
                [name],
                lang,
                layers=[best.layer],
                poolings=[pooling],
                permutations=permutations,
            ):
                numbers, words["space"][at], words["refused"][at] = _tested(
                    cells, best, source.model(name), removed
                )
                for column, number in numbers.items():
                    columns[column][at] = number

    in_parallel(fill, [(i, j) for i in range(shape[0]) for j in range(shape[2])], progress)
    dims = ("model", "pooling", "lang")
    return xarray.Dataset(
        {
            name: (dims, column, {"definition": (COLUMNS | TRANSFER)[name]})
            for name, column in (
                columns | {name: column.astype(str) for name, column in words.items()}
            ).items()
        },
        coords={dim: list(axis) for dim, axis in zip(dims, axes, strict=True)},
        attrs={
            "source": str(source.place),
            "target": str(target.place),
            "confidence": 0.95,
            "permutations": permutations,
            **told(target, chosen.models, chosen.poolings),
        },
    )


def _in_both(
    what: str, asked: Names, first: Collection[str], second: Collection[str]
) -> tuple[str, ...]:
    """The names of both stores, of those that were asked for, in the order of the first.

    Raises:
        ConfigError: there is none, or one that was asked for is missing in one of them.
    """
    both = [name for name in first if name in second]
    wanted = both if asked is None else listed(asked)
    if not wanted or not set(wanted) <= set(both):
        raise ConfigError(
            f"transfer: {what}: got {', '.join(wanted) or 'none'}, expected some that are in both "
            f"stores: {', '.join(both) or 'there are none'}"
        )
    return tuple(name for name in both if name in wanted)


def _shared_units(target: "Run", lang: str, known: set[bytes]) -> Tensor:
    """[texts of the language] bool, whether a text or one of its unit is among the known ones."""
    digests = np.asarray(target.samples.text_sha256[target.lang_range(lang)])
    same = np.array([bytes(row) in known for row in digests], bool)
    unit = units_of(target, lang).unit
    return torch.from_numpy(np.isin(unit, unit[same]))


class _Best(NamedTuple):
    """The layer whose texts are told apart best along the direction of the other folds."""

    layer: str
    auc: float
    low: float
    high: float
    direction: Tensor
    """[P], difference of the class means of all texts, in the projection."""


def _best_layer(
    run: "Run", model: str, lang: str, pooling: str, layers: Sequence[str]
) -> _Best | None:
    """Choose the layer; None if no layer has an AUC."""
    best: _Best | None = None
    for (cells,) in read_cells(run, [model], lang, layers=layers, poolings=[pooling]):
        estimate, _ = metric("auc_direction").estimate(cells)
        for i, (layer, _) in enumerate(cells.names):
            auc, low, high = (float(x[i]) for x in (estimate.value, estimate.low, estimate.high))
            one = _Best(layer, auc, low, high, cells.projected_shift[i])
            if one.auc > (best.auc if best else -math.inf):
                best = one
    return best


class _Tested(NamedTuple):
    """How the texts of the second store lie along a direction of the first."""

    numbers: dict[str, float]
    space: str
    refused: str


def _tested(cells: Cells, best: _Best, source: "ModelStore", removed: Tensor) -> _Tested:
    """Score the texts that are left, of one cell."""
    scores, space = _scores(cells, best, source)
    if scores is None:
        return _Tested(
            {},
            "",
            "it was run without --basis of the first store, and the projections of both differ",
        )
    left = ~removed[cells.kept]
    texts = cells.resamples.keep(left)
    counts = torch.bincount(texts.labels, minlength=2).tolist()
    numbers = {"target_n0": float(counts[0]), "target_n1": float(counts[1])}
    if min(counts) < MIN_TEXTS:
        why = f"{counts[0]}+{counts[1]} texts are left, {MIN_TEXTS} of each label are needed"
        return _Tested(numbers, space, why)
    together = torch.zeros_like(texts.labels)
    auc, low, high = auc_with_ends(
        scores[left], texts.labels, texts.unit, together, copy=texts.copy
    )
    own, _ = fold_auc(cells.stored("heldout_score")[0, left], texts.labels, cells.fold[left])
    labellings = FoldLabellings(texts.labellings, together)
    alike = scores[left].float()[:, None].expand(-1, labellings.member.shape[1]).contiguous()
    null = labelled_auc(alike, labellings)[1]
    p = permutation_p(null[0], null[1:]) if len(null) > 1 else torch.tensor(torch.nan)
    values = {"auc": auc, "low": low, "high": high, "p": p, "own_auc": own}
    return _Tested(numbers | {f"target_{k}": float(v) for k, v in values.items()}, space, "")


def _scores(cells: Cells, best: _Best, source: "ModelStore") -> tuple[Tensor | None, str]:
    """[n], the texts of a cell along the direction of another store, and in which space."""
    model = cells.window.model
    bases = model.attrs.get("bases", [])
    if source.identity in bases and model.has("basis_score"):
        scores = cells.stored("basis_score")[0, :, bases.index(source.identity)]
        if bool(scores.isfinite().all()):
            return scores, EXACT
    width = source.read("class_mean", layer=0, pooling=0, lang=0).shape[-1]
    same = model.seed == source.seed and cells.shift.shape[-1] == width
    if not same or cells.projected.shape[-1] != len(best.direction):
        return None, ""
    return cells.projected[0] @ best.direction, APPROXIMATE
