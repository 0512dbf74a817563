"""From stored arrays to estimates: which metric reads what, and when it is refused."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import metrics as m
from . import uncertainty as u
from .definitions import COMPONENTS, NONE, Metric

if TYPE_CHECKING:
    from ..store import ModelStore, Run

MIN_TEXTS = 10
"""Fewer texts in a class than this, and every number would be noise."""
TEXTS_PER_COMPONENT = 10
"""Metrics with a covariance need this many texts of each class for every component."""
RIDGE = 1.0
"""Strength of the ridge probe behind the null of the logistic one, which has the same."""
BLOCK_BYTES = 64 << 20
"""Stored rows of one language, or the working rows of one fit, held at once."""


Ends = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Makes an interval of value and deviation."""


class Refusal(Exception):  # noqa: N818 - not an error: an answer
    """A metric cannot be computed here; the message is the reason, shown in the number's place."""


@dataclass
class Block:
    """Texts of one language as some layers and poolings of one model hold them.

    `cells` lists (layer, pooling) indices; arrays of `read` are [cell, ...].
    """

    model: "ModelStore"
    lang: int
    span: slice
    layers: slice
    cells: list[tuple[int, int]]
    kept: Tensor
    """[texts of the language] bool: those with finite states."""
    resamples: u.Resamples
    fold: Tensor
    force: bool = False
    constant: bool = False
    """Whether all states of every cell are the same, so that nothing can be said."""
    bandwidths: dict[tuple[int, int], float] | None = None
    """Bandwidth of the Gaussian kernel per cell, where another model sets it."""
    basis: "Block | None" = None
    """The block whose components these are, inside the projection that both share; None: the
    language's own at full width, as stored."""
    cache: dict[str, Tensor] = field(default_factory=dict)
    """Arrays as stored, shared by the blocks of one read."""

    @property
    def labels(self) -> Tensor:
        """[n] int64."""
        return self.resamples.labels

    @property
    def unit(self) -> Tensor:
        """[n] int64, texts of a pair share a number."""
        return self.resamples.unit

    @cached_property
    def count(self) -> Tensor:
        """[2] float64, texts in each class."""
        return torch.bincount(self.labels, minlength=2).double()

    @cached_property
    def paired(self) -> bool:
        """Whether every text has its partner."""
        return bool((torch.bincount(self.unit) == 2).all())

    @cached_property
    def partners(self) -> Tensor:
        """[pairs, 2] int64, the harmless and the harmful text of every pair."""
        order = torch.argsort(self.unit * 2 + self.labels)
        return order.reshape(-1, 2)

    def require(self, texts: int, what: str) -> None:
        """Refuse unless both classes hold at least `texts` texts."""
        least = int(self.count.min())
        if least < texts:
            raise Refusal(f"{what} needs {texts} texts a class, the smaller has {least}")

    def stored(self, name: str) -> Tensor:
        """A stored array, [cell, ...] float64, texts that are left out removed."""
        if name not in self.cache:
            array = self.model.read(name, layer=self.layers, samples=self.span, lang=self.lang)
            self.cache[name] = torch.from_numpy(np.ascontiguousarray(array))
        whole = self.cache[name]
        layer, pooling = (torch.tensor(axis) for axis in zip(*self.cells, strict=True))
        chosen = whole[layer - self.layers.start, pooling]
        if name in _BY_TEXT:
            chosen = chosen[:, self.kept]
        return chosen.double()

    # Full width ------------------------------------------------------------------------------

    @cached_property
    def gap(self) -> Tensor:
        """[cell, D], difference of the class means."""
        mean = self.stored("class_mean")
        return mean[:, 1] - mean[:, 0]

    @cached_property
    def shift_sq(self) -> Tensor:
        """[cell], its squared length."""
        return self.gap.square().sum(-1)

    @cached_property
    def trace(self) -> Tensor:
        """[cell, 2], total variance of each class."""
        return self.stored("class_var").sum(-1)

    @cached_property
    def sqdist(self) -> Tensor:
        """[cell, n, 2], squared distance to each class mean."""
        return self.stored("class_sqdist")

    @cached_property
    def distances(self) -> tuple[Tensor, Tensor]:
        """Mean Euclidean distance to the own and to the other class, [cell, n] each."""
        return m.mean_distances(self.stored("pair_sum"), self.labels)

    # The projection --------------------------------------------------------------------------

    @cached_property
    def projected(self) -> Tensor:
        """[cell, n, P], centred."""
        x = self.stored("projected")
        return x - x.mean(-2, keepdim=True)

    @cached_property
    def unit_shift(self) -> Tensor:
        """[cell, unit, P], what every unit adds to the projected difference of means."""
        x, y = self.projected, self.labels
        sign = (2.0 * y - 1) / self.count[y]
        means = torch.stack([x[:, y == c].mean(-2) for c in (0, 1)], -2)
        part = ((x - means[:, y]) * sign[:, None]).transpose(-1, -2)
        return u.unit_sums(part, self.unit).transpose(-1, -2)

    @cached_property
    def shift_noise(self) -> Tensor:
        """[cell], tr V^2 of the covariance of the difference of means."""
        return m.shift_noise(self.unit_shift, self.projected.shape[-1])

    @cached_property
    def projection_null(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Observed value and null of the moment metrics in the projection."""
        x = self.projected
        sums = self.resamples.class_sums(torch.cat([x, x.square()], -1), bootstrap=False)
        count = self.resamples.class_counts(bootstrap=False)
        mean, var = m.diagonal_moments(sums, count)
        shift_sq, trace = (mean[..., 1, :] - mean[..., 0, :]).square().sum(-1), var.sum(-1)
        whole = {
            "rho": m.between_ratio(shift_sq, trace, count),
            "mean_shift": m.mean_shift(shift_sq, trace, count),
        }
        return {name: (value[:, 0], value[:, 1:]) for name, value in whole.items()}

    # Components and distances ----------------------------------------------------------------

    @cached_property
    def coords(self) -> Tensor:
        """[cell, n, component], coordinates in all components, those of largest variance first."""
        if self.basis is None:
            return self.stored("pca_coords")
        x = self.basis.projected
        x = x / x.abs().amax((-1, -2), keepdim=True).clamp_min(1e-300)
        axes: Tensor = torch.linalg.eigh(x.transpose(-1, -2) @ x)[1].flip(-1)
        rank = min(axes.shape[-1], self.gap.shape[-1])
        return self.projected @ axes[..., :rank]

    def components(self, k: int) -> Tensor:
        """[cell, n, k], coordinates in the first `k` components."""
        coords = self.coords[..., :k]
        if coords.shape[-1] < k or not bool(coords.isfinite().all()):
            raise Refusal(f"there are fewer than {k} components here")
        return coords

    def whitened(self, k: int) -> Tensor:
        """[cell, n, k], components less their class's mean, uncorrelated and of equal variance."""
        x, y = self.components(k), self.labels
        means = torch.stack([x[:, y == c].mean(-2) for c in (0, 1)], -2)
        return m.whiten(x - means[:, y])

    @cached_property
    def _moments(self) -> tuple[m.Moments, Tensor]:
        count = self.resamples.class_counts()
        drawn = slice(1, 1 + len(self.resamples.counts))
        parts, turns = [], []
        for i, x in enumerate(self.coords):
            whole = m.moments(self.resamples.class_sums(m.products(x)), count, x.shape[-1])
            own = m.Moments(count[drawn], whole.mean[drawn], whole.cov[drawn])
            if self.basis is None or self.basis is self:
                axes = own.axes()[..., :COMPONENTS]
            else:
                axes = self.basis.axes[i]
            own, found = own.along(axes), whole.leading(COMPONENTS)
            found.mean[drawn], found.cov[drawn] = own.mean, own.cov
            parts.append(found)
            turns.append(axes)
        mean, cov = (torch.stack([getattr(x, part) for x in parts]) for part in ("mean", "cov"))
        return m.Moments(count, mean, cov), torch.stack(turns)

    @property
    def moments(self) -> m.Moments:
        """Class moments in the leading components, [cell, R]; see `Resamples.class_sums`.

        Every bootstrap has components of its own, as another sample of texts would: those of its
        texts (of the basis, if there is one) inside `coords`. Permutations leave them as they are.
        """
        return self._moments[0]

    @property
    def axes(self) -> Tensor:
        """[cell, bootstraps, coordinate, component], each bootstrap's components as columns."""
        return self._moments[1]

    def resampled(
        self, k: int, statistic: Callable[[m.Moments], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A function of class moments in k components: as they are, bootstrapped and permuted."""
        self.components(k)  # or a refusal
        whole = statistic(self.moments.leading(k))
        n_draws = len(self.resamples.counts)
        return whole[..., 0], whole[..., 1 : 1 + n_draws], whole[..., 1 + n_draws :]

    def turning(self, slopes: Tensor) -> Tensor:
        """[cell, n], what every text adds to an estimate by turning the components of the basis.

        A text turns component i towards j by its product of both over their difference in variance
        (first-order perturbation of eigenvectors; Anderson 1963).

        Args:
            slopes: [cell, k, rest], of the estimate, by the angle of each of `k` components towards
                each of the others.
        """
        assert self.basis is not None
        k = slopes.shape[-2]
        seen, rest = self.basis.coords[..., :k], self.basis.coords[..., k:]
        gap = seen.square().sum(-2)[..., :, None] - rest.square().sum(-2)[..., None, :]
        turns = torch.where(gap > 0, slopes / gap, 0.0)
        return ((seen @ turns) * rest).sum(-1)

    @cached_property
    def _gaussian_cache(self) -> dict[tuple[int, bool], list[Tensor]]:
        return {}

    def shrinkage(self, k: int) -> Tensor:
        """[cell, R, 2], share of the identity in the Ledoit-Wolf covariances of `moments`."""
        x, y = self.components(k), self.labels
        means = torch.stack([x[:, y == c].mean(-2) for c in (0, 1)], -2)
        fourth = (x - means[:, y]).square().sum(-1, keepdim=True).square()
        count = self.moments.count
        fourth = self.resamples.class_sums(fourth).squeeze(-1) / count
        return m.ledoit_wolf(self.moments.leading(k).cov, fourth, count)

    def bhattacharyya(self, k: int, shrunk: bool) -> list[Tensor]:
        """Both terms of the Bhattacharyya distance; observed, draws and null of `resampled`."""
        if (k, shrunk) not in self._gaussian_cache:
            shares = self.shrinkage(k) if shrunk else torch.empty(0)

            def terms(moments: m.Moments) -> Tensor:
                cov = moments.cov
                if shrunk:
                    cov = m.shrink(cov, shares)
                t1, t2 = m.bhattacharyya(moments.shift, cov)
                return torch.stack([t1[..., -1], t2[..., -1]], -2)

            self._gaussian_cache[k, shrunk] = list(self.resampled(k, terms))
        return self._gaussian_cache[k, shrunk]

    @cached_property
    def _distance_cache(self) -> dict[str, list[m.LabelledDistances]]:
        return {}

    def labelled(self, space: str) -> list[m.LabelledDistances]:
        """One pass over distances per cell in `pcK`, `projection` or `kernel`."""
        if space not in self._distance_cache:
            labels = self.resamples.labellings
            in_pcs = space.startswith("pc")
            x = self.components(int(space[2:])) if in_pcs else self.projected
            widths = self.kernel_widths if space == "kernel" else [None] * len(self.cells)
            self._distance_cache[space] = [
                m.labelled_distances(
                    cell, labels, bandwidth=width, neighbours=space == "projection"
                )
                for cell, width in zip(x, widths, strict=True)
            ]
        return self._distance_cache[space]

    @cached_property
    def kernel_widths(self) -> list[float]:
        """Bandwidth of the Gaussian kernel for every cell."""
        if self.bandwidths is not None:
            return [self.bandwidths[cell] for cell in self.cells]
        return [m.median_distance(x) for x in self.projected]

    def distance_null(self, space: str, what: str) -> tuple[Tensor, Tensor]:
        """`silhouette` or `energy` of a space: observed [cell] and permuted [cell, R]."""
        values = torch.stack([getattr(cell, what) for cell in self.labelled(space)])
        return values[:, 0], values[:, 1:]

    # Held out --------------------------------------------------------------------------------

    @cached_property
    def heldout(self) -> Tensor:
        """[cell, n], stored scores along the other folds' difference of means."""
        self._require_folds()
        return self.stored("heldout_score")

    @cached_property
    def probe(self) -> Tensor:
        """[cell, n], held-out log odds of the logistic probe."""
        self._require_folds()
        n, width = self.projected.shape[1:]
        folds = len(m.fold_texts(self.fold))
        size = max(1, BLOCK_BYTES // (8 * folds * n * (width + 1)))
        parts = torch.split(self.projected, size)
        return torch.cat([m.logistic_scores(x, self.labels, self.fold) for x in parts])

    @cached_property
    def whitened_shift(self) -> Tensor:
        """[cell, 1 + unit, P], see `metrics.whitened_shift`."""
        found = []
        for x, unit in zip(self.projected, self.unit_shift, strict=True):
            low, high = (x[self.labels == c] for c in (0, 1))
            found.append(m.whitened_shift(high.mean(0) - low.mean(0), unit, (low, high)))
        return torch.stack(found)

    def refit_shift(self, kind: str) -> Tensor:
        """[cell, unit, P], what every unit adds to the direction fitted; `kind` as in `refitted`.

        Of a probe it is seen where all directions vary alike inside the classes.
        """
        return self.unit_shift if kind == "direction" else self.whitened_shift[:, 1:]

    def refit_noise(self, kind: str) -> Tensor:
        """[cell], share of the variance along a fitted direction that comes from its own noise.

        With V the covariance of d, scores along d vary by d'Vd, of which tr V^2 is there without
        any difference: the share goes from 1 on noise (on average: it is not cut there) to 0.
        `kind` as in `refitted`.
        """
        if kind == "direction":
            on_shift, _ = m.shift_influence(self.sqdist, self.shift_sq, self.trace, self.labels)
            along, noise = u.influence_variance(on_shift, self.unit) / 4, self.shift_noise
        else:
            shift, unit = self.whitened_shift[:, :1], self.whitened_shift[:, 1:]
            along = (unit * shift).sum(-1).square().sum(-1)
            noise = torch.stack([m.shift_noise(x, 0) for x in unit])
        return (noise / along).clamp(0, 2).nan_to_num(1.0)

    def _require_folds(self) -> None:
        if any(len(m.fold_texts(self.fold[self.labels == c])) < 2 for c in (0, 1)):
            raise Refusal("a class has all its texts in one fold: nothing to train on")

    @cached_property
    def _refitted_cache(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def refitted(self, kind: str) -> dict[str, Tensor]:
        """Held-out statistics of every labelling, fitted again: [cell, 1 + R] each."""
        if kind not in self._refitted_cache:
            order, fold, labels = self._by_fold
            ridge = RIDGE if kind == "probe" else None
            parts = []
            for x in self.projected:
                scores = m.crossfit_scores(x[order], labels, fold, ridge)
                found = {
                    "auc": m.labelled_auc(scores, labels, fold),
                    "accuracy": ((scores > 0) == (labels > 0.5)).double().mean(-1),
                }
                if self.paired:
                    place = torch.argsort(order)[self.partners]
                    gap = (scores[:, place[:, 1]] - scores[:, place[:, 0]]) * self.flips
                    found["paired_accuracy"] = ((gap.sign() + 1) / 2).mean(-1)
                    found["paired_effect"] = gap.mean(-1) / gap.std(-1)
                parts.append(found)
            self._refitted_cache[kind] = {
                name: torch.stack([part[name] for part in parts]) for name in parts[0]
            }
        return self._refitted_cache[kind]

    @cached_property
    def _by_fold(self) -> tuple[Tensor, Tensor, Tensor]:
        """The texts in the order of their folds, and folds and labellings in that order."""
        order = torch.argsort(self.fold, stable=True)
        return order, self.fold[order], self.resamples.labellings[:, order]

    def pair_differences(self, values: Tensor) -> Tensor:
        """Harmful minus harmless text of every pair: values [..., n] -> [..., pairs]."""
        return values[..., self.partners[:, 1]] - values[..., self.partners[:, 0]]

    @cached_property
    def flips(self) -> Tensor:
        """[1 + permutations, pairs], -1 where a labelling swaps a pair."""
        return 2 * self.resamples.labellings[:, self.partners[:, 1]] - 1


_BY_TEXT = {
    "projected", "pca_coords", "pair_sum", "pair_min", "pair_max",
    "cos_sum", "class_sqdist", "heldout_score",
}  # fmt: skip


@dataclass
class Square:
    """A part of an estimate that is quadratic in noise; see `uncertainty.INFLUENCE_EXCESS`."""

    variance: Tensor
    """[cell]."""
    noise: Callable[[], Tensor]
    """[cell, unit, any], what every unit adds to that noise, in any units."""
    common: Callable[[Tensor, Tensor], Tensor] = u.common_share
    """Correlation of this part of two estimates, from the noise of each."""


@dataclass
class Estimate:
    """One metric for every cell of a block; all tensors [cell] float64 unless said."""

    value: Tensor
    floor: Tensor
    p: Tensor
    low: Tensor
    high: Tensor
    influence: Tensor | None = None
    """[cell, n], what every text adds; None where the interval comes from draws or is none."""
    draws: Tensor | None = None
    """[cell, bootstraps]."""
    linear: Tensor | None = None
    """Variance less that of the quadratic parts."""
    squares: tuple[Square, ...] = ()
    null: tuple[Tensor, Tensor] | None = None
    """Test statistic [cell] and its permutations [cell, R]; large is far apart."""

    @property
    def variance(self) -> Tensor:
        """[cell], of an estimate with an interval."""
        assert self.linear is not None
        return sum((part.variance for part in self.squares), self.linear)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Estimate":
        """The same estimate on another, monotone scale."""
        low, high = function(self.low), function(self.high)
        return Estimate(
            function(self.value),
            function(self.floor),
            self.p,
            torch.minimum(low, high),
            torch.maximum(low, high),
            null=self.null,
        )


def _estimate(
    value: Tensor,
    floor: Tensor | float | None,
    null: tuple[Tensor, Tensor] | None,
    block: Block,
    *,
    influence: Tensor | None = None,
    draws: Tensor | None = None,
    squares: tuple[Square, ...] = (),
    ends: Ends = u.interval,
) -> Estimate:
    """Put an estimate together; `floor` None is the mean of the null."""
    nothing = torch.full_like(value, torch.nan)
    p, level = nothing, nothing
    if null is not None and null[1].shape[-1]:
        p, level = u.permutation_p(*null), null[1].nanmean(-1)
    if floor is not None:
        level = torch.as_tensor(floor, dtype=value.dtype).expand_as(value)
    low, high, linear = nothing, nothing, None
    square = sum((part.variance for part in squares), torch.zeros_like(value))
    if influence is not None:
        seen = u.influence_variance(influence, block.unit)
        linear = u.linear_variance(seen, square, u.INFLUENCE_EXCESS)
    elif draws is not None and draws.shape[-1] > 1:
        linear = u.linear_variance(u.spread(draws).square(), square, u.DRAWS_EXCESS)
    if linear is not None:
        low, high = ends(value, (linear + square).sqrt())
    return Estimate(value, level, p, low, high, influence, draws, linear, squares, null)


def _swap_floor(block: Block, exact: float, null: tuple[Tensor, Tensor]) -> Tensor | float | None:
    """An exact floor for independent texts; on paired data what label swaps leave."""
    return None if block.paired and null[1].shape[-1] else exact


def _adjusted(block: Block) -> Estimate:
    n = block.count.sum()
    rho = m.between_ratio(block.shift_sq, block.trace, block.count)
    observed, null = (m.adjusted_ratio(part, n) for part in block.projection_null["rho"])
    on_shift, on_within = m.shift_influence(block.sqdist, block.shift_sq, block.trace, block.labels)
    by_shift, by_within = m.ratio_slopes(block.shift_sq, block.trace, block.count)
    influence = by_shift[:, None] * on_shift + by_within[:, None] * on_within
    return _estimate(
        m.adjusted_ratio(rho, n),
        _swap_floor(block, 0.0, (observed, null)),
        (observed, null),
        block,
        influence=influence,
        squares=(_shift_square(block, by_shift.square()),),
    )


def _shift_square(block: Block, scale: Tensor | float = 1.0) -> Square:
    """The quadratic part of |d|^2, times `scale`."""
    return Square(2 * scale * block.shift_noise, lambda: block.unit_shift)


def _rho(block: Block, metric: Metric) -> Estimate:
    if metric.components:
        n = block.count.sum()
        value, draws, null = block.resampled(
            metric.components,
            lambda x: m.between_ratio(x.shift.square().sum(-1), x.trace, x.count),
        )
        floor = _swap_floor(block, float(1 / (n - 1)), (value, null))
        return _estimate(value, floor, (value, null), block, draws=draws)
    adjusted = _adjusted(block)
    n = block.count.sum()
    rho = adjusted.mapped(lambda x: m.unadjusted_ratio(x, n))
    stretch = (n - 2) / (n - 1)
    assert adjusted.influence is not None
    assert adjusted.linear is not None
    rho.influence = stretch * adjusted.influence
    rho.linear = stretch.square() * adjusted.linear
    rho.squares = tuple(
        Square(stretch.square() * part.variance, part.noise) for part in adjusted.squares
    )
    return rho


def _calinski_harabasz(block: Block, metric: Metric) -> Estimate:
    return _rho(block, metric).mapped(lambda x: m.calinski_harabasz(x, block.count.sum()))


def _xie_beni(block: Block, metric: Metric) -> Estimate:
    rho = _rho(block, metric)
    # The scale has a pole at 0: an interval that reaches it has no upper end.
    rho.low = rho.low.clamp_min(0)
    return rho.mapped(lambda x: m.xie_beni(x, block.count))


def _rho_standardized(block: Block, metric: Metric) -> Estimate:
    value = m.standardized_ratio(block.stored("class_mean"), block.stored("class_var"), block.count)
    coords = block.coords[..., :COMPONENTS]
    coords = coords[..., coords.isfinite().all(-2).all(0)]
    sums = block.resamples.class_sums(torch.cat([coords, coords.square()], -1), bootstrap=False)
    count = block.resamples.class_counts(bootstrap=False)
    found = m.standardized_ratio(*m.diagonal_moments(sums, count), count)
    null = (found[:, 0], found[:, 1:])
    floor = _swap_floor(block, float(1 / (block.count.sum() - 1)), null)
    return _estimate(value, floor, null, block)


def _mean_shift(block: Block, metric: Metric) -> Estimate:
    null = block.projection_null["mean_shift"]
    on_shift, _ = m.shift_influence(block.sqdist, block.shift_sq, block.trace, block.labels)
    return _estimate(
        m.mean_shift(block.shift_sq, block.trace, block.count),
        _swap_floor(block, 0.0, null),
        null,
        block,
        influence=on_shift,
        squares=(_shift_square(block),),
    )


def _bhattacharyya(block: Block, metric: Metric) -> Estimate:
    """Both terms, one of them, their excess or their shrunk form."""
    k = metric.components
    if not block.force:
        block.require(TEXTS_PER_COMPONENT * k, f"a covariance in {k} components")
    family = metric.name.rsplit("_pc", 1)[0].removeprefix("bhattacharyya")
    chosen = {"_mean": [0], "_cov": [1]}.get(family, [0, 1])
    value, draws, null = (
        terms[:, chosen].sum(1) for terms in block.bhattacharyya(k, family == "_shrunk")
    )
    if bool(value.isnan().all()):
        raise Refusal(f"a class has no full-rank covariance in {k} components")
    t1, t2 = m.bhattacharyya_floor(k, float(block.count[0]), float(block.count[1]))
    floors = {"_mean": t1, "_cov": t2, "_shrunk": None}
    exact = floors.get(family, t1 + t2)
    floor = None if exact is None else _swap_floor(block, exact, (value, null))
    # Both terms are close to sums of squares, of k and of k(k+1)/2 normal deviates.
    squares: tuple[Square, ...] = ()
    if not block.paired and math.isfinite(t1):
        by_mean = torch.full_like(value, 2 * t1**2 / k)
        by_cov = torch.full_like(value, 4 * t2**2 / (k * (k + 1)))
        if family == "_shrunk":
            left = _damping(block, k)
            by_mean, by_cov = by_mean * left[0], by_cov * left[1]
        parts = (
            Square(by_mean, lambda: block.whitened(k)),
            Square(by_cov, lambda: _centred_products(block.whitened(k))),
        )
        squares = tuple(parts[i] for i in chosen)
    estimate = _estimate(value, floor, (value, null), block, draws=draws, squares=squares)
    if family == "_excess":
        floor = estimate.floor
        return replace(
            estimate,
            value=value - floor,
            floor=torch.zeros_like(floor),
            low=estimate.low - floor,
            high=estimate.high - floor,
        )
    return estimate


def _damping(block: Block, k: int) -> tuple[Tensor, Tensor]:
    """What shrinkage leaves of the variance of both terms' quadratic parts, [cell] each.

    Along an axis of variance s that counts as s' noise is s/s' as strong; noise of covariances is
    also scaled down by what is moved to the identity.
    """
    cov, shares = block.moments.leading(k).cov[:, 0], block.shrinkage(k)[:, 0]
    ratio, _ = torch.linalg.solve_ex(m.shrink(cov, shares).mean(1), cov.mean(1))
    second = ratio @ ratio
    squares, fourths = (x.diagonal(dim1=-2, dim2=-1).sum(-1) for x in (second, second @ second))
    kept = (1 - shares.mean(-1)) ** 4
    return squares / k, kept * (squares.square() + fourths) / (k * (k + 1))


def _centred_products(x: Tensor) -> Tensor:
    """Products of two coordinates, less their mean: [..., n, k] -> [..., n, k(k+1)/2]."""
    found = m.products(x)[..., x.shape[-1] :]
    return found - found.mean(-2, keepdim=True)


def _coefficient(block: Block, metric: Metric) -> Estimate:
    return _bhattacharyya(block, metric).mapped(lambda x: torch.exp(-x))


def _mahalanobis(block: Block, metric: Metric) -> Estimate:
    k = metric.components
    if not block.force:
        block.require(TEXTS_PER_COMPONENT * k, f"a covariance in {k} components")
    value, draws, null = block.resampled(k, m.mahalanobis)
    return _estimate(
        value, _swap_floor(block, 0.0, (value, null)), (value, null), block, draws=draws
    )


def _frechet(block: Block, metric: Metric) -> Estimate:
    k = metric.components
    if not block.force:
        block.require(TEXTS_PER_COMPONENT * k, f"a covariance in {k} components")
    value, draws, null = block.resampled(k, lambda x: m.frechet(x.shift, x.cov))
    return _estimate(value, None, (value, null), block, draws=draws)


def _silhouette(block: Block, metric: Metric) -> Estimate:
    turning: Tensor | float = 0.0
    if k := metric.components:
        sums = torch.stack([cell.pair_sum for cell in block.labelled(metric.space)])
        own, other = m.mean_distances(sums, block.labels)
        null = block.distance_null(metric.space, "silhouette")
        if block.basis is not None:
            cells = zip(block.coords, own, other, strict=True)
            slopes = [m.silhouette_turning(x, k, a, b, block.labels) for x, a, b in cells]
            turning = block.turning(torch.stack(slopes))
    elif metric.name == "silhouette_cosine":
        own, other = m.mean_distances(block.stored("cos_sum"), block.labels)
        labels = block.resamples.labellings
        found = torch.stack([m.labelled_cosine(x, labels) for x in block.stored("projected")])
        null = (found[:, 0], found[:, 1:])
    else:
        own, other = block.distances
        null = block.distance_null("projection", "silhouette")
    return _estimate(
        m.silhouette_samples(own, other).mean(-1),
        None,
        null,
        block,
        influence=m.silhouette_influence(own, other, block.labels) + turning,
    )


def _davies_bouldin(block: Block, metric: Metric) -> Estimate:
    value, influence = m.davies_bouldin(block.sqdist, block.shift_sq, block.labels)
    return _estimate(value, math.nan, None, block, influence=influence, ends=u.inverse_interval)


def _dunn(block: Block, metric: Metric) -> Estimate:
    value = m.dunn(block.stored("pair_min"), block.stored("pair_max"), block.labels)
    return _estimate(value, math.nan, None, block)


def _nn_accuracy(block: Block, metric: Metric) -> Estimate:
    hits = m.nn_hits(block.stored("pair_min"), block.labels)
    value = hits.mean(-1)
    labels = block.resamples.labellings
    neighbours = [cell.nearest for cell in block.labelled("projection")]
    null = torch.stack([(labels == labels[:, near]).double().mean(-1) for near in neighbours])
    # Two texts that are each other's nearest hit or miss together.
    mutual = torch.stack(
        [(near[near] == torch.arange(len(near))).double().mean() for near in neighbours]
    )
    influence = (hits - value[:, None]) / hits.shape[-1] * (1 + mutual).sqrt()[:, None]
    return _estimate(
        value, None, (null[:, 0], null[:, 1:]), block, influence=influence, ends=u.share_interval
    )


def _energy_distance(block: Block, metric: Metric) -> Estimate:
    value, influence = m.energy_distance(*block.distances, block.labels)
    null = block.distance_null("projection", "energy")
    return _estimate(value, _swap_floor(block, 0.0, null), null, block, influence=influence)


def _mmd(block: Block, metric: Metric) -> Estimate:
    if min(block.kernel_widths) <= 0:
        raise Refusal("the median distance is 0: the kernel has no bandwidth")
    sums = torch.stack([cell.pair_sum for cell in block.labelled("kernel")])
    value, influence = m.energy_distance(*m.mean_distances(sums, block.labels), block.labels)
    null = block.distance_null("kernel", "energy")
    return _estimate(value, _swap_floor(block, 0.0, null), null, block, influence=influence)


def _held_out(
    block: Block,
    value: Tensor,
    floor: float,
    null: Tensor,
    influence: Tensor,
    kind: str,
    moved: Tensor,
    ends: Ends = u.share_interval,
) -> Estimate:
    """Put a held-out statistic together, whose first null draw is the labels as they are.

    Folds judge each other's texts: along d the classes differ by q = |d|^2 - tr V in units of
    sqrt(d'Vd), V the covariance of d. With s the share of that noise in |d|^2, the ratio grows with
    q by 1 + s of what it does where the direction is given, which is what influences see.

    Args:
        moved: [cell, n], the part of the influence that goes with where texts stand along d.
    """
    noise = block.refit_noise(kind)
    # Below its noise |d|^2 is no scale any more.
    growth = torch.where(noise < 1, 1 + noise, (2 * (1 + noise)).sqrt())
    whole = growth[:, None] * moved
    square = Square(
        u.influence_variance(whole, block.unit) * noise.clamp_max(1) / 2,
        lambda: block.refit_shift(kind),
        partial(u.common_held_out, folds=len(m.fold_texts(block.fold))),
    )
    return _estimate(
        value,
        floor,
        (null[:, 0], null[:, 1:]),
        block,
        influence=influence - moved + whole,
        squares=(square,),
        ends=ends,
    )


def _auc(block: Block, metric: Metric) -> Estimate:
    kind = metric.name.removeprefix("auc_")
    scores = block.heldout if kind == "direction" else block.probe
    value, influence = m.fold_auc(scores, block.labels, block.fold)
    null = block.refitted(kind)["auc"]
    moved = m.along_scores(influence, scores, block.labels, 2 * block.fold + block.labels)
    return _held_out(block, value, 0.5, null, influence, kind, moved)


def _accuracy(block: Block, metric: Metric) -> Estimate:
    kind = metric.name.removeprefix("accuracy_")
    scores = block.heldout if kind == "direction" else block.probe
    hits = torch.where(scores.isnan(), scores, ((scores > 0) == (block.labels > 0)).double())
    value = hits.mean(-1)
    null = block.refitted(kind)["accuracy"]
    floor = float(block.count.max() / block.count.sum())
    influence = (hits - value[:, None]) / hits.shape[-1]
    moved = m.along_scores(influence, scores, block.labels, block.labels)
    return _held_out(block, value, floor, null, influence, kind, moved)


def _paired_accuracy(block: Block, metric: Metric) -> Estimate:
    gap = block.pair_differences(block.heldout)
    hits = (gap.sign() + 1) / 2
    value = hits.mean(-1)
    influence = (hits - value[:, None]) / hits.shape[-1]
    return _held_out_pairs(block, metric, value, 0.5, influence, gap, u.share_interval)


def _paired_effect(block: Block, metric: Metric) -> Estimate:
    gap = block.pair_differences(block.heldout)
    mean, deviation = gap.mean(-1, keepdim=True), gap.std(-1, keepdim=True)
    value = (mean / deviation).squeeze(-1)
    scaled = (gap - mean) / deviation
    influence = (scaled - value[:, None] * (scaled.square() - 1) / 2) / gap.shape[-1]
    return _held_out_pairs(block, metric, value, 0.0, influence, gap, u.interval)


def _held_out_pairs(
    block: Block,
    metric: Metric,
    value: Tensor,
    floor: float,
    influence: Tensor,
    gap: Tensor,
    ends: Ends,
) -> Estimate:
    """`_held_out` of pairs' differences `gap` along d; influence and gap are [cell, pairs]."""
    alone = torch.zeros(gap.shape[-1], dtype=torch.int64)
    moved = m.along_scores(influence, gap, alone, alone)
    influence, moved = (_spread_over_pairs(block, part) for part in (influence, moved))
    null = block.refitted("direction")[metric.name]
    return _held_out(block, value, floor, null, influence, "direction", moved, ends)


def _paired_shift(block: Block, metric: Metric) -> Estimate:
    gap = block.pair_differences(block.projected.transpose(-1, -2)).transpose(-1, -2)
    n = gap.shape[1]
    mean_sq = ((block.flips / n) @ gap).square().sum(-1)
    noise = (gap.square().sum((-1, -2))[:, None] / n - mean_sq) / (n - 1)
    null = mean_sq - noise
    on_shift, _ = m.shift_influence(block.sqdist, block.shift_sq, block.trace, block.labels)
    return _estimate(
        block.shift_sq - noise[:, 0],
        0.0,
        (null[:, 0], null[:, 1:]),
        block,
        influence=on_shift,
        squares=(_shift_square(block),),
    )


def _spread_over_pairs(block: Block, influence: Tensor) -> Tensor:
    """Half of a pair's influence to each of its texts: [cell, pairs] -> [cell, n]."""
    spread = torch.empty(len(influence), block.labels.numel(), dtype=influence.dtype)
    spread[:, block.partners] = influence[..., None] / 2
    return spread


def _hotelling(block: Block, metric: Metric) -> Estimate:
    k = metric.components
    if not block.force:
        block.require(TEXTS_PER_COMPONENT * k, f"a covariance in {k} components")
    block.components(k)  # or a refusal
    coords = block.coords.nan_to_num(0.0).transpose(-1, -2)
    gap = block.pair_differences(coords).transpose(-1, -2)
    counts = block.resamples.counts[:, block.partners[:, 1]].double()
    draws = _in_parts(
        lambda rows: m.hotelling(gap, counts[rows], block.axes[:, rows, :, :k]), len(counts)
    )
    # A resample's S^-1 is larger once more by what the inverse of a Wishart matrix is on average.
    n = len(block.partners)
    draws = draws * max(n - k - 2, 1) / (n - 1)
    swapped = _in_parts(lambda rows: m.hotelling(gap[..., :k], block.flips[rows]), len(block.flips))
    values, null = swapped[:, 0], swapped[:, 1:]
    square = Square(
        torch.full_like(values, 2 * k / n**2),
        lambda: m.whiten(gap[..., :k] - gap[..., :k].mean(-2, keepdim=True)),
    )
    return _estimate(values, None, (values, null), block, draws=draws, squares=(square,))


def _in_parts(function: Callable[[slice], Tensor], rows: int, size: int = 256) -> Tensor:
    """`function` of some rows at a time, put together along the last axis."""
    starts = range(0, max(rows, 1), size)
    return torch.cat([function(slice(i, min(i + size, rows))) for i in starts], -1)


_BY_FAMILY: dict[str, Callable[[Block, Metric], Estimate]] = {
    "rho": _rho,
    "rho_adjusted": lambda block, metric: _adjusted(block),
    "calinski_harabasz": _calinski_harabasz,
    "xie_beni": _xie_beni,
    "rho_standardized": _rho_standardized,
    "mean_shift": _mean_shift,
    "bhattacharyya": _bhattacharyya,
    "bhattacharyya_excess": _bhattacharyya,
    "bhattacharyya_mean": _bhattacharyya,
    "bhattacharyya_cov": _bhattacharyya,
    "bhattacharyya_shrunk": _bhattacharyya,
    "bhattacharyya_coefficient": _coefficient,
    "mahalanobis": _mahalanobis,
    "frechet": _frechet,
    "silhouette": _silhouette,
    "silhouette_cosine": _silhouette,
    "davies_bouldin": _davies_bouldin,
    "dunn": _dunn,
    "nn_accuracy": _nn_accuracy,
    "energy_distance": _energy_distance,
    "mmd": _mmd,
    "auc_direction": _auc,
    "auc_probe": _auc,
    "accuracy_direction": _accuracy,
    "accuracy_probe": _accuracy,
    "paired_accuracy": _paired_accuracy,
    "paired_effect": _paired_effect,
    "paired_shift": _paired_shift,
    "hotelling": _hotelling,
}


def estimate(block: Block, metric: Metric) -> tuple[Estimate, list[str]]:
    """One metric for every cell of a block, and per cell why it is refused, "" where it is not."""
    try:
        block.require(MIN_TEXTS, "any number")
        if block.constant:
            raise Refusal("the states do not vary")
        if metric.paired and not block.paired:
            raise Refusal("the texts are not paired")
        found = _BY_FAMILY[metric.name.rsplit("_pc", 1)[0]](block, metric)
    except Refusal as refusal:
        nothing = torch.full((len(block.cells),), torch.nan, dtype=torch.float64)
        found = Estimate(nothing, nothing, nothing, nothing, nothing)
        return found, [str(refusal)] * len(block.cells)
    reasons = []
    bounded = metric.interval != NONE and len(block.resamples.counts) > 1
    parts = (found.value, found.low, found.p, found.floor)
    for one, lower, chance, level in zip(*(part.tolist() for part in parts), strict=True):
        if not math.isfinite(one):
            reasons.append(
                "no finite value: constant or collinear features, or no spread in a class"
            )
        elif (bounded and math.isnan(lower)) or (not math.isnan(chance) and math.isnan(level)):
            reasons.append("too few different texts: most resamples have no finite value")
        else:
            reasons.append("")
    known = torch.tensor([not reason for reason in reasons])
    value, floor, p, low, high = (
        torch.where(known, part, torch.nan)
        for part in (found.value, found.floor, found.p, found.low, found.high)
    )
    shown = replace(found, value=value, floor=floor, p=p, low=low, high=high)
    return shown, reasons


def blocks(
    run: "Run",
    model: str,
    lang: str,
    *,
    layers: list[int],
    poolings: list[int],
    bootstraps: int,
    permutations: int,
    seed: int,
    paired: bool,
    force: bool,
    beside: str | None = None,
) -> Iterator[Block]:
    """Cut one language of one model into blocks of layers whose cells hold the same texts.

    Args:
        run: an open store.
        model, lang: names.
        layers, poolings: indices, ascending.
        bootstraps, permutations, seed: see `uncertainty.draw`.
        paired: resample pairs as wholes where the data have them.
        force: leave out the refusal of many components for few texts.
        beside: another model; the blocks of both then hold the same cells and texts.
    """
    store = run.model(model)
    others = [store] if beside is None else [store, run.model(beside)]
    i_lang = run.languages.index(lang)
    span = run.lang_range(lang)
    labels, pair, fold = (
        torch.from_numpy(np.asarray(column[span]).astype(np.int64))
        for column in (run.samples.label, run.samples.pair, run.samples.fold)
    )
    if not paired:
        pair = torch.full_like(pair, -1)
    resamples = u.draw(
        labels, pair, bootstraps=bootstraps, permutations=permutations, seed=seed, key=lang
    )
    cell_bytes = len(labels) * _ROW_BYTES + (bootstraps + permutations) * _RESAMPLE_BYTES
    for some in _batches(layers, len(poolings) * cell_bytes):
        cache: dict[str, Tensor] = {}
        window = slice(some[0], some[-1] + 1)
        cells = [(layer, pooling) for layer in some for pooling in poolings]
        cache["projected"] = torch.from_numpy(
            np.ascontiguousarray(store.read("projected", layer=window, samples=span))
        )
        finite = cache["projected"].isfinite().all(-1)
        constant = torch.zeros(finite.shape[:2], dtype=torch.bool)
        for other in others:
            if other is not store:
                rows = other.read("projected", layer=window, samples=span)
                finite = finite & torch.from_numpy(np.isfinite(rows).all(-1))
            moments = (
                torch.from_numpy(other.read(name, layer=window, lang=i_lang))
                for name in ("class_mean", "class_var")
            )
            constant |= ~m.varies(*moments).any(-1)
        groups: dict[tuple[bytes, bool], list[tuple[int, int]]] = {}
        for layer, pooling in cells:
            at = (layer - window.start, pooling)
            key = (finite[at].numpy().tobytes(), bool(constant[at]))
            groups.setdefault(key, []).append((layer, pooling))
        for (mask, same), members in groups.items():
            kept = torch.frombuffer(bytearray(mask), dtype=torch.bool)
            yield Block(
                model=store,
                lang=i_lang,
                span=span,
                layers=window,
                cells=members,
                kept=kept,
                resamples=resamples.keep(kept),
                fold=fold[kept],
                force=force,
                constant=same,
                cache=cache,
            )


_ROW_BYTES = 8 * 128
"""About what the arrays of one text, layer and pooling take in float64."""
_RESAMPLE_BYTES = 8 * 2 * 2 * COMPONENTS**2
"""Likewise the class moments of one resample, and what is made of them."""


def _batches(layers: list[int], row_bytes: int) -> list[list[int]]:
    """Runs of neighbouring layers that fit `BLOCK_BYTES` together."""
    most = max(1, BLOCK_BYTES // max(1, row_bytes))
    found: list[list[int]] = []
    for layer in layers:
        if found and found[-1][-1] + 1 == layer and len(found[-1]) < most:
            found[-1].append(layer)
        else:
            found.append([layer])
    return found
