import pytest
import torch
from device_runner import WHERE, run

from safetyspace_fast.ops.triton import pool_project as kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(B, T, D, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, D, generator=generator).to(dtype)


def draw_spans(B, T, S, seed=0):
    """Half-open ranges of every length from 0 to T."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, T + 1, (2, B, S), generator=generator)
    return torch.stack([ends.amin(0), ends.amax(0)], dim=-1).int()


def truth(hidden_states, spans):
    """Means in float64; NaN for an empty span."""
    pooled = [
        [hidden_states[b, i:j].double().mean(0) for i, j in sample]
        for b, sample in enumerate(spans.tolist())
    ]
    return torch.stack([torch.stack(rows) for rows in pooled])


def check(where, hidden_states, spans, projection):
    pooled, projected = run(where, kernels.pool_project, hidden_states, spans, projection)
    expected = truth(hidden_states, spans)
    assert pooled.dtype == torch.float32
    assert pooled.shape == expected.shape
    longest = int((spans[..., 1] - spans[..., 0]).max())
    largest = hidden_states.double().abs().max()
    # A sum of n terms in any order errs by at most (n - 1) roundings of n times the largest.
    bound = max(longest, 2) * 2.0**-24 * largest
    torch.testing.assert_close(pooled.double(), expected, rtol=0, atol=bound.item(), equal_nan=True)
    if projection is None:
        assert projected.shape == (*spans.shape[:2], 0)
        return pooled, projected
    assert projected.dtype == torch.float32
    # Against the product of the pooled rows as they are: half the worst case of a plain sum.
    product = pooled.double() @ projection.double()
    bound = pooled.nan_to_num().double().abs() @ projection.double().abs()
    bound = bound.max() * 2.0**-24 * (kernels.CHUNK + pooled.shape[-1] / kernels.CHUNK) / 2
    torch.testing.assert_close(
        projected.double(), product, rtol=0, atol=bound.item(), equal_nan=True
    )
    return pooled, projected


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("B", "T", "D", "S", "P"),
    [
        pytest.param(1, 1, 1, 1, 1, id="one of everything"),
        pytest.param(3, 7, 70, 2, 5, id="nothing divides a block"),
        pytest.param(2, 37, 520, 3, 70, id="three rows of blocks, two chunks, two tiles of P"),
        pytest.param(18, 5, 64, 2, 16, id="two tiles of rows"),
        pytest.param(1, 9, 33, 8, 4, id="most spans"),
    ],
)
def test_matches_float64(where, dtype, B, T, D, S, P):
    projection = draw(1, D, P, seed=1)[0]
    check(where, draw(B, T, D, dtype), draw_spans(B, T, S), projection)


@pytest.mark.parametrize("where", WHERE)
def test_no_projection(where):
    check(where, draw(2, 5, 40), draw_spans(2, 5, 2), None)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x[:, 1:-1], id="tokens cut"),
        pytest.param(lambda x: x[..., 3:50], id="rows not aligned"),
        pytest.param(lambda x: x[..., ::2], id="every other dimension"),
        pytest.param(lambda x: x.transpose(0, 1), id="token-major"),
        pytest.param(lambda x: x.permute(1, 2, 0), id="dimensions far apart"),
        pytest.param(lambda x: x[:1].expand(4, -1, -1), id="one sample repeated"),
    ],
)
def test_strides(where, view):
    hidden_states = view(draw(9, 11, 96))
    B, T, D = hidden_states.shape
    check(where, hidden_states, draw_spans(B, T, 2), draw(1, D, 8, seed=1)[0])


@pytest.mark.parametrize("where", WHERE)
def test_transposed_projection(where):
    check(where, draw(2, 4, 32), draw_spans(2, 4, 1), draw(1, 6, 32, seed=1)[0].T)


@pytest.mark.parametrize("where", WHERE)
def test_tokens_outside_the_spans_do_not_count(where):
    hidden_states = draw(2, 12, 40)
    spans = torch.tensor([[[2, 4], [7, 9]], [[3, 3], [5, 6]]], dtype=torch.int32)
    expected, _ = check(where, hidden_states, spans, None)
    hidden_states[:, [0, 1, 6, 9, 10, 11]] = float("inf")
    hidden_states[:, 4] = float("nan")
    pooled, _ = run(where, kernels.pool_project, hidden_states, spans, None)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("where", WHERE)
def test_empty_spans_are_nan_in_both_results(where):
    spans = torch.tensor([[[3, 3], [0, 2]], [[4, 1], [5, 9]]], dtype=torch.int32)
    pooled, projected = run(where, kernels.pool_project, draw(2, 5, 8), spans, draw(1, 8, 3)[0])
    empty = torch.tensor([[True, False], [True, True]])
    assert torch.equal(pooled.isnan().all(-1), empty)
    assert torch.equal(pooled.isnan().any(-1), empty)
    assert torch.equal(projected.isnan().all(-1), empty)
    assert torch.equal(projected.isnan().any(-1), empty)


@pytest.mark.parametrize("where", WHERE)
def test_spans_are_clamped_to_the_sample(where):
    hidden_states = draw(2, 5, 8)
    wide = torch.tensor([[[-3, 9]], [[2, 100]]], dtype=torch.int32)
    pooled, _ = run(where, kernels.pool_project, hidden_states, wide, None)
    expected, _ = check(where, hidden_states, torch.tensor([[[0, 5]], [[2, 5]]]).int(), None)
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    "shape", [(0, 4, 8, 2, 3), (2, 0, 8, 2, 3), (2, 4, 0, 2, 3), (2, 4, 8, 0, 3), (2, 4, 8, 2, 0)]
)
def test_nothing_to_do(where, shape):
    B, T, D, S, P = shape
    pooled, projected = run(
        where,
        kernels.pool_project,
        torch.zeros(B, T, D),
        torch.zeros(B, S, 2, dtype=torch.int32),
        torch.zeros(D, P),
    )
    assert pooled.shape == (B, S, D)
    assert projected.shape == (B, S, P)
    assert pooled.isnan().all()


@pytest.mark.parametrize("where", WHERE)
def test_a_sample_does_not_depend_on_its_batch(where):
    hidden_states, spans, projection = draw(20, 9, 70), draw_spans(20, 9, 2), draw(1, 70, 5)[0]
    together = run(where, kernels.pool_project, hidden_states, spans, projection)
    alone = run(where, kernels.pool_project, hidden_states[17:18], spans[17:18], projection)
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[17:18].nan_to_num(), part.nan_to_num())


@pytest.mark.parametrize("where", WHERE)
def test_huge_dimensions_keep_their_digits(where):
    hidden_states = draw(2, 300, 16)
    hidden_states[..., :4] += 3000
    check(where, hidden_states, torch.tensor([[[0, 300]], [[7, 299]]]).int(), draw(1, 16, 4)[0])


def test_reasons():
    hidden_states, spans = torch.zeros(1, 1, 1), torch.zeros(1, 1, 2, dtype=torch.int32)
    assert kernels.supports(hidden_states, spans, None) == ["hidden_states is on cpu, not on a GPU"]
    reasons = kernels.supports(hidden_states.double(), spans.expand(1, 9, 2), None)
    assert len(reasons) == 3
    assert "torch.float64" in reasons[1]
    assert "9 spans" in reasons[2]
