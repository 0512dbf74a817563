"""Sums over many choices of samples, packed or not."""

import pytest
import torch

from safetyspace_fast.ops import _labels, _native, label_sums, pack_labels

SIZES = [(1, 1, 1), (3, 31, 2), (4, 32, 64), (5, 33, 65), (9, 256, 7), (70, 1000, 130)]


def drawn(rows, n, number):
    generator = torch.Generator().manual_seed(rows * n)
    labels = torch.randint(0, 2, (number, n), generator=generator)
    return torch.rand(rows, n, dtype=torch.float64, generator=generator), labels


@pytest.fixture(params=["compiled", "plain"])
def form(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(_native, "simd_level", lambda: "avx2")
    elif _native.simd_level() != "avx512":
        pytest.skip("needs the compiled CPU kernels and AVX-512")


@pytest.mark.parametrize(("rows", "n", "number"), SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_sums_are_those_of_a_product(form, rows, n, number, dtype):
    values, labels = drawn(rows, n, number)
    found = label_sums(values, pack_labels(labels.to(dtype)))
    assert found.shape[0] == rows
    torch.testing.assert_close(
        found[:, :number].double(), values @ labels.double().T, rtol=1e-6, atol=1e-6
    )
    assert (found[:, number:] == 0).all()


def test_long_sums_lose_less_than_float32_keeps(form):
    values, labels = drawn(8, 20_000, 64)
    found = label_sums(values, pack_labels(labels)).double()
    exact = values @ labels.double().T
    assert ((found - exact).abs() / exact).max() < 2e-6


@pytest.mark.skipif(
    _native.simd_level() != "avx512", reason="needs the compiled CPU kernels and AVX-512"
)
def test_bad_operands_are_named():
    values, labels = drawn(4, 40, 3)
    packed = pack_labels(labels)
    assert packed.shape == (2, _labels.LABELS)
    for bad, good in ((values.float(), packed), (values[:, :39], packed), (values.T, packed)):
        with pytest.raises(RuntimeError, match="values: expected"):
            label_sums(bad, good)
    with pytest.raises(RuntimeError, match="bits: expected"):
        label_sums(values, packed[:1])
