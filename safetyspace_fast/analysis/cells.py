"""The states of one language's texts in some layers and poolings of a model.

A cell is one layer and pooling. Cells with the same texts are computed together: one matrix product
serves all of them.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    cast,
)

import numpy as np
import torch
from torch import Tensor

from ..ops import (
    STATISTICS,
    FoldLabellings,
    equal_units,
    labelled_statistics,
    length_terms,
    robust_scale,
)
from ..ops.distance_sums import labelled_distances
from ..store.layout import COMPONENTS, ROW_ARRAYS
from .moments import (
    Moments,
    moments,
    principal_axes,
    products,
    shift_noise,
    union_components,
    varies,
)
from .rounding import roundoff
from .selection import has_pairs, is_paired, partners, shared_units, units_of
from .uncertainty import Resamples, draw, stretch, trials, unit_sums

if TYPE_CHECKING:
    from ..store import ModelStore, Run

MIN_TEXTS = 10
"""Below this many texts in a class every number would be noise."""
WORKING_BYTES = 64 << 20
"""Stored rows of one language that are in memory at once."""
Space = Literal["own", "base", "union"]
"""Components of the model itself, of the base model, or of both models together."""


class Refusal(Exception):  # noqa: N818 - not an error: an answer
    """A metric cannot be computed; results show the message instead of the number."""


@dataclass(frozen=True, eq=False)
class Window:
    """Stored arrays of one model, one language and some neighbouring layers; each is read once."""

    model: "ModelStore"
    lang: int
    samples: slice
    layers: slice
    _arrays: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

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
            array = self.model.read(name, layer=self.layers, samples=self.samples, lang=self.lang)
            self._arrays[name] = torch.from_numpy(np.ascontiguousarray(array))
        return self._arrays[name]


class Resampled(NamedTuple):
    """A function of class moments, for the texts themselves and for every resample."""

    value: Tensor
    """[cell, ...]."""
    draws: Tensor
    """[cell, ..., bootstraps]."""
    null: Tensor
    """[cell, ..., 1 + permutations], the true labels first."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Some layers and poolings with the same n texts; arrays are [cell, ...]."""

    window: Window
    index: list[tuple[int, int]]
    """Layer and pooling of each cell, as numbers of the store."""
    kept: Tensor
    """[texts of the language] bool, True for the n texts whose states are finite."""
    resamples: Resamples
    """Of the n texts."""
    fold: Tensor
    """[n] int64."""
    force: bool = False
    """Compute covariances even with fewer than ten texts per class and component."""
    constant: bool = False
    """Whether all states of a cell are within one rounding: then no metric is defined."""
    group: "Sequence[Cells]" = field(default=(), repr=False)
    """These cells of all models that are read together, the base model first."""
    space: Space = "own"
    """Whose components `coords` are in."""
    own_null: bool = False
    """Whether these are the texts and the units that the store's permutations are of."""
    lone: Tensor | None = None
    """[texts of the language] int64, class of each text that is left out because it has no partner,
    but is in the sums and means of the store; -1 for all others. None if there is none."""
    lexical: Tensor | None = None
    """[n] float64, held-out scores of the texts' characters; None in stores of earlier versions."""
    # Any: `once` restores the type of each result.
    _results: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def compared(self) -> bool:
        """Whether these are the cells of a comparison, which needs no p of either model."""
        return len(self.group) > 1

    @property
    def base(self) -> "Cells":
        """The cells of the base model, whose kernel widths both models use; else these cells."""
        return self.group[0] if self.group else self

    @property
    def names(self) -> list[tuple[str, str]]:
        """Layer and pooling of each cell, by name."""
        model = self.window.model
        return [(model.hookpoints[layer], model.poolings[pooling]) for layer, pooling in self.index]

    @property
    def labels(self) -> Tensor:
        """[n] int64, 1 harmful, 0 harmless."""
        return self.resamples.labels

    @property
    def unit(self) -> Tensor:
        """[n] int64, texts that are one unit of evidence have the same number."""
        return self.resamples.unit

    @cached_property
    def count(self) -> Tensor:
        """[2] float64, texts in each class."""
        return torch.bincount(self.labels, minlength=2).double()

    @cached_property
    def units(self) -> Tensor:
        """[2] float64, see `ops.equal_units`."""
        return equal_units(self.labels, self.unit)

    @property
    def growth(self) -> Tensor:
        """[n] float64, factor for deviations from the mean of a class of few units."""
        return (self.units / (self.units - 1)).sqrt()[self.labels]

    @property
    def trials(self) -> float:
        """See `uncertainty.trials`."""
        return trials(self.units)

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of what is estimated from the spread inside both classes."""
        return max(float(self.units.min()) - 1, 1.0)

    # Copies ----------------------------------------------------------------------------------

    @cached_property
    def copy(self) -> Tensor | None:
        """[n] int64, equal texts of one label share a number; None if there are none."""
        copy = self.resamples.copy
        return copy if len(self.first) < len(copy) else None

    @cached_property
    def copies(self) -> Tensor | None:
        """[n] float64, how often each text is in its class; None if every text is there once."""
        return None if self.copy is None else torch.bincount(self.copy)[self.copy].double()

    @property
    def texts(self) -> str:
        """What is counted in messages: `texts`, or `different texts` where texts have copies."""
        return "texts" if self.copies is None else "different texts"

    @cached_property
    def first(self) -> Tensor:
        """[different texts] int64, index of the first copy of each text of each class."""
        return torch.from_numpy(np.unique(self.resamples.copy.numpy(), return_index=True)[1])

    @cached_property
    def different(self) -> Tensor:
        """[2] int64, different texts in each class."""
        return torch.bincount(self.labels[self.first], minlength=2)

    @cached_property
    def effective(self) -> Tensor:
        """[1 + permutations, 2] float64, texts without copies whose mean would vary as much.

        n^2 / sum of m_i over the n texts of a class, each there m_i times (Kish 1965).
        """
        count = self.resamples.class_counts(bootstrap=False)
        if self.copies is None:
            return count
        ones = self.resamples.labellings @ self.copies
        return count.square() / torch.stack([self.copies.sum() - ones, ones], -1)

    @cached_property
    def mean_counts(self) -> Tensor:
        """[1 + permutations, 2] float64, what S of a class is divided by for that of its mean."""
        count = self.resamples.class_counts(bootstrap=False)
        # S counts on n different texts: it is too small by (1 - 1/effective)/(1 - 1/n).
        return count if self.copies is None else (self.effective - 1) * count / (count - 1)

    @cached_property
    def stretch(self) -> Tensor:
        """[n] float64, see `uncertainty.stretch`, for deviations from the class means."""
        factor = torch.empty(len(self.labels), dtype=torch.float64)
        for label in (0, 1):
            inside = self.labels == label
            factor[inside] = stretch(self.resamples.copy[inside])
        return factor

    def noise_of_units(self, noise: Tensor) -> Tensor:
        """Sum over the copies of each text: noise [cell, n, k] -> [cell, unit, k]."""
        if self.copies is None:
            return noise
        return unit_sums(noise.transpose(-1, -2), self.unit).transpose(-1, -2)

    @cached_property
    def independent(self) -> Tensor:
        """[] float64, N without copies for which rho averages as much: 1/(N-1)."""
        if self.copies is None:
            return self.count.sum()
        noise = 1 / self.effective[0]
        between = self.count.prod() / self.count.sum() * noise.sum()
        return 1 + (between + (self.count * (1 - noise)).sum()) / between

    # -----------------------------------------------------------------------------------------

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

    # Pairs -----------------------------------------------------------------------------------

    @cached_property
    def paired(self) -> bool:
        """Whether every text has a partner."""
        return bool((torch.bincount(self.resamples.pair) == 2).all())

    @cached_property
    def partners(self) -> Tensor:
        """[pairs, 2] int64, index of the harmless and of the harmful text of each pair."""
        order = torch.argsort(self.resamples.pair * 2 + self.labels)
        return order.reshape(-1, 2)

    @cached_property
    def flips(self) -> Tensor:
        """[1 + permutations, pairs], -1 where a permutation swaps a pair, else 1."""
        return 2 * self.resamples.labellings[:, self.partners[:, 1]] - 1

    def pair_differences(self, values: Tensor) -> Tensor:
        """Harmful minus harmless text of each pair: values [..., n] -> [..., pairs]."""
        return values[..., self.partners[:, 1]] - values[..., self.partners[:, 0]]

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
        x, y = self.projected, self.labels
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
        number = 1 if self.compared else len(self.resamples.labellings)
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

    @property
    def alone(self) -> bool:
        """Whether every text is a unit of its own, or with its copies."""
        return int(self.unit.max()) == int(self.resamples.copy.max())

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

    # Components ------------------------------------------------------------------------------

    @property
    def basis(self) -> "Sequence[Cells]":
        """The cells whose texts define the components."""
        return {"own": (self,), "base": (self.base,), "union": self.group}[self.space]

    @cached_property
    def coords(self) -> Tensor:
        """[cell, n, component], coordinates in the components of `basis`.

        Raises:
            Refusal: the store does not have them.
        """
        if self.space == "union":
            own = self.stored("pca_coords").nan_to_num(0.0)
            return own @ (self.stored("pca_components") @ self.base.union.transpose(-1, -2))
        if self.basis[0] is self:
            return self.stored("pca_coords")
        coords = self.by_basis("basis_coords", self.base)
        if coords is None or bool(coords.isnan().all()):
            model, other = self.window.model.name, self.base.window.model.name
            raise Refusal(
                f"{model} was not expressed in the components of {other}: run {other} first, then "
                f"{model}, or use components of their own"
            )
        return coords

    @cached_property
    def union(self) -> Tensor:
        """[cell, component, D], see `union_components`, of all models of the group.

        Raises:
            Refusal: the models differ in hidden size, or the components in the store are coarse.
        """
        names = "pca_coords", "pca_components"
        coords, components = ([x.stored(n).nan_to_num(0.0) for x in self.group] for n in names)
        if len({x.shape[-1] for x in components}) > 1:
            raise Refusal("models of different hidden sizes have no components in common")
        if not all(cells.window.has("fold_mean") for cells in self.group):
            raise Refusal("the store is of an earlier version: run the models again")
        return union_components(coords, components)

    def by_basis(self, name: str, base: "Cells") -> Tensor | None:
        """A stored array, [cell, n, ...], of these states as seen from another model, or None."""
        bases = self.window.model.attrs.get("bases", [])
        other = base.window.model.name
        if other not in bases or not self.window.model.has(name):
            return None
        return self.stored(name)[:, :, bases.index(other)]

    def components(self, k: int) -> Tensor:
        """[cell, n, k], coordinates in the first `k` components.

        Raises:
            Refusal: there are fewer.
        """
        coords = self.coords[..., :k]
        if coords.shape[-1] < k or not bool(coords.isfinite().all()):
            raise Refusal(f"there are fewer than {k} principal components")
        return coords

    @cached_property
    def _still(self) -> list[Moments]:
        """Of each cell, the class moments [R] of every resample in components that do not move."""
        count = self.resamples.class_counts()
        return [
            moments(self.resamples.class_sums(products(x)), count, x.shape[-1]) for x in self.coords
        ]

    @cached_property
    def _axes(self) -> list[Tensor]:
        """Of each cell, [bootstraps, coordinate, component]."""
        if self.basis[0] is not self:
            return self.basis[0]._axes
        drawn = slice(1, 1 + len(self.resamples.counts))
        each = zip(*(cells._still for cells in self.basis), strict=True)
        return [principal_axes([still.of(drawn) for still in models]) for models in each]

    @property
    def axes(self) -> Tensor:
        """[cell, bootstraps, coordinate, component], components of each bootstrap, one a column."""
        return torch.stack(self._axes)

    @cached_property
    def moments(self) -> Moments:
        """Class moments in the components, [cell, R]; see `Resamples.class_sums`.

        A bootstrap has its own components, as a new sample of texts would: those of its texts in
        `basis`, computed inside `coords`. A permutation keeps the components.
        """
        drawn = slice(1, 1 + len(self.resamples.counts))
        for still, axes in zip(self._still, self._axes, strict=True):
            turned = still.of(drawn).along(axes)
            still.mean[drawn], still.cov[drawn] = turned.mean, turned.cov
        mean, cov = (torch.stack([getattr(x, y) for x in self._still]) for y in ("mean", "cov"))
        return Moments(self.resamples.class_counts(), mean, cov)

    def influence(self, k: int, statistic: Callable[[Moments], Tensor]) -> Tensor:
        """First-order effect of each text on a function of the moments in the first `k` components.

        The derivatives by class means, by covariances and by the angles between components are
        exact. A text x turns component i towards component j by x_i x_j over the difference of
        their variances (Anderson 1963).

        Args:
            k: how many components.
            statistic: gives [cell, R] from moments; it does not change if the components are
                turned among themselves.

        Returns:
            [cell, n] float64; 0 where the statistic has no derivative.
        """
        x = self.coords.nan_to_num(0.0)
        mean, cov = (part[:, :1].nan_to_num(0.0) for part in (self.moments.mean, self.moments.cov))
        turn = x.new_zeros(len(x), k, x.shape[-1] - k)
        leaves = [part.requires_grad_() for part in (mean, cov, turn)]
        axes = torch.cat([torch.eye(k).to(x).expand(len(x), k, k), turn.transpose(-1, -2)], -2)
        value = statistic(Moments(self.count[None], mean, cov).along(axes[:, None]))
        slopes = torch.autograd.grad(value.sum(), leaves)
        on_mean, on_cov, on_turn = (slope.nan_to_num(0.0, 0.0, 0.0) for slope in slopes)
        influence = self.turning(on_turn)
        about = self.about_class_means(x)
        for label in (0, 1):
            inside, n = self.labels == label, self.count[label]
            some = about[:, inside]
            square = ((some @ on_cov[:, 0, label]) * some).sum(-1)
            influence[:, inside] += (some @ on_mean[:, 0, label, :, None]).squeeze(-1) / n
            influence[:, inside] += (square - square.mean(-1, keepdim=True)) / (n - 1)
        return influence

    def turning(self, slopes: Tensor) -> Tensor:
        """[cell, n], influence of each text that comes from turning the components.

        Args:
            slopes: [cell, k, rest], derivatives by the angle of each of `k` components towards
                each of the rest.
        """
        k = slopes.shape[1]
        coords = [cells.coords.nan_to_num(0.0) for cells in self.basis]
        seen, rest = [x[..., :k] for x in coords], [x[..., k:] for x in coords]
        gap = _sum_squares(seen)[..., :, None] - _sum_squares(rest)[..., None, :]
        turn = torch.where(gap > 0, slopes / gap, 0.0)
        return torch.stack([((x @ turn) * y).sum(-1) for x, y in zip(seen, rest, strict=True)]).sum(
            0
        )

    def resampled(self, k: int, statistic: Callable[[Moments], Tensor]) -> Resampled:
        """Apply a function to the class moments of every resample, in the first `k` components.

        Raises:
            Refusal: there are fewer components.
        """
        self.components(k)  # refuses if there are fewer
        every = statistic(self.moments.leading(k))
        end = 1 + len(self.resamples.counts)
        null = torch.cat([every[..., :1], every[..., end:]], -1)
        return Resampled(every[..., 0], every[..., 1:end], null)

    def labelled(self, k: int, statistic: Callable[[Moments], Tensor]) -> Tensor:
        """[cell, ..., 1 + permutations], `resampled(k, statistic).null`."""
        every, drawn = self.moments.leading(k), len(self.resamples.counts)
        kept = [0, *range(1 + drawn, len(every.count))]
        return statistic(Moments(every.count[kept], every.mean[:, kept], every.cov[:, kept]))


def values_in(group: Sequence[Cells], space: Space) -> tuple[Cells, ...]:
    """The same cells of two models in other components, without bootstraps: for values alone."""
    found: list[Cells] = []
    for cells in group:
        resamples = replace(cells.resamples, counts=cells.resamples.counts[:0])
        found.append(replace(cells, group=found, space=space, resamples=resamples))
    return tuple(found)


def _sum_squares(models: Sequence[Tensor]) -> Tensor:
    """Sum over all texts of all models: each [cell, n, k] -> [cell, k]."""
    return torch.stack([x.square().sum(-2) for x in models]).sum(0)


P = ParamSpec("P")
T = TypeVar("T")


def once(function: Callable[Concatenate[Cells, P], T]) -> Callable[Concatenate[Cells, P], T]:
    """Cache the result of a function of cells and hashable arguments in the cells."""

    @wraps(function)
    def remembered(cells: Cells, /, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (function, args, tuple(sorted(kwargs.items())))
        if key not in cells._results:
            cells._results[key] = function(cells, *args, **kwargs)
        return cast(T, cells._results[key])

    return remembered


def read_cells(
    run: "Run",
    models: Sequence[str],
    lang: str,
    *,
    layers: Sequence[str],
    poolings: Sequence[str],
    bootstraps: int = 0,
    permutations: int = 0,
    seed: int = 0,
    paired: bool = True,
    force: bool = False,
    space: Space = "own",
) -> Iterator[tuple[Cells, ...]]:
    """Read one language of one or two models, some layers at a time.

    Args:
        run: an open store.
        models: names; of two, the first is the base, and both have the same layers and poolings.
        lang: a name.
        layers, poolings: names; those that a model does not have are left out.
        bootstraps, permutations, seed: see `uncertainty.draw`.
        paired: resample pairs as units where texts have partners, and leave out texts without one
            in languages of pairs (`selection.is_paired`).
        force, space: see `Cells`.

    Yields:
        The cells of each model; all have the same layers, poolings and texts.
    """
    stores = [run.model(name) for name in models]
    i_lang = run.languages.index(lang)
    span = run.lang_range(lang)
    fold = torch.from_numpy(np.asarray(run.samples.fold[span]).astype(np.int64))
    scores = run.samples.lexical_score
    lexical = None if scores is None else torch.from_numpy(scores[span].astype(np.float64))
    units = units_of(run, lang, paired=paired)
    partner = torch.from_numpy(partners(run, lang)) if paired and is_paired(run, lang) else None
    own_null = paired or not has_pairs(run, lang)
    resamples = draw(
        units,
        bootstraps=bootstraps,
        permutations=permutations,
        seed=seed,
        key=lang,
        shared=shared_units(run, paired=paired).get(lang) if bootstraps else None,
    )
    i_layers, i_poolings = (
        [i for i, name in enumerate(known) if name in asked]
        for known, asked in ((stores[0].hookpoints, layers), (stores[0].poolings, poolings))
    )
    cell_bytes = len(fold) * _TEXT_BYTES + (bootstraps + permutations) * _RESAMPLE_BYTES
    for some in _neighbours(i_layers, len(i_poolings) * cell_bytes):
        windows = [Window(store, i_lang, span, slice(some[0], some[-1] + 1)) for store in stores]
        each = [w.read("projected").isfinite().all(-1) for w in windows]
        finite = torch.stack(each).all(0)
        constant = torch.stack(
            [
                ~varies(w.read("class_mean"), w.read("class_var"), roundoff(w.model)).any(-1)
                for w in windows
            ]
        ).any(0)
        alike: dict[tuple[bytes, bool], list[tuple[int, int]]] = {}
        for layer in some:
            for pooling in i_poolings:
                at = (layer - some[0], pooling)
                key = (finite[at].numpy().tobytes(), bool(constant[at]))
                alike.setdefault(key, []).append((layer, pooling))
        for (mask, same), index in alike.items():
            stored = torch.frombuffer(bytearray(mask), dtype=torch.bool)
            kept = stored if partner is None else stored & stored[partner] & (partner >= 0)
            left_out = stored & ~kept
            lone = torch.where(left_out, resamples.labels, -1) if bool(left_out.any()) else None
            texts = resamples.keep(kept)
            group: list[Cells] = []
            i_layer, i_pooling = (torch.tensor(axis) for axis in zip(*index, strict=True))
            for window, own in zip(windows, each, strict=True):
                same_texts = bool((own[i_layer - some[0], i_pooling] == stored).all())
                group.append(
                    Cells(
                        window,
                        index,
                        kept,
                        texts,
                        fold[kept],
                        force,
                        same,
                        group,
                        space,
                        own_null and same_texts,
                        lone,
                        None if lexical is None else lexical[kept],
                    )
                )
            yield tuple(group)


_TEXT_BYTES = 8 * 128
"""About the size of all arrays of one text, layer and pooling in float64."""
_RESAMPLE_BYTES = 8 * 2 * 2 * COMPONENTS**2
"""About the size of the class moments of one resample, and of what is computed from them."""


def _neighbours(layers: list[int], layer_bytes: int) -> list[list[int]]:
    """Group neighbouring layers so that each group fits `WORKING_BYTES`."""
    most = max(1, WORKING_BYTES // max(1, layer_bytes))
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] + 1 == layer and len(runs[-1]) < most:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs
