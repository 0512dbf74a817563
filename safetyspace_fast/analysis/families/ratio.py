"""Metrics of the variance between the classes, and of the distance of their means.

d is the difference of the class means, S0 and S1 are the class covariances. B = (n0 n1/N)|d|^2 is
the sum of squares between the classes, W = (n0-1) tr S0 + (n1-1) tr S1 the one within them.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..cells import Cells, once
from ..estimate import Estimate, Square, make_estimate
from ..intervals import growing_ends, ratio_ends
from ..metric import (
    BOOTSTRAP_OF_MEANS,
    INFLUENCE,
    OWN_COMPONENTS,
    SHUFFLE_WELCH,
    SHUFFLE_WELCH_PC,
    STUDENT,
    InComponents,
    Metric,
)
from ..moments import Moments, centred, direction_scores, shift_influence, shift_noise
from ..significance import f_tail
from ..texts import Refusal
from ..uncertainty import INFLUENCE_EXCESS, influence_variance, linear_variance, unit_sums

_FLOOR = (
    "1/(N-1), exact in any number of dimensions, where every text is a unit of its own; else the "
    "mean over the permutations"
)

_RATIO = (
    f"score interval of B/W; {INFLUENCE}, and {STUDENT}: those of B or of W, whichever are fewer; "
    "the variance grows with B"
)
_SCORE = f"score interval; {INFLUENCE}, and {STUDENT}; the variance grows with |d|^2, and"
FOLLOWING = f"{_SCORE} has the second-order term of it"
FOLLOWING_PERMUTED = f"{_SCORE} is at least that of the permutations"


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


def make_ratio(
    cells: Cells,
    shift_sq: Tensor,
    trace: Tensor,
    influences: tuple[Tensor, Tensor],
    noise: Square,
    *,
    floor: Tensor,
    null: Tensor | None = None,
) -> Estimate:
    """`make_estimate` for B/(B+W), with the score interval of B/W (`ratio_ends`).

    The variance of B is 4 d'Vd, and grows with |d|^2 by what that is of it.

    Args:
        cells: the cells that the value belongs to.
        shift_sq, trace: as in `between_ratio`.
        influences: [cell, n] each, of the texts on |d|^2 and on W.
        noise: the part of |d|^2 that is quadratic in noise.
        floor, null: as in `make_estimate`.
    """
    by_shift, by_within = ratio_slopes(shift_sq, trace, cells.count)
    parts = by_shift[:, None] * influences[0], by_within[:, None] * influences[1]
    value = between_ratio(shift_sq, trace, cells.count)
    seen = influence_variance(influences[0], cells.unit)
    freedom = _ratio_freedom(cells, *parts)
    return make_estimate(
        cells,
        value,
        null=null,
        floor=floor,
        influence=sum(parts, torch.zeros(())),
        squares=(replace(noise, variance=by_shift.square() * noise.variance),),
        ends=partial(ratio_ends, freedom=freedom, grows=_odds_growth(value, seen, shift_sq)),
        scored=freedom,
    )


def _ratio_freedom(cells: Cells, influence: Tensor, on_within: Tensor) -> Tensor:
    """Degrees of freedom of Student's t for B/(B+W): [cell].

    W of heavy tails varies with few texts: those of the variance of W, if they are fewer.

    Args:
        cells: the cells of the ratio.
        influence: [cell, n], on B or on the ratio; on_within: [cell, n], on W, on any scale.
    """
    of_within = cells.freedom_of(on_within, of_squares=True)
    return torch.minimum(cells.freedom_of(influence), of_within)


def _odds_growth(rho: Tensor, seen: Tensor, shift_sq: Tensor) -> Tensor:
    """Derivative of the variance of B/W by B/W: [cell].

    Args:
        rho: B/(B+W); seen: variance of |d|^2 from influences, 4 d'Vd; shift_sq: |d|^2.
    """
    return (rho / (1 - rho) * seen / shift_sq.square()).nan_to_num(0.0, 0.0, 0.0)


def shift_square(cells: Cells, k: int | None = None) -> Square:
    """What is quadratic in noise of |d|^2, at full width or in the first `k` components."""
    if k is None:
        return Square(2 * cells.shift_noise, lambda: cells.unit_shift)
    noise = cells.shift_of_units(cells.components(k))
    return Square(2 * shift_noise(noise, 0), lambda: noise)


LEAST_PERMUTED = 100
"""Permutations that know a variance well enough."""


def make_following(
    cells: Cells,
    value: Tensor,
    influence: Tensor,
    *,
    k: int | None = None,
    null: Tensor | None = None,
    floor: Tensor | float | None = None,
    permuted: Tensor | None = None,
) -> Estimate:
    """`make_estimate` for a number that follows |d|^2, with its score interval (`growing_ends`).

    By regression of the influences of the units on those on |d|^2: as far as the number goes with
    |d|^2 and not with a difference of spread, it varies the more the larger it is, since the
    variance of |d|^2 is 4 d'Vd. The number is quadratic in noise as |d|^2 is: where nothing
    separates, its variance is that of the quadratic part alone, which permutations show. A number
    that is no multiple of |d|^2 has others of these parts, and the regression, of influences that
    vanish with d, does not find them.

    Args:
        cells, value, null, floor: as in `make_estimate`; influence: [cell, n].
        k: d is that of the first `k` components; None: at full width.
        permuted: [cell, permutations], the number under each; not used if there are fewer than
            `LEAST_PERMUTED`. None: the number is a multiple of |d|^2.
    """
    square = shift_square(cells, k)
    shift_sq, along = _along(cells, square, k)
    seen = along.square().sum(-1)
    slope = (along * unit_sums(influence, cells.unit)).sum(-1) / seen
    slope = slope.nan_to_num(0.0, 0.0, 0.0)
    variance = slope.square() * square.variance
    growing = seen
    if permuted is not None and permuted.shape[-1] >= LEAST_PERMUTED:
        variance = permuted.var(-1)
        slope = torch.minimum(slope, (variance / square.variance).sqrt()).clamp_min(0)
    elif permuted is not None:  # not a multiple, and how far is not known
        growing = linear_variance(seen, square.variance, INFLUENCE_EXCESS)
    grows = (slope * growing / shift_sq).nan_to_num(0.0, 0.0, 0.0)
    freedom = cells.freedom_of(influence)
    return make_estimate(
        cells,
        value,
        null=null,
        floor=floor,
        influence=influence,
        squares=(replace(square, variance=variance),),
        ends=partial(growing_ends, freedom=freedom, grows=grows),
        scored=freedom,
    )


def _along(cells: Cells, square: Square, k: int | None) -> tuple[Tensor, Tensor]:
    """|d|^2 [cell], at full width or in `k` components, and the influence of units [cell, unit]."""
    if k is None:
        on_shift, _ = shift_influence(cells.sqdist, cells.shift_sq, cells.labels)
        return cells.shift_sq, unit_sums(on_shift, cells.unit)
    x = cells.components(k)
    low, high = (x[:, cells.labels == label].mean(1, keepdim=True) for label in (0, 1))
    return (high - low).square().sum((1, 2)), 2 * (square.noise() * (high - low)).sum(-1)


# rho_adjusted --------------------------------------------------------------------------------


def adjusted_ratio(rho: Tensor, n: Tensor | float) -> Tensor:
    """Ratio without its expected value under the null, 1/(N-1) (Ezekiel 1930)."""
    return 1 - (1 - rho) * (n - 1) / (n - 2)


def ratio_slopes(shift_sq: Tensor, trace: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of the ratio by |d|^2 and by W; arguments as in `between_ratio`."""
    weight = count.prod(-1) / count.sum(-1)
    between = weight * shift_sq
    within = ((count - 1) * trace).sum(-1)
    square = (between + within) ** 2
    return within * weight / square, -between / square


def _rho_adjusted(cells: Cells) -> Estimate:
    n = cells.independent
    rho = _rho(cells)
    stretch = (n - 1) / (n - 2)
    assert rho.influence is not None
    assert rho.linear is not None
    return replace(
        rho.mapped(lambda x: adjusted_ratio(x, n)),
        influence=stretch * rho.influence,
        linear=stretch.square() * rho.linear,
        squares=tuple(Square(stretch.square() * part.variance, part.noise) for part in rho.squares),
        scored=rho.scored,
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
    interval="that of rho, transformed",
    null=SHUFFLE_WELCH,
    floor="that of rho, transformed",
    default=True,
    estimator=_rho_adjusted,
)


# rho -----------------------------------------------------------------------------------------


@once
def _rho(cells: Cells) -> Estimate:
    return make_ratio(
        cells,
        cells.shift_sq,
        cells.trace,
        shift_influence(cells.sqdist, cells.shift_sq, cells.labels),
        shift_square(cells),
        null=cells.null("welch"),
        floor=cells.chance(cells.null("rho"), 1 / (cells.independent - 1)),
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
    interval=f"{_RATIO}; includes the second-order term of |d|^2",
    null=SHUFFLE_WELCH,
    floor=_FLOOR,
    default=True,
    estimator=_rho,
)


def welch_square(moments: Moments) -> Tensor:
    """|d|^2 over its noise, Welch's t^2 for distances (Alekseyenko 2016): [..., R]."""
    return moments.shift.square().sum(-1) / (moments.trace / moments.count).sum(-1)


def _rho_pc(cells: Cells, k: int) -> Estimate:
    def statistic(moments: Moments) -> Tensor:
        return between_ratio(moments.shift.square().sum(-1), moments.trace, moments.count)

    value, draws, null = cells.resampled(k, statistic)
    own = cells.moments.leading(k)
    shift_sq, trace = own.shift[:, 0].square().sum(-1), own.trace[:, 0]
    by_shift, _ = ratio_slopes(shift_sq, trace, cells.count)
    noise = shift_square(cells, k)
    influence = cells.influence(k, statistic)
    seen = _along(cells, noise, k)[1].square().sum(-1)
    about = cells.about_class_means(cells.components(k)).square().sum(-1, keepdim=True)
    on_within = cells.about_class_means(about)[..., 0]
    freedom = _ratio_freedom(cells, influence, on_within)
    return make_estimate(
        cells,
        value,
        null=cells.labelled(k, welch_square),
        floor=cells.chance(null, 1 / (cells.independent - 1)),
        draws=cells.of_means(draws),
        influence=influence,
        squares=(replace(noise, variance=by_shift.square() * noise.variance),),
        ends=partial(ratio_ends, freedom=freedom, grows=_odds_growth(value, seen, shift_sq)),
        scored=freedom,
    )


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
        interval=BOOTSTRAP_OF_MEANS,
        null=SHUFFLE_WELCH_PC,
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
    null=SHUFFLE_WELCH,
    floor="that of rho, transformed",
    alias_of="rho",
    estimator=lambda cells: _rho(cells).mapped(lambda x: calinski_harabasz(x, cells.count.sum())),
)


# xie_beni ------------------------------------------------------------------------------------


def xie_beni(rho: Tensor, count: Tensor) -> Tensor:
    """Xie & Beni 1991 with hard labels: (n0 n1/N^2)(1-rho)/rho."""
    return count.prod(-1) / count.sum(-1) ** 2 * (1 - rho) / rho


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
    null=SHUFFLE_WELCH,
    floor="that of rho, transformed",
    alias_of="rho",
    grows=False,
    estimator=lambda cells: _rho(cells).mapped(lambda x: xie_beni(x, cells.count)),
)


# rho_standardized ----------------------------------------------------------------------------


@once
def standardized(cells: Cells) -> tuple[Tensor, Tensor]:
    """|d|^2 and the total variance of each class, each dimension over its scale.

    Returns:
        [cell], [cell, 2]; 0 if no dimension varies.
    """
    shift_sq = (cells.shift / cells.scale).square().sum(-1)
    return shift_sq, (cells.stored("class_var") / cells.scale[:, None].square()).sum(-1)


def _rho_standardized(cells: Cells) -> Estimate:
    shift_sq, trace = standardized(cells)
    value = between_ratio(shift_sq, trace, cells.count)
    null = cells.null("rho_standardized")
    floor = cells.chance(null, 1 / (cells.independent - 1))
    if not cells.window.has("standard_sqdist"):
        return make_estimate(cells, value, null=cells.null("welch_standardized"), floor=floor)
    return make_ratio(
        cells,
        shift_sq,
        trace,
        shift_influence(cells.stored("standard_sqdist"), shift_sq, cells.labels),
        Square(2 * cells.stored("noise")[:, 1], lambda: cells.unit_shift),
        null=cells.null("welch_standardized"),
        floor=floor,
    )


_RHO_STANDARDIZED = Metric(
    name="rho_standardized",
    title="between-class ratio, standardised",
    space="full",
    kind="A",
    unit="1",
    definition="rho after dividing each hidden dimension by its scale: the median absolute "
    "deviation of the language's texts times 1.4826, at least a tenth of their standard deviation",
    source="rho (Anderson 2001) of robustly scaled dimensions (Hampel 1974)",
    pitfalls="All dimensions count about the same, also those that the model hardly uses. "
    "Dimensions that do not vary are left out. Stores of earlier versions know no robust scale: it "
    "is the standard deviation there, and there is no interval.",
    interval=f"{_RATIO}; includes the second-order term of |d|^2",
    null=SHUFFLE_WELCH,
    floor=_FLOOR,
    default=True,
    estimator=_rho_standardized,
)


# rho_equal_length ----------------------------------------------------------------------------


@once
def equal_length(cells: Cells) -> tuple[Tensor, Tensor]:
    """|d|^2 and the total variance of each class, of states less their regression on length.

    Returns:
        [cell], [cell, 2].

    Raises:
        Refusal: the store does not have them.
    """
    if not cells.window.has("equal_length_sqdist"):
        raise Refusal("the store is of an earlier version: run the model again")
    sqdist = cells.stored("equal_length_sqdist")
    to_class = torch.stack([sqdist[:, cells.labels == c].mean(1) for c in (0, 1)], 1)
    own = to_class.diagonal(dim1=1, dim2=2)
    shift_sq = (to_class.sum((1, 2)) - 2 * own.sum(-1)) / 2
    return shift_sq.clamp_min(0), own * cells.count / (cells.count - 1)


@once
def equal_length_influence(cells: Cells) -> tuple[Tensor, Tensor]:
    """[cell, n] each, influences on `equal_length`: on |d|^2, and on the sum of squares within."""
    shift_sq, _ = equal_length(cells)
    sqdist = cells.stored("equal_length_sqdist")
    along, _ = direction_scores(sqdist, shift_sq, cells.labels)
    _, on_within = shift_influence(sqdist, shift_sq, cells.labels)
    return 2 * cells.length_weights * cells.about_class_means(along[..., None])[..., 0], on_within


def equal_length_noise(cells: Cells) -> Tensor:
    """[cell, unit, P], what each unit adds to d of these states, in the projection."""
    left = cells.about_class_means(cells.less_length(cells.projected))
    part = left * cells.length_weights[:, None]
    return unit_sums(part.transpose(-1, -2), cells.unit).transpose(-1, -2)


def _rho_equal_length(cells: Cells) -> Estimate:
    shift_sq, trace = equal_length(cells)
    noise, noise_sq = map(cells.stored, ("equal_length_noise", "equal_length_noise_sq"))
    estimate = make_ratio(
        cells,
        shift_sq,
        trace,
        equal_length_influence(cells),
        Square(2 * noise_sq, lambda: equal_length_noise(cells)),
        floor=between_ratio(noise, trace, cells.count),
    )
    dims = (noise.square() / noise_sq).nan_to_num(torch.inf).clamp(1, cells.shift.shape[-1])
    ratios = zip((shift_sq / noise).tolist(), dims.tolist(), strict=True)
    p = [f_tail(ratio, dim, dim * cells.freedom) for ratio, dim in ratios]
    return replace(estimate, p=torch.tensor(p, dtype=noise.dtype))


_RHO_EQUAL_LENGTH = Metric(
    name="rho_equal_length",
    title="between-class ratio at equal length",
    space="full",
    kind="A",
    unit="1",
    definition="rho of the states less their regression on log t and 1/t, for texts of t tokens, "
    "with the slopes inside the classes, pooled",
    source="analysis of covariance (Cochran 1957); rho (Anderson 2001)",
    pitfalls="Takes out what goes with log t and 1/t and is the same in both classes, and nothing "
    "else of length. Where the classes hardly share a length, it extrapolates. p does not count in "
    "p_family.",
    interval=f"{_RATIO}; includes the noise of the slopes and the second-order term of |d|^2",
    null="F test of |d|^2 over tr V, the noise in it, with (tr V)^2/tr V^2 degrees of freedom, and "
    "as many times those of the smaller class (Box 1954); V, the covariance of d, comes from the "
    "units of evidence",
    floor="the same with tr V in place of |d|^2: 1/(N-1) for classes of equal lengths and "
    "independent texts, and more where slopes must bridge a difference of length",
    estimator=_rho_equal_length,
)


# mean_shift ----------------------------------------------------------------------------------


def mean_shift(shift_sq: Tensor, trace: Tensor, count: Tensor) -> Tensor:
    """Unbiased squared distance of the class means (Chen & Qin 2010): MMD^2 of a linear kernel."""
    return shift_sq - (trace / count).sum(-1)


def _shifts(cells: Cells) -> Tensor:
    """[cell, 1 + permutations], the mean shift under every labelling."""
    count = cells.resamples.class_counts(bootstrap=False)
    within = ((cells.count - 1) * cells.trace).sum(-1)
    total = within + cells.count.prod() / cells.count.sum() * cells.shift_sq
    shift_sq = cells.null("rho") * total[:, None] * count.sum(-1) / count.prod(-1)
    noise = shift_sq / cells.null("welch")
    if cells.copies is not None:  # the null takes copies for other texts
        seen, right = ((cells.trace / n).sum(-1) for n in (cells.count, cells.mean_counts[0]))
        noise = noise * (right / seen)[:, None]
    return shift_sq - noise


def _mean_shift(cells: Cells) -> Estimate:
    on_shift, _ = shift_influence(cells.sqdist, cells.shift_sq, cells.labels)
    on_noise = torch.empty_like(on_shift)  # what is subtracted; of pairs it varies as |d|^2 does
    for label, number in enumerate(cells.mean_counts[0]):
        inside = cells.labels == label
        on_noise[:, inside] = centred(cells.sqdist[:, inside, label])
        on_noise[:, inside] /= (inside.sum() - 1) * number
    return make_following(
        cells,
        mean_shift(cells.shift_sq, cells.trace, cells.mean_counts[0]),
        on_shift - on_noise,
        null=cells.null("welch"),
        floor=cells.chance(_shifts(cells), 0.0),
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
    interval=FOLLOWING,
    null=SHUFFLE_WELCH,
    floor="0 where every text is a unit of its own; else the mean over the permutations",
    default=True,
    estimator=_mean_shift,
)


METRICS: tuple[Metric | InComponents, ...] = (
    _RHO,
    _RHO_ADJUSTED,
    _CALINSKI_HARABASZ,
    _XIE_BENI,
    _RHO_STANDARDIZED,
    _RHO_EQUAL_LENGTH,
    _rho_in_components,
    _MEAN_SHIFT,
)
