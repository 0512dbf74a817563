import pytest
import torch
from tolerance import EPSILON, FLOORS, assert_as_accurate

EXACT = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)


def test_twice_the_reference_error_passes_and_more_does_not():
    reference = EXACT + 1e-3
    assert_as_accurate(EXACT - 1.99e-3, reference, EXACT, "none")
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate(EXACT - 2.01e-3, reference, EXACT, "none")


def test_one_bad_element_is_enough():
    actual = EXACT.clone()
    actual[1] += 1e-2
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate(actual, EXACT, EXACT, "rounding")


def test_the_floor_is_a_share_of_the_largest_value():
    assert_as_accurate(EXACT + 3.9 * EPSILON, EXACT, EXACT, "rounding")
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate(EXACT + 4.1 * EPSILON, EXACT, EXACT, "rounding")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0])
def test_special_values_must_be_where_the_truth_has_them(value):
    special = torch.tensor([1.0, value], dtype=torch.float64)
    assert_as_accurate(special, special, special, "none")
    for other in (float("nan"), float("inf"), -float("inf"), 1.0):
        if other == value or (other != other and value != value):
            continue
        with pytest.raises(AssertionError):
            assert_as_accurate(
                torch.tensor([1.0, other], dtype=torch.float64), special, special, "distance"
            )


def test_an_unwritten_output_fails():
    with pytest.raises(AssertionError):
        assert_as_accurate(torch.full_like(EXACT, torch.nan), EXACT, EXACT, "distance")


def test_no_environment_loosens_it():
    assert FLOORS == {"none": 0.0, "rounding": 2.0**-24, "distance": 1e-5}
