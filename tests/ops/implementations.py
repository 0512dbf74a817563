"""Every implementation of an operator, for tests that all of them must pass."""

import pytest
import torch
from device_runner import run
from gpus import need_cuda

from safetyspace_fast import ops

IMPLEMENTATIONS = [
    "reference",
    "cpu",
    "triton",
    pytest.param("triton-cuda", marks=pytest.mark.needs_cuda),
    pytest.param("cuda", marks=pytest.mark.needs_cuda),
]
# Triton's interpreter takes seconds for what a test of shapes does in milliseconds.
WITHOUT_INTERPRETER = [impl for impl in IMPLEMENTATIONS if impl != "triton"]


def call(name, impl, *args, **kwargs):
    """`ops.<name>(*args, impl=impl, **kwargs)`, with tensors that start and end on the CPU.

    Skips where the operator has no such kernel, or this machine cannot run it.
    """
    if impl == "triton":
        return run("interpreter", _call, name, impl, args, kwargs)
    kernel = impl.removesuffix("-cuda")
    if on_gpu := kernel not in ("reference", "cpu"):
        need_cuda()
    if reasons := ops.implementations()[name].get(kernel, ["there is none"]):
        pytest.skip(f"{name}: no {kernel}: {'; '.join(reasons)}")
    if on_gpu:
        return run("cuda", _call, name, kernel, args, kwargs)
    return getattr(ops, name)(*args, impl=kernel, **kwargs)


def _call(name, impl, args, kwargs):
    # cols is rows asks for the symmetric form; copies of the two are no longer the same object.
    if name == "pairwise_reduce" and kwargs.pop("symmetric", False):
        args = (args[0], args[0], *args[1:])
    result = getattr(ops, name)(*args, impl=impl, **kwargs)
    return tuple(result) if isinstance(result, tuple) else result


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def two_classes(N=120, D=9, shift=0.5, dtype=torch.float32):
    labels = (torch.arange(N) % 3 == 0).long()
    x = normal(N, D, dtype=torch.float64) + labels[:, None] * shift
    return x.to(dtype), labels
