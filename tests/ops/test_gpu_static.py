"""What can be known of the GPU kernels on a machine without a GPU."""

import pytest
import torch

from benchmarks import gpu_static
from safetyspace_fast.ops import PAIRWISE_BLOCK, reference
from safetyspace_fast.ops.triton import pool_project as pooling
from safetyspace_fast.ops.triton import tiles
from safetyspace_fast.ops.triton.pairwise_reduce import pairwise_reduce
from safetyspace_fast.ops.triton.pairwise_update import pairwise_update
from safetyspace_fast.ops.triton.pairwise_within import pairwise_within
from safetyspace_fast.ops.triton.pool_project import pool_into, pool_project

# One case for each kernel; the whole table takes minutes.
CASES = [
    "pool_project bfloat16 B=64 T=64 D=4096 S=2 P=64",
    "pool_into bfloat16 B=8 T=2048 D=4096 S=2",
    "pairwise_reduce float32 euclidean rows=cols L=1 N=5000 D=4096 C=2 G=0",
    "pairwise_within float32 euclidean L=1 N=5000 D=4096 R=1000",
]
KERNELS = [
    "pool_kernel",
    "project_kernel",
    "add_chunks_kernel",
    "pool_kernel",
    "add_pieces_kernel",
    "split_kernel",
    "tile_kernel",
    "mend_kernel",
    "finish_kernel",
    "within_kernel",
    "mend_kernel",
    "add_slots_kernel",
]


@pytest.fixture(scope="module", params=list(gpu_static.ARCHS))
def builds(request):
    cases = [case for case in gpu_static.CASES if case.name in CASES]
    assert len(cases) == len(CASES)
    return gpu_static.builds([request.param], cases)


def test_every_kernel_may_be_shipped(builds):
    assert sorted(build.kernel for build in builds) == sorted(KERNELS)
    assert {
        f"{build.arch} {build.kernel}": build.problems() for build in builds if build.problems()
    } == {}


def test_occupancy_is_enough_to_hide_loads(builds):
    for build in builds:
        assert build.warps_per_multiprocessor >= 8, build


def test_projection_keeps_float32(builds):
    """On NVIDIA a matrix instruction would mean tf32; AMD has one for float32 itself."""
    for build in builds:
        if build.kernel == "project_kernel" and build.arch != "gfx942":
            assert build.matrix_instructions == 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", gpu_static.ARCHS)
def test_every_shipped_configuration(arch):
    """All cases: each type, number of spans and gammas, metric and form."""
    builds = gpu_static.builds([arch], [*gpu_static.CASES, *gpu_static.VARIANTS])
    assert {build.kernel for build in builds} == set(KERNELS)
    assert {f"{build.kernel} {build.config}": build.problems() for build in builds} == {
        f"{build.kernel} {build.config}": [] for build in builds
    }


@pytest.mark.parametrize(("version", "rows"), [((3, 5), 64), ((3, 7), 64), ((3, 8), 128)])
def test_tiles_are_small_where_triton_would_compile_large_ones_to_nothing(
    monkeypatch, version, rows
):
    monkeypatch.setattr(tiles, "TRITON", version)
    assert rows == tiles.tile_config(gpu_static.ARCHS["sm_100"].target).BT
    assert tiles.tile_config(gpu_static.ARCHS["sm_90"].target).BT == 128


@pytest.mark.parametrize(
    ("arch", "version", "num_warps", "limit"),
    [
        ("sm_100", (3, 6), 4, None),
        ("sm_100", (3, 7), 8, None),
        ("sm_100", (3, 8), 4, 255),
        ("sm_100", (3, 9), 4, None),
        ("sm_90", (3, 7), 4, None),
        ("sm_90", (3, 8), 4, None),
        ("gfx942", (3, 8), 4, None),
    ],
)
def test_launches_differ_only_where_triton_would_spill(
    monkeypatch, arch, version, num_warps, limit
):
    monkeypatch.setattr(tiles, "TRITON", version)
    monkeypatch.setattr(pooling, "TRITON", version)
    with gpu_static.recorded(gpu_static.ARCHS[arch].target) as launches:
        for case in gpu_static.CASES:
            if case.name in CASES and case.op in ("pool_project", "pairwise_reduce"):
                gpu_static.HOST_FUNCTIONS[case.op](*case.arguments("cpu"))
    options = {launch.kernel.__name__: launch.options for launch in launches.values()}
    assert options["project_kernel"]["num_warps"] == num_warps
    limits = {name: given["maxnreg"] for name, given in options.items() if given.get("maxnreg")}
    assert limits == ({"mend_kernel": limit} if limit else {})


def spilling_build(**changes):
    good = {
        "arch": "sm_90",
        "kernel": "k",
        "config": "",
        "registers": 64,
        "stack_bytes": 0,
        "spills": 0,
        "shared_bytes": 0,
        "block_shared_bytes": 227 << 10,
        "warps_per_multiprocessor": 32,
        "max_warps": 64,
        "matrix_instructions": 0,
        "load_bits": {"128": 4},
    }
    return gpu_static.Build(**{**good, **changes})


def test_problems_are_seen():
    assert spilling_build().problems() == []
    assert spilling_build(spills=3).problems()
    assert spilling_build(stack_bytes=8).problems()
    assert spilling_build(shared_bytes=228 << 10).problems()
    assert spilling_build(load_bits={"64": 4}).problems()
    assert spilling_build(kernel="tile_kernel").problems()
    assert spilling_build(kernel="tile_kernel", matrix_instructions=8).problems() == []


@pytest.mark.parametrize(
    ("instruction", "bits"),
    [
        ("LDG.E.128", "128"),
        ("LDG.E.128.CONSTANT", "128"),
        ("LDGSTS.E.BYPASS.LTC128B.128", "128"),
        ("LDG.E.LTC128B", "32"),
        ("LDG.E.64", "64"),
        ("LDG.E", "32"),
        ("LDG.E.U16", "16"),
        ("LDG.E.U8.CONSTANT", "8"),
        ("global_load_dwordx4", "128"),
        ("buffer_load_dword", "32"),
        ("global_load_ushort", "16"),
    ],
)
def test_load_widths(instruction, bits):
    assert gpu_static.load_bits(instruction) == bits


def compilations(call, arguments):
    with gpu_static.recorded(gpu_static.ARCHS["sm_90"].target) as launches:
        for given in arguments:
            call(*given)
    return len(launches)


@pytest.mark.parametrize("D", [64, 70])
def test_pool_project_compiles_once_for_all_lengths(D):
    """Once for texts of one piece of tokens, and once for longer ones."""

    def arguments(B, T):
        return torch.zeros(B, T, D), torch.zeros(B, 2, 2).int(), torch.zeros(D, 5)

    lengths = [1, 2, 7, 8, 16, 31, 64, 100, 128, 256]
    calls = [arguments(B, T) for B, T in zip([3, 4, 16, *range(1, 8)], lengths, strict=True)]
    assert compilations(pool_project, calls[:1]) == 3
    assert compilations(pool_project, calls) == 3
    assert compilations(pool_project, calls + [arguments(B, 300 * B) for B in (1, 2, 5)]) == 5


def test_capture_launches_two_kernels_a_layer_at_most_and_compiles_them_once():
    def arguments(B, T):
        out = torch.zeros(33, 2, B, 64 + 16).transpose(1, 2)[3, ..., :64]
        return torch.zeros(B, T, 64), torch.zeros(B, 2, 2).int(), out, T

    short = [arguments(B, T) for B, T in [(1, 1), (16, 7), (3, 256)]]
    assert compilations(pool_into, short) == 1
    assert compilations(pool_into, [*short, arguments(8, 2048), arguments(1, 257)]) == 3


@pytest.mark.parametrize("symmetric", [True, False])
def test_pairwise_reduce_compiles_once_for_all_sizes(symmetric):
    def arguments(L, M, N):
        rows = torch.zeros(L, M, 64)
        cols = None if symmetric else torch.zeros(L, N, 64)
        center = torch.zeros(L, 64, dtype=torch.float64)
        labels = torch.zeros(M if symmetric else N, dtype=torch.long)
        return rows, cols, center, labels, 2, "euclidean", [0.5]

    sizes = [2, 3, 7, 16, 33, 100, 128, 129, 256, 1000]
    calls = [
        arguments(1 + i % 3, M, N) for i, (M, N) in enumerate(zip(sizes, sizes[::-1], strict=True))
    ]
    assert compilations(pairwise_reduce, calls) == 4


def test_pairwise_update_compiles_once_for_all_blocks():
    def arguments(L, blocks, rest):
        N = blocks * PAIRWISE_BLOCK + rest
        x = torch.zeros(L, N, 64)
        labels = torch.zeros(N, dtype=torch.long)
        results = reference.pairwise_empty(x, N, 2, 1)
        start = max(0, blocks - 1) * PAIRWISE_BLOCK
        return x, x[:, 0].double(), labels, start, "euclidean", [0.5], *results

    calls = [arguments(1 + i % 3, i, rest) for i, rest in enumerate([2, 0, 1, 16, 100, 33, 500])]
    assert compilations(pairwise_update, calls) == 4


def test_pairwise_within_compiles_once_for_all_sizes():
    def arguments(L, N, R):
        x = torch.zeros(L, N, 64)
        return x, x[:, 0].double(), torch.zeros(N, R), "euclidean", None, torch.zeros(L)

    sizes = [2, 3, 7, 16, 33, 100, 128, 129, 256, 1000]
    calls = [
        arguments(1 + i % 3, N, R) for i, (N, R) in enumerate(zip(sizes, sizes[::-1], strict=True))
    ]
    assert compilations(pairwise_within, calls) == 4
