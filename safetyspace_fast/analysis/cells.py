"""The cells of one language: some layers and poolings of a model, and their components.

A cell is one layer and pooling. Cells with the same texts are computed together: one matrix product
serves all of them.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from .moments import Moments, moments, principal_axes, products, union_components
from .states import States
from .texts import Refusal

Space = Literal["own", "base", "union"]
"""Components of the model itself, of the base model, or of both models together."""


class Resampled(NamedTuple):
    """A function of class moments, for the texts themselves and for every resample."""

    value: Tensor
    """[cell, ...]."""
    draws: Tensor
    """[cell, ..., bootstraps]."""
    null: Tensor
    """[cell, ..., 1 + permutations], the true labels first."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Cells(States):
    """Some layers and poolings with the same n texts, in components; arrays are [cell, ...]."""

    force: bool = False
    """Compute covariances even with fewer than ten texts per class and component."""
    space: Space = "own"
    """Whose components `coords` are in."""
    # Any: `once` restores the type of each result.
    _results: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

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

        Components of equal variance turn by a right angle at most, where the first-order effect is
        infinite: the difference of their variances counts as no smaller than twice the deviation of
        their covariance.

        Args:
            slopes: [cell, k, rest], derivatives by the angle of each of `k` components towards
                each of the rest.
        """
        k = slopes.shape[1]
        coords = [cells.coords.nan_to_num(0.0) for cells in self.basis]
        seen, rest = [x[..., :k] for x in coords], [x[..., k:] for x in coords]
        first, others = _sum_squares(seen)[..., :, None], _sum_squares(rest)[..., None, :]
        noise = 4 * first * others / self.units.sum()
        gap = ((first - others).square() + noise).sqrt()
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

    def of_means(self, draws: Tensor) -> Tensor | None:
        """Draws of a distance of the class means in components; None on pairs.

        There the components come from what pairs have in common, and the distance does not: drawn
        pairs turn the components too little for it.
        """
        return None if self.paired else draws

    def labelled(self, k: int, statistic: Callable[[Moments], Tensor]) -> Tensor:
        """[cell, ..., 1 + permutations], `resampled(k, statistic).null`."""
        every, drawn = self.moments.leading(k), len(self.resamples.counts)
        kept = [0, *range(1 + drawn, len(every.count))]
        return statistic(Moments(every.count[kept], every.mean[:, kept], every.cov[:, kept]))


def values_in(group: Sequence[Cells], space: Space) -> tuple[Cells, ...]:
    """The same cells of two models in other components, without bootstraps: for values alone."""
    views: list[Cells] = []
    for cells in group:
        resamples = replace(cells.resamples, counts=cells.resamples.counts[:0])
        views.append(replace(cells, group=views, space=space, resamples=resamples))
    return tuple(views)


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
