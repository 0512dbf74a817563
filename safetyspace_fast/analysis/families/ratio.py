"""Metrics of the variance between the classes, and of the distance of their means.

d is the difference of the class means, S0 and S1 are the class covariances. B = (n0 n1/N)|d|^2 is
the sum of squares between the classes, W = (n0-1) tr S0 + (n1-1) tr S1 the one within them.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...store.layout import COMPONENTS
from ..cells import Cells, once
from ..estimate import Estimate, Square, make_estimate, swap_floor
from ..metric import (
    BOOTSTRAP,
    INFLUENCE,
    NONE,
    OWN_COMPONENTS,
    SHUFFLE,
    SHUFFLE_PROJECTION,
    InComponents,
    Metric,
)
from ..moments import Moments, diagonal_moments, shift_influence, varies

_FLOOR = (
    "1/(N-1), exact in any number of dimensions, with N texts that have no copies; on paired data "
    "the mean over label swaps"
)


# What the metrics share ----------------------------------------------------------------------


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


def shift_square(cells: Cells, scale: Tensor | float = 1.0) -> Square:
    """The part of `scale` |d|^2 that is quadratic in noise."""
    return Square(2 * scale * cells.shift_noise, lambda: cells.unit_shift)


@once
def _projection_null(cells: Cells) -> dict[str, Tensor]:
    """rho and mean_shift in the projection, for the true labels and every permutation.

    Returns:
        Tensors [cell, 1 + permutations] by name.
    """
    x = cells.projected
    sums = cells.resamples.class_sums(torch.cat([x, x.square()], -1), bootstrap=False)
    count = cells.resamples.class_counts(bootstrap=False)
    mean, var = diagonal_moments(sums, count)
    shift_sq, trace = (mean[..., 1, :] - mean[..., 0, :]).square().sum(-1), var.sum(-1)
    return {
        "rho": between_ratio(shift_sq, trace, count),
        "mean_shift": mean_shift(shift_sq, trace, cells.mean_counts),
    }


# rho_adjusted --------------------------------------------------------------------------------


def adjusted_ratio(rho: Tensor, n: Tensor | float) -> Tensor:
    """Ratio without its expected value under the null, 1/(N-1) (Ezekiel 1930)."""
    return 1 - (1 - rho) * (n - 1) / (n - 2)


def ratio_slopes(
    shift_sq: Tensor, trace: Tensor, count: Tensor, n: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives of the adjusted ratio by |d|^2 and by W; arguments as in `between_ratio`.

    `n` is that of `adjusted_ratio`.
    """
    weight = count.prod(-1) / count.sum(-1)
    between = weight * shift_sq
    within = ((count - 1) * trace).sum(-1)
    stretch = (n - 1) / (n - 2) / (between + within) ** 2
    return stretch * within * weight, -stretch * between


def _rho_adjusted(cells: Cells) -> Estimate:
    n = cells.independent
    rho = between_ratio(cells.shift_sq, cells.trace, cells.count)
    null = adjusted_ratio(_projection_null(cells)["rho"], n)
    on_shift, on_within = shift_influence(cells.sqdist, cells.shift_sq, cells.trace, cells.labels)
    by_shift, by_within = ratio_slopes(cells.shift_sq, cells.trace, cells.count, n)
    return make_estimate(
        cells,
        adjusted_ratio(rho, n),
        null=null,
        floor=swap_floor(cells, 0.0, null),
        influence=by_shift[:, None] * on_shift + by_within[:, None] * on_within,
        squares=(shift_square(cells, by_shift.square()),),
    )


_RHO_ADJUSTED = Metric(
    name="rho_adjusted",
    title="adjusted between-class ratio",
    space="full",
    kind="A",
    unit="1",
    definition="1 - (1-rho)(N-1)/(N-2)",
    source="adjusted R^2 (Ezekiel 1930)",
    pitfalls="Can be negative: the classes then differ less than expected by chance.",
    interval=f"{INFLUENCE}; includes the second-order term of |d|^2",
    null=SHUFFLE_PROJECTION,
    floor="0; on paired data the mean over label swaps",
    default=True,
    estimator=_rho_adjusted,
)


# rho -----------------------------------------------------------------------------------------


def unadjusted_ratio(adjusted: Tensor, n: Tensor | float) -> Tensor:
    """Inverse of `adjusted_ratio`."""
    return 1 - (1 - adjusted) * (n - 2) / (n - 1)


def _rho(cells: Cells) -> Estimate:
    n = cells.independent
    adjusted = _rho_adjusted(cells)
    stretch = (n - 2) / (n - 1)
    assert adjusted.influence is not None
    assert adjusted.linear is not None
    return replace(
        adjusted.mapped(lambda x: unadjusted_ratio(x, n)),
        influence=stretch * adjusted.influence,
        linear=stretch.square() * adjusted.linear,
        squares=tuple(
            Square(stretch.square() * part.variance, part.noise) for part in adjusted.squares
        ),
    )


_RHO = Metric(
    name="rho",
    title="between-class ratio",
    space="full",
    kind="A",
    unit="1",
    definition="B/(B+W), B = (n0 n1/N)|m1-m0|^2, W = (n0-1) tr S0 + (n1-1) tr S1",
    source="share of variance between groups; R^2 of PERMANOVA (Anderson 2001)",
    pitfalls="In-sample: it averages 1/(N-1) without any difference. One very large hidden "
    "dimension hides all others; see rho_standardized.",
    interval=f"{INFLUENCE}; computed for rho_adjusted, then transformed",
    null=SHUFFLE_PROJECTION,
    floor=_FLOOR,
    default=True,
    estimator=_rho,
)


def _rho_pc(cells: Cells, k: int) -> Estimate:
    def statistic(moments: Moments) -> Tensor:
        return between_ratio(moments.shift.square().sum(-1), moments.trace, moments.count)

    value, draws, null = cells.resampled(k, statistic)
    floor = swap_floor(cells, float(1 / (cells.independent - 1)), null)
    influence = cells.influence(k, statistic)
    return make_estimate(cells, value, null=null, floor=floor, draws=draws, influence=influence)


def _rho_in_components(k: int) -> Metric:
    return Metric(
        name=f"rho_pc{k}",
        title="between-class ratio in PCs",
        space=f"pc{k}",
        components=k,
        kind="A",
        unit="1",
        definition=_RHO.definition,
        source="Lin et al. 2024 (arXiv 2406.10794)",
        pitfalls="Larger than the full-width ratio, which divides by all of the variance. "
        + OWN_COMPONENTS,
        interval=BOOTSTRAP,
        null=SHUFFLE,
        floor=_FLOOR,
        estimator=partial(_rho_pc, k=k),
    )


# calinski_harabasz ---------------------------------------------------------------------------


def calinski_harabasz(rho: Tensor, n: Tensor | float) -> Tensor:
    """Calinski & Harabasz 1974 for two classes: (N-2) rho/(1-rho)."""
    return (n - 2) * rho / (1 - rho)


_CALINSKI_HARABASZ = Metric(
    name="calinski_harabasz",
    title="Calinski-Harabasz",
    space="full",
    kind="A",
    unit="1",
    definition="(N-2) rho/(1-rho)",
    source="Calinski & Harabasz 1974",
    pitfalls="Grows with the number of texts.",
    interval="that of rho, transformed",
    null=SHUFFLE_PROJECTION,
    floor="that of rho, transformed",
    alias_of="rho",
    estimator=lambda cells: _rho(cells).mapped(lambda x: calinski_harabasz(x, cells.count.sum())),
)


# xie_beni ------------------------------------------------------------------------------------


def xie_beni(rho: Tensor, count: Tensor) -> Tensor:
    """Xie & Beni 1991 with hard labels: (n0 n1/N^2)(1-rho)/rho."""
    return count.prod(-1) / count.sum(-1) ** 2 * (1 - rho) / rho


def _xie_beni(cells: Cells) -> Estimate:
    rho = _rho(cells)
    # The index is infinite at rho = 0: an interval that reaches 0 has no upper end.
    return replace(rho, low=rho.low.clamp_min(0)).mapped(lambda x: xie_beni(x, cells.count))


_XIE_BENI = Metric(
    name="xie_beni",
    title="Xie-Beni",
    space="full",
    kind="A",
    unit="1",
    definition="(n0 n1/N^2)(1-rho)/rho",
    source="Xie & Beni 1991, hard labels",
    pitfalls="Small means separated.",
    interval="that of rho, transformed",
    null=SHUFFLE_PROJECTION,
    floor="that of rho, transformed",
    alias_of="rho",
    grows=False,
    estimator=_xie_beni,
)


# rho_standardized ----------------------------------------------------------------------------


def standardized_ratio(mean: Tensor, var: Tensor, count: Tensor) -> Tensor:
    """Mean of the between-class ratios of all dimensions; constant dimensions are left out.

    Args:
        mean: [..., 2, D], var: [..., 2, D] (ddof 1), count: [..., 2].
    """
    gap = (mean[..., 1, :] - mean[..., 0, :]) ** 2
    rho = between_ratio(gap, var.transpose(-1, -2), count[..., None, :])
    rho = torch.where(varies(mean, var), rho, torch.nan)
    mean_rho: Tensor = rho.nanmean(-1)
    return mean_rho


def _rho_standardized(cells: Cells) -> Estimate:
    value = standardized_ratio(cells.stored("class_mean"), cells.stored("class_var"), cells.count)
    coords = cells.coords[..., :COMPONENTS]
    coords = coords[..., coords.isfinite().all(-2).all(0)]
    sums = cells.resamples.class_sums(torch.cat([coords, coords.square()], -1), bootstrap=False)
    count = cells.resamples.class_counts(bootstrap=False)
    null = standardized_ratio(*diagonal_moments(sums, count), count)
    floor = swap_floor(cells, float(1 / (cells.independent - 1)), null)
    return make_estimate(cells, value, null=null, floor=floor)


_RHO_STANDARDIZED = Metric(
    name="rho_standardized",
    title="between-class ratio, per dimension",
    space="full",
    kind="A",
    unit="1",
    definition="mean over hidden dimensions j of B_j/(B_j+W_j), B and W as in rho",
    source="rho after scaling each dimension to unit variance",
    pitfalls="All dimensions count the same, also those that the model hardly uses. "
    "Constant dimensions are left out.",
    interval=NONE,
    null=f"{SHUFFLE} of the same statistic in the {COMPONENTS} stored components",
    floor=_FLOOR,
    default=True,
    estimator=_rho_standardized,
)


# mean_shift ----------------------------------------------------------------------------------


def mean_shift(shift_sq: Tensor, trace: Tensor, count: Tensor) -> Tensor:
    """Unbiased squared distance of the class means (Chen & Qin 2010): MMD^2 of a linear kernel."""
    return shift_sq - (trace / count).sum(-1)


def _mean_shift(cells: Cells) -> Estimate:
    null = _projection_null(cells)["mean_shift"]
    on_shift, _ = shift_influence(cells.sqdist, cells.shift_sq, cells.trace, cells.labels)
    return make_estimate(
        cells,
        mean_shift(cells.shift_sq, cells.trace, cells.mean_counts[0]),
        null=null,
        floor=swap_floor(cells, 0.0, null),
        influence=on_shift,
        squares=(shift_square(cells),),
    )


_MEAN_SHIFT = Metric(
    name="mean_shift",
    title="squared mean shift",
    space="full",
    kind="A",
    unit="state^2",
    definition="|m1-m0|^2 - tr S0/n0 - tr S1/n1",
    source="Chen & Qin 2010; linear-kernel MMD^2 of Gretton et al. 2012",
    pitfalls="In squared units of the hidden state: do not compare layers or models by it.",
    interval=f"{INFLUENCE}; includes the second-order term of |d|^2",
    null=SHUFFLE_PROJECTION,
    floor="0; on paired data the mean over label swaps, in the projection",
    default=True,
    estimator=_mean_shift,
)


METRICS: tuple[Metric | InComponents, ...] = (
    _RHO,
    _RHO_ADJUSTED,
    _CALINSKI_HARABASZ,
    _XIE_BENI,
    _RHO_STANDARDIZED,
    _rho_in_components,
    _MEAN_SHIFT,
)
