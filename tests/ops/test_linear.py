"""Products with packed weights, and norms."""

import pytest
import torch
from torch.nn import functional

from safetyspace_fast.ops import (
    ACTIVATIONS,
    can_pack,
    gated_linear,
    linear,
    pack_gated,
    pack_linear,
    rms_norm,
    unpack_linear,
)

kernel = pytest.mark.skipif(not can_pack(), reason="needs the compiled CPU kernels and AVX-512")
# Rows, inputs, outputs: around 14 rows, 192 inputs, 32 outputs, four panels of them, 512 rows.
SIZES = [
    (1, 1, 1), (13, 191, 31), (14, 192, 32), (15, 193, 33), (29, 385, 129), (600, 40, 200),
    (1100, 8, 5), (0, 8, 5), (3, 8, 0), (3, 0, 5),
]  # fmt: skip


def drawn(M, K, N):
    generator = torch.Generator().manual_seed(M * K + N)
    return [torch.randn(shape, generator=generator) for shape in ((M, K), (N, K), (N,))]


@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_packing_loses_nothing(M, K, N):
    weight = drawn(M, K, N)[1]
    packed = pack_linear(weight)
    assert packed.shape == (-(-N // 32), K, 32)
    assert torch.equal(unpack_linear(packed, N), weight)


@kernel
@pytest.mark.parametrize(("M", "K", "N"), SIZES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_are_those_of_the_library(M, K, N, with_bias):
    x, weight, bias = drawn(M, K, N)
    bias = bias if with_bias else None
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = linear(x, pack_linear(weight), bias, N)
    assert (found.shape, found.dtype) == ((M, N), torch.float32)
    size = exact.abs() + x.abs().double() @ weight.abs().double().T
    assert ((found - exact).abs() <= 16 * torch.finfo(torch.float32).eps * size + 1e-30).all()


@kernel
def test_the_rounding_is_that_of_the_library():
    x, weight, _ = drawn(64, 3000, 96)
    exact = x.double() @ weight.double().T
    library = (functional.linear(x, weight) - exact).square().mean()
    ours = (linear(x, pack_linear(weight), None, 96) - exact).square().mean()
    assert ours <= 1.2 * library


@kernel
@pytest.mark.parametrize(("M", "K", "N"), SIZES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gated_products_are_those_of_the_library(name, M, K, N):
    x, gate, _ = drawn(M, K, N)
    up = drawn(K + 1, K, N)[1]
    found = gated_linear(x, pack_gated(gate, up), N, name)
    assert (found.shape, found.dtype) == ((M, N), torch.float32)
    gates, values = x.double() @ gate.double().T, x.double() @ up.double().T
    sizes = [x.abs().double() @ weight.abs().double().T for weight in (gate, up)]
    # Both activations have slopes of at most 1.13.
    size = ACTIVATIONS[name](gates).abs() * sizes[1] + 1.13 * sizes[0] * values.abs()
    gap = (found - ACTIVATIONS[name](gates) * values).abs()
    assert (gap <= 16 * torch.finfo(torch.float32).eps * (size + values.abs()) + 1e-30).all()


@kernel
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gates_far_from_zero_open_or_close(name):
    x = torch.tensor([[-torch.inf], [-1e15], [-200.0], [-20.0], [0.0], [20.0], [1e15], [torch.nan]])
    one = torch.ones(1, 1)
    found = gated_linear(x.repeat(3, 1), pack_gated(one, one / 2), 1, name)[:8]
    expected = ACTIVATIONS[name](x.double()) * x / 2
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-30, equal_nan=True)


@kernel
@pytest.mark.parametrize("shape", [(1, 1), (7, 16), (2, 3, 33), (5, 4, 1000), (0, 4)])
def test_norms_are_those_of_the_library(shape):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.rand(shape[-1], generator=generator)
    for scale in (1.0, 1e-12, 1e12):
        exact = functional.rms_norm((scale * x).double(), shape[-1:], weight.double(), 1e-5)
        found = rms_norm(scale * x, weight, 1e-5)
        torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=1e-30)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(rms_norm(turned, weight, 1e-5), rms_norm(x, weight, 1e-5))


@kernel
def test_any_rank_and_strides():
    x, weight, _ = drawn(24, 10, 7)
    packed = pack_linear(weight)
    expected = linear(x, packed, None, 7)
    assert torch.equal(linear(x.view(2, 3, 4, 10), packed, None, 7), expected.view(2, 3, 4, 7))
    assert torch.equal(linear(x[0], packed, None, 7), expected[0])
    assert torch.equal(linear(x.T.contiguous().T, packed, None, 7), expected)
    assert torch.equal(linear(torch.cat([x, x], 1)[:, :10], packed, None, 7), expected)


@kernel
def test_threads_and_the_other_rows_change_no_bit():
    x, weight, bias = drawn(700, 300, 130)
    packed = pack_linear(weight)
    expected = linear(x, packed, bias, 130)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            assert torch.equal(linear(x, packed, bias, 130), expected)
    finally:
        torch.set_num_threads(threads)
    for rows in (slice(0, 1), slice(5, 40), slice(699, 700)):
        assert torch.equal(linear(x[rows], packed, bias, 130), expected[rows])


@kernel
def test_what_is_not_finite_stays_in_its_row():
    x, weight, _ = drawn(20, 50, 40)
    packed = pack_linear(weight)
    expected = linear(x, packed, None, 40)
    x[3, 7], x[5, 0] = torch.nan, torch.inf
    found = linear(x, packed, None, 40)
    assert found[3].isnan().all()
    assert found[5].isinf().all()
    others = [i for i in range(20) if i not in (3, 5)]
    assert torch.equal(found[others], expected[others])


@kernel
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a: a.update(x=a["x"].double()), "x: expected"),
        (lambda a: a.update(x=a["x"][:, :9]), "x: expected"),
        (lambda a: a.update(x=torch.tensor(1.0)), "x: expected"),
        (lambda a: a.update(panels=a["panels"][0]), "panels: expected"),
        (lambda a: a.update(panels=a["panels"].double()), "panels: expected"),
        (lambda a: a.update(panels=a["panels"][:, :, :16]), "panels: expected"),
        (lambda a: a.update(features=33), "panels: expected"),
        (lambda a: a.update(features=-1), "panels: expected"),
        (lambda a: a.update(bias=a["bias"][:6]), "bias: expected"),
        (lambda a: a.update(bias=a["bias"].double()), "bias: expected"),
    ],
)
def test_bad_operands_are_named(change, what):
    x, weight, bias = drawn(4, 10, 7)
    operands = {"x": x, "panels": pack_linear(weight), "bias": bias, "features": 7}
    change(operands)
    with pytest.raises(RuntimeError, match=what):
        linear(**operands)


@kernel
@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda x, panels, w: gated_linear(x, panels, 7, "relu"), "activation: expected"),
        (lambda x, panels, w: gated_linear(x, panels[:1], 7, "silu"), "panels: expected"),
        (lambda x, panels, w: gated_linear(x[:, :9], panels, 7, "silu"), "x: expected"),
        (lambda x, panels, w: rms_norm(x, w[:9], 1e-5), "x: expected"),
        (lambda x, panels, w: rms_norm(x.double(), w, 1e-5), "x: expected"),
        (lambda x, panels, w: rms_norm(x, w.double(), 1e-5), "weight: expected"),
        (lambda x, panels, w: rms_norm(x, w[None], 1e-5), "weight: expected"),
        (lambda x, panels, w: rms_norm(x[:, :0], w[:0], 1e-5), "weight: expected"),
    ],
)
def test_bad_operands_of_gates_and_norms_are_named(call, what):
    x, weight, _ = drawn(4, 10, 7)
    with pytest.raises(RuntimeError, match=what):
        call(x, pack_gated(weight, weight), x[0].clone())


@kernel
def test_the_compiler_sees_one_call():
    x, weight, bias = drawn(6, 10, 7)
    for function, operands in (
        (linear, (x, pack_linear(weight), bias, 7)),
        (gated_linear, (x, pack_gated(weight, weight), 7, "silu")),
        (rms_norm, (x, x[0].clone(), 1e-5)),
    ):
        op = getattr(torch.ops.safetyspace_fast, function.__name__)
        torch.library.opcheck(op.default, operands)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*operands), function(*operands))
