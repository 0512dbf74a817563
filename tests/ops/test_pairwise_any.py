"""Distances of any small problem; in a file of its own, since hypothesis is not everywhere."""

from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import normal
from test_pairwise import check, labels_of

from safetyspace_fast import ops


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(2, 20),
    st.integers(1, 5),
    st.integers(0, 2**31),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e12]),
    st.sampled_from(ops.METRICS),
)
def test_any_small_problem(N, D, C, seed, scale, metric):
    check("cpu", normal(N, D, seed=seed) * scale, None, labels_of(N, C, seed), C, metric=metric)
