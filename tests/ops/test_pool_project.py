import pytest
import torch
from device_runner import run
from gpus import need_cuda
from implementations import IMPLEMENTATIONS, WITHOUT_INTERPRETER, call, normal
from tolerance import assert_as_accurate

from safetyspace_fast import ops
from safetyspace_fast.errors import ConfigError
from safetyspace_fast.ops import _select

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw_spans(B, T, S, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, T + 1, (2, B, S), generator=generator)
    return torch.stack([ends.amin(0), ends.amax(0)], dim=-1).int()


def truth(hidden_states, spans, projection):
    B, S, _ = spans.shape
    pooled = torch.full((B, S, hidden_states.shape[-1]), torch.nan, dtype=torch.float64)
    for b in range(B):
        for s in range(S):
            start, stop = spans[b, s].tolist()
            if stop > start:
                pooled[b, s] = hidden_states[b, start:stop].double().mean(0)
    return pooled, pooled @ projection.double()


def check(impl, hidden_states, spans, projection):
    pooled, projected = call("pool_project", impl, hidden_states, spans, projection)
    assert pooled.dtype == torch.float32
    assert projected.dtype == torch.float32
    exact = truth(hidden_states, spans, projection)
    reference = ops.pool_project(hidden_states, spans, projection, impl="reference")
    assert_as_accurate(pooled, reference[0], exact[0], "rounding")
    # P terms of the product may be added in another order
    assert_as_accurate(projected, reference[1], exact[1], "rounding")
    return pooled


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("B", "T", "D", "S", "P"),
    [
        pytest.param(1, 1, 1, 1, 1, id="one of everything"),
        pytest.param(3, 1, 70, 2, 5, id="one token, D no multiple of a vector"),
        pytest.param(5, 37, 130, 3, 64, id="several ranges"),
        pytest.param(2, 150, 1030, 2, 16, id="more than one block of tokens and of dimensions"),
        pytest.param(17, 9, 32, 1, 3, id="more samples than a program takes"),
    ],
)
def test_matches_float64(impl, dtype, B, T, D, S, P):
    hidden_states = normal(B, T, D, dtype=dtype)
    check(impl, hidden_states, draw_spans(B, T, S), normal(D, P, seed=1))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_mean_and_last_token_share_their_tokens(impl):
    hidden_states = normal(4, 21, 96)
    spans = torch.tensor([[[2, 20], [19, 20], [20, 21]]] * 4, dtype=torch.int32)
    pooled = check(impl, hidden_states, spans, normal(96, 8))
    assert torch.equal(pooled[:, 1], hidden_states[:, 19])
    assert torch.equal(pooled[:, 2], hidden_states[:, 20])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_an_empty_range_gives_nan(impl):
    spans = torch.tensor([[[0, 4], [3, 3]], [[4, 4], [1, 2]]], dtype=torch.int32)
    pooled = check(impl, normal(2, 4, 70), spans, normal(70, 3))
    assert pooled.isnan().any(2).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_tokens_outside_a_range_are_never_read_into_it(impl, poison):
    hidden_states = normal(2, 12, 40)
    hidden_states[:, 7:] = poison
    hidden_states[:, 0] = poison
    spans = torch.tensor([[[1, 7], [6, 7]]] * 2, dtype=torch.int32)
    assert check(impl, hidden_states, spans, normal(40, 4)).isfinite().all()


@pytest.mark.parametrize("impl", WITHOUT_INTERPRETER)
def test_strided_views(impl):
    whole = normal(3, 2, 20, 2, 64)
    spans = draw_spans(3, 20, 2)
    for view in (whole[:, 1, :, 0], whole[:, 0, ::2, 1].expand(3, -1, -1)):
        check(impl, view, spans.clamp(max=view.shape[1]), normal(64, 4))
    turned = normal(3, 64, 20).mT  # the hidden dimension is the strided one
    check(impl, turned, spans, normal(64, 4))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_four_huge_dimensions_and_an_offset(impl):
    # Language models have both; sums must not lose the small part.
    hidden_states = normal(3, 30, 256)
    hidden_states[..., :4] += 3000
    hidden_states[..., 100:] += 1e6
    check(impl, hidden_states, draw_spans(3, 30, 2), normal(256, 8))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_long_texts_lose_no_more_than_short_ones(impl):
    hidden_states = normal(1, 4096, 16) + 100
    check(impl, hidden_states, torch.tensor([[[0, 4096]]], dtype=torch.int32), normal(16, 2))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ragged_input_equals_padded(impl):
    lengths = [5, 1, 9]
    padded = normal(3, 9, 70)
    ragged = torch.cat([padded[b, :n] for b, n in enumerate(lengths)])
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    spans = torch.tensor([[[0, n], [n - 1, n]] for n in lengths], dtype=torch.int32)
    projection = normal(70, 4)
    actual = call("pool_project", impl, ragged, spans, projection, cu_seqlens=cu_seqlens)
    reference = ops.pool_project(padded, spans, projection, impl="reference")
    for values in zip(actual, reference, truth(padded, spans, projection), strict=True):
        assert_as_accurate(*values, "rounding")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("B", "T", "D", "S"), [(0, 3, 8, 1), (2, 3, 8, 0), (2, 0, 8, 1)])
def test_empty_input(impl, B, T, D, S):
    spans = torch.zeros(B, S, 2, dtype=torch.int32)
    arguments = (torch.ones(B, T, D), spans, torch.ones(D, 4))
    pooled, projected = call("pool_project", impl, *arguments)
    assert pooled.shape == (B, S, D)
    assert projected.shape == (B, S, 4)
    assert pooled.isnan().all()


def test_no_projection_gives_none():
    pooled, projected = ops.pool_project(normal(2, 3, 4), draw_spans(2, 3, 1))
    assert pooled.shape == (2, 1, 4)
    assert projected is None


def test_float16_covers_subnormal_and_special_numbers():
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    span = torch.tensor([[[0, 1]]], dtype=torch.int32)
    pooled, _ = ops.pool_project(every[None, None], span)
    assert torch.equal(pooled[0, 0].nan_to_num(7.0), every.float().nan_to_num(7.0))


@pytest.mark.parametrize("num_threads", [2, 4])
def test_the_number_of_threads_changes_no_bit(num_threads, threads):
    hidden_states = normal(33, 50, 700, dtype=torch.bfloat16)
    spans = draw_spans(33, 50, 2)
    threads(1)
    projection = normal(700, 64, seed=1)
    expected = ops.pool_project(hidden_states, spans, projection)
    threads(num_threads)
    actual = ops.pool_project(hidden_states, spans, projection)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("rows", [2, 9, 10, 31])
def test_the_number_of_threads_changes_no_bit_of_a_projection(rows, threads):
    averages, projection = normal(rows, 576), normal(576, 64, seed=1)
    projected = []
    for number in (1, 2):
        threads(number)
        out = torch.zeros(rows, 1, 1, 576 + 64)
        out[..., :576] = averages[:, None, None]
        projected.append(ops.project_averages(out, projection)[..., 576:])
        assert torch.get_num_threads() == number
    assert torch.equal(*projected)


GOOD = {
    "hidden_states": torch.ones(2, 3, 4),
    "spans": torch.zeros(2, 1, 2, dtype=torch.int32),
    "projection": torch.ones(4, 5),
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_states": torch.ones(2, 3, 4, dtype=torch.float64)}, "hidden_states: expected fl"),
        ({"hidden_states": torch.ones(3, 4)}, r"hidden_states: expected shape \[2, T, D\]"),
        ({"hidden_states": torch.ones(1, 3, 4)}, "hidden_states: expected shape"),
        ({"spans": torch.zeros(2, 1, 2)}, "spans: expected int32, got torch.float32"),
        ({"spans": torch.zeros(2, 2, dtype=torch.int32)}, r"spans: expected shape \[B, S, 2\]"),
        ({"spans": torch.tensor([[[0, 4]]] * 2).int()}, r"expected values in 0 .. 3, got 0 .. 4"),
        ({"spans": torch.tensor([[[-1, 2]]] * 2).int()}, r"got -1 .. 2"),
        ({"projection": torch.ones(4, 5).half()}, "projection: expected float32"),
        ({"projection": torch.ones(3, 5)}, r"projection: expected shape \[4, P\]"),
        ({"spans": GOOD["spans"].to("meta")}, "spans: on meta, but hidden_states are on cpu"),
        ({"cu_seqlens": torch.tensor([0, 2, 3])}, r"cu_seqlens: expected \[3\] int32"),
        ({"cu_seqlens": torch.tensor([0, 2, 3]).int()}, r"hidden_states: expected shape \[tokens"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ops.pool_project(**{**GOOD, **wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cu_seqlens", "span", "message"),
    [
        ([0, 2, 9], [0, 1], "cu_seqlens: expected 0, then ascending, up to 6"),
        ([1, 2, 6], [0, 1], "cu_seqlens"),
        ([0, 4, 2], [0, 1], "cu_seqlens"),
        ([0, 2, 6], [0, 3], "spans: a range ends after its sample's last token"),
    ],
)
def test_wrong_ragged_limits_are_named(cu_seqlens, span, message):
    with pytest.raises(ConfigError, match=message):
        ops.pool_project(
            torch.ones(6, 4),
            torch.tensor([[span]] * 2).int(),
            cu_seqlens=torch.tensor(cu_seqlens).int(),
        )


def _into(hidden_states, spans, longest, impl):
    """`pool_into` into rows with a gap behind each; the gap is returned too."""
    B, S, D = (*spans.shape[:2], hidden_states.shape[-1])
    out = hidden_states.new_full((S, B, D + 3), 7.0, dtype=torch.float32).transpose(0, 1)
    args = (hidden_states, spans, out[..., :D], longest)
    _select.choose("pool_into", impl, *args)(*args)
    return out.contiguous()


def pool_into(impl, hidden_states, spans, longest):
    args = (hidden_states, spans, longest)
    if impl == "triton":
        out = run("interpreter", _into, *args, impl)
    elif impl in ("cuda", "triton-cuda"):
        need_cuda()
        out = run("cuda", _into, *args, impl.split("-")[0])
    else:
        out = _into(*args, impl)
    D = hidden_states.shape[-1]
    assert (out[..., D:] == 7).all(), "written beside the result"
    return out[..., :D]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_go_into_rows_that_lie_apart(impl, dtype):
    hidden_states, spans = normal(5, 37, 130, dtype=dtype), draw_spans(5, 37, 3)
    pooled = pool_into(impl, hidden_states, spans, 37)
    exact, _ = truth(hidden_states, spans, torch.ones(130, 1))
    reference = pool_into("reference", hidden_states, spans, 37)
    assert_as_accurate(pooled, reference, exact, "rounding")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_long_and_short_texts_share_a_batch_and_no_bit_depends_on_it(impl):
    hidden_states = normal(4, 700, 40) + 3
    spans = torch.tensor(
        [[[0, 700], [699, 700]], [[3, 603], [100, 200]], [[5, 250], [249, 250]], [[9, 9], [0, 0]]],
        dtype=torch.int32,
    )
    pooled = pool_into(impl, hidden_states, spans, 700)
    exact, _ = truth(hidden_states, spans, torch.ones(40, 1))
    reference = pool_into("reference", hidden_states, spans, 700)
    assert_as_accurate(pooled, reference, exact, "rounding")
    alone = pool_into(impl, hidden_states[2:3, :256], spans[2:3], 256)
    assert torch.equal(pooled[2:3], alone) or impl == "reference"  # which adds as torch does
    packed = hidden_states.reshape(1, -1, 40).expand(4, -1, -1)
    offsets = 700 * torch.arange(4, dtype=torch.int32)[:, None, None]
    together = pool_into(impl, packed, spans + offsets, 700)
    assert torch.equal(together.nan_to_num(), pooled.nan_to_num()) or impl == "reference"
