"""The metrics as pure functions on float64 tensors, batched over layers, poolings and resamples.

Every function takes leading batch axes. Class 0 is harmless, class 1 harmful; `d = m1 - m0`.
Resampling never copies a text: a bootstrap or a permutation is a row of `weights`, and moments of
all resamples are one matrix product. Impossible input (a singular covariance, one text in a class)
gives NaN here; the engine turns it into a refusal with its reason.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import label_sums, pack_labels

SINGULAR = 1e-6
"""Smallest pivot of a correlation matrix's Cholesky factor that counts as full rank."""


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
        """Those of the first `k` dimensions."""
        return Moments(self.count, self.mean[..., :k], self.cov[..., :k, :k])

    def axes(self) -> Tensor:
        """Principal axes of all texts of every resample, largest first: [..., R, k, k] columns.

        Dimensions without values come last.
        """
        n = self.count.sum(-1)
        between = self.shift[..., :, None] * self.shift[..., None, :]
        scatter = (self.cov * (self.count - 1)[..., None, None]).sum(-3)
        total = (scatter + between * (self.count.prod(-1) / n)[..., None, None]).nan_to_num(0.0)
        total = total / total.abs().amax((-1, -2), keepdim=True).clamp_min(1e-300)
        axes: Tensor = torch.linalg.eigh(total)[1].flip(-1)
        return axes

    def along(self, axes: Tensor) -> "Moments":
        """The same in other coordinates: axes [..., R, k, k], columns."""
        mean = self.mean.nan_to_num(0.0) @ axes
        turn = axes[..., None, :, :]
        return Moments(self.count, mean, turn.transpose(-1, -2) @ self.cov.nan_to_num(0.0) @ turn)


def products(x: Tensor) -> Tensor:
    """Every coordinate and every product of two: x [..., n, k] -> [..., n, k + k(k+1)/2].

    Class sums of these columns (`Resamples.class_sums`) are the moments of every resample.
    """
    i_row, i_col = torch.triu_indices(x.shape[-1], x.shape[-1])
    return torch.cat([x, x[..., i_row] * x[..., i_col]], dim=-1)


def moments(sums: Tensor, count: Tensor, k: int) -> Moments:
    """Class moments from class sums of `products` of k roughly centred coordinates.

    Args:
        sums: [..., R, 2, k + k(k+1)/2] float64, count: [R, 2] float64.
    """
    mean = sums[..., :k] / count[..., None]
    return Moments(count, mean, _covariance(sums[..., k:], count, mean))


def _covariance(half: Tensor, count: Tensor, mean: Tensor) -> Tensor:
    """Covariances (ddof 1) from upper triangles of second moments about zero [..., k(k+1)/2]."""
    k = mean.shape[-1]
    i_row, i_col = torch.triu_indices(k, k)
    second = torch.empty(*mean.shape, k, dtype=mean.dtype)
    second[..., i_row, i_col] = half
    second[..., i_col, i_row] = half
    count = count[..., None, None]
    return (second - count * mean[..., :, None] * mean[..., None, :]) / (count - 1)


def diagonal_moments(sums: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Class means and variances per dimension, [..., R, 2, k] each, from sums of x and x^2.

    Args:
        sums: [..., R, 2, 2 k] float64, class sums of [x, x^2] of roughly centred x.
        count: [R, 2] float64.
    """
    k = sums.shape[-1] // 2
    mean = sums[..., :k] / count[..., None]
    var = (sums[..., k:] - count[..., None] * mean**2) / (count - 1)[..., None]
    return mean, var.clamp_min(0)


# Between-class ratio -------------------------------------------------------------------------


def between_ratio(shift_sq: Tensor, trace: Tensor, count: Tensor) -> Tensor:
    """Share of variance between the classes, B/(B+W); R^2 of PERMANOVA (Anderson 2001).

    Args:
        shift_sq: [...] squared distance of the class means.
        trace: [..., 2] total variance of each class (ddof 1).
        count: [..., 2] texts in each class.
    """
    between = count.prod(-1) / count.sum(-1) * shift_sq
    within = ((count - 1) * trace).sum(-1)
    return between / (between + within)


def adjusted_ratio(rho: Tensor, n: Tensor | float) -> Tensor:
    """Ratio with its null mean of 1/(N-1) taken out (Ezekiel 1930)."""
    return 1 - (1 - rho) * (n - 1) / (n - 2)


def unadjusted_ratio(adjusted: Tensor, n: Tensor | float) -> Tensor:
    """Inverse of `adjusted_ratio`."""
    return 1 - (1 - adjusted) * (n - 2) / (n - 1)


def calinski_harabasz(rho: Tensor, n: Tensor | float) -> Tensor:
    """Calinski & Harabasz 1974 for two classes: (N-2) rho/(1-rho)."""
    return (n - 2) * rho / (1 - rho)


def xie_beni(rho: Tensor, count: Tensor) -> Tensor:
    """Xie & Beni 1991 with hard labels: (n0 n1/N^2)(1-rho)/rho."""
    return count.prod(-1) / count.sum(-1) ** 2 * (1 - rho) / rho


def standardized_ratio(mean: Tensor, var: Tensor, count: Tensor) -> Tensor:
    """Mean over dimensions of the between-class ratio of each; constant dimensions left out.

    Args:
        mean: [..., 2, D], var: [..., 2, D] (ddof 1), count: [..., 2].
    """
    gap = (mean[..., 1, :] - mean[..., 0, :]) ** 2
    rho = between_ratio(gap, var.transpose(-1, -2), count[..., None, :])
    rho = torch.where(varies(mean, var), rho, torch.nan)
    mean_rho: Tensor = rho.nanmean(-1)
    return mean_rho


def varies(mean: Tensor, var: Tensor) -> Tensor:
    """Whether a dimension varies by more than the rounding of its own mean.

    Moments of a constant are not exactly those of a constant. mean, var: [..., 2, D] -> [..., D].
    """
    spread = var.sum(-2) + (mean[..., 1, :] - mean[..., 0, :]).square()
    return spread > 1e-26 * mean.square().sum(-2)


def mean_shift(shift_sq: Tensor, trace: Tensor, count: Tensor) -> Tensor:
    """Unbiased squared distance of the class means (Chen & Qin 2010), linear-kernel MMD^2."""
    return shift_sq - (trace / count).sum(-1)


# Gaussian distances in k dimensions ----------------------------------------------------------


def bhattacharyya(shift: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of the Bhattacharyya distance for the first 1, 2, .. k dimensions at once.

    One Cholesky factor holds those of all leading blocks, so that the curve over k is free.
    Dimensions are scaled to unit average variance first: only the geometry decides what is
    singular, not the units.

    Args:
        shift: [..., k] difference of the class means.
        cov: [..., 2, k, k] class covariances.

    Returns:
        t1 [..., k] = d'S^-1 d/8 and t2 [..., k] = (ln|S| - ln|S0|/2 - ln|S1|/2)/2; NaN where a
        covariance is singular. Bhattacharyya 1943; Fukunaga 1990, section 3.4.
    """
    average = cov.mean(-3)
    scale = average.diagonal(dim1=-2, dim2=-1).sqrt()
    both = cov / (scale[..., None, :, None] * scale[..., None, None, :])
    log_det = _log_det_curve(both)
    average = both.mean(-3)
    factor = _cholesky(average)
    whitened = torch.linalg.solve_triangular(factor, (shift / scale)[..., None], upper=False)
    t1 = whitened.squeeze(-1).square().cumsum(-1) / 8
    t2 = (_log_det_curve(average) - log_det.mean(-2)) / 2
    return t1, t2


def _cholesky(matrix: Tensor) -> Tensor:
    """Lower factor, NaN where the matrix is not of full rank."""
    clean = matrix.nan_to_num(0.0, 0.0, 0.0)
    factor, info = torch.linalg.cholesky_ex(clean)
    scale = clean.diagonal(dim1=-2, dim2=-1).sqrt()
    pivot = factor.diagonal(dim1=-2, dim2=-1)
    regular = (info == 0) & (pivot > SINGULAR * scale).all(-1)
    return torch.where(regular[..., None, None], factor, torch.nan)


def _log_det_curve(matrix: Tensor) -> Tensor:
    """Log-determinants of all leading blocks: [..., k]."""
    return 2 * _cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().cumsum(-1)


def bhattacharyya_floor(k: int, n0: float, n1: float) -> tuple[float, float]:
    """Mean of both Bhattacharyya terms for two samples of one Gaussian.

    E T1 = k(1/n0+1/n1)/8 * nu/(nu-k-1), nu = n0+n1-2 (mean of an inverse Wishart matrix);
    E T2 = (L(nu) - L(n0-1)/2 - L(n1-1)/2)/2, L(v) = sum_i psi((v+1-i)/2) + k ln(2/v) (mean of a
    Wishart matrix's log-determinant). About k/(4n) + k(k+1)/(8n); NaN where k is too large.
    """
    nu = n0 + n1 - 2
    if min(n0, n1) - 1 < k or nu <= k + 1:
        return float("nan"), float("nan")

    def log_det(v: float) -> float:
        i = torch.arange(1, k + 1, dtype=torch.float64)
        return float(torch.digamma((v + 1 - i) / 2).sum() + k * torch.log(torch.tensor(2 / v)))

    t1 = k * (1 / n0 + 1 / n1) / 8 * nu / (nu - k - 1)
    t2 = (log_det(nu) - log_det(n0 - 1) / 2 - log_det(n1 - 1) / 2) / 2
    return t1, t2


def ledoit_wolf(cov: Tensor, fourth: Tensor, count: Tensor) -> Tensor:
    """Share of the identity in the Ledoit-Wolf covariance (Ledoit & Wolf 2004), between 0 and 1.

    Args:
        cov: [..., k, k] (ddof 1), fourth: [...], mean of |x - mean|^4, count: texts.

    Returns:
        [...] float64.
    """
    # Squares of squares leave float64 at 1e77; the share does not depend on the scale.
    scale = cov.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-300)
    cov = cov / scale[..., None, None] * ((count - 1) / count)[..., None, None]
    level = cov.diagonal(dim1=-2, dim2=-1).mean(-1)
    square = cov.square().sum((-1, -2))
    spread = (fourth / scale / scale - square) / count
    distance = square - cov.shape[-1] * level.square()
    return torch.where(distance > 0, (spread / distance).clamp(0, 1), 1.0)


def shrink(cov: Tensor, share: Tensor) -> Tensor:
    """Move `share` [...] of covariances [..., k, k] to the identity of the same trace."""
    k = cov.shape[-1]
    level = cov.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(k, dtype=cov.dtype) * level[..., None, None]
    return cov + share[..., None, None] * (identity - cov)


def mahalanobis(m: Moments) -> Tensor:
    """Cross-validated squared Mahalanobis distance, [..., R]; mean 0 without any difference.

    The mean of d_A' Sp^-1 d_B over every choice of disjoint texts A and B, in closed form:
    d'Sp^-1 d - tr Sp^-1 (S0/n0 + S1/n1) (crossnobis, Walther et al. 2016, one text a fold).
    """
    freedom = m.count - 1
    pooled = (m.cov * freedom[..., None, None]).sum(-3) / freedom.sum(-1)[..., None, None]
    noise = (m.cov / m.count[..., None, None]).sum(-3)
    return _square_length(m.shift[..., None], pooled) - _square_length(_cholesky(noise), pooled)


def frechet(shift: Tensor, cov: Tensor) -> Tensor:
    """Squared Frechet distance of two Gaussians (Dowson & Landau 1982).

    tr (S0^1/2 S1 S0^1/2)^1/2 is the sum of the singular values of A0' A1 for any S = A A'; roots
    come from eigenvectors, so that singular covariances are as good as any.

    Args:
        shift: [..., k], cov: [..., 2, k, k].
    """
    level = cov.abs().amax((-1, -2, -3)).clamp_min(1e-300)
    scaled = cov / level[..., None, None, None]
    value, vector = torch.linalg.eigh(scaled)
    root = vector * value.clamp_min(0).sqrt()[..., None, :]
    cross = torch.linalg.svdvals(root[..., 0, :, :].transpose(-1, -2) @ root[..., 1, :, :])
    traces = scaled.diagonal(dim1=-2, dim2=-1).sum((-1, -2))
    spread: Tensor = (traces - 2 * cross.sum(-1)).clamp_min(0)
    return shift.square().sum(-1) + level * spread


def hotelling(diff: Tensor, weights: Tensor, axes: Tensor | None = None) -> Tensor:
    """Hotelling's T^2 per pair, mean' S^-1 mean, of every resample: [..., R].

    Args:
        diff: [..., n, k] float64, differences inside pairs.
        weights: [R, n] float64, how often a pair stands in a resample; negative: labels swapped.
        axes: [..., R, k, j], coordinates of every resample's own, or None for those of `diff`.
    """
    times = weights.abs()
    count = times.sum(-1)
    columns = products(diff)
    k = diff.shape[-1]
    mean = weights @ columns[..., :k] / count[:, None]
    cov = _covariance(times @ columns[..., k:], count, mean)
    if axes is not None:
        mean = (mean[..., None, :] @ axes).squeeze(-2)
        cov = axes.transpose(-1, -2) @ cov @ axes
    return _square_length(mean[..., None], cov)


def whiten(x: Tensor) -> Tensor:
    """Centred x [..., n, k] turned and scaled so that its second moments are the identity's."""
    left: Tensor = torch.linalg.svd(x, full_matrices=False)[0]
    return left


def _square_length(vectors: Tensor, cov: Tensor) -> Tensor:
    """tr A' cov^-1 A for A [..., k, j], by Cholesky in units of the deviations; NaN if singular."""
    scale = cov.diagonal(dim1=-2, dim2=-1).sqrt()[..., None]
    factor = _cholesky(cov / (scale * scale.transpose(-1, -2)))
    whitened: Tensor = torch.linalg.solve_triangular(factor, vectors / scale, upper=False)
    return whitened.square().sum((-1, -2))


# Distances -----------------------------------------------------------------------------------


def mean_distances(pair_sum: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every text's mean distance to its own class (itself left out) and to the other.

    Args:
        pair_sum: [..., n, 2], sums of distances to each class, the text itself left out.
        labels: [n] int64.

    Returns:
        own [..., n], other [..., n].
    """
    count = torch.bincount(labels, minlength=2).to(pair_sum.dtype)
    index = labels.expand(pair_sum.shape[:-1])[..., None]
    own = pair_sum.gather(-1, index).squeeze(-1) / (count - 1)[labels]
    other = pair_sum.gather(-1, 1 - index).squeeze(-1) / count[1 - labels]
    return own, other


def silhouette_samples(own: Tensor, other: Tensor) -> Tensor:
    """(b - a)/max(a, b) per text (Rousseeuw 1987); 0 where both are 0, as in scikit-learn."""
    return ((other - own) / torch.maximum(own, other)).nan_to_num(0.0)


def silhouette_influence(own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """What every text adds to the mean silhouette: its own value, and its pull on all others.

    A text moves its own class's `a` and the other class's `b`. The slopes of (b - a)/max(a, b)
    differ between texts; each class's mean slope stands for them, and then stored sums suffice.

    Args:
        own, other: [..., n], see `mean_distances`.
        labels: [n] int64.
    """
    n = labels.numel()
    value = silhouette_samples(own, other)
    by_own, by_other = _silhouette_slopes(own, other)
    influence = torch.empty_like(value)
    for label in (0, 1):
        own_class, other_class = labels == label, labels != label
        count = own_class.sum()
        deviation = _centred(value[..., own_class])
        own_pull = by_own[..., own_class].sum(-1, keepdim=True) * _centred(own[..., own_class])
        other_pull = by_other[..., other_class].sum(-1, keepdim=True) * _centred(
            other[..., own_class]
        )
        influence[..., own_class] = (deviation + (own_pull + other_pull) / count) / n
    return influence


def _silhouette_slopes(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of every text's (b - a)/max(a, b) by its a and by its b."""
    largest = torch.maximum(own, other)
    near = own < other
    by_own = torch.where(near, -1 / largest, -other / largest**2).nan_to_num(0.0, 0.0, 0.0)
    by_other = torch.where(near, own / largest**2, 1 / largest).nan_to_num(0.0, 0.0, 0.0)
    return by_own, by_other


def silhouette_turning(x: Tensor, k: int, own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """Slopes of the mean silhouette of `k` coordinates as each turns towards each of the rest.

    Args:
        x: [n, p] float64, roughly centred.
        k: how many coordinates the silhouette sees.
        own, other: [n], see `mean_distances`, in those; labels: [n] int64.

    Returns:
        [k, p - k] float64, by the angle that turns coordinate i into x_i + angle x_j.
    """
    seen, rest = x[:, :k], x[:, k:]
    n, count = len(x), torch.bincount(labels, minlength=2)
    by_own, by_other = _silhouette_slopes(own, other)
    near, far = by_own / (count - 1)[labels] / n, by_other / count[1 - labels] / n
    found = x.new_zeros(k, rest.shape[-1])
    for rows, distance in _distance_tiles(seen):
        same = labels[rows, None] == labels
        pull = torch.where(same, near[rows, None], far[rows, None]) / distance
        pull = torch.where(distance > 0, pull, 0.0)
        # Each pair adds pull * (difference in seen) (difference in rest)'.
        found += seen[rows].T @ (pull.sum(1)[:, None] * rest[rows] - pull @ rest)
        found += seen.T @ (pull.sum(0)[:, None] * rest - pull.T @ rest[rows])
    return found


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)


def energy_distance(own: Tensor, other: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Energy distance over distinct texts and every text's influence on it.

    2E|X-Y| - E|X-X'| - E|Y-Y'| (Szekely & Rizzo 2013). With kernel values in place of distances
    it is minus the MMD^2 (Gretton et al. 2012).

    Args:
        own, other: [..., n], see `mean_distances`.
        labels: [n] int64.

    Returns:
        value [...], influence [..., n].
    """
    influence = torch.empty_like(own)
    value = torch.zeros_like(own[..., 0])
    for label in (0, 1):
        mine = labels == label
        value = value + other[..., mine].mean(-1) - own[..., mine].mean(-1)
        pull = other[..., mine] - own[..., mine]
        influence[..., mine] = 2 * _centred(pull) / mine.sum()
    return value, influence


def davies_bouldin(sqdist: Tensor, shift_sq: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Davies-Bouldin index and every text's influence on it, scikit-learn's convention.

    Args:
        sqdist: [..., n, 2], squared distance to each class mean.
        shift_sq: [...], squared distance of the class means.
        labels: [n] int64.
    """
    gap = shift_sq.sqrt()
    radius = sqdist.gather(-1, labels.expand(sqdist.shape[:-1])[..., None]).squeeze(-1).sqrt()
    spread = sum((radius[..., labels == c].mean(-1) for c in (0, 1)), torch.zeros_like(gap))
    along, _ = direction_scores(sqdist, shift_sq, labels)
    influence = torch.empty_like(radius)
    for label, sign in ((0, -1), (1, 1)):
        mine = labels == label
        by_gap = -(spread / gap**3)[..., None] * sign * along[..., mine]
        by_radius = _centred(radius[..., mine]) / gap[..., None]
        influence[..., mine] = (by_radius + by_gap) / mine.sum()
    return spread / gap, influence


def dunn(pair_min: Tensor, pair_max: Tensor, labels: Tensor) -> Tensor:
    """Smallest distance between the classes over the largest inside one (Dunn 1974).

    Args:
        pair_min, pair_max: [..., n, 2], a text's smallest and largest distance to each class.
        labels: [n] int64.
    """
    index = labels.expand(pair_min.shape[:-1])[..., None]
    between = pair_min.gather(-1, 1 - index).squeeze(-1).amin(-1)
    return between / pair_max.gather(-1, index).squeeze(-1).amax(-1)


def nn_hits(pair_min: Tensor, labels: Tensor) -> Tensor:
    """1 where a text's nearest other text is of its class, 1/2 in a tie, else 0: [..., n]."""
    index = labels.expand(pair_min.shape[:-1])[..., None]
    gap = pair_min.gather(-1, 1 - index) - pair_min.gather(-1, index)
    return (gap.sign().squeeze(-1) + 1) / 2


# Influences of full-width moments ------------------------------------------------------------


def direction_scores(sqdist: Tensor, shift_sq: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every text along d, and its squared distance to its own mean, from stored distances.

    Args:
        sqdist: [..., n, 2], squared distance to each class mean.
        shift_sq: [...], |d|^2.
        labels: [n] int64.

    Returns:
        along [..., n] = d'(x - own class mean), own [..., n].
    """
    half = (sqdist[..., 0] - sqdist[..., 1] - (2 * labels - 1) * shift_sq[..., None]) / 2
    own = sqdist.gather(-1, labels.expand(sqdist.shape[:-1])[..., None]).squeeze(-1)
    return half, own


def shift_influence(
    sqdist: Tensor, shift_sq: Tensor, trace: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Influences of every text on |d|^2 and on the within-class sum of squares.

    Args:
        sqdist: [..., n, 2], shift_sq: [...], trace: [..., 2], labels: [n] int64.

    Returns:
        on_shift [..., n], on_within [..., n]; both sum to zero within a class.
    """
    along, own = direction_scores(sqdist, shift_sq, labels)
    count = torch.bincount(labels, minlength=2).to(sqdist.dtype)
    on_shift = torch.empty_like(along)
    for label, sign in ((0, -2), (1, 2)):
        mine = labels == label
        on_shift[..., mine] = sign * _centred(along[..., mine]) / count[label]
    on_within = (own - trace[..., labels]) * ((count - 1) / count)[labels]
    return on_shift, on_within


def ratio_slopes(shift_sq: Tensor, trace: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of the adjusted between-class ratio by |d|^2 and by W; arguments as there."""
    weight = count.prod(-1) / count.sum(-1)
    between = weight * shift_sq
    within = ((count - 1) * trace).sum(-1)
    n = count.sum(-1)
    stretch = (n - 1) / (n - 2) / (between + within) ** 2
    return stretch * within * weight, -stretch * between


def shift_noise(unit: Tensor, width: int) -> Tensor:
    """tr V^2 of the covariance V of d, from projected texts: what |d|^2 varies by when d is small.

    Unbiased for the sampling (pairs of distinct units, as in Chen & Qin 2010) and for a Gaussian
    projection to `width` dimensions, whose dot products are too large by known moments.

    Args:
        unit: [..., U, P] float64, what every text (or pair) adds to the projected d.
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


def along_scores(influence: Tensor, scores: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """The part of an influence that goes with the texts' scores, by regression in every class.

    Args:
        influence, scores: [..., n] float64; labels: [n] int64.
        group: [n] int64, inside of which scores are compared: classes, or parts of them.
    """

    def sums(values: Tensor, index: Tensor) -> Tensor:
        zeros = values.new_zeros(*values.shape[:-1], int(index.max()) + 1)
        return zeros.index_add(-1, index, values)

    centred = scores - (sums(scores, group) / torch.bincount(group))[..., group]
    slope = sums(influence * centred, labels) / sums(centred.square(), labels)
    return slope.nan_to_num(0.0, 0.0, 0.0)[..., labels] * centred


def whitened_shift(shift: Tensor, unit: Tensor, classes: tuple[Tensor, Tensor]) -> Tensor:
    """d and what every unit adds to it where all directions vary alike inside the classes.

    There the direction Sp^-1 d of a probe is d itself.

    Args:
        shift: [P] float64, d; unit: [U, P], what every text (or pair) adds to it.
        classes: texts of each class, [n, P] float64.

    Returns:
        [1 + U, P] float64, d first.
    """
    within = sum(((x - x.mean(0)).T @ (x - x.mean(0)) for x in classes), unit.new_zeros(()))
    scale = within.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    freedom = sum(len(x) for x in classes)
    # As the probe's own penalty does, keep directions without variance from counting as noise.
    ridge = 4 / freedom * torch.eye(len(shift), dtype=shift.dtype)
    factor = torch.linalg.cholesky(within / (scale[:, None] * scale) + ridge)
    columns = torch.cat([shift[None], unit]) / scale
    white: Tensor = torch.linalg.solve_triangular(factor, columns.T, upper=False).T
    return white


# Held-out scores -----------------------------------------------------------------------------


def fold_auc(scores: Tensor, labels: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
    """AUC within folds, weighted by their pairs of texts, and DeLong's influence of every text.

    Scores of different folds come from different directions and are never compared. Ties count
    half (DeLong, DeLong & Clarke-Pearson 1988).

    Args:
        scores: [..., n] float64, labels: [n] int64, fold: [n] int64.

    Returns:
        auc [...], influence [..., n]; NaN if no fold holds both classes, or a score is NaN.
    """
    total = 0
    auc = torch.zeros_like(scores[..., 0])
    influence = torch.zeros_like(scores)
    for inside in fold_texts(fold):
        low, high = (inside[labels[inside] == label] for label in (0, 1))
        pairs = low.numel() * high.numel()
        if pairs == 0:
            continue
        total += pairs
        above = _share_below(scores[..., high], scores[..., low])
        below = 1 - _share_below(scores[..., low], scores[..., high])
        auc += above.sum(-1) * low.numel()
        # A fold holds few texts: their spread about their own mean is too small by (n - 1)/n.
        for mine, wins, others in ((high, above, low), (low, below, high)):
            n = mine.numel()
            influence[..., mine] = _centred(wins) * others.numel() * math.sqrt(n / max(n - 1, 1))
    auc[scores.isnan().any(-1)] = torch.nan
    return auc / total, influence / total


def fold_slices(fold: Tensor) -> list[slice]:
    """The texts of every fold that has any, where they stand in the order of their folds."""
    ends = torch.bincount(fold).cumsum(0).tolist()
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False) if a < b]


def fold_texts(fold: Tensor) -> list[Tensor]:
    """The texts of every fold that has any: fold [n] int64."""
    number = torch.bincount(fold)
    order = torch.argsort(fold, stable=True)
    return [part for part in torch.split(order, number.tolist()) if part.numel()]


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """Share of `others` below each of `values`, ties half."""
    ordered = others.sort(-1).values.contiguous()
    values = values.contiguous()
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / (2 * others.shape[-1])


@dataclass(frozen=True)
class _LogisticFit:
    """Penalised logistic regressions on one design: design [B, n, P], target [n]."""

    design: Tensor
    target: Tensor

    def curvature(self, curve: Tensor, design: Tensor) -> Tensor:
        """X' diag(curve) X: curve [B, F, n], design [B, n, P] -> [B, F, P, P]."""
        return (curve[..., None, :] * design.transpose(-1, -2)[:, None]) @ design[:, None]

    def minimise(
        self, weight: Tensor, train: Tensor, penalty: Tensor, hessian: Tensor | None, refresh: int
    ) -> tuple[Tensor, Tensor]:
        """Newton steps with halving until no weight moves; `refresh` steps share a curvature.

        Args:
            weight, penalty: [B, F, P]; train: [F, n], 1 for the texts of a fit.
            hessian: [B, F, P, P] to start with, without the penalty; None computes it.

        Returns:
            weight [B, F, P] and scores [B, F, n] of all texts.
        """
        ridge = torch.diag_embed(penalty) + 1e-10 * torch.eye(weight.shape[-1])
        both_classes = (train @ self.target > 0) & (train @ (1 - self.target) > 0)
        cost, score = self._loss(weight, train, penalty)
        factor = None if hessian is None else torch.linalg.cholesky(hessian + ridge)
        for i in range(100):
            odds = score.sigmoid()
            if factor is None or (i + 1) % refresh == 0:
                curve = train * odds * (1 - odds)
                factor = torch.linalg.cholesky(self.curvature(curve, self.design) + ridge)
            gradient = ((odds - self.target) * train) @ self.design + penalty * weight
            step = torch.cholesky_solve(gradient[..., None], factor).squeeze(-1)
            step = step * both_classes[:, None]
            size = torch.ones_like(cost)
            for _ in range(30):
                tried = weight - size[..., None] * step
                tried_cost, score = self._loss(tried, train, penalty)
                worse = tried_cost > cost + 1e-12 * cost.abs()
                if not bool(worse.any()):
                    break
                size = torch.where(worse, size / 2, size)
            weight, cost = tried, tried_cost
            if float(step.abs().max()) < 1e-8:
                break
        return weight, score

    def _loss(self, weight: Tensor, train: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
        score = weight @ self.design.transpose(-1, -2)
        cost = torch.nn.functional.softplus(score) - self.target * score
        return (cost * train).sum(-1) + (penalty * weight.square()).sum(-1) / 2, score


def logistic_scores(x: Tensor, labels: Tensor, fold: Tensor, strength: float = 1.0) -> Tensor:
    """Held-out scores of an L2 logistic probe, all layers and folds fitted together.

    Minimises sum log(1 + exp(-y s)) + strength/2 |w|^2 over the training folds with features
    standardised there (scikit-learn's C = 1/strength); the intercept is free. Scaling the penalty
    by the training variances stands for standardising.

    Newton's method fits all texts first. Every fold starts there, where its curvature is that of
    all texts less that of the texts left out: ten folds for little more than the price of one.

    Args:
        x: [B, n, P] float64, labels: [n] int64, fold: [n] int64.

    Returns:
        [B, n] float64, log odds of class 1 from the probe that never saw the text; NaN for the
        folds whose training texts are all of one class.
    """
    centred = x - x.mean(-2, keepdim=True)
    spread = centred.square().mean(-2, keepdim=True).sqrt()
    design = torch.where(spread > 0, centred / spread, 0.0)
    design = torch.cat([design, torch.ones_like(design[..., :1])], dim=-1)
    target = labels.to(x.dtype)
    inside = fold_texts(fold)
    place = torch.empty_like(fold)
    for f, texts in enumerate(inside):
        place[texts] = f
    train = (place != torch.arange(len(inside))[:, None]).to(x.dtype)
    n_train = train.sum(-1)[:, None]
    mean = train @ design / n_train
    penalty = strength * (train @ design.square() / n_train - mean.square())
    penalty[..., -1] = 0
    # A constant feature has no variance to penalise by; its weight stays zero with any penalty.
    penalty[..., :-1] = torch.where(penalty[..., :-1] > 1e-12, penalty[..., :-1], strength)
    known = (train @ target > 0) & (train @ (1 - target) > 0)

    fit = _LogisticFit(design, target)
    everything = torch.ones(1, len(labels), dtype=x.dtype)
    whole_penalty = penalty.mean(-2, keepdim=True)
    start, score = fit.minimise(
        torch.zeros_like(whole_penalty), everything, whole_penalty, None, refresh=1
    )
    odds = score.sigmoid()
    curve = odds * (1 - odds)
    left_out = torch.stack(
        [fit.curvature(curve[..., texts], design[:, texts]).squeeze(1) for texts in inside], dim=1
    )
    hessian = left_out.sum(1, keepdim=True) - left_out
    _, score = fit.minimise(start.expand_as(penalty), train, penalty, hessian, refresh=8)
    held_out = score.gather(-2, place.expand(x.shape[0], 1, -1)).squeeze(-2)
    return torch.where(known[place], held_out, torch.nan)


def crossfit_scores(x: Tensor, labels: Tensor, fold: Tensor, ridge: float | None) -> Tensor:
    """Held-out scores of linear directions fitted to many labellings at once.

    Args:
        x: [n, P] float64, one layer's texts, in the order of their folds.
        labels: [R, n] float64, one labelling a row, 0 or 1.
        fold: [n] int64, ascending.
        ridge: None for the difference of class means; else the strength of a ridge probe on
            standardised features, whose weights are one linear solve for all labellings.

    Returns:
        [R, n] float64, place along the direction from the midpoint of the training folds' means.
    """
    x = x - x.mean(0)
    if ridge is not None:
        spread = x.square().mean(0).sqrt()
        x = torch.where(spread > 0, x / spread, 0.0)
    inside = fold_slices(fold)
    sum1 = torch.stack([labels[:, i] @ x[i] for i in inside])
    count1 = torch.stack([labels[:, i].sum(-1, keepdim=True) for i in inside])
    gram = x.T @ x
    scores = torch.empty(labels.shape, dtype=x.dtype)
    for f, i in enumerate(inside):
        n1 = count1.sum(0) - count1[f]
        n = x.shape[0] - (i.stop - i.start)
        rest = -x[i].sum(0)  # the sum over all texts is zero
        mean1 = (sum1.sum(0) - sum1[f]) / n1
        mean0 = (rest - n1 * mean1) / (n - n1)
        direction = mean1 - mean0
        if ridge is not None:
            scatter = gram - x[i].T @ x[i] - torch.outer(rest, rest) / n
            scatter = scatter + ridge * torch.eye(x.shape[-1], dtype=x.dtype)
            factor = torch.linalg.cholesky(scatter)
            direction = torch.cholesky_solve(direction.T, factor).T
        midpoint = (direction * (mean1 + mean0)).sum(-1, keepdim=True) / 2
        scores[:, i] = direction @ x[i].T - midpoint
    return scores


def heldout_scores(source: Tensor, target: Tensor, labels: Tensor, fold: Tensor) -> Tensor:
    """Texts of `target` along the difference of class means of the other folds of `source`.

    Args:
        source, target: [..., n, P] float64, the same texts; labels: [n] int64, fold: [n] int64.

    Returns:
        [..., n] float64; offsets differ between folds, as directions do.
    """
    scores = torch.empty(target.shape[:-1], dtype=target.dtype)
    for inside in fold_texts(fold):
        rest = torch.ones_like(labels, dtype=torch.bool)
        rest[inside] = False
        low, high = (source[..., rest & (labels == c), :].mean(-2) for c in (0, 1))
        scores[..., inside] = (target[..., inside, :] @ (high - low)[..., None]).squeeze(-1)
    return scores


def labelled_auc(scores: Tensor, labels: Tensor, fold: Tensor) -> Tensor:
    """`fold_auc` with another labelling in every row; ties are broken by order.

    Args:
        scores: [R, n] float64, labels: [R, n] float64, fold: [n] int64, ascending.
    """
    wins = torch.zeros(scores.shape[0], dtype=scores.dtype)
    chances = torch.zeros_like(wins)
    for i in fold_slices(fold):
        # NumPy sorts with vector instructions; float32 is exact enough for order in a null.
        order = torch.from_numpy(scores[:, i].float().numpy().argsort(-1))
        here = labels[:, i].gather(-1, order)
        n1 = here.sum(-1)
        size = i.stop - i.start
        rank = torch.arange(1, size + 1, dtype=scores.dtype)
        wins += here @ rank - n1 * (n1 + 1) / 2
        chances += n1 * (size - n1)
    return wins / chances


TILE_BYTES = 5 << 19
"""Working memory of one tile of distances: small enough for a cache, large enough for products."""


def _distance_tiles(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the Euclidean distance matrix, as many at once as fit `TILE_BYTES`.

    One product gives squares: of rows [x, |x|^2, 1] with [-2x, 1, |x|^2]. The next tile takes the
    place of the one before.
    """
    n = x.shape[0]
    norm_sq = x.square().sum(-1, keepdim=True)
    one = torch.ones_like(norm_sq)
    left, right = torch.cat([x, norm_sq, one], -1), torch.cat([-2 * x, one, norm_sq], -1).T
    tile = max(1, TILE_BYTES // (8 * n))
    space = torch.empty(min(tile, n), n, dtype=x.dtype)
    for start in range(0, n, tile):
        rows = slice(start, min(start + tile, n))
        distance = space[: rows.stop - start]
        torch.mm(left[rows], right, out=distance).clamp_min_(0).sqrt_()
        distance.diagonal(start).zero_()
        yield rows, distance


@dataclass(frozen=True)
class LabelledDistances:
    """What one pass over the distances of one layer's texts gives for many labellings.

    pair_sum: [n, 2] float64, sums to each class under the first labelling, itself left out;
    silhouette, energy: [R] float64, of every labelling, from sums in float32;
    nearest: [n] int64, every text's nearest other text, if asked for.
    """

    pair_sum: Tensor
    silhouette: Tensor
    energy: Tensor
    nearest: Tensor


def labelled_distances(
    x: Tensor, labels: Tensor, *, bandwidth: float | None = None, neighbours: bool = False
) -> LabelledDistances:
    """Silhouette and energy distance of many labellings from one pass over the distances.

    Sums to a class are a product of distances and labellings, a tile of rows at a time:
    2 n^2 R flops, which is nearly all of the work. The labellings serve as a null and are compared
    with each other only: float32 is enough for them.

    Args:
        x: [n, k] float64, roughly centred.
        labels: [R, n] float64, one labelling a row, each with the same number of ones.
        bandwidth: minus the Gaussian kernel exp(-|x-y|^2/(2 bandwidth^2)) stands for the distance,
            so that `energy` is the MMD^2.
        neighbours: find `nearest`, too.
    """
    n1 = float(labels[0].sum())
    n0 = len(x) - n1
    single = labels.T.float().contiguous()
    packed = pack_labels(labels)
    first = torch.stack([1 - labels[0], labels[0]], -1)
    pair_sum = torch.empty(len(x), 2, dtype=x.dtype)
    near = torch.empty(len(x) if neighbours else 0, dtype=torch.int64)
    silhouette, within1 = (torch.zeros(len(labels), dtype=x.dtype) for _ in range(2))
    # Float32 overflows where float64 does not; every statistic scales with the distances.
    scale = float(x.abs().max().clamp_min(1e-300)) if bandwidth is None else 1.0
    for rows, distance in _distance_tiles(x / scale):
        if bandwidth is not None:
            distance.div_(bandwidth).square_().mul_(-0.5).exp_().neg_()
            distance.diagonal(rows.start).zero_()
        pair_sum[rows] = distance @ first
        if neighbours:
            distance.diagonal(rows.start).fill_(torch.inf)
            near[rows] = distance.argmin(-1)
            distance.diagonal(rows.start).zero_()
        to1 = label_sums(distance, packed)[:, : len(labels)]
        mine = single[rows]
        within1 += (to1 * mine).sum(0)
        if bandwidth is None:
            to0 = pair_sum[rows].sum(-1, keepdim=True).float() - to1
            silhouette += _signed_silhouettes(to0, to1, mine, n0, n1).sum(0)
    row_sum = pair_sum.sum(-1)
    across = labels @ row_sum - within1
    within0 = row_sum.sum() - 2 * across - within1
    energy = 2 * across / (n0 * n1) - within1 / (n1 * (n1 - 1)) - within0 / (n0 * (n0 - 1))
    return LabelledDistances(pair_sum * scale, silhouette / len(x), energy * scale, near)


def _signed_silhouettes(to0: Tensor, to1: Tensor, mine: Tensor, n0: float, n1: float) -> Tensor:
    """Silhouettes from sums of distances to both classes; overwrites its arguments `to0`, `to1`.

    With q = a/b, (b - a)/max(a, b) = min(1/q, 1) - min(q, 1), and 1/q has the opposite sign: one
    formula serves both classes, and no branch on the label is left.

    Args:
        to0, to1: [n, R] float32; mine: [n, R] float32, 1 where a text is in class 1.
        n0, n1: texts in each class.
    """
    in1, in0 = n0 / (n1 - 1), (n0 - 1) / n1
    weight = mine.mul(in1 - in0).add_(in0)
    ratio = to1.div_(to0).mul_(weight)
    toward = torch.reciprocal(ratio, out=to0).clamp_max_(1).sub_(ratio.clamp_max_(1))
    return toward.nan_to_num_(0.0).mul_(torch.mul(mine, 2, out=weight).sub_(1))


def labelled_cosine(x: Tensor, labels: Tensor) -> Tensor:
    """Cosine silhouette of many labellings, from sums of unit vectors instead of pairs of texts.

    Args:
        x: [n, k] float64, not centred; labels: [R, n] float64, each with the same number of ones.

    Returns:
        [R] float64; sums to a class are exact, silhouettes of texts float32.
    """
    n1 = float(labels[0].sum())
    n0 = len(x) - n1
    norm = x.norm(dim=-1, keepdim=True)
    unit = torch.where(norm > 0, x / norm, 0.0)
    sums = labels @ unit
    total = unit.sum(0)
    alone = (norm == 0).double()  # at distance 1 from all, but 0 from itself
    found = torch.zeros(len(labels), dtype=x.dtype)
    size = max(1, TILE_BYTES // (8 * len(labels)))
    for rows in (slice(i, i + size) for i in range(0, len(x), size)):
        mine = labels[:, rows].T
        to1 = n1 - unit[rows] @ sums.T - alone[rows] * mine
        to0 = (n0 - unit[rows] @ total + n1 - alone[rows, 0])[:, None] - to1
        sums0, sums1 = to0.clamp_min_(0).float(), to1.clamp_min_(0).float()
        found += _signed_silhouettes(sums0, sums1, mine.float(), n0, n1).sum(0)
    return found / len(x)


def grouped_silhouettes(x: Tensor, group: Tensor) -> Tensor:
    """Silhouette of every text for any number of groups, as scikit-learn's; alone in one: 0.

    Args:
        x: [n, k] float64, roughly centred; group: [n] int64, 0 .. G - 1.
    """
    order = torch.argsort(group, stable=True)
    count = torch.bincount(group)
    ends = count.cumsum(0)
    found = torch.empty(len(x), dtype=x.dtype)
    for rows, distance in _distance_tiles(x[order]):
        total = torch.nn.functional.pad(distance.cumsum(-1), (1, 0))
        sums = total[:, ends] - total[:, ends - count]
        mine = group[order[rows]][:, None]
        own = sums.gather(-1, mine).squeeze(-1) / (count[mine.squeeze(-1)] - 1)
        other = (sums / count).scatter(-1, mine, torch.inf).amin(-1)
        value = silhouette_samples(own, other)
        found[order[rows]] = torch.where(count[mine.squeeze(-1)] > 1, value, 0.0)
    return found


def median_distance(x: Tensor, most: int = 1000) -> float:
    """Median distance of distinct texts, of at most `most` evenly spaced ones: x [n, k]."""
    some = x[:: -(-x.shape[0] // most)]
    return float(torch.pdist(some).median())
