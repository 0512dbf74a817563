"""Ends of intervals from a value and its deviation, and of a difference of two values."""

import math

import pytest
import torch

from safetyspace_fast.analysis.intervals import (
    Z95,
    difference_interval,
    evened,
    growing_ends,
    log_ends,
    ratio_ends,
    t_interval,
    t_reach,
)


def test_ends_on_the_log_scale_are_symmetric_there():
    value, subtracted = (
        torch.tensor(x).double() for x in ([0.2, -0.5, 0.001, -1.0], [0.0, 1.0, 0.0, 1.0])
    )
    deviation = torch.full_like(value, 0.1) / t_reach(9.0)
    options = {"freedom": 9.0, "around": log_ends, "subtracted": subtracted}
    low, high = t_interval(value, deviation, **options)
    for i, whole in enumerate([0.2, 0.5]):
        ends = [float((end + subtracted)[i].log()) - math.log(whole) for end in (low, high)]
        assert ends == pytest.approx([-0.1 / whole, 0.1 / whole], rel=1e-3)
    assert float(low[2]) == pytest.approx(0, abs=1e-6)
    assert float(high[2]) == pytest.approx(0.001 + 2 * 0.1, rel=1e-3)
    assert float(low[3]) == float(high[3]) == -1


def test_ends_where_the_variance_grows_are_as_many_of_their_own_deviations_away():
    value, deviation, grows = (
        torch.tensor(x).double() for x in ([0.3, 0.3], [0.1, 0.1], [0, 0.02])
    )
    ends = growing_ends(value, deviation, freedom=9.0, grows=grows)
    for end in ends:
        apart = (t_reach(9.0) * deviation).square() + Z95**2 * grows * (end - value)
        torch.testing.assert_close((end - value).square(), apart, rtol=1e-3, atol=0)
    assert float(ends[0][0] + ends[1][0]) == pytest.approx(0.6)
    assert float(ends[0][1] + ends[1][1]) > 0.6
    far = growing_ends(value, deviation, freedom=9.0, grows=100 * grows)[1]
    assert float(far[1]) == pytest.approx(0.3 + 2 * t_reach(9.0) * 0.1, rel=1e-3)


def test_the_ends_of_a_ratio_are_those_of_its_odds():
    value, deviation, grows = (torch.tensor([x]).double() for x in (0.2, 0.032, 0.02))
    low, high = ratio_ends(value, deviation, freedom=20.0, grows=grows)
    of_odds = growing_ends(value / 0.8, deviation / 0.64, freedom=20.0, grows=grows)
    for end, odds in zip((low, high), of_odds, strict=True):
        torch.testing.assert_close(end / (1 - end), odds)
    small, _ = ratio_ends(value / 100, deviation, freedom=20.0, grows=grows)
    assert float(small) == 0
    one = torch.ones(1).double()
    assert ratio_ends(one, one, freedom=20.0, grows=grows) == (one, one)


def test_a_difference_of_score_intervals_is_as_wide_as_its_deviation_says():
    """Of two numbers with the same variance, which grows; with any other reach it is not."""
    value, deviation, grows = (torch.tensor([x]).double() for x in (0.1, 0.03, 0.02))
    low, high = growing_ends(value, deviation, freedom=1e9, grows=grows)
    reach = Z95 * deviation
    known = evened(value, low, high, reach)
    for rho in (0.0, 0.5):
        ends = difference_interval(known, known, torch.tensor([rho]).double())
        expected = reach * math.sqrt(2 * (1 - rho))
        torch.testing.assert_close(ends[1], expected, rtol=1e-3, atol=0)
        torch.testing.assert_close(ends[0], -expected, rtol=1e-3, atol=0)
    wide = difference_interval((value, low, high), (value, low, high), torch.zeros(1).double())
    assert float(wide[1]) > 1.05 * float(reach) * math.sqrt(2)
    whole = evened(value, value - reach, value + reach, reach)
    torch.testing.assert_close(whole[1], value - reach)
