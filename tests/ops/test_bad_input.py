"""Whatever comes in, an operator answers or raises; it never takes the interpreter down."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safetyspace_fast import ops
from safetyspace_fast.errors import SafetySpaceError

DTYPES = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.bool]
)
VALUES = st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), 1e38, 2.0**31])
MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), min_size=0, max_size=4))
    dtype = draw(DTYPES)
    tensor = torch.full(shape, draw(VALUES), dtype=torch.float64)
    if tensor.numel():
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.integers(-3, 5))
    tensor = tensor.to(dtype)
    return tensor.transpose(0, -1) if tensor.ndim > 1 and draw(st.booleans()) else tensor


def one_line(function, *args, **kwargs):
    message = "-"
    try:
        function(*args, **kwargs)
    except SafetySpaceError as error:
        message = str(error)
    assert message
    assert "\n" not in message


@MANY
@given(tensors(), tensors(), st.none() | tensors(), st.none() | tensors())
def test_pool_project(hidden_states, spans, projection, cu_seqlens):
    one_line(ops.pool_project, hidden_states, spans, projection, cu_seqlens=cu_seqlens)


@MANY
@given(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3), tensors())
def test_pool_project_of_right_shapes(B, T, S, spans):
    spans = torch.zeros(B, S, 2).int() + (spans.flatten()[:1].int() if spans.numel() else 0)
    one_line(ops.pool_project, torch.ones(B, T, 3), spans)


@MANY
@given(tensors(), tensors(), tensors(), st.integers(-1, 4), st.sampled_from(ops.METRICS))
def test_pairwise_reduce(rows, cols, labels, num_classes, metric):
    one_line(ops.pairwise_reduce, rows, cols, labels, num_classes, metric=metric)
    one_line(ops.pairwise_reduce, rows, rows, labels, num_classes, metric=metric)


@MANY
@given(tensors(), tensors(), st.integers(0, 3), st.integers(-1, 2), st.sampled_from([None, [0.5]]))
def test_pairwise_update(x, labels, rows, start, gammas):
    result = ops.pairwise_empty(rows, 2, num_gammas=len(gammas or ()))
    one_line(ops.pairwise_update, result, x, labels, start * 512, gammas=gammas)


@MANY
@given(st.integers(0, 3), st.integers(0, 2), st.sampled_from(ops.METRICS), VALUES)
def test_of_right_shapes_with_any_value(N, D, metric, value):
    x, labels = torch.ones(N, D), torch.arange(N) % 2
    x[N // 2 :] = value
    one_line(ops.pairwise_reduce, x, x, labels, 2, metric=metric)
    for statistic in (ops.silhouette_samples, ops.energy_distance, ops.dunn, ops.nn_accuracy):
        one_line(statistic, x, labels, metric=metric)
    one_line(ops.energy_distance, x, labels.expand(3, -1), metric=metric)


@MANY
@given(tensors(), tensors())
def test_statistics(x, labels):
    for statistic in (ops.silhouette_samples, ops.energy_distance, ops.dunn, ops.nn_accuracy):
        one_line(statistic, x, labels)
    one_line(ops.mmd, x, labels, 0.5)


@MANY
@given(tensors(), tensors(), tensors() | VALUES)
def test_mmd(x, labels, gamma):
    one_line(ops.mmd, x, labels, gamma)


@MANY
@given(tensors(), tensors(), st.integers(-1, 4))
def test_class_moments(x, cells, num_cells):
    one_line(ops.class_moments, x, cells, num_cells)


@MANY
@given(st.integers(0, 3), st.integers(0, 3), VALUES, st.integers(-1, 2))
def test_class_moments_of_right_shapes(N, P, value, cell):
    x, cells = torch.full((2, N, P), value), torch.arange(N)
    cells[N // 2 :] = cell
    one_line(ops.class_moments, x, cells, 2)
    one_line(lambda: ops.class_moments(x, cells, 2).merge(ops.class_moments(x, cells, 2)))


@pytest.mark.skipif(ops.simd_level() is None, reason="needs the compiled CPU kernels")
@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (
            "pool_project",
            (torch.ones(1, 2, 3), torch.tensor([[[0, 9]]]).int(), None),
            "spans: expected values in 0 .. 2, got 9",
        ),
        (
            "pool_project",
            (torch.ones(2, 3), torch.zeros(1, 1, 2).int(), None),
            "hidden_states: expected shape",
        ),
        (
            "pairwise_reduce",
            (
                torch.ones(1, 3, 2),
                None,
                torch.zeros(1, 2).double(),
                torch.tensor([0, 7, 0]),
                2,
                "cosine",
                [],
            ),
            "labels: expected 0 .. 1, got 7",
        ),
        (
            "pairwise_reduce",
            (
                torch.ones(1, 3, 2),
                None,
                torch.zeros(1, 3).double(),
                torch.zeros(3).long(),
                2,
                "cosine",
                [],
            ),
            r"center: expected shape \[1, 2\] float64",
        ),
        (
            "pairwise_within",
            (
                torch.ones(1, 3, 2),
                torch.zeros(1, 2).double(),
                torch.ones(2, 4),
                "cosine",
                None,
                torch.zeros(1),
            ),
            r"masks: expected shape \[3, R\] float32",
        ),
        (
            "pairwise_within",
            (
                torch.ones(2, 3, 2),
                torch.zeros(2, 2).double(),
                torch.ones(3, 4),
                "cosine",
                None,
                torch.zeros(1).expand(2),
            ),
            r"shift: expected shape \[2\] float32, contiguous",
        ),
        (
            "pairwise_within",
            (
                torch.ones(2, 3, 2),
                torch.zeros(2, 2).double(),
                torch.ones(3, 4),
                "euclidean",
                torch.zeros(2),
                torch.zeros(2),
            ),
            r"gamma: expected shape \[2\] float64, contiguous",
        ),
        (
            "pairwise_update",
            (
                torch.ones(1, 3, 2),
                torch.zeros(1, 2).double(),
                torch.zeros(3).long(),
                0,
                "euclidean",
                [],
                torch.zeros(1, 3, 2).double(),
                torch.zeros(1, 2, 2),
                torch.zeros(1, 3, 2),
                torch.zeros(1, 3, 2, 0).double(),
            ),
            "min: not the shape",
        ),
    ],
)
def test_the_compiled_kernels_check_for_themselves(op, args, message):
    # The public functions are not the only way in: torch.ops is another.
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.safetyspace_fast, op)(*args)
