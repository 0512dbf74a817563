"""The CUDA kernel without a GPU: run on the CPU under the sanitizers."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gpus import need_cuda

from safetyspace_fast.ops import _native, pool_project, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SANITIZERS = {"address": "address,undefined", "thread": "thread"}


@pytest.fixture(scope="session", params=list(SANITIZERS))
def emulated(request, tmp_path_factory):
    """The kernel as a program for the CPU, which a sanitizer ends at the first find."""
    if not (compiler := shutil.which("g++")):
        pytest.skip("needs a C++ compiler (g++)")
    program = tmp_path_factory.mktemp(request.param) / "pool_project_emulated"
    command = [compiler, Path(__file__).parent / "emulation/pool_project.cpp", "-o", program]
    command += ["-std=c++20", "-O0", "-g", "-Wall", "-Wno-unknown-pragmas", "-pthread"]
    command += [f"-fsanitize={SANITIZERS[request.param]}", "-fno-sanitize-recover=all"]
    subprocess.run(list(map(str, command)), check=True)

    def run(hidden_states, spans, projection=None, **more):
        folder = tmp_path_factory.mktemp("case")
        return run_emulated(program, folder, hidden_states, spans, projection, **more)

    return run


def run_emulated(program, folder, hidden_states, spans, projection, **more):
    B, T, D = hidden_states.shape
    S, P = spans.shape[1], 0 if projection is None else projection.shape[1]
    itemsize = hidden_states.element_size()
    strides = hidden_states.stride()
    values = 16 // itemsize
    rows_aligned = D % values == strides[0] % values == strides[1] % values == 0
    aligned = strides[2] == 1 and rows_aligned and hidden_states.storage_offset() % values == 0
    arguments = {
        **{"B": B, "T": T, "D": D, "S": S, "P": P},
        **dict(zip(["stride_b", "stride_t", "stride_d"], strides, strict=True)),
        "offset_bytes": hidden_states.storage_offset() * itemsize,
        "aligned": int(aligned),
        str(hidden_states.dtype).removeprefix("torch."): 1,
        **more,
    }
    (folder / "arguments.txt").write_text("".join(f"{k} {v}\n" for k, v in arguments.items()))
    (folder / "hidden_states.bin").write_bytes(bytes(hidden_states.untyped_storage()))
    (folder / "spans.bin").write_bytes(spans.contiguous().numpy().tobytes())
    weights = b"" if projection is None else projection.contiguous().numpy().tobytes()
    (folder / "projection.bin").write_bytes(weights)
    result = subprocess.run([program, folder], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    pooled = np.fromfile(folder / "pooled.bin", np.float32).reshape(B, S, -1)
    projected = np.fromfile(folder / "projected.bin", np.float32).reshape(B, S, P)
    return torch.from_numpy(pooled), torch.from_numpy(projected)


def draw(B, T, D, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, D, generator=generator).to(dtype)


def draw_spans(B, T, S):
    ends = torch.randint(0, T + 1, (2, B, S), generator=torch.Generator().manual_seed(0))
    return torch.stack([ends.amin(0), ends.amax(0)], dim=-1).int()


def check(call, hidden_states, spans, projection):
    pooled, projected = call(hidden_states, spans, projection)
    wide = None if projection is None else projection.double()
    expected, _ = reference.pool_project(hidden_states.double(), spans, None)
    torch.testing.assert_close(pooled, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    if projection is not None:
        product = pooled.double() @ wide
        scale = pooled.nan_to_num().double().abs() @ wide.abs()
        error = (projected - product).abs().nan_to_num(0)
        assert (error <= 1e-6 * scale).all()
        assert torch.equal(projected.isnan(), product.isnan())
    return pooled, projected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("B", "T", "D", "S", "P"),
    [
        pytest.param(1, 1, 1, 1, 1, id="one of everything"),
        pytest.param(9, 11, 136, 2, 5, id="two groups, two slices, aligned"),
        pytest.param(3, 7, 70, 3, 65, id="not aligned, two tiles of P"),
    ],
)
def test_matches_reference(emulated, dtype, B, T, D, S, P):
    check(emulated, draw(B, T, D, dtype), draw_spans(B, T, S), draw(1, D, P, seed=1)[0])


def test_more_spans_than_one_read_serves(emulated):
    check(emulated, draw(2, 5, 8), draw_spans(2, 5, 11), draw(1, 8, 3)[0])


def test_long_text(emulated):
    """Several blocks of tokens, and an end inside a block."""
    check(emulated, draw(1, 150, 8, torch.bfloat16), torch.tensor([[[3, 141]]]).int(), None)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x[:, 1:-1], id="tokens cut"),
        pytest.param(lambda x: x[..., 3:20], id="rows not aligned"),
        pytest.param(lambda x: x[..., ::2], id="every other dimension"),
        pytest.param(lambda x: x.transpose(0, 1), id="token-major"),
        pytest.param(lambda x: x[0].expand(3, -1, -1), id="ragged: all samples see all tokens"),
    ],
)
def test_strides(emulated, view):
    hidden_states = view(draw(4, 6, 32))
    B, T, _ = hidden_states.shape
    check(emulated, hidden_states, draw_spans(B, T, 2), None)


def test_tokens_outside_the_spans_do_not_count(emulated):
    hidden_states = draw(2, 12, 40)
    spans = torch.tensor([[[2, 4], [7, 9]], [[3, 3], [5, 6]]], dtype=torch.int32)
    expected, _ = check(emulated, hidden_states, spans, None)
    hidden_states[:, [0, 1, 6, 9, 10, 11]] = float("inf")
    hidden_states[:, 4] = float("nan")
    pooled, _ = emulated(hidden_states, spans)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0, equal_nan=True)


def test_spans_are_clamped_to_the_sample(emulated):
    hidden_states = draw(2, 5, 8)
    pooled, _ = emulated(hidden_states, torch.tensor([[[-3, 9]], [[2, 100]]]).int())
    expected, _ = emulated(hidden_states, torch.tensor([[[0, 5]], [[2, 5]]]).int())
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pool_into_shares_the_tokens_of_long_texts(emulated, dtype):
    """Two chunks and a short third; a sample in one chunk; one without a token; three spans."""
    hidden_states = draw(3, 600, 24, dtype)
    spans = torch.tensor(
        [[[1, 600], [599, 600], [300, 400]], [[5, 200], [7, 7], [199, 200]], [[0, 0]] * 3]
    ).int()
    out, _ = emulated(hidden_states, spans, gap=5, longest=600)
    assert (out[..., 24:] == 7).all()
    expected, _ = reference.pool_project(hidden_states.double(), spans, None)
    torch.testing.assert_close(out[..., :24], expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    alone, _ = emulated(hidden_states[1:2, :256].contiguous(), spans[1:2], gap=5, longest=256)
    assert torch.equal(alone.nan_to_num(), out[1:2].nan_to_num())
    # One behind the other in one row, of which no text has more than 600 tokens.
    packed = hidden_states.view(1, 1800, 24).expand(3, -1, -1)
    starts = torch.tensor([0, 600, 1200], dtype=torch.int32)[:, None, None]
    together, _ = emulated(packed, spans + starts, gap=5, longest=600)
    assert torch.equal(together.nan_to_num(), out.nan_to_num())


@pytest.fixture
def cuda_kernel():
    need_cuda()
    if reason := _native.MISSING["pool_project", "CUDA"]:
        pytest.skip(reason)

    def call(hidden_states, spans, projection):
        weights = None if projection is None else projection.cuda()
        result = pool_project(hidden_states.cuda(), spans.cuda(), weights, impl="cuda")
        return tuple(None if tensor is None else tensor.cpu() for tensor in result)

    return call


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [1, 70, 1000, 4096])
@pytest.mark.parametrize("S", [1, 2, 5, 11])
def test_on_a_gpu(cuda_kernel, dtype, D, S):
    check(cuda_kernel, draw(37, 65, D, dtype), draw_spans(37, 65, S), draw(1, D, 70, seed=1)[0])


@pytest.mark.needs_cuda
def test_in_a_graph(cuda_kernel):
    """Captured once and replayed on new numbers: no synchronisation, nothing kept between calls."""
    hidden_states, spans = draw(9, 20, 256).cuda(), draw_spans(9, 20, 2).cuda()
    projection = draw(1, 256, 64)[0].cuda()
    pool_project(hidden_states, spans, projection, impl="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = pool_project(hidden_states, spans, projection, impl="cuda")
    for seed in range(3):
        hidden_states.copy_(draw(9, 20, 256, seed=seed))
        graph.replay()
        expected = pool_project(hidden_states, spans, projection, impl="cuda")
        for got, wanted in zip(captured, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
