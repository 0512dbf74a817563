"""How much a number varies: from the influences of texts on it, or from draws of them.

Influences are summed over units of evidence, see `data.units`.
"""

import math

import torch
from torch import Tensor

from .resamples import random_signs


def effect_growth(freedom: float) -> float:
    """How much more an effect over an estimated deviation varies than by the delta method.

    The root of the mean of sigma^2/s^2 (Hedges 1981), for `freedom` degrees of freedom of s; at
    least 3 are taken, since with 2 there is no such mean.
    """
    return math.sqrt(1 + 2 / (max(freedom, 3) - 2))


def unit_sums(values: Tensor, unit: Tensor) -> Tensor:
    """Sum over the texts of each unit: values [..., n], unit [n] -> [..., U]."""
    sums = torch.zeros(*values.shape[:-1], int(unit.max()) + 1, dtype=values.dtype)
    return sums.index_add_(-1, unit, values)


def influence_variance(influence: Tensor, unit: Tensor) -> Tensor:
    """Variance of an estimate from the influence of every text (delta method).

    Args:
        influence: [..., n], first-order effect of each text on the estimate; its mean is zero.
        unit: [n] int64.
    """
    return influence_covariance(influence, influence, unit)


def influence_covariance(first: Tensor, second: Tensor, unit: Tensor) -> Tensor:
    """Covariance of two estimates from the same texts; arguments as in `influence_variance`."""
    products = unit_sums(first, unit) * unit_sums(second, unit)
    n = products.shape[-1]
    return products.sum(-1) * n / (n - 1)


def dyadic_variance(influence: Tensor, unit: Tensor, partner: Tensor) -> Tensor:
    """Variance of a sum over texts of what depends on each text and on a partner of it.

    Two terms of the sum go together if they share a unit, as text or as partner. Sums over all
    terms that touch a unit count those that share two units twice, which is taken out (Fafchamps &
    Gubert 2007; Aronow, Samii & Assenova 2015). It may be negative.

    Args:
        influence: [cell, n], of mean zero; unit: [n] int64; partner: [cell, n] int64, a text.

    Returns:
        [cell].
    """
    first, second = unit.expand_as(partner), unit[partner]
    others = torch.where(first == second, 0.0, influence)
    touching = unit_sums(influence, unit).scatter_add(-1, second, others)
    units = int(unit.max()) + 1
    both = torch.minimum(first, second) * units + torch.maximum(first, second)
    cell = torch.arange(len(both))[:, None]
    pair, place = torch.unique(both + cell * units**2, return_inverse=True)
    twice = others.new_zeros(len(pair)).index_add(0, place.flatten(), others.flatten()).square()
    by_cell = others.new_zeros(len(both)).index_add(0, pair // units**2, twice)
    return touching.square().sum(-1) - by_cell


def stretch(copy: Tensor) -> Tensor:
    """Factor for deviations of n texts from their mean, which a text with copies draws to itself.

    A text that is the share w_i of the mean deviates from it by 1 - 2 w_i + sum w^2 of the
    variance: (n - 1)/n without copies.

    Args:
        copy: [n] int64, equal texts share a number.

    Returns:
        [n] float64; 0 if all texts are equal.
    """
    share = torch.bincount(copy)[copy].double() / len(copy)
    left = 1 - 2 * share + share.mean()
    return torch.where(left > 1e-9, left, torch.inf).rsqrt()


INFLUENCE_EXCESS = 1.0

DRAWS_EXCESS = 2.0
"""How much of the variance of the quadratic part of |d|^2 is counted too often.

Let d have covariance V. The variance of |d|^2 is 4 d'Vd + 2 tr V^2: a linear and a quadratic part.
The influences are computed from a d that already contains noise, and give 4 d'Vd + 4 tr V^2.
Bootstrap draws add noise once more, and give 4 d'Vd + 6 tr V^2. In units of 2 tr V^2 that is one
and two too many.
"""


def linear_variance(seen: Tensor, square: Tensor, excess: float) -> Tensor:
    """Variance of the linear part, from the observed variance and that of the quadratic part.

    Args:
        seen: [...], from influences or draws; square: [...], 2 tr V^2.
        excess: `INFLUENCE_EXCESS` or `DRAWS_EXCESS`.
    """
    return (seen - (1 + excess) * square).clamp_min(0)


def common_share(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of two quadratic forms of noise, tr V12 V21 / sqrt(tr V11^2 tr V22^2); never < 0.

    Traces are sums over pairs of distinct units, which makes them unbiased.

    Args:
        first: [..., U, p], second: [..., U, q], what each unit adds to the noise of either.
    """

    def trace(a: Tensor, b: Tensor) -> Tensor:
        square = (a.transpose(-1, -2) @ b).square().sum((-1, -2))
        return square - (a.square().sum(-1) * b.square().sum(-1)).sum(-1)

    scale = (trace(first, first) * trace(second, second)).sqrt()
    return (trace(first, second) / scale).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)


HELD_OUT_DRAWS = 200
"""Random signs behind `common_held_out`."""


def common_held_out(first: Tensor, second: Tensor, *, folds: int) -> Tensor:
    """Correlation of two held-out statistics whose directions are only noise; never < 0.

    Let the direction d be noise of covariance V. Along the d of the other folds the classes differ
    by |d|^2 - tr V, in units of sqrt(d'Vd + tr V^2/(folds - 1)), because the fold itself is left
    out of d. If the noise lies in few dimensions, this root varies together with |d|^2, and the two
    statistics correlate less than their quadratic forms do. Estimated from `HELD_OUT_DRAWS` random
    signs of all units.

    Args:
        first, second: as in `common_share`.
        folds: how many.
    """
    turned = random_signs(torch.arange(first.shape[-2]), HELD_OUT_DRAWS, seed=0, key="held out")

    def judged(unit: Tensor) -> Tensor:
        d, cov = turned @ unit, unit.transpose(-1, -2) @ unit
        apart = d.square().sum(-1) - cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None]
        own = cov.square().sum((-1, -2))[..., None] / (folds - 1)
        return apart / (((d @ cov) * d).sum(-1) + own).sqrt()

    draws = judged(first), judged(second)
    scale = spread(draws[0]) * spread(draws[1])
    return (draws_covariance(*draws) / scale).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)


def unseen_trial(influence: Tensor, unit: Tensor) -> Tensor:
    """Part of a trial to add to a share whose variance comes from few units: 1/(1 + m), [...].

    m are the `units_behind` it: 0 if all trials went one way, and about as many as went the other
    way if those are few. Arguments as there.
    """
    return 1 / (1 + units_behind(influence, unit))


def unseen_trials(
    influence: Tensor, labels: Tensor, unit: Tensor, number: float | Tensor
) -> tuple[Tensor, Tensor]:
    """How far unseen trials would move a share, and the variance that they add: [...] each.

    A mean of the shares in both classes has an `unseen_trial` in each: if all texts of a small
    class are right, the errors of a large one do not show how much this share varies.

    Args:
        influence: [..., n]; labels, unit: [n] int64.
        number: of trials; [2], those of each class, for a mean of the shares in both.
    """
    if not isinstance(number, Tensor):
        added = unseen_trial(influence, unit)
        return added / number, added / number**2
    parts = [unseen_trial(influence * (labels == c), unit) for c in (0, 1)]
    added = torch.stack(parts, -1)
    return (added / (2 * number)).sum(-1), (added / (2 * number) ** 2).sum(-1)


def units_behind(influence: Tensor, unit: Tensor) -> Tensor:
    """How many units of equal influence would make this variance, 0 if there is none: [...].

    (sum of squares)^2/(sum of fourth powers).

    Args:
        influence: [..., n]; unit: [n] int64.
    """
    square = unit_sums(influence, unit).square()
    return (square.sum(-1).square() / square.square().sum(-1)).nan_to_num(0.0)


PER_UNIT = 1.4
"""Degrees of freedom that each unit of those that make the variance of squares leaves it, at most.

With heavy tails few units make that variance, and they lie on one side. In simulations (t3, 50 + 50
texts, rho_equal_length of 0.01 to 0.09) intervals cover 0.94 to 1.00 with 1, 0.91 to 0.99 with this
number, and 0.88 to 0.98 with 2, as Satterthwaite's formula has it.
"""


def variance_freedom(
    influence: Tensor, unit: Tensor, most: float, *, of_squares: bool = False
) -> Tensor:
    """Degrees of freedom of `influence_variance`, by how it varies itself (Satterthwaite 1946).

    They are 2 V^2/var V, with var V from the squares of the influences; on average as many as there
    are n units if these are normal, and about 2m if m of many units make the variance, see
    `units_behind`. Normal influences have a 1/m of 3/(n + 2) on average, which is corrected for.

    Args:
        influence: [..., n]; unit: [n] int64.
        most: degrees of freedom of what all texts know.
        of_squares: whether the influences are on a sum of squares, see `PER_UNIT`.

    Returns:
        [...], between 1 and `most`.
    """
    units, behind = int(unit.max()) + 1, units_behind(influence, unit)
    freedom = 2 / (1 / behind - 1 / units).clamp_min(0) * (units - 1) / (units + 2)
    if of_squares:
        freedom = torch.minimum(freedom, PER_UNIT * behind)
    return freedom.clamp(1, most)


def share_freedom(influence: Tensor, unit: Tensor, added: Tensor, most: float) -> Tensor:
    """Degrees of freedom of a share: the `units_behind` its variance, and those of an added trial.

    They are fewer than those of `variance_freedom`: near 0 and 1 a variance that is too small goes
    with a share that is too near.

    Args:
        influence: [..., n]; unit: [n] int64.
        added: [...], the part of a trial that is added, see `unseen_trial`; it has all degrees.
        most: degrees of freedom of what all texts know.

    Returns:
        [...], between 1 and `most`.
    """
    behind = units_behind(influence, unit)
    return (behind + added * (most - behind)).clamp(1, most)


def trials(units: Tensor) -> float:
    """Harmonic mean of `ops.equal_units`: in an AUC, a text that loses to all costs about one."""
    return float(2 / (1 / units).sum())


def spread(draws: Tensor) -> Tensor:
    """Standard deviation over the last axis; NaN if more than a tenth of the draws are NaN."""
    return draws_covariance(draws, draws).sqrt()


def draws_covariance(first: Tensor, second: Tensor) -> Tensor:
    """Covariance over the last axis; NaN if more than a tenth of the draws are NaN in either."""
    known = ~(first.isnan() | second.isnan())
    n = known.sum(-1)

    def centred(draws: Tensor) -> Tensor:
        mean = torch.where(known, draws, torch.nan).nanmean(-1, keepdim=True)
        return torch.where(known, draws - mean, 0.0)

    covariance = (centred(first) * centred(second)).sum(-1) / (n - 1)
    return torch.where(n >= 0.9 * known.shape[-1], covariance, torch.nan)
