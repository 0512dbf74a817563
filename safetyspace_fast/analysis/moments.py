"""Class means and covariances of every resample, and the influence of each text on them.

Class 0 is harmless, class 1 harmful; d is the mean of class 1 minus the mean of class 0. Leading
axes `...` are batches. A bootstrap or a permutation is a row of weights: one matrix product gives
the moments of all resamples, and no text is copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and covariance of both classes for every resample.

    count: [R, 2], mean: [..., R, 2, k], cov: [..., R, 2, k, k] (ddof 1), all float64.
    """

    count: Tensor
    mean: Tensor
    cov: Tensor

    @property
    def shift(self) -> Tensor:
        """Difference of the class means: [..., R, k]."""
        return self.mean[..., 1, :] - self.mean[..., 0, :]

    @property
    def trace(self) -> Tensor:
        """Total variance of each class: [..., R, 2]."""
        return self.cov.diagonal(dim1=-2, dim2=-1).sum(-1)

    def leading(self, k: int) -> "Moments":
        """The moments of the first `k` dimensions."""
        return Moments(self.count, self.mean[..., :k], self.cov[..., :k, :k])

    def of(self, resamples: slice) -> "Moments":
        """The moments of some resamples, for moments without batches."""
        return Moments(self.count[resamples], self.mean[resamples], self.cov[resamples])

    @property
    def scatter(self) -> Tensor:
        """Sums of squares and products about the mean of all texts: [..., R, k, k]."""
        n = self.count.sum(-1)
        between = self.shift[..., :, None] * self.shift[..., None, :]
        within = (self.cov * (self.count - 1)[..., None, None]).sum(-3)
        return within + between * (self.count.prod(-1) / n)[..., None, None]

    def along(self, axes: Tensor) -> "Moments":
        """The moments in other coordinates: axes [..., R, k, j], one a column."""
        mean = self.mean.nan_to_num(0.0) @ axes
        turn = axes[..., None, :, :]
        return Moments(self.count, mean, turn.transpose(-1, -2) @ self.cov.nan_to_num(0.0) @ turn)


def principal_axes(models: Sequence[Moments]) -> Tensor:
    """Principal axes of the texts of every resample, in one model or in several together.

    Args:
        models: of each model, in the same coordinates; [..., R].

    Returns:
        [..., R, k, k], one a column. The axis of the largest variance comes first; dimensions that
        are NaN come last.
    """
    first, *others = (model.scatter.nan_to_num(0.0) for model in models)
    total = sum(others, first)
    total = total / total.abs().amax((-1, -2), keepdim=True).clamp_min(1e-300)
    axes: Tensor = torch.linalg.eigh(total)[1].flip(-1)
    return axes


def union_components(coords: Sequence[Tensor], components: Sequence[Tensor]) -> Tensor:
    """Principal components of the texts of several models together, in what each model keeps.

    The texts of each model are taken as coords @ components, about their mean; the result is the
    SVD of all their rows stacked (distributed PCA, Liang et al. 2014). What varies outside of the K
    components of a model is not seen.

    Args:
        coords: of each model [..., n, K]; components: of each model [..., K, D], orthonormal rows
            or rows of zeros. All float64.

    Returns:
        [..., K, D], orthonormal rows; zeros beyond the rank of the data.
    """
    k = coords[0].shape[-1]
    rows = torch.cat(list(components), -2)
    # With rows = root @ Q, Q orthonormal, a text is coords @ root in the coordinates Q.
    values, vectors = torch.linalg.eigh(rows @ rows.transpose(-1, -2))
    size = torch.where(values > 1e-12, values, 0.0).sqrt()[..., None, :]
    root = vectors * size
    parts = (
        (x - x.mean(-2, keepdim=True)) @ root[..., i * k : (i + 1) * k, :]
        for i, x in enumerate(coords)
    )
    stacked = torch.cat(list(parts), -2)
    stacked = stacked / stacked.abs().amax((-1, -2), keepdim=True).clamp_min(1e-300)
    variance, axes = torch.linalg.eigh(stacked.transpose(-1, -2) @ stacked)
    known = variance > 1e-12 * variance.amax(-1, keepdim=True)
    axes = torch.where(known[..., None, :], axes, 0.0).flip(-1)[..., :k]
    inverse = vectors * torch.where(size > 0, 1 / size, 0.0)
    union: Tensor = axes.transpose(-1, -2) @ (inverse.transpose(-1, -2) @ rows)
    return union


def products(x: Tensor) -> Tensor:
    """All coordinates and all products of two: x [..., n, k] -> [..., n, k + k(k+1)/2].

    The class sums of these columns (`Resamples.class_sums`) hold the moments of every resample.
    """
    i_row, i_col = torch.triu_indices(x.shape[-1], x.shape[-1])
    return torch.cat([x, x[..., i_row] * x[..., i_col]], dim=-1)


def moments(sums: Tensor, count: Tensor, k: int) -> Moments:
    """Class moments from class sums of `products` of k roughly centred coordinates.

    Args:
        sums: [..., R, 2, k + k(k+1)/2] float64, count: [R, 2] float64.
    """
    mean = sums[..., :k] / count[..., None]
    return Moments(count, mean, covariance(sums[..., k:], count, mean))


def covariance(half: Tensor, count: Tensor, mean: Tensor) -> Tensor:
    """Covariances (ddof 1) from upper triangles of second moments about zero [..., k(k+1)/2]."""
    k = mean.shape[-1]
    i_row, i_col = torch.triu_indices(k, k)
    second = torch.empty(*mean.shape, k, dtype=mean.dtype)
    second[..., i_row, i_col] = half
    second[..., i_col, i_row] = half
    count = count[..., None, None]
    return (second - count * mean[..., :, None] * mean[..., None, :]) / (count - 1)


def varies(mean: Tensor, var: Tensor, rounding: float = 1e-13) -> Tensor:
    """Whether a dimension varies by more than the rounding of its own mean.

    Rounding gives a constant dimension a tiny variance.

    Args:
        mean, var: [..., 2, D].
        rounding: relative size of what counts as rounding; the default is that of float64 sums.

    Returns:
        [..., D] bool.
    """
    spread = var.sum(-2) + (mean[..., 1, :] - mean[..., 0, :]).square()
    return spread > rounding**2 * mean.square().sum(-2)


def centred(values: Tensor) -> Tensor:
    """Subtract the mean over the last axis."""
    return values - values.mean(-1, keepdim=True)


def of_class(x: Tensor, label: Tensor) -> Tensor:
    """What each text has for one of the classes: x [..., n, 2], label [n] int64 -> [..., n]."""
    return x.gather(-1, label.expand(x.shape[:-1])[..., None]).squeeze(-1)


def direction_scores(sqdist: Tensor, shift_sq: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinate of every text along d, and its squared distance to its class mean.

    Args:
        sqdist: [..., n, 2], squared distance to each class mean.
        shift_sq: [...], |d|^2.
        labels: [n] int64.

    Returns:
        along [..., n] = d'(x - own class mean), own [..., n].
    """
    half = (sqdist[..., 0] - sqdist[..., 1] - (2 * labels - 1) * shift_sq[..., None]) / 2
    return half, of_class(sqdist, labels)


def shift_influence(sqdist: Tensor, shift_sq: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Influences of every text on |d|^2 and on the within-class sum of squares.

    Args:
        sqdist: [..., n, 2], shift_sq: [...], labels: [n] int64.

    Returns:
        on_shift [..., n], on_within [..., n]; both sum to zero within a class.
    """
    along, own = direction_scores(sqdist, shift_sq, labels)
    count = torch.bincount(labels, minlength=2).to(sqdist.dtype)
    on_shift, on_within = torch.empty_like(along), torch.empty_like(own)
    for label, sign in ((0, -2), (1, 2)):
        inside = labels == label
        on_shift[..., inside] = sign * centred(along[..., inside]) / count[label]
        on_within[..., inside] = centred(own[..., inside])
    return on_shift, on_within


def borrowed_spread(sqdist: Tensor, labels: Tensor, units: Tensor) -> Tensor:
    """Factor for the deviations of each class, at least 1, where the other class spreads more.

    A class of few texts with heavy tails usually lacks the texts that make most of its variance: it
    seems to spread less than it does. Its deviations are taken as large as those of the other
    class, as far as chance explains the difference: the variance of a class may be too small by two
    of its standard errors, with squared distances as uneven as those in the other class.

    Args:
        sqdist: [..., n, 2], squared distance to each class mean; labels: [n] int64.
        units: [2], units of evidence in each class.

    Returns:
        [..., 2].
    """
    own = [sqdist[..., labels == c, c] for c in (0, 1)]
    mean = torch.stack([x.mean(-1) for x in own], -1)
    uneven = torch.stack([x.std(-1) for x in own], -1) / mean
    most = 1 + 2 * uneven.flip(-1) / units.sqrt()
    return torch.minimum(mean.flip(-1) / mean, most).nan_to_num(1.0, 1.0).clamp_min(1).sqrt()


def shift_noise(unit: Tensor, width: int) -> Tensor:
    """tr V^2 of the covariance V of d, from projected texts.

    2 tr V^2 is the variance of |d|^2 where the classes do not differ.

    Sums over pairs of distinct units make it unbiased for the sampling (Chen & Qin 2010). The known
    moments of a Gaussian projection to `width` dimensions make it unbiased for the projection.

    Args:
        unit: [..., U, P] float64, what each text (or pair) adds to the projected d.
        width: P of the projection, 0 for coordinates that were not projected.
    """
    gram_sq = (unit.transpose(-1, -2) @ unit).square().sum((-1, -2))
    norm = unit.square().sum(-1)
    dots = gram_sq - norm.square().sum(-1)
    if width == 0:
        return dots.clamp_min(0)
    norms = norm.sum(-1).square() - norm.square().sum(-1)
    p = float(width)
    return ((dots - norms / p) / (1 + 1 / p - 2 / p**2)).clamp_min(0)
