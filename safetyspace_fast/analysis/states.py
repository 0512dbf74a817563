"""What a store holds of the states of some texts: full width, projection, chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from ..ops import (
    STATISTICS,
    FoldLabellings,
    labelled_statistics,
    length_terms,
    robust_scale,
)
from ..ops.distance_sums import labelled_distances
from ..store.layout import MODEL, ROW_ARRAYS
from .moments import borrowed_spread, shift_noise, varies
from .texts import MIN_TEXTS, Texts
from .uncertainty import unit_sums

if TYPE_CHECKING:
    from ..store import ModelStore


AHEAD_BYTES = 64 << 20
"""Stored layers of one model and language that are kept for later windows, at most."""
_PARTS = {False: 4, True: 16}
"""One array takes at most one of so many parts of them. By whether it has rows of texts: these are
cheap to read a few layers at a time."""
_BY_LAYER = {spec.name for spec in MODEL if spec.dims[0] == "layer"}


@dataclass(frozen=True, eq=False)
class LayerReader:
    """Arrays of one model and one language. Each is read many layers at once, for later windows.

    A chunk of an array with the axis `lang` holds all layers, so every read of a few of them
    decodes all. Of an array that does not fit into `AHEAD_BYTES`, fewer layers are read at once.
    """

    model: "ModelStore"
    lang: int
    samples: slice
    wanted: Sequence[int]
    """Layers that will be read, in order."""
    _kept: dict[str, tuple[int, Tensor]] = field(default_factory=dict, init=False, repr=False)
    """By name: number of the first layer, and [layer, pooling, ...]."""

    def read(self, name: str, layers: slice) -> Tensor:
        """Some neighbouring layers as stored, [layer, pooling, ...]; without the axis, all."""
        if name not in _BY_LAYER:
            if name not in self._kept:
                self._kept[name] = 0, self._read(name, layers)
            return self._kept[name][1]
        first, array = self._kept.get(name, (0, None))
        if array is None or not first <= layers.start < layers.stop <= first + len(array):
            self._kept.pop(name, None)  # its memory serves the next layers
            ahead = self._ahead(name, layers)
            first, array = ahead.start, self._read(name, ahead)
            if ahead.stop > layers.stop:
                self._kept[name] = first, array
        return array[layers.start - first : layers.stop - first]

    def _read(self, name: str, layers: slice) -> Tensor:
        array = self.model.read(name, layer=layers, samples=self.samples, lang=self.lang)
        return torch.from_numpy(np.ascontiguousarray(array))

    def _ahead(self, name: str, layers: slice) -> slice:
        """These layers, and those after them that will be read and fit into memory."""
        last = self.wanted[-1]
        if name in ROW_ARRAYS:  # a chunk is one layer: none is read for nothing
            last = next(i for i in range(layers.stop - 1, last + 1) if i + 1 not in self.wanted)
        if last < layers.stop:
            return layers
        none = self._read(name, slice(0))  # decodes nothing
        layer_bytes = math.prod(none.shape[1:]) * none.itemsize
        free = AHEAD_BYTES - sum(array.nbytes for _, array in self._kept.values())
        most = min(free, AHEAD_BYTES // _PARTS[name in ROW_ARRAYS]) // max(1, layer_bytes)
        return slice(layers.start, max(layers.stop, min(last + 1, layers.start + most)))


@dataclass(frozen=True, eq=False)
class Window:
    """Stored arrays of some neighbouring layers; each is read once."""

    source: LayerReader
    layers: slice
    _arrays: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def model(self) -> "ModelStore":
        """The model that the layers are of."""
        return self.source.model

    def has(self, name: str) -> bool:
        """Whether an optional array is known for the language."""
        if not self.model.has(name):
            return False
        values = self.read(name)
        unknown = values.isnan() if values.is_floating_point() else values < 0
        return not bool(unknown.all())

    def read(self, name: str) -> Tensor:
        """An array as stored, [layer, pooling, ...]."""
        if name not in self._arrays:
            self._arrays[name] = self.source.read(name, self.layers)
        return self._arrays[name]


@dataclass(frozen=True, eq=False, kw_only=True)
class States(Texts):
    """The states of n texts in some layers and poolings; arrays are [cell, ...]."""

    window: Window
    index: list[tuple[int, int]]
    """Layer and pooling of each cell, as numbers of the store."""
    kept: Tensor
    """[texts of the language] bool, True for the n texts whose states are finite."""
    constant: bool = False
    """Whether all states of a cell are within one rounding: then no metric is defined."""
    group: "Sequence[Self]" = field(default=(), repr=False)
    """These cells of all models that are read together, the base model first."""
    own_null: bool = False
    """Whether these are the texts and the units that the store's permutations are of."""
    lone: Tensor | None = None
    """[texts of the language] int64, class of each text that is left out because it has no partner,
    but is in the sums and means of the store; -1 for all others. None if there is none."""

    @property
    def compared(self) -> bool:
        """Whether these are the cells of a comparison, which needs no p of either model."""
        return len(self.group) > 1

    @property
    def base(self) -> Self:
        """The cells of the base model of a comparison; else these cells."""
        return self.group[0] if self.group else self

    @property
    def names(self) -> list[tuple[str, str]]:
        """Layer and pooling of each cell, by name."""
        model = self.window.model
        return [(model.hookpoints[layer], model.poolings[pooling]) for layer, pooling in self.index]

    def refusal(self) -> str:
        """Why no metric is defined for these cells, or an empty string."""
        if (smaller := int(self.different.min())) < MIN_TEXTS:
            return (
                f"metrics need {MIN_TEXTS} {self.texts} per class; the smaller class has {smaller}"
            )
        return "all states are identical but for rounding" if self.constant else ""

    def stored(self, name: str) -> Tensor:
        """A stored array, [cell, ...] float64, without the texts that are left out."""
        return self._rows(name, self.kept if name in ROW_ARRAYS else None)

    def _rows(self, name: str, texts: Tensor | None) -> Tensor:
        """A stored array, [cell, ...] float64; of some texts: [texts of the language] bool."""
        layer, pooling = (torch.tensor(axis) for axis in zip(*self.index, strict=True))
        chosen = self.window.read(name)[layer - self.window.layers.start, pooling]
        return (chosen if texts is None else chosen[:, texts]).double()

    # Full width ------------------------------------------------------------------------------

    @cached_property
    def shift(self) -> Tensor:
        """[cell, D], d: mean of class 1 minus mean of class 0."""
        mean = self.stored("class_mean")
        return mean[:, 1] - mean[:, 0]

    @cached_property
    def shift_sq(self) -> Tensor:
        """[cell], |d|^2.

        If texts without a partner are in the stored means, these hold the d of the pairs plus an e.
        d'(d + e) is exact, from the stored distances, and |e|^2 is that in the projection.
        """
        square = self.shift.square().sum(-1)
        if self.lone is None:
            return square
        both = self.pair_differences((self.sqdist[..., 0] - self.sqdist[..., 1]) / 2).mean(-1)
        means = []
        for mask in (self.kept, self.kept | (self.lone >= 0)):
            x, label = self._rows("projected", mask), self._all_labels[mask]
            means.append(x[:, label == 1].mean(1) - x[:, label == 0].mean(1))
        return 2 * both - square + (means[1] - means[0]).square().sum(-1)

    @property
    def _all_labels(self) -> Tensor:
        """[texts of the language] int64, -1 for texts that are in no sum of the store."""
        assert self.lone is not None
        labels = self.lone.clone()
        labels[self.kept] = self.labels
        return labels

    @cached_property
    def lone_count(self) -> Tensor:
        """[2] float64, texts in each class that are left out, but are in sums of the store."""
        none = torch.zeros(2, dtype=torch.float64)
        if self.lone is None:
            return none
        return torch.bincount(self.lone[self.lone >= 0], minlength=2).double()

    @cached_property
    def trace(self) -> Tensor:
        """[cell, 2], total variance of each class."""
        return self.stored("class_var").sum(-1)

    @cached_property
    def sqdist(self) -> Tensor:
        """[cell, n, 2], squared distance to each class mean."""
        return self.stored("class_sqdist")

    def borrowed(self, sqdist: Tensor) -> Tensor:
        """[cell, n], see `borrowed_spread`; 1 for texts of a unit that has both labels.

        These have contents in common, which must cancel. Arguments as there.
        """
        factor = borrowed_spread(sqdist, self.labels, self.units)[:, self.labels]
        return torch.where(self.mixed, 1.0, factor)

    # The projection --------------------------------------------------------------------------

    @cached_property
    def projected(self) -> Tensor:
        """[cell, n, P], centred."""
        x = self.stored("projected")
        return x - x.mean(-2, keepdim=True)

    @property
    def projected_shift(self) -> Tensor:
        """[cell, P], d in the projection."""
        low, high = (self.projected[:, self.labels == label].mean(-2) for label in (0, 1))
        return high - low

    @cached_property
    def unit_shift(self) -> Tensor:
        """[cell, unit, P], influence of each unit on the projected d."""
        return self.shift_of_units(self.projected)

    def shift_of_units(self, x: Tensor) -> Tensor:
        """Influence of each unit on the difference of the class means: x [cell, n, k]."""
        y = self.labels
        sign = (2.0 * y - 1) / self.count[y]
        part = (self.about_class_means(x) * sign[:, None]).transpose(-1, -2)
        return unit_sums(part, self.unit).transpose(-1, -2)

    @cached_property
    def shift_noise(self) -> Tensor:
        """[cell], tr V^2 of the covariance V of d."""
        if self.window.has("noise") and self._left_out_alike:
            return self.stored("noise")[:, 0]
        return shift_noise(self.unit_shift, self.projected.shape[-1])

    def about_class_means(self, x: Tensor) -> Tensor:
        """Subtract from each text the mean of its class: x [cell, n, k]."""
        means = torch.stack([x[:, self.labels == c].mean(-2) for c in (0, 1)], -2)
        return x - means[:, self.labels]

    # Chance ----------------------------------------------------------------------------------

    def null(self, name: str) -> Tensor:
        """[cell, 1 + permutations], one of `ops.STATISTICS`: of the true labels, then of others.

        At full width, as stored; where the store has none, of the projected texts.
        """
        return self._null[:, STATISTICS.index(name)]

    def permuted(self, name: str) -> Tensor:
        """[cell, permutations], one of `ops.STATISTICS`: all that the store has, else as `null`."""
        known = self.stored("null") if self.has_null else self._null
        return known[:, STATISTICS.index(name), 1:]

    @property
    def labellings_of_null(self) -> int:
        """Labellings of a null, the true one first: a comparison permutes none."""
        return 1 if self.compared else len(self.resamples.labellings)

    @property
    def has_null(self) -> bool:
        """Whether `null` is at full width."""
        return self.window.has("null") and self._left_out_alike

    @property
    def _left_out_alike(self) -> bool:
        """Whether the store's permutations and noise leave the same texts out.

        An earlier version did not leave texts without a partner out, and stored nothing of pairs.
        """
        if self.lone is None or not self.own_null:
            return self.own_null
        if not self.window.has("null"):
            return False
        pairs = self.stored("null")[:, STATISTICS.index("paired_shift"), 0]
        return bool(pairs.isfinite().all())

    @cached_property
    def _null(self) -> Tensor:
        """[cell, statistic, 1 + permutations] float64."""
        number = self.labellings_of_null
        if self.has_null:
            return self.stored("null")[..., :number]
        if number == 1 and not self.paired:  # nothing is permuted
            shape = (len(self.index), len(STATISTICS), 1)
            return torch.full(shape, torch.nan, dtype=torch.float64)
        labellings = FoldLabellings(self.resamples.labellings[:number].to(torch.uint8), self.fold)
        pair_unit = None
        if self.paired:
            pair_unit = torch.unique(self.unit[self.partners[:, 1]], return_inverse=True)[1]
        return torch.stack(
            [
                labelled_statistics(
                    x,
                    robust_scale(x),
                    labellings,
                    copy=self.copy,
                    partners=self.partners if self.paired else None,
                    pair_unit=pair_unit,
                )[0]
                for x in self.stored("projected")
            ]
        )

    def chance(self, null: Tensor, exact: float | Tensor | None = None) -> Tensor:
        """[cell], the mean of a value under chance: over the permutations of it.

        Args:
            null: [cell, 1 + permutations], values of the true labels, then of each permutation.
            exact: the mean for texts that are units of their own, where that is known.
        """
        if exact is not None and (self.alone or null.shape[-1] < 2):
            return torch.as_tensor(exact, dtype=null.dtype).expand(len(null))
        return null[:, 1:].nanmean(-1)

    @cached_property
    def nearest(self) -> Tensor:
        """[cell, n] int64, nearest other text of each text, no copy: at full width if known."""
        if self.window.has("nearest"):
            place = self.kept.cumsum(0) - 1  # of each text of the language among the n
            return place[self.stored("nearest").long()]
        found = (
            labelled_distances(x, self.resamples.labellings[:1], neighbours=True, copy=self.copy)
            for x in self.projected
        )
        return torch.stack([one.nearest for one in found])

    # Standardised dimensions -----------------------------------------------------------------

    @cached_property
    def scale(self) -> Tensor:
        """[cell, D], scale of each dimension; in stores of earlier versions its deviation."""
        if self.window.has("scale"):
            return self.stored("scale")
        var, mean = self.stored("class_var"), self.stored("class_mean")
        within = ((self.count - 1)[:, None] * var).sum(-2)
        between = self.count.prod() / self.count.sum() * (mean[:, 1] - mean[:, 0]).square()
        deviation = ((within + between) / (self.count.sum() - 1)).sqrt()
        return torch.where(varies(mean, var), deviation, torch.inf)

    # Length ----------------------------------------------------------------------------------

    @cached_property
    def length(self) -> Tensor:
        """[n, 2] float64, see `ops.length_terms`."""
        return length_terms(self.window.read("n_tokens")[self.kept])

    def less_length(self, x: Tensor) -> Tensor:
        """Subtract the regression on `length`, with the slopes inside the classes: x [cell, n, k].

        The slopes are pooled over both classes.
        """
        inside = self.about_class_means(self.length[None])[0]
        slopes = torch.linalg.pinv(inside, rtol=1e-6) @ self.about_class_means(x)
        left: Tensor = x - self.length @ slopes
        return left

    @cached_property
    def length_weights(self) -> Tensor:
        """[n] float64, a: where states are less their regression on `length`, d is the sum of a x.

        The slopes are those inside the classes, pooled: see `extract.equal_length`.
        """
        sign = (2.0 * self.labels - 1) / self.count[self.labels]
        inside = self.about_class_means(self.length[None])[0]
        weights: Tensor = sign - (sign @ self.length) @ torch.linalg.pinv(inside, rtol=1e-6)
        return weights
