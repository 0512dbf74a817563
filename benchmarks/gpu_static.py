"""What the GPU kernels compile to, on a machine without a GPU.

    python -m benchmarks gpu-static [--json] [--arch sm_90] [--case pool]

The host functions themselves are called, with empty tensors of a realistic size, as if the GPU were
there; what they would launch is recorded and compiled ahead of time, so that every line is a kernel
as shipped. Registers, stack (where spills go) and shared memory are the assembler's figures; loads
and matrix instructions are counted in the machine code.

Roofline times take data-sheet peaks (dense, boost clock), each tensor moved once, memory and
arithmetic at the same time, and launches that cost nothing. Nothing can run faster.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import harness
from safetyspace_fast.ops import reference
from safetyspace_fast.ops.triton.pairwise_reduce import pairwise_reduce
from safetyspace_fast.ops.triton.pairwise_update import pairwise_update
from safetyspace_fast.ops.triton.pairwise_within import pairwise_within
from safetyspace_fast.ops.triton.pool_project import pool_into, pool_project


@dataclass(frozen=True)
class Arch:
    """A target, what one of its multiprocessors has, and how its machine code spells things."""

    target: Any
    registers: int  # of 4 bytes, a multiprocessor
    shared_bytes: int  # a multiprocessor
    block_shared_bytes: int
    max_warps: int
    matrix: str
    load: str


_SASS_LOAD = r"\bLDG(?:STS)?\.E\S*"
ARCHS = {
    "sm_80": Arch(
        GPUTarget("cuda", 80, 32), 65536, 164 << 10, 163 << 10, 64, r"\bHMMA", _SASS_LOAD
    ),
    "sm_90": Arch(
        GPUTarget("cuda", 90, 32), 65536, 228 << 10, 227 << 10, 64, r"\bHGMMA", _SASS_LOAD
    ),
    "sm_100": Arch(
        GPUTarget("cuda", 100, 32), 65536, 228 << 10, 227 << 10, 64, r"\bUTC\w*MMA", _SASS_LOAD
    ),
    "gfx942": Arch(
        GPUTarget("hip", "gfx942", 64),
        131072,
        64 << 10,
        64 << 10,
        32,
        r"\bv_mfma",
        r"\b(?:global|buffer)_load_\w+",
    ),
}


@dataclass(frozen=True)
class Gpu:
    """Data-sheet peaks of a card (SXM or OAM form)."""

    arch: str
    bytes_per_s: float
    matrix_bf16: float  # flop/s, dense
    vector_f32: float  # flop/s


GPUS = {
    "A100 80GB": Gpu("sm_80", 2.039e12, 312e12, 19.5e12),
    "H100": Gpu("sm_90", 3.35e12, 989e12, 67e12),
    "H200": Gpu("sm_90", 4.8e12, 989e12, 67e12),
    "MI300X": Gpu("gfx942", 5.3e12, 1307e12, 163.4e12),
}


@dataclass(frozen=True)
class Case:
    """One call of an operator, and what it has to move and to compute."""

    name: str
    op: str
    arguments: Callable[[str], tuple[Any, ...]]  # of a device, as `ops._schema` has them
    bytes: int
    matrix_flops: int = 0
    vector_flops: int = 0
    results: tuple[int, ...] = ()  # which arguments are results

    def roofline_s(self, gpu: Gpu) -> float:
        arithmetic = self.matrix_flops / gpu.matrix_bf16 + self.vector_flops / gpu.vector_f32
        return max(self.bytes / gpu.bytes_per_s, arithmetic)


def _values(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    # Without a GPU nobody reads them.
    make = torch.empty if device == "cpu" else torch.randn
    return make(shape, device=device, dtype=dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _pool_case(dtype: torch.dtype, S: int, P: int = 64) -> Case:
    B, T, D = 64, 64, 4096

    def arguments(device: str) -> tuple[Any, ...]:
        """Mean and last token, and means that leave out one token more each."""
        starts = [0, T - 1, *range(1, S - 1)][:S]
        spans = torch.tensor([[[start, T] for start in starts]], dtype=torch.int32, device=device)
        hidden_states = _values(B, T, D, device=device, dtype=dtype)
        return hidden_states, spans.expand(B, -1, -1), _values(D, P, device=device)

    moved = B * T * D * dtype.itemsize + 4 * (B * S * D + D * P + B * S * P)
    name = f"pool_project {_short(dtype)} B={B} T={T} D={D} S={S} P={P}"
    flops = S * B * T * D + 2 * B * S * D * P
    return Case(name, "pool_project", arguments, moved, vector_flops=flops)


def _capture_case(B: int, T: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """One layer of a batch, into the result of all layers: mean and last token of every text."""
    D, S, P = 4096, 2, 64

    def arguments(device: str) -> tuple[Any, ...]:
        spans = torch.tensor([[[0, T], [T - 1, T]]] * B, dtype=torch.int32, device=device)
        out = _values(S, B, D + P, device=device).transpose(0, 1)[..., :D]
        return _values(B, T, D, device=device, dtype=dtype), spans, out, T

    name = f"pool_into {_short(dtype)} B={B} T={T} D={D} S={S}"
    moved = B * T * D * dtype.itemsize + 4 * B * S * D
    flops = S * B * T * D
    return Case(name, "pool_into", arguments, moved, vector_flops=flops, results=(2,))


def _pairwise_case(
    metric: str, G: int = 0, *, symmetric: bool = True, dtype: torch.dtype = torch.float32
) -> Case:
    L, N, D, C = 1, 5000, 4096, 2

    def arguments(device: str) -> tuple[Any, ...]:
        rows = _values(L, N, D, device=device, dtype=dtype)
        cols = None if symmetric else _values(L, N, D, device=device, dtype=dtype)
        center = torch.zeros(L, D, dtype=torch.float64, device=device)
        labels = torch.arange(N, device=device) % C
        return rows, cols, center, labels, C, metric, [0.5 / D] * G

    pairs = N * N // 2 if symmetric else N * N
    moved = (1 if symmetric else 2) * L * N * D * (dtype.itemsize + 6 + 6)
    moved += L * N * C * (8 + 4 + 4 + 8 * G)
    form = "rows=cols" if symmetric else "rows, cols"
    name = f"pairwise_reduce {_short(dtype)} {metric} {form} L={L} N={N} D={D} C={C} G={G}"
    flops = 6 * 2 * L * D * pairs, L * (20 + 10 * G) * pairs
    return Case(name, "pairwise_reduce", arguments, moved, *flops)


def _update_case(G: int = 0) -> Case:
    """The last whole block of 5,120 rows, for several layers at once."""
    L, N, D, C, B = 4, 5120, 4096, 2, reference.PAIRWISE_BLOCK

    def arguments(device: str) -> tuple[Any, ...]:
        x = _values(L, N, D, device=device)
        center = torch.zeros(L, D, dtype=torch.float64, device=device)
        labels = torch.arange(N, device=device) % C
        rest = (N - B, "sqeuclidean" if G else "euclidean", [0.5 / D] * G)
        return x, center, labels, *rest, *reference.pairwise_empty(x, N, C, G)

    pairs = B * (N - B) + B * B // 2
    moved = L * N * D * (4 + 6 + 6) + 2 * L * N * C * (8 + 4 + 4 + 8 * G)
    flops = 6 * 2 * L * D * pairs, L * (20 + 10 * G) * pairs
    name = f"pairwise_update L={L} N={N} D={D} C={C} G={G}, last {B} rows"
    return Case(name, "pairwise_update", arguments, moved, *flops, results=(6, 7, 8, 9))


def _within_case(
    metric: str = "euclidean", gamma: float | None = None, dtype: torch.dtype = torch.float32
) -> Case:
    L, N, D, R = 1, 5000, 4096, 1000

    def arguments(device: str) -> tuple[Any, ...]:
        x = _values(L, N, D, device=device, dtype=dtype)
        center = torch.zeros(L, D, dtype=torch.float64, device=device)
        masks = (_values(N, R, device=device) > 0).float()
        gammas = None if gamma is None else center.new_full((L,), gamma)
        return x, center, masks, metric, gammas, torch.zeros(L, device=device)

    moved = L * N * D * (dtype.itemsize + 6 + 6) + N * R * (4 + 2 + 2) + 8 * L * (N + R)
    flops = 3 * L * N * N * (2 * D + R), L * (5 if gamma is None else 10) * N * N // 2
    what = metric if gamma is None else "kernel"
    name = f"pairwise_within {_short(dtype)} {what} L={L} N={N} D={D} R={R}"
    return Case(name, "pairwise_within", arguments, moved, *flops)


BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
CASES = [
    _pool_case(BFLOAT16, 2),
    _pool_case(BFLOAT16, 8),
    _pool_case(FLOAT32, 2),
    _capture_case(256, 64),
    _capture_case(8, 2048),
    _pairwise_case("euclidean"),
    _pairwise_case("euclidean", symmetric=False),
    _pairwise_case("sqeuclidean", 1),
    _update_case(),
    _within_case(),
    _within_case(gamma=0.5 / 4096),
]
# Other machine code, about the same speed: compiled here, not timed by `python -m benchmarks gpu`.
VARIANTS = [
    _pool_case(BFLOAT16, 4, P=16),
    _pool_case(BFLOAT16, 4, P=32),
    _pool_case(FLOAT16, 2),
    _pool_case(FLOAT32, 8),
    _capture_case(8, 2048, FLOAT32),
    _pairwise_case("euclidean", 1),
    _pairwise_case("euclidean", 2),
    _pairwise_case("euclidean", 3),
    _pairwise_case("euclidean", 4),
    _pairwise_case("euclidean", 4, symmetric=False),
    _pairwise_case("sqeuclidean", symmetric=False),
    _pairwise_case("cosine"),
    _pairwise_case("cosine", symmetric=False),
    _pairwise_case("euclidean", dtype=BFLOAT16),
    _pairwise_case("cosine", dtype=FLOAT16),
    _pairwise_case("cosine", symmetric=False, dtype=BFLOAT16),
    _update_case(1),
    _within_case("cosine"),
    _within_case("sqeuclidean", dtype=BFLOAT16),
]
PRODUCTS = ("tile_kernel", "within_kernel")  # on sm_90 wgmma is what counts, on sm_100 tcgen05
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
HOST_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "pool_project": pool_project,
    "pool_into": pool_into,
    "pairwise_reduce": pairwise_reduce,
    "pairwise_update": pairwise_update,
    "pairwise_within": pairwise_within,
}


@dataclass(frozen=True)
class Launch:
    """A kernel with everything that its machine code depends on."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    def config(self) -> str:
        """Block sizes and flags, in words."""
        names = self.kernel.arg_names
        sizes = [f"{names[i]}={v}" for (i, *_), v in self.constants.items() if names[i].isupper()]
        types = {t for name, t in self.signature.items() if name.endswith("_ptr")}
        return " ".join([*sorted(types), *sizes, f"warps={self.options['num_warps']}"])


class _AbsentGpu:
    """Answers what Triton asks a driver before it compiles."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> str:
        return f"absent {self._target}"  # Triton keeps its caches by this key

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def recorded(target: Any) -> Iterator[dict[str, Launch]]:
    """Record what is compiled for `target` inside the block, by cache key; nothing is launched."""
    launches = {}

    def record(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        kernel, constants = fn.jit_function, compile["constants"]
        given = json.loads(compile["specialization_data"])["options"]
        options = {name: given[name] for name in OPTIONS if name in given}  # AMD has no maxnreg
        attributes = compile["configs"][0]
        launches[f"{kernel.__name__} {key}"] = Launch(
            kernel, compile["signature"], constants, attributes, options
        )
        return True  # do not compile, do not launch

    triton.runtime.driver.set_active(_AbsentGpu(target))
    triton.knobs.runtime.jit_cache_hook = record
    try:
        yield launches
    finally:
        triton.knobs.runtime.jit_cache_hook = None
        triton.runtime.driver.set_active(None)


@dataclass(frozen=True)
class Build:
    """What the assembler and the machine code say about one kernel."""

    arch: str
    kernel: str
    config: str
    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    block_shared_bytes: int
    warps_per_multiprocessor: int
    max_warps: int
    matrix_instructions: int
    load_bits: dict[str, int]  # width of a global load -> how many in the code

    def problems(self) -> list[str]:
        """Why this build must not be shipped; empty when it may."""
        problems = []
        if self.stack_bytes or self.spills:
            problems.append(f"{self.stack_bytes} bytes of stack, {self.spills} spills")
        if self.shared_bytes > self.block_shared_bytes:
            problems.append(f"{self.shared_bytes} bytes of shared memory")
        if "128" not in self.load_bits:
            problems.append(f"no 128-bit loads: {self.load_bits}")
        if self.kernel in PRODUCTS and not self.matrix_instructions:
            problems.append("no matrix instructions")
        return problems


def build(name: str, launch: Launch) -> Build:
    """Compile a recorded launch and read its machine code."""
    arch = ARCHS[name]
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    compiled = triton.compile(source, target=arch.target, options=launch.options)
    read = _read_amd if arch.target.backend == "hip" else _read_nvidia
    registers, stack_bytes, spills, code = read(compiled)
    num_warps = launch.options["num_warps"]
    shared_bytes = compiled.metadata.shared
    threads = num_warps * arch.target.warp_size
    blocks = min(
        arch.registers // (-(-registers // 8) * 8 * threads),
        arch.shared_bytes // max(shared_bytes + 1024, 1),  # the system keeps 1 KiB a block
        arch.max_warps // num_warps,
        32,
    )
    return Build(
        arch=name,
        kernel=launch.kernel.__name__,
        config=launch.config(),
        registers=registers,
        stack_bytes=stack_bytes,
        spills=spills,
        shared_bytes=shared_bytes,
        block_shared_bytes=arch.block_shared_bytes,
        warps_per_multiprocessor=blocks * num_warps,
        max_warps=arch.max_warps,
        matrix_instructions=len(re.findall(arch.matrix, code)),
        load_bits=dict(Counter(map(load_bits, re.findall(arch.load, code)))),
    )


def load_bits(instruction: str) -> str:
    """Return the width of a load instruction, by its name."""
    parts = instruction.removesuffix(".CONSTANT").split(".")
    if parts[0].startswith("LDG"):
        return parts[-1].lstrip("US") if parts[-1].lstrip("US").isdigit() else "32"
    if width := re.search(r"dwordx(\d)", instruction):
        return str(32 * int(width[1]))
    return {"byte": "8", "hort": "16"}.get(instruction[-4:], "32")


def _read_nvidia(compiled: Any) -> tuple[int, int, int, str]:
    tools = triton.knobs.nvidia
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _output(tools.cuobjdump.path, "--dump-resource-usage", cubin)
        code = _output(tools.nvdisasm.path, cubin)
    counts = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return counts["REG"], counts["STACK"] + counts["LOCAL"], spills, code


def _read_amd(compiled: Any) -> tuple[int, int, int, str]:
    code = compiled.asm["amdgcn"]

    def value(key: str) -> int:
        match = re.search(rf"\.{key}:\s*(\d+)", code)
        assert match is not None, key
        return int(match[1])

    # Vector registers only: scalar ones spill into vector lanes, not into memory. vgpr_count holds
    # the accumulation registers too, which come from the same file.
    spills = value("vgpr_spill_count")
    return value("vgpr_count"), value("private_segment_fixed_size"), spills, code


def _output(*command: object) -> str:
    return subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True
    ).stdout


def builds(archs: list[str], cases: list[Case]) -> list[Build]:
    """Compile everything that the cases launch, once for each architecture."""
    result = []
    for name in archs:
        with recorded(ARCHS[name].target) as launches:
            for case in cases:
                HOST_FUNCTIONS[case.op](*case.arguments("cpu"))
        result += [build(name, launch) for launch in launches.values()]
    return result


def main(argv: list[str] | None = None) -> int:
    """Print the tables; the exit status is 1 if a build must not be shipped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu-static", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--arch", action="append", choices=ARCHS, help="default: all")
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    args = parser.parse_args(argv)
    cases = [case for case in [*CASES, *VARIANTS] if args.case in case.name]
    rows = builds(args.arch or list(ARCHS), cases)
    rooflines = [
        {
            "case": case.name,
            "bytes": case.bytes,
            "matrix_flops": case.matrix_flops,
            "vector_flops": case.vector_flops,
            **{f"{name}_us": case.roofline_s(gpu) * 1e6 for name, gpu in GPUS.items()},
        }
        for case in cases
    ]
    report = {
        "machine": harness.machine(),
        "triton": triton.__version__,
        "builds": [{**asdict(row), "problems": row.problems()} for row in rows],
        "roofline": rooflines,
        "gpus": GPUS,
    }
    harness.finish("gpu-static", report, args.json, text_of(rows, rooflines))
    return int(any(row.problems() for row in rows))


def text_of(rows: list[Build], rooflines: list[dict[str, Any]]) -> str:
    """Both tables."""
    line = "{:<8}{:<19}{:>5}{:>7}{:>8}{:>8}{:>8}  {:<26}{}"
    head = ("arch", "kernel", "regs", "spills", "shared", "warps", "matrix", "loads", "")
    lines = [line.format(*head)]
    for row in rows:
        loads = " ".join(
            f"{n}x{bits}" for bits, n in sorted(row.load_bits.items(), key=lambda x: -int(x[0]))
        )
        warps = f"{row.warps_per_multiprocessor}/{row.max_warps}"
        spills = row.spills or row.stack_bytes
        lines.append(
            line.format(
                row.arch,
                row.kernel,
                row.registers,
                spills,
                row.shared_bytes,
                warps,
                row.matrix_instructions,
                loads,
                row.config,
            ).rstrip()
        )
        lines += [f"        ^ {problem}" for problem in row.problems()]
    lines.append("\nroofline, us (data-sheet peaks, each tensor moved once, launches free):")
    line = "{:<66}{:>10}{:>12}{:>12}" + "{:>11}" * len(GPUS)
    lines.append(line.format("case", "MB", "matrix Gf", "vector Gf", *GPUS))
    for roof in rooflines:
        lines.append(
            line.format(
                roof["case"],
                f"{roof['bytes'] / 1e6:.1f}",
                f"{roof['matrix_flops'] / 1e9:.2f}",
                f"{roof['vector_flops'] / 1e9:.2f}",
                *(f"{roof[f'{name}_us']:.1f}" for name in GPUS),
            )
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
