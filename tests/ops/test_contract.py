"""What holds for every operator: schema, fakes, tracing, selection, imports."""

import os
import subprocess
import sys

import implementations
import pytest
import torch
from device_runner import run
from gpus import need_cuda
from implementations import normal
from torch._dynamo.backends.debugging import aot_eager

from safetyspace_fast import ops
from safetyspace_fast.errors import ImplementationError
from safetyspace_fast.ops import _schema, _select, reference

NATIVE = not ops.implementations()["pool_project"]["cpu"]
SPANS = torch.tensor([[[0, 3], [2, 3]], [[1, 4], [3, 4]]], dtype=torch.int32)
LABELS = torch.tensor([0, 1, 1, 0, 1])


def arguments(op, dtype):
    x = normal(2, 5, 12, dtype=dtype)
    center = reference.center_of(x, "euclidean")
    masks = normal(5, 3).sign().clamp(min=0)
    return {
        "pool_project": [(x, SPANS, None), (x, SPANS, normal(12, 3))],
        "pool_into": [(x, SPANS, torch.zeros(2, 2, 12), 5)],
        "pairwise_reduce": [
            (x, None, center, LABELS, 2, "euclidean", []),
            (x[:, :3], x, center, LABELS, 2, "sqeuclidean", [0.1, 1.0]),
        ],
        "pairwise_update": [
            (x, center, LABELS, 0, "euclidean", [0.5], *reference.pairwise_empty(x, 5, 2, 1))
        ],
        "pairwise_within": [
            (x, center, masks, "cosine", None, torch.tensor([0.5, 0.7])),
            (x, center, masks, "euclidean", torch.tensor([0.1, 0.2]).double(), torch.zeros(2)),
        ],
    }[op]


@pytest.mark.parametrize("op", _schema.SCHEMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(op, dtype):
    for args in arguments(op, dtype):
        torch.library.opcheck(getattr(torch.ops.safetyspace_fast, op).default, args)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("suffix", ["", "_triton"])
@pytest.mark.parametrize("op", _schema.SCHEMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_on_a_gpu(op, suffix, dtype):
    need_cuda()
    for args in arguments(op, dtype):
        on_gpu = tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in args)
        torch.library.opcheck(getattr(torch.ops.safetyspace_fast, op + suffix).default, on_gpu)


class Hooked(torch.nn.Module):
    """Three blocks with a hook each; the middle one's states go in as a ragged batch."""

    def __init__(self, impl):
        super().__init__()
        self.impl = impl
        self.blocks = torch.nn.Sequential(*(torch.nn.Linear(12, 12) for _ in range(3)))
        for block in self.blocks:
            block.register_forward_hook(self.hook)

    def hook(self, module, inputs, output):
        limits = None
        if module is self.blocks[1]:
            output, limits = output.flatten(0, 1), torch.tensor([0, 5, 10], dtype=torch.int32)
        weights = torch.ones(12, 2)
        pooled = ops.pool_project(output, SPANS, weights, cu_seqlens=limits, impl=self.impl)
        self.pooled.append(torch.cat(pooled, 2))

    def forward(self, x):
        self.pooled = []
        x = self.blocks(x)
        return x, torch.stack(self.pooled)


def compiled_and_eager(impl):
    torch.manual_seed(0)
    model, x = Hooked(impl).requires_grad_(False), normal(2, 5, 12)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    return compiled(x), model(x), len(graphs)


@pytest.mark.parametrize("impl", [None, "reference", "cpu", "triton"])
def test_a_hooked_model_compiles_without_a_graph_break(impl):
    if impl == "cpu" and not NATIVE:
        pytest.skip("needs the compiled CPU kernels")
    where = (run, "interpreter") if impl == "triton" else (lambda function, *args: function(*args),)
    compiled, eager, num_graphs = where[0](*where[1:], compiled_and_eager, impl)
    assert num_graphs == 1
    for actual, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(actual, expected)


def test_every_implementation_says_why_it_is_not_used():
    table = ops.implementations()
    assert set(table) == set(_schema.SCHEMAS)
    for kernels in table.values():
        assert list(kernels) == ["cuda", "triton", "cpu", "reference"]
        assert kernels["reference"] == []
    if not torch.cuda.is_available():
        assert all("CUDA" in " ".join(kernels["cuda"]) for kernels in table.values() if NATIVE)


def test_a_forced_choice_that_cannot_be_met_lists_every_reason(monkeypatch):
    x = torch.ones(1, 2, 4)
    with pytest.raises(ImplementationError, match="impl is one of cuda, triton, cpu, reference"):
        ops.pool_project(x, SPANS[:1] * 0, impl="numpy")
    with pytest.raises(ImplementationError, match="not on cuda") as caught:
        ops.pool_project(x, SPANS[:1] * 0, impl="cuda")
    assert "\n" not in str(caught.value)
    if NATIVE:
        rows = torch.ones(3, 2).double()
        with pytest.raises(ImplementationError, match="float64 input runs on the reference"):
            ops.pairwise_reduce(rows, rows, torch.zeros(3).long(), 1, impl="cpu")


def test_forced_choices_run_what_they_say(monkeypatch):
    called = []

    def record(*args):
        called.append("reference")
        return reference.pool_project(*args)

    table = _select.IMPLEMENTATIONS["pool_project"]
    monkeypatch.setitem(table, "reference", table["reference"]._replace(call=record))
    x = torch.ones(2, 5, 4)
    ops.pool_project(x, SPANS, impl="reference")
    assert called == ["reference"]
    ops.pool_project(x, SPANS)
    assert len(called) == (1 if NATIVE else 2)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    ).stdout.strip()


def test_importing_is_lazy():
    code = "import sys, {}; print([m for m in {} if m in sys.modules])"
    heavy = ["torch", "transformers", "zarr", "triton", "matplotlib"]
    assert run_python(code.format("safetyspace_fast", heavy)) == "[]"
    assert run_python(code.format("safetyspace_fast.ops", heavy[1:])) == "[]"


def test_public_names():
    import safetyspace_fast

    assert safetyspace_fast.ops is ops
    assert safetyspace_fast.__version__.count(".") == 2
    assert set(safetyspace_fast.__all__) <= set(dir(safetyspace_fast))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        safetyspace_fast.nonsense  # noqa: B018 - asking for it is the test


@pytest.mark.skipif(not NATIVE, reason="needs the compiled CPU kernels")
@pytest.mark.parametrize("level", ["avx2", "baseline"])
def test_narrower_instruction_sets_agree(level):
    if ops.simd_level() not in ("avx512", level):
        pytest.skip(f"needs {level}; this processor runs {ops.simd_level()}")
    code = """
import torch
from safetyspace_fast import ops
torch.manual_seed(0)
x, labels = torch.randn(300, 70), torch.arange(300) % 3
spans = torch.tensor([[[0, 9], [8, 9]]], dtype=torch.int32)
r = ops.pairwise_reduce(x, x, labels, 3, gammas=[0.01], impl="cpu")
results = [ops.pool_project(x[None].to(t), spans, impl="cpu")[0].double().abs().sum()
           for t in (torch.float32, torch.bfloat16, torch.float16)]
results += [field.double().sum() for field in r]
print(ops.simd_level(), *(f"{float(value):.12g}" for value in results))
"""
    capability = "default" if level == "baseline" else level
    name, *narrow = run_python(code, ATEN_CPU_CAPABILITY=capability).split()
    first, *wide = run_python(code).split()
    assert name == level
    assert first == ops.simd_level()
    for a, b in zip(narrow, wide, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_a_gpu_without_a_cuda_kernel_skips_its_tests(monkeypatch):
    """Where torch sees a device, `pairwise_reduce` has no CUDA kernel and must not be asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(implementations, "run", lambda *ran: ran)
    with pytest.raises(pytest.skip.Exception, match="pairwise_reduce: no cuda: "):
        implementations.call("pairwise_reduce", "cuda", 1)
    ran = implementations.call("pairwise_reduce", "triton-cuda", 1)
    assert (ran[0], *ran[2:]) == ("cuda", "pairwise_reduce", "triton", (1,), {})


@pytest.mark.parametrize("impl", [None, "triton", "cuda", "cpu"])
def test_operators_without_a_cuda_kernel_are_not_asked_for_it(impl):
    """`run --impl cuda` must not fail at the end of a language, after all forward passes."""
    assert _select.written("pool_project", impl) == impl
    assert _select.written("pairwise_reduce", impl) == (None if impl == "cuda" else impl)
