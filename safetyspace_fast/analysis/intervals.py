"""The ends of an interval, from a value and its standard deviation."""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Z95 = NormalDist().inv_cdf(0.975)


def student(freedom: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Student's t: values from 0 on, and the two-sided p of each.

    With t = sqrt(v) tan(a) the density is proportional to cos(a)^(v - 1), which is summed here.

    Args:
        freedom: degrees of freedom v, at least 1.
    """
    angle = np.linspace(0, min(np.pi / 2, 12 / math.sqrt(freedom)), 20_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * np.tan(angle), 1 - mass / mass[-1]


def t_reach(freedom: float, confidence: float = 0.95) -> float:
    """How many standard deviations an interval reaches, for `freedom` (at least 1)."""
    t, p = student(freedom)
    return float(np.interp(confidence - 1, -p, t))


@lru_cache(maxsize=8)
def _reaches(confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """1/freedom from 0 to 1, and the logarithm of `t_reach`, which is smooth in it."""
    inverse = np.linspace(0, 1, 201)
    reaches = [t_reach(1 / x, confidence) for x in inverse[1:]]
    return inverse, np.log([NormalDist().inv_cdf((1 + confidence) / 2), *reaches])


def t_reaches(freedom: Tensor | float, confidence: float) -> Tensor:
    """`t_reach` of each, to 1e-4 of itself at 95 % confidence: freedom [...] -> [...] float64."""
    freedom = torch.as_tensor(freedom, dtype=torch.float64)
    return torch.as_tensor(np.exp(np.interp(1 / freedom.numpy(), *_reaches(confidence))))


Around = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Gives both ends of an interval from the value and how far a symmetric one would reach."""


def symmetric_ends(value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of an interval that is symmetric around the value."""
    return value - reach, value + reach


def t_interval(
    value: Tensor,
    deviation: Tensor,
    freedom: Tensor | float,
    confidence: float = 0.95,
    around: Around = symmetric_ends,
    subtracted: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Interval of Student's t, of the same shape as `value`.

    Args:
        value, deviation: [...]; freedom: at least 1, of each or all; confidence: of the interval.
        around: gives its ends for value + subtracted.
        subtracted: what the value has less than the number that the ends of `around` are of.
    """
    reach = t_reaches(freedom, confidence) * deviation
    low, high = around(value + subtracted, reach)
    return low - subtracted, high - subtracted


def growing_ends(
    value: Tensor,
    deviation: Tensor,
    *,
    freedom: Tensor | float,
    grows: Tensor,
    confidence: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Interval of Student's t for a number whose variance grows with it: its score interval.

    An end is as many of its own deviations from the value as in Wilson's interval of a share:
    (end - value)^2 = t^2 deviation^2 + z^2 grows (end - value), z that of a normal distribution,
    since the growth is known better than the deviation. No end is farther from the value than two
    reaches of a symmetric interval, see `log_ends`.

    Args:
        value, deviation, freedom, confidence: as in `t_interval`.
        grows: [...], derivative of the variance by the number.
    """
    t, z = t_reaches(freedom, confidence), NormalDist().inv_cdf((1 + confidence) / 2)
    middle = z**2 * grows / 2
    reach = (middle.square() + (t * deviation).square()).sqrt()
    return _near(value, t * deviation, value + middle - reach, value + middle + reach)


def ratio_ends(
    value: Tensor,
    deviation: Tensor,
    *,
    freedom: Tensor | float,
    grows: Tensor,
    confidence: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Interval of a share B/(B+W): `growing_ends` of B/W.

    Args:
        value: [...], between 0 and 1; the interval of 1 is that number alone.
        deviation, freedom, confidence: as in `t_interval`, of the share.
        grows: [...], derivative of the variance of B/W by B/W.
    """
    left = 1 - value
    ends = growing_ends(
        value / left, deviation / left**2, freedom=freedom, grows=grows, confidence=confidence
    )
    low, high = (torch.where(left > 0, x / (1 + x), 1.0) for x in (e.clamp_min(0) for e in ends))
    return low, high


def log_ends(value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of an interval of a positive number that is symmetric on the log scale.

    No end is farther from the value than two reaches: near 0 that scale stretches without bound,
    and a value that chance made small would be said to be anything.

    Args:
        value: [...]; the interval of 0 is that number alone.
        reach: [...], from the value to either end of an interval that is symmetric around it; NaN
            gives NaN.
    """
    turned = torch.where(value > 0, reach / value, 0.0)
    return _near(value, reach, value * (-turned).exp(), value * turned.exp())


def _near(value: Tensor, reach: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends, none farther from the value than two reaches."""
    return torch.maximum(low, value - 2 * reach), torch.minimum(high, value + 2 * reach)


def inverse_ends(value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Ends that are symmetric on 1/value, of a positive number; the upper one may be infinite."""
    low, high = symmetric_ends(1 / value, reach / value.square())
    return 1 / high, torch.where(low > 0, 1 / low, torch.inf)


def share_interval(
    value: Tensor,
    deviation: Tensor,
    freedom: Tensor | float,
    unseen: Tensor,
    confidence: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Interval of a share or an AUC, inside [0, 1] and never of width 0.

    Wilson's score interval (1927) with a quantile of Student's t, for the number of trials
    p (1 - p)/variance that would give this variance (Korn & Graubard 1998). Part of a trial that
    went the other way is added, to the variance and here: near 0 and 1 few texts make the variance,
    and at 0 and 1 none; see `unseen_trial`. The end that is nearer to 0 or 1 is that of a
    share which is nearer to it by half of what this moves, times 2p - 1: shares of few trials jump.

    Args:
        value: [...]; deviation: [...], with the variance of the added part in its square.
        freedom: degrees of freedom of the deviation, of each or all.
        unseen: [...], how far the added part moves the share; see `unseen_trials`.
        confidence: of the interval.
    """
    square = t_reaches(freedom, confidence).square()
    per_trial = square * deviation.square() / (value * (1 - value) + unseen)
    nearer = (value + unseen * (value - 0.5)).clamp(0, 1)

    def end(share: Tensor, side: int) -> Tensor:
        reach = (per_trial * (share * (1 - share) + per_trial / 4)).sqrt()
        return ((share + per_trial / 2 + side * reach) / (1 + per_trial)).clamp(0, 1)

    return end(torch.minimum(value, nearer), -1), end(torch.maximum(value, nearer), 1)


def evened(
    value: Tensor, low: Tensor, high: Tensor, reach: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A number with its score interval, for `difference_interval`: with nearer ends.

    The variance at the low end is too small by about as much as that at the high end is too large.
    In the difference of two such numbers that cancels; the squares of both distances would count it
    twice. Their sum is made twice the square of the reach.

    Args:
        value, low, high: [...] each.
        reach: [...], from the value to either end of an interval that is symmetric around it.
    """
    down, up = value - low, high - value
    nearer = reach * (2 / (down.square() + up.square())).sqrt()
    nearer = nearer.nan_to_num(1.0, 1.0).clamp_max(1)
    return value, value - nearer * down, value + nearer * up


def difference_interval(
    first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor], rho: Tensor
) -> tuple[Tensor, Tensor]:
    """Interval of second - first from that of each, of the same confidence, and their correlation.

    The distance from the value to an end of its interval stands for the deviation on that side
    (MOVER, Zou 2007). A share |rho| of both moves together, or against each other if rho < 0; the
    rest moves independently. For symmetric intervals of half-widths s1 and s2 this gives
    s1^2 + s2^2 - 2 rho s1 s2.

    Args:
        first, second: value, low and high, [...] each; ends may be infinite.
        rho: [...], correlation of both estimates.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    down, up = (a - a_low, b - b_low), (a_high - a, b_high - b)
    fall, rise = ((one[1] - one[0]).nan_to_num(torch.inf) for one in (down, up))

    def reach(own: Tensor, others: Tensor, alike: tuple[Tensor, Tensor]) -> Tensor:
        together = torch.where(rho < 0, own + others, torch.maximum(*alike).clamp_min(0))
        parts = ((1 - rho.abs(), own.square() + others.square()), (rho.abs(), together.square()))
        # 0 * inf is NaN: an infinite end counts only with a weight above 0.
        return sum((torch.where(w > 0, w * x, 0.0) for w, x in parts), torch.zeros(())).sqrt()

    low, high = reach(down[1], up[0], (fall, -rise)), reach(up[1], down[0], (-fall, rise))
    return b - a - low, b - a + high
