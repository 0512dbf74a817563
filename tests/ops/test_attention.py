"""Causal attention with rotary positions."""

import pytest
import torch
from torch.nn import functional

from safetyspace_fast.ops import can_pack, rotary_attention

pytestmark = pytest.mark.skipif(not can_pack(), reason="needs the compiled CPU kernels and AVX-512")
# Samples, tokens, heads of queries, of keys, dimensions: around 14 rows, 16 lanes, 32 columns, 192
# in a chain, with few tasks and with many.
SIZES = [
    (1, 1, 1, 1, 2), (2, 5, 4, 2, 6), (3, 14, 3, 3, 16), (1, 31, 2, 1, 34), (2, 33, 9, 3, 64),
    (20, 17, 6, 2, 80), (1, 200, 2, 1, 256), (1, 450, 1, 1, 8), (0, 3, 2, 1, 4), (2, 0, 2, 1, 4),
]  # fmt: skip


def drawn(B, T, H, K, dim, *, own_angles=False):
    generator = torch.Generator().manual_seed(B * T + H * dim)
    qkv = torch.randn(B, T, (H + 2 * K) * dim, generator=generator)
    angles = 6 * torch.rand(B if own_angles else 1, T, dim, generator=generator)
    heads = {"num_heads": H, "num_kv_heads": K, "scaling": dim**-0.5}
    return {"qkv": qkv, "cos": angles.cos(), "sin": angles.sin(), **heads}


def norms(dim):
    generator = torch.Generator().manual_seed(dim)
    q_norm, k_norm = 2 * torch.rand(2, dim, generator=generator)
    return {"q_norm": q_norm, "k_norm": k_norm, "epsilon": 0.1}


def in_steps(
    qkv, cos, sin, num_heads, num_kv_heads, scaling,
    q_norm=None, k_norm=None, epsilon=0, past_keys=None, past_values=None,
):  # fmt: skip
    B, T, dim = *qkv.shape[:2], cos.shape[-1]
    heads = qkv.view(B, T, num_heads + 2 * num_kv_heads, dim).split(
        [num_heads, num_kv_heads, num_kv_heads], 2
    )

    def turned(x, norm):
        x = x if norm is None else functional.rms_norm(x, (dim,), norm, epsilon)
        x, (a, b) = x.transpose(1, 2), x.transpose(1, 2).chunk(2, -1)
        return x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]

    q, k, v = turned(heads[0], q_norm), turned(heads[1], k_norm), heads[2].transpose(1, 2)
    if past_keys is not None:
        k = torch.cat([past_keys.expand(B, -1, -1, -1), k], 2)
        v = torch.cat([past_values.expand(B, -1, -1, -1), v], 2)
    S = k.shape[2]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    mixed = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return mixed.transpose(1, 2).flatten(2)


def past(K, P, dim):
    generator = torch.Generator().manual_seed(P)
    keys, values = torch.randn(2, K, P, dim, generator=generator)
    return {"past_keys": keys, "past_values": values}


def doubles(operands):
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in operands.items()}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("own_angles", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_mixed_values_are_those_of_the_steps(sizes, own_angles, normed):
    operands = drawn(*sizes, own_angles=own_angles) | (norms(sizes[-1]) if normed else {})
    exact = in_steps(**doubles(operands))
    found = rotary_attention(**operands)
    assert (found.shape, found.dtype) == (exact.shape, torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("P", [0, 1, 31, 200])
def test_tokens_before_all_samples(sizes, P):
    _, _, _, K, dim = sizes
    operands = drawn(*sizes) | norms(dim) | past(K, P, dim)
    found, exact = rotary_attention(**operands), in_steps(**doubles(operands))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=3e-6)


def test_rounding_is_no_worse_than_that_of_the_steps():
    operands = drawn(2, 300, 6, 2, 64)
    exact = in_steps(**doubles(operands))
    ours, theirs = (f(**operands).double() - exact for f in (rotary_attention, in_steps))
    assert ours.square().mean() <= 1.2 * theirs.square().mean()


@pytest.mark.parametrize("scale", [0, 30, 1e4])
def test_large_scores(scale):
    operands = drawn(2, 40, 2, 1, 32)
    operands["qkv"][..., : 3 * 32] *= scale
    operands["qkv"] = operands["qkv"].round()  # scores without rounding: whose are largest is known
    operands["cos"], operands["sin"] = torch.ones(1, 40, 32), torch.zeros(1, 40, 32)
    found, exact = rotary_attention(**operands), in_steps(**doubles(operands))
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


def test_a_token_sees_only_those_before_it():
    operands = drawn(2, 60, 4, 2, 16)
    expected = rotary_attention(**operands)
    operands["qkv"][1, 37:] += 5
    found = rotary_attention(**operands)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1, :37], expected[1, :37])
    assert not torch.isclose(found[1, 37:], expected[1, 37:]).all(-1).any()


def test_what_is_not_finite_stays_with_its_token_and_those_after_it():
    operands = drawn(2, 60, 4, 2, 16)
    expected = rotary_attention(**operands)
    operands["qkv"][1, 37] = torch.nan
    found = rotary_attention(**operands)
    assert torch.equal(found[0], expected[0])
    assert found[1, 37:].isnan().all()
    # Rows go 14 together, and 0 times nan is nan; the library's does that to all of a sample.
    assert torch.equal(found[1, : 37 - 13], expected[1, : 37 - 13])
    operands = drawn(1, 60, 4, 2, 16)
    expected = rotary_attention(**operands)
    operands["qkv"][0, 37, 0] = torch.inf  # a query
    found = rotary_attention(**operands)
    assert found[0, 37, :16].isnan().all()
    assert torch.equal(found[0, :, 16:], expected[0, :, 16:])


def test_threads_samples_and_length_change_no_bit():
    operands = drawn(5, 50, 6, 2, 48)
    expected = rotary_attention(**operands)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            assert torch.equal(rotary_attention(**operands), expected)
    finally:
        torch.set_num_threads(threads)
    one = {**operands, "qkv": operands["qkv"][3:4]}
    assert torch.equal(rotary_attention(**one), expected[3:4])
    fewer = {name: operands[name][:, :20] for name in ("qkv", "cos", "sin")}
    found = rotary_attention(**{**operands, **fewer})  # not contiguous
    torch.testing.assert_close(found, expected[:, :20], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"qkv": torch.zeros(2, 3, 32).double()}, "qkv: expected"),
        ({"qkv": torch.zeros(2, 3)}, "qkv: expected"),
        ({"qkv": torch.zeros(2, 3, 33)}, "qkv: expected"),
        ({"qkv": torch.zeros(2, 3, 24)}, "qkv: expected an even"),
        ({"num_kv_heads": 3}, "num_heads: expected"),
        ({"num_kv_heads": 0}, "num_heads: expected"),
        ({"cos": torch.zeros(1, 2, 4)}, "cos, sin: expected"),
        ({"cos": torch.zeros(3, 3, 4)}, "cos, sin: expected"),
        ({"sin": torch.zeros(2, 3, 4)}, "cos, sin: expected"),
        ({"sin": torch.zeros(1, 3, 4).double()}, "cos, sin: expected"),
        ({"q_norm": torch.zeros(3)}, "q_norm: expected"),
        ({"k_norm": torch.zeros(4).double()}, "k_norm: expected"),
        (past(2, 5, 6), "past_keys, past_values: expected"),
        (past(4, 5, 4), "past_keys, past_values: expected"),
        (doubles(past(2, 5, 4)), "past_keys, past_values: expected"),
        (past(2, 5, 4) | {"past_values": torch.zeros(2, 6, 4)}, "past_keys, past_values: expected"),
        ({"past_keys": torch.zeros(2, 5, 4)}, "past_values: missing"),
        ({"past_values": torch.zeros(2, 5, 4)}, "past_values: missing"),
    ],
)
def test_bad_operands_are_named(change, what):
    with pytest.raises(RuntimeError, match=what):
        rotary_attention(**(drawn(2, 3, 4, 2, 4) | change))


def test_the_compiler_sees_one_call():
    operands = drawn(2, 5, 4, 2, 8) | norms(8) | past(2, 3, 8)
    compiled = torch.compile(rotary_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**operands), rotary_attention(**operands))
    torch.library.opcheck(
        torch.ops.safetyspace_fast.rotary_attention.default, tuple(operands.values())
    )
