"""What fewer texts would have given: metrics of sub-samples of a store."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..data import kinds
from ..errors import ConfigError
from ..threads import in_parallel
from .cells import Cells
from .families import choose
from .metric import Metric, Metrics
from .moments import shift_noise
from .probe import fold_texts
from .reading import read_cells
from .selection import Names, paired_languages, select
from .settings import told
from .states import Window
from .uncertainty import unit_sums

if TYPE_CHECKING:
    import xarray

    from ..store import Run

METRICS = (
    *("rho", "rho_adjusted", "mean_shift", "silhouette", "energy_distance"),
    *("auc_direction", "accuracy_direction", "dprime", "auc_probe", "accuracy_probe"),
    *("paired_accuracy", "paired_effect", "paired_shift"),
)
"""Metrics that sub-samples have: they are the same in all rotations of the space, and need no
components."""
LEAST = 25
"""Texts of the smaller class in the smallest sub-sample; each next one has twice as many."""
EVERY, EXACT = "all", "full width"
"""The sizes of all texts, in the projection and exactly."""
_NUMBERS = ("value", "low", "high")


def curve(
    run: "Run",
    *,
    metrics: Metrics = ("rho_adjusted", "auc_direction"),
    models: Names = None,
    layers: Names = "-1",
    poolings: Names = None,
    languages: Names = None,
    draws: int = 10,
    seed: int = 0,
    paired: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "xarray.Dataset":
    """Compute metrics of sub-samples of 25, 50, 100, .. texts of each label, up to all.

    A metric that does not depend on the number of texts is level; a held-out one rises until its
    direction is known. A sub-sample has whole units (pairs, clusters), as many of each label as
    their share in the language; 25 are of the rarer label. States are in the random projection,
    where every statistic can be computed again; the last row has the exact one of all texts.

    Args:
        run: an open store.
        metrics: of `METRICS`.
        models, layers, poolings, languages: as in `separation`.
        draws: sub-samples of each size, of which value and interval are the mean.
        seed: of the sub-samples.
        paired, progress: as in `separation`.

    Returns:
        Variables (metric, model, layer, pooling, lang, size): `value`, `low`, `high`, which are the
        mean over the sub-samples, and `refused`; `n0`, `n1` without `metric`. `size` is 25, 50, ..,
        `all`, `full width`.

    Raises:
        ConfigError: a name is not in the store, or a metric has no curve.
        StoreError: an array cannot be read.
    """
    import xarray

    family = choose(metrics)
    if unknown := [metric.name for metric in family if metric.name not in METRICS]:
        raise ConfigError(
            f"curve: got {', '.join(unknown)}, expected some of {', '.join(METRICS)}: others need "
            "more than the projection holds"
        )
    if draws < 1:
        raise ConfigError(f"draws: got {draws}, expected a number above 0")
    chosen = select(run, models=models, layers=layers, poolings=poolings, languages=languages)
    paired_languages(run, chosen.languages, paired)
    sizes = _sizes(run, chosen.languages)
    axes = (chosen.models, chosen.layers, chosen.poolings, chosen.languages, sizes)
    shape = (len(family), *(len(axis) for axis in axes))
    columns = {name: np.full(shape, np.nan) for name in _NUMBERS}
    refused = np.full(shape, "the model has no such layer or pooling", object)
    counts = np.zeros((2, *shape[1:]), np.int64)

    def fill(i_model: int, i_lang: int) -> None:
        for (cells,) in read_cells(
            run,
            [chosen.models[i_model]],
            chosen.languages[i_lang],
            layers=chosen.layers,
            poolings=chosen.poolings,
            paired=paired is not False,
        ):
            i_layers, i_poolings = chosen.positions(cells.names)
            for i_size, size in enumerate(sizes):
                samples = _samples(cells, size, draws, seed)
                where = (i_model, i_layers, i_poolings, i_lang, i_size)
                counts[(slice(None), *where)] = samples[0].count.numpy()[:, None] if samples else 0
                for i_metric, metric in enumerate(family):
                    numbers, reasons = _mean(samples, metric, len(cells.index))
                    refused[(i_metric, *where)] = reasons
                    for name, number in zip(_NUMBERS, numbers, strict=True):
                        columns[name][(i_metric, *where)] = number.numpy()

    jobs = [(i, j) for i in range(len(chosen.models)) for j in range(len(chosen.languages))]
    in_parallel(fill, jobs, progress)
    dims = ("metric", "model", "layer", "pooling", "lang", "size")
    return xarray.Dataset(
        {
            **{name: (dims, column) for name, column in columns.items()},
            "refused": (dims, refused.astype(str)),
            "n0": (dims[1:], counts[0]),
            "n1": (dims[1:], counts[1]),
        },
        coords={
            "metric": [metric.name for metric in family],
            "space": ("metric", ["projection"] * len(family)),
            "definition": ("metric", [metric.definition for metric in family]),
            **{dim: list(axis) for dim, axis in zip(dims[1:], axes, strict=True)},
        },
        attrs={
            "confidence": 0.95,
            "draws": draws,
            "seed": seed,
            **told(run, chosen.models, chosen.poolings),
        },
    )


def _sizes(run: "Run", languages: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the sizes, for the language with most texts."""
    most = max(
        int(np.bincount(run.samples.label[run.lang_range(lang)], minlength=2).min())
        for lang in languages
    )
    sizes, size = [], LEAST
    while size < most:
        sizes.append(str(size))
        size *= 2
    return (*sizes, EVERY, EXACT)


def _samples(cells: Cells, size: str, draws: int, seed: int) -> list[Cells]:
    """Sub-samples of a size; none if there are no more texts than that."""
    if size == EXACT:
        return [cells]
    everything = torch.ones(len(cells.labels), dtype=torch.bool)
    if size == EVERY:
        return [_drawn(cells, everything)]
    share = int(size) / float(cells.count.min())
    if share >= 1:
        return []
    return [_drawn(cells, _units(cells, share, seed, i)) for i in range(draws)]


def _units(cells: Cells, share: float, seed: int, i: int) -> Tensor:
    """[n] bool, the texts of a share of the units of each kind, drawn at random."""
    unit = cells.unit.numpy()
    kind = kinds(cells.labels.numpy(), unit)
    rng = np.random.default_rng([seed, i])
    inside = np.zeros(len(kind), bool)
    for number in range(3):
        alike = rng.permutation(np.flatnonzero(kind == number))
        inside[alike[: round(share * len(alike))]] = True
    return torch.from_numpy(inside[unit])


def _mean(samples: list[Cells], metric: Metric, number: int) -> tuple[list[Tensor], list[str]]:
    """Mean value and interval of a metric over sub-samples, and for each cell why not, or ""."""
    if not samples:
        nothing = torch.full((number,), torch.nan, dtype=torch.float64)
        return [nothing] * 3, ["the language has no more texts"] * number
    results = [metric.estimate(cells) for cells in samples]
    numbers = [
        torch.stack([getattr(estimate, name) for estimate, _ in results]).mean(0)
        for name in _NUMBERS
    ]
    each = zip(*(reasons for _, reasons in results), strict=True)
    return numbers, [next(filter(None, reasons), "") for reasons in each]


@dataclass(frozen=True, eq=False)
class _Drawn(Window):
    """What a store would hold of some texts whose states are the projected ones."""

    arrays: dict[str, Tensor] = None  # type: ignore[assignment]  # always given
    """By name, [1, cell, ...]."""

    def has(self, name: str) -> bool:
        """Whether an array is there."""
        return name in self.arrays

    def read(self, name: str) -> Tensor:
        """An array, [1, cell, ...]."""
        return self.arrays[name]


def _drawn(cells: Cells, inside: Tensor) -> Cells:
    """The cells of some of the texts, in the projection: inside [n] bool."""
    x = cells.projected[:, inside]
    x = x - x.mean(-2, keepdim=True)
    resamples = cells.resamples.keep(inside)
    y, fold = resamples.labels, cells.fold[inside]
    means = torch.stack([x[:, y == c].mean(-2) for c in (0, 1)], -2)
    part = (x - means[:, y]) * ((2.0 * y - 1) / torch.bincount(y)[y])[:, None]
    unit = unit_sums(part.transpose(-1, -2), resamples.unit).transpose(-1, -2)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    arrays = {
        "projected": x,
        "class_mean": means,
        "class_var": torch.stack([x[:, y == c].var(-2) for c in (0, 1)], -2),
        "class_sqdist": (x[:, :, None] - means[:, None]).square().sum(-1),
        "pair_sum": torch.stack([distances[..., y == c].sum(-1) for c in (0, 1)], -1),
        "heldout_score": _held_out_scores(x, y, fold),
        "noise": shift_noise(unit, 0)[:, None],
    }
    return replace(
        cells,
        window=_Drawn(
            cells.window.source,
            slice(0, 1),
            arrays={name: array[None] for name, array in arrays.items()},
        ),
        index=[(0, i) for i in range(len(cells.index))],
        kept=torch.ones(len(y), dtype=torch.bool),
        resamples=resamples,
        fold=fold,
        own_null=True,
        lone=None,
    )


def _held_out_scores(x: Tensor, labels: Tensor, fold: Tensor) -> Tensor:
    """[cell, n], places along the difference of the class means of the other folds.

    Args:
        x: [cell, n, P] float64, labels, fold: [n] int64.
    """
    scores = torch.full(x.shape[:-1], torch.nan, dtype=x.dtype)
    for inside in fold_texts(fold):
        rest = fold != fold[inside[0]]
        low, high = (x[:, rest & (labels == c)].mean(-2) for c in (0, 1))
        direction = torch.nn.functional.normalize(high - low, dim=-1)
        midpoint = ((low + high) / 2 * direction).sum(-1, keepdim=True)
        scores[:, inside] = (x[:, inside] @ direction[..., None]).squeeze(-1) - midpoint
    return scores
