"""Distances between two Gaussians fitted to the classes, in the first K principal components.

d is the difference of the class means, S0 and S1 the class covariances, S their mean.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..cells import Cells, Resampled, once
from ..estimate import Estimate, Square, make_estimate
from ..intervals import log_ends
from ..metric import (
    BOOTSTRAP,
    BOOTSTRAP_OF_MEANS,
    NULL_MEAN,
    OWN_COMPONENTS,
    SHUFFLE,
    SHUFFLE_JAMES,
    SPREAD_COUNTS,
    InComponents,
    Metric,
)
from ..moments import Moments, products
from ..texts import Refusal

TEXTS_PER_COMPONENT = 10
"""Texts per class that a covariance needs for each component."""
SINGULAR = 1e-6
"""Smallest pivot of a correlation matrix's Cholesky factor that counts as full rank."""


# What the metrics share ----------------------------------------------------------------------


def require_texts(cells: Cells, k: int) -> None:
    """Refuse a covariance in `k` components of too few texts, unless `cells.force`.

    Raises:
        Refusal: a class has fewer than `TEXTS_PER_COMPONENT` texts per component.
    """
    least, smaller = TEXTS_PER_COMPONENT * k, int(cells.different.min())
    if smaller < least and not cells.force:
        raise Refusal(
            f"a covariance in {k} components needs {least} {cells.texts} per class; "
            f"the smaller class has {smaller}"
        )


def _cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor; NaN if the matrix does not have full rank."""
    clean = matrix.nan_to_num(0.0, 0.0, 0.0)
    factor, info = torch.linalg.cholesky_ex(clean)
    scale = clean.diagonal(dim1=-2, dim2=-1).sqrt()
    pivot = factor.diagonal(dim1=-2, dim2=-1)
    regular = (info == 0) & (pivot > SINGULAR * scale).all(-1)
    return torch.where(regular[..., None, None], factor, torch.nan)


def square_length(vectors: Tensor, cov: Tensor) -> Tensor:
    """tr A' cov^-1 A for A [..., k, j], scaled by the standard deviations; NaN if singular."""
    scale = cov.diagonal(dim1=-2, dim2=-1).sqrt()[..., None]
    factor = _cholesky(cov / (scale * scale.transpose(-1, -2)))
    whitened: Tensor = torch.linalg.solve_triangular(factor, vectors / scale, upper=False)
    return whitened.square().sum((-1, -2))


def whiten(x: Tensor) -> Tensor:
    """Transform centred x [..., n, k] linearly so that x'x is the identity."""
    left: Tensor = torch.linalg.svd(x, full_matrices=False)[0]
    return left


@once
def _whitened(cells: Cells, k: int) -> Tensor:
    """[cell, n, k], whitened components after subtracting the class means."""
    return whiten(cells.about_class_means(cells.components(k)))


def james_square(moments: Moments) -> Tensor:
    """d'(S0/n0 + S1/n1)^-1 d, Hotelling's T^2 for unequal covariances (James 1954): [..., R]."""
    noise = (moments.cov / moments.count[..., None, None]).sum(-3)
    return square_length(moments.shift[..., None], noise)


# bhattacharyya and its variants --------------------------------------------------------------


def bhattacharyya(shift: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of the Bhattacharyya distance in the first 1, 2, .. k dimensions.

    One Cholesky factor contains the factors of all leading submatrices, so the curve over k costs
    nothing extra. Dimensions are first scaled to unit average variance: whether a covariance counts
    as singular then does not depend on units.

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


def _log_det_curve(matrix: Tensor) -> Tensor:
    """Log-determinants of all leading submatrices: [..., k]."""
    return 2 * _cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().cumsum(-1)


def bhattacharyya_floor(k: int, n0: float, n1: float) -> tuple[float, float]:
    """Expected value of both Bhattacharyya terms if both classes come from one Gaussian.

    E T1 = k(1/n0+1/n1)/8 * nu/(nu-k-1) (mean of an inverse Wishart matrix); E T2 = (L(nu) -
    L(n0-1)/2 - L(n1-1)/2)/2, L(v) = sum_i psi((v+1-i)/2) + k ln(2/v) (mean of a Wishart matrix's
    log-determinant). The average covariance has nu = 4/(1/(n0-1) + 1/(n1-1)) degrees of freedom
    (Welch 1947; Satterthwaite 1946). About k/(4n) + k(k+1)/(8n); NaN where k is too large. Heavy
    tails raise the mean above this.
    """
    nu = 4 / (1 / (n0 - 1) + 1 / (n1 - 1)) if min(n0, n1) > 1 else 0.0
    if min(n0, n1) - 1 < k or nu <= k + 1:
        return float("nan"), float("nan")

    def log_det(v: float) -> float:
        i = torch.arange(1, k + 1, dtype=torch.float64)
        return float(torch.digamma((v + 1 - i) / 2).sum() + k * torch.log(torch.tensor(2 / v)))

    t1 = k * (1 / n0 + 1 / n1) / 8 * nu / (nu - k - 1)
    t2 = (log_det(nu) - log_det(n0 - 1) / 2 - log_det(n1 - 1) / 2) / 2
    return t1, t2


def ledoit_wolf(cov: Tensor, fourth: Tensor, count: Tensor, effective: Tensor) -> Tensor:
    """Weight of the identity in the Ledoit-Wolf covariance (Ledoit & Wolf 2004), between 0 and 1.

    Args:
        cov: [..., k, k] (ddof 1), fourth: [...], mean of |x - mean|^4.
        count: texts; effective: the same without copies, see `Cells.effective`.

    Returns:
        [...] float64.
    """
    # Squares of squares leave float64 at 1e77; the share does not depend on the scale.
    scale = cov.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-300)
    cov = cov / scale[..., None, None] * ((count - 1) / count)[..., None, None]
    level = cov.diagonal(dim1=-2, dim2=-1).mean(-1)
    square = cov.square().sum((-1, -2))
    spread = (fourth / scale / scale - square) / effective
    distance = square - cov.shape[-1] * level.square()
    return torch.where(distance > 0, (spread / distance).clamp(0, 1), 1.0)


def shrink(cov: Tensor, share: Tensor) -> Tensor:
    """Replace a share [...] of covariances [..., k, k] by an identity of the same trace."""
    k = cov.shape[-1]
    level = cov.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(k, dtype=cov.dtype) * level[..., None, None]
    return cov + share[..., None, None] * (identity - cov)


@once
def _shrinkage(cells: Cells, k: int) -> Tensor:
    """[cell, R, 2], Ledoit-Wolf weights of the identity for the covariances of `cells.moments`."""
    x = cells.about_class_means(cells.components(k))
    fourth = x.square().sum(-1, keepdim=True).square()
    count = cells.moments.count
    fourth = cells.resamples.class_sums(fourth).squeeze(-1) / count
    effective = count * (cells.effective[0] / cells.count)
    permuted = cells.effective[1:]  # labels move copies between the classes
    effective[len(effective) - len(permuted) :] = permuted
    return ledoit_wolf(cells.moments.leading(k).cov, fourth, count, effective)


@once
def _terms(cells: Cells, k: int, shrunk: bool) -> Resampled:
    """T1 and T2 of every resample: [cell, 2, ...]."""

    return cells.resampled(k, partial(_both_terms, cells, k, shrunk))


def _both_terms(cells: Cells, k: int, shrunk: bool, moments: Moments) -> Tensor:
    """T1 and T2, [cell, 2, R], of the moments of the first R resamples."""
    cov = moments.cov
    if shrunk:
        cov = shrink(cov, _shrinkage(cells, k)[:, : cov.shape[1]])
    t1, t2 = bhattacharyya(moments.shift, cov)
    return torch.stack([t1[..., -1], t2[..., -1]], -2)


def _distance(
    cells: Cells, k: int, *, terms: tuple[int, ...] = (0, 1), shrunk: bool = False
) -> Estimate:
    """The sum of `terms`: 0 is T1, 1 is T2."""
    require_texts(cells, k)
    value, draws, null = (part[:, list(terms)].sum(1) for part in _terms(cells, k, shrunk))
    if bool(value.isnan().all()):
        raise Refusal(f"the covariance of a class does not have full rank in {k} components")
    exact = bhattacharyya_floor(k, *cells.effective[0].tolist())
    known = shrunk or null.shape[-1] > 1
    floor = cells.chance(null) if known else sum(exact[i] for i in terms)
    squares = _distance_squares(cells, k, exact, shrunk)
    return make_estimate(
        cells,
        value,
        null=cells.labelled(k, james_square) if terms == (0,) else null,
        floor=floor,
        draws=cells.of_means(draws) if terms == (0,) else draws,
        influence=cells.influence(
            k, lambda x: _both_terms(cells, k, shrunk, x)[:, list(terms)].sum(1)
        ),
        squares=tuple(squares[i] for i in terms) if squares else (),
        around=log_ends,
    )


def _distance_squares(
    cells: Cells, k: int, exact: tuple[float, float], shrunk: bool
) -> tuple[Square, ...]:
    """Quadratic parts: T1 is close to a sum of k squares of normal deviates, T2 of k(k+1)/2.

    Args:
        cells, k, shrunk: as in `_terms`.
        exact: exact floors of T1 and T2.
    """
    t1, t2 = exact
    if cells.paired or not math.isfinite(t1):
        return ()
    by_mean = torch.full((len(cells.index),), 2 * t1**2 / k, dtype=torch.float64)
    by_cov = torch.full_like(by_mean, 4 * t2**2 / (k * (k + 1)))
    if shrunk:
        left = _damping(cells, k)
        by_mean, by_cov = by_mean * left[0], by_cov * left[1]
    return (
        Square(by_mean, lambda: cells.noise_of_units(_whitened(cells, k))),
        Square(by_cov, lambda: cells.noise_of_units(_centred_products(_whitened(cells, k)))),
    )


def _damping(cells: Cells, k: int) -> tuple[Tensor, Tensor]:
    """Factors by which shrinkage reduces the variance of the quadratic parts, [cell] each.

    If shrinkage changes the variance along an axis from s to s', noise along it is s/s' as strong.
    Noise of covariances is also reduced by the weight of the identity.
    """
    cov, shares = cells.moments.leading(k).cov[:, 0], _shrinkage(cells, k)[:, 0]
    ratio, _ = torch.linalg.solve_ex(shrink(cov, shares).mean(1), cov.mean(1))
    second = ratio @ ratio
    squares, fourths = (x.diagonal(dim1=-2, dim2=-1).sum(-1) for x in (second, second @ second))
    kept = (1 - shares.mean(-1)) ** 4
    return squares / k, kept * (squares.square() + fourths) / (k * (k + 1))


def _centred_products(x: Tensor) -> Tensor:
    """Centred products of two coordinates: x [..., n, k] -> [..., n, k(k+1)/2]."""
    pairs = products(x)[..., x.shape[-1] :]
    return pairs - pairs.mean(-2, keepdim=True)


def _excess(cells: Cells, k: int) -> Estimate:
    distance = _distance(cells, k)
    floor = distance.floor
    return replace(
        distance.mapped(lambda x: x - floor),
        influence=distance.influence,
        draws=distance.draws,
        linear=distance.linear,
        squares=distance.squares,
        around=log_ends,
        subtracted=floor,
    )


_SOURCE = "Bhattacharyya 1943; Fukunaga 1990, section 3.4"
_PITFALLS = (
    "Positive without any difference, by about k/(4n) + k(k+1)/(8n): compare it with its floor, or "
    "use bhattacharyya_excess. Assumes Gaussian classes. " + OWN_COMPONENTS
)
_FLOOR = (
    "mean over the permutations; without permutations the exact mean for equal Gaussian classes "
    "(expected inverse and log-determinant of Wishart matrices)"
)


def _bhattacharyya(k: int) -> Metric:
    return Metric(
        name=f"bhattacharyya_pc{k}",
        title="Bhattacharyya distance",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="1",
        definition="T1 + T2, T1 = d'S^-1 d/8, T2 = (ln|S| - ln|S0|/2 - ln|S1|/2)/2, S = (S0+S1)/2",
        source=_SOURCE,
        pitfalls=f"{_PITFALLS} {SPREAD_COUNTS}",
        interval=BOOTSTRAP,
        null=SHUFFLE,
        any_difference=True,
        floor=_FLOOR,
        default=k == 10,
        estimator=partial(_distance, k=k),
    )


def _bhattacharyya_excess(k: int) -> Metric:
    return Metric(
        name=f"bhattacharyya_excess_pc{k}",
        title="Bhattacharyya above its floor",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="1",
        definition="bhattacharyya minus its floor",
        source=_SOURCE,
        pitfalls="Can be negative: the classes then differ less than expected by chance. "
        f"{SPREAD_COUNTS} {OWN_COMPONENTS}",
        interval=BOOTSTRAP,
        null=SHUFFLE,
        any_difference=True,
        floor="0",
        default=k == 10,
        estimator=partial(_excess, k=k),
    )


def _bhattacharyya_mean(k: int) -> Metric:
    return Metric(
        name=f"bhattacharyya_mean_pc{k}",
        title="Bhattacharyya T1 (means)",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="1",
        definition="d'S^-1 d/8, S = (S0+S1)/2",
        source=_SOURCE,
        pitfalls=_PITFALLS,
        interval=BOOTSTRAP_OF_MEANS,
        null=SHUFFLE_JAMES,
        floor=_FLOOR,
        default=k == 10,
        estimator=partial(_distance, k=k, terms=(0,)),
    )


def _bhattacharyya_cov(k: int) -> Metric:
    return Metric(
        name=f"bhattacharyya_cov_pc{k}",
        title="Bhattacharyya T2 (covariances)",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="1",
        definition="(ln|S| - ln|S0|/2 - ln|S1|/2)/2, S = (S0+S1)/2",
        source=_SOURCE,
        pitfalls=f"{_PITFALLS} {SPREAD_COUNTS}",
        interval=BOOTSTRAP,
        null=SHUFFLE,
        any_difference=True,
        floor=_FLOOR,
        default=k == 10,
        estimator=partial(_distance, k=k, terms=(1,)),
    )


def _bhattacharyya_shrunk(k: int) -> Metric:
    return Metric(
        name=f"bhattacharyya_shrunk_pc{k}",
        title="Bhattacharyya, shrunk",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="1",
        definition="bhattacharyya, with each covariance replaced by its Ledoit-Wolf shrinkage "
        "towards a multiple of the identity",
        source="Ledoit & Wolf 2004",
        pitfalls=f"Depends on the scale of the dimensions. {SPREAD_COUNTS} {OWN_COMPONENTS}",
        interval=BOOTSTRAP,
        null=SHUFFLE,
        any_difference=True,
        floor=NULL_MEAN,
        estimator=partial(_distance, k=k, shrunk=True),
    )


def _bhattacharyya_coefficient(k: int) -> Metric:
    return Metric(
        name=f"bhattacharyya_coefficient_pc{k}",
        title="Bhattacharyya coefficient",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="1",
        definition="exp(-bhattacharyya)",
        source="Bhattacharyya 1943; Haldar et al. 2025 (arXiv 2502.00657)",
        pitfalls="Below 1 without any difference. Small means separated. "
        f"{SPREAD_COUNTS} {OWN_COMPONENTS}",
        interval="that of bhattacharyya, transformed",
        null=SHUFFLE,
        any_difference=True,
        floor="exp(-floor of bhattacharyya)",
        alias_of=f"bhattacharyya_pc{k}",
        grows=False,
        estimator=lambda cells: _distance(cells, k).mapped(lambda x: torch.exp(-x)),
    )


# mahalanobis ---------------------------------------------------------------------------------


def mahalanobis(moments: Moments, share: Tensor) -> Tensor:
    """Cross-validated squared Mahalanobis distance: [..., R]; 0 on average without a difference.

    The mean of d_A' Sp^-1 d_B over all choices of disjoint texts A and B, in closed form:
    d'Sp^-1 d - tr Sp^-1 (S0/n0 + S1/n1) (crossnobis with one text a fold, Walther et al. 2016).

    Args:
        moments: of every resample.
        share: [2], `Cells.effective` over the number of texts: 1 without copies.
    """
    square, noise = _square_and_noise(moments, share)
    return square - noise


def _square_and_noise(moments: Moments, share: Tensor) -> tuple[Tensor, Tensor]:
    """d'Sp^-1 d and tr Sp^-1 (S0/n0 + S1/n1); arguments as in `mahalanobis`."""
    count = moments.count * share  # S counts on more different texts than there are
    unbiased = (moments.count - 1) / moments.count * count / (count - 1)
    cov = moments.cov * unbiased[..., None, None]
    pooled = (cov * (count - 1)[..., None, None]).sum(-3) / (count - 1).sum(-1)[..., None, None]
    noise = _cholesky((cov / count[..., None, None]).sum(-3))
    return square_length(moments.shift[..., None], pooled), square_length(noise, pooled)


def _crossnobis(cells: Cells, k: int) -> Estimate:
    require_texts(cells, k)
    share = cells.effective[0] / cells.count
    statistic = partial(mahalanobis, share=share)
    value, draws, null = cells.resampled(k, statistic)
    every = cells.moments.leading(k)
    own = Moments(every.count[:1], every.mean[:, :1], every.cov[:, :1])
    floor = bhattacharyya_floor(k, *cells.effective[0].tolist())
    by_mean = _distance_squares(cells, k, floor, shrunk=False)[:1]
    return make_estimate(
        cells,
        value,
        null=cells.labelled(k, james_square),
        floor=cells.chance(null, 0.0),
        draws=cells.of_means(draws),
        influence=cells.influence(k, statistic),
        # D^2 is 8 T1 where the covariances are alike.
        squares=tuple(replace(part, variance=8**2 * part.variance) for part in by_mean),
        around=log_ends,
        subtracted=_square_and_noise(own, share)[1][:, 0],
    )


def _mahalanobis(k: int) -> Metric:
    return Metric(
        name=f"mahalanobis_pc{k}",
        title="Mahalanobis, cross-validated",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="1",
        definition="d'Sp^-1 d - tr Sp^-1 (S0/n0 + S1/n1), Sp the pooled covariance: the mean of "
        "d_A' Sp^-1 d_B over all disjoint texts A, B",
        source="crossnobis (Walther et al. 2016)",
        pitfalls="Can be negative. Its square root is the d' of signal detection. On paired data "
        "it subtracts too much noise: compare it with its floor, or use hotelling. "
        + OWN_COMPONENTS,
        interval=BOOTSTRAP_OF_MEANS,
        null=SHUFFLE_JAMES,
        floor="0 where every text is a unit of its own; else the mean over the permutations",
        estimator=partial(_crossnobis, k=k),
    )


# frechet -------------------------------------------------------------------------------------


def frechet(shift: Tensor, cov: Tensor) -> Tensor:
    """Squared Frechet distance of two Gaussians (Dowson & Landau 1982).

    tr (S0^1/2 S1 S0^1/2)^1/2 is the sum of the singular values of A0' A1, for any S = A A'. The
    roots A come from eigenvectors, so covariances may be singular.

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


def _bures(cells: Cells, k: int) -> Estimate:
    require_texts(cells, k)

    def statistic(moments: Moments) -> Tensor:
        return frechet(moments.shift, moments.cov)

    value, draws, null = cells.resampled(k, statistic)
    influence = cells.influence(k, statistic)
    return make_estimate(cells, value, null=null, draws=draws, influence=influence, around=log_ends)


def _frechet(k: int) -> Metric:
    return Metric(
        name=f"frechet_pc{k}",
        title="squared Frechet distance",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="state^2",
        definition="|d|^2 + tr(S0 + S1 - 2 (S0^1/2 S1 S0^1/2)^1/2)",
        source="Dowson & Landau 1982",
        pitfalls="Biased upwards by about 1/n. In squared units of the hidden state. "
        f"{SPREAD_COUNTS} {OWN_COMPONENTS}",
        interval=BOOTSTRAP,
        null=SHUFFLE,
        any_difference=True,
        floor=NULL_MEAN,
        estimator=partial(_bures, k=k),
    )


METRICS: tuple[Metric | InComponents, ...] = (
    _bhattacharyya,
    _bhattacharyya_excess,
    _bhattacharyya_mean,
    _bhattacharyya_cov,
    _bhattacharyya_shrunk,
    _bhattacharyya_coefficient,
    _mahalanobis,
    _frechet,
)
