"""Timing that survives a noisy machine: cases in turn, medians, the limits of the same run."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from safetyspace_fast.data import Samples
    from safetyspace_fast.extract import Extraction
    from safetyspace_fast.extract.prepare import Prepared
    from safetyspace_fast.models import LoadedModel

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20


@dataclass(frozen=True)
class Timing:
    median_s: float
    low_s: float  # 10 % of the runs were faster
    high_s: float  # 10 % were slower
    runs: int


def interleaved(
    cases: Mapping[str, Callable[[], Any]], repeats: int = 5, budget_s: float = 60.0
) -> dict[str, Timing]:
    """Time all cases in turn, so that a slow minute of the machine hits every one of them.

    One warm-up round, then `repeats` rounds, or as many (2 at least) as the budget allows.
    """
    taken: dict[str, list[float]] = {name: [] for name in cases}
    began = time.perf_counter()
    for round_number in range(repeats + 1):
        if round_number > 2 and time.perf_counter() - began > budget_s:
            break
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if round_number:
                taken[name].append(time.perf_counter() - start)
    return {name: timing(times) for name, times in taken.items()}


def timing(times: list[float]) -> Timing:
    """The median and the spread of some figures."""
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1)
    low, *_, high = quantiles(times, n=10, method="inclusive")
    return Timing(median(times), low, high, len(times))


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    cases: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    around: Mapping[str, AbstractContextManager[Any]] | None = None,
    rounds: int = 5,
    calls: int = 3,
) -> dict[str, dict[str, float]]:
    """Time cases on a device in turn, after one round that warms up.

    Args:
        cases: by name.
        device: where they run.
        around: of some cases, what is entered before and left after their calls, untimed.
        rounds: how often.
        calls: of a case in a row, so that the host can run ahead of the device.

    Returns:
        Milliseconds of a call by name: median, smallest and largest over the rounds; and the
        median of what the host took until the call returned.
    """
    taken: dict[str, list[float]] = {name: [] for name in cases}
    on_host: dict[str, list[float]] = {name: [] for name in cases}
    for i_round in range(rounds + 1):
        for name, case in cases.items():
            with (around or {}).get(name, nullcontext()):
                wait(device)
                began = time.perf_counter()
                for _ in range(calls):
                    case()
                returned = time.perf_counter()
                wait(device)
                ended = time.perf_counter()
            if i_round:
                taken[name].append((ended - began) / calls * 1e3)
                on_host[name].append((returned - began) / calls * 1e3)
    return {
        name: {
            "ms": median(times),
            "low_ms": min(times),
            "high_ms": max(times),
            "host_ms": median(on_host[name]),
        }
        for name, times in taken.items()
    }


def as_graph(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record all that a call launches on a GPU as one CUDA graph.

    Returns:
        What launches it again, and the call's result, which is written anew each time.
    """
    call()  # what happens at a first call only is no part of the graph
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph.replay, result


def measured_peaks(device: torch.device) -> dict[str, float]:
    """What a device reaches in a copy (bytes read and written) and in a matrix product."""
    on_gpu = device.type == "cuda"
    source = torch.zeros(1 << (28 if on_gpu else 22), device=device)
    target = torch.empty_like(source)
    n, dtype = (8192, torch.bfloat16) if on_gpu else (512, torch.float32)
    a = torch.randn(n, n, device=device, dtype=dtype)
    cases = {"copy": lambda: target.copy_(source), "product": lambda: a @ a}
    best = timed(cases, device, rounds=10)
    return {
        "bytes_per_s": 2 * source.nbytes / best["copy"]["ms"] * 1e3,
        "matrix_flops_per_s": 2 * n**3 / best["product"]["ms"] * 1e3,
    }


def read_everything(x: torch.Tensor) -> Callable[[], Any]:
    """A case that reads all of x and does little else: what the memory gives, on the same pages."""
    return x.view(torch.float32).sum


def half_matrix_products(x: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Cases with the flops of half of x x^T: in one call, and in blocks that suit the library."""
    half = x[: len(x) // 2].T
    out = x.new_empty(len(x), half.shape[1])
    blocks = list(zip(torch.split(x, 2048), torch.split(out, 2048), strict=True))

    def in_blocks() -> None:
        for block, into in blocks:
            torch.mm(block, half, out=into)

    return {
        "half product": lambda: torch.mm(x, half, out=out),
        "half product, blocks": in_blocks,
    }


def extra_memory_bytes(setup: str, statement: str) -> int:
    """Peak memory of a statement beyond what `setup` holds, in a fresh process that hides nothing.

    glibc keeps freed memory for itself unless told otherwise, which would hide the peak.
    """
    code = f"""
import re, pathlib
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
{setup}
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
{statement}
print((status("VmHWM") - before) * 1024)
"""
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return int(result.stdout.split()[-1])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from safetyspace_fast import ops

    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": ops.simd_level(),
        "load_before": os.getloadavg()[0],
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def finish(name: str, report: dict[str, Any], as_json: bool, text: str) -> None:
    """Keep a run as JSON under benchmarks/results, and print it."""
    encoded = json.dumps(report, indent=2, default=_plain)
    RESULTS.mkdir(exist_ok=True)
    stamp = report["machine"]["when"].replace(":", "").replace("+0000", "Z")
    (RESULTS / f"{name}-{stamp}.json").write_text(encoded + "\n", "utf-8")
    print(encoded if as_json else text)


def _plain(value: Any) -> Any:
    return asdict(value)


def run_into(out: Path, model: "LoadedModel", samples: "Samples", work: "Prepared") -> "Extraction":
    """Run a model over samples into a new store; returns the extraction, which has its times."""
    # Imported here: `gpu-run` also works where zarr is missing.
    from safetyspace_fast.extract import Extraction
    from safetyspace_fast.runner import begin, sample_columns
    from safetyspace_fast.store import Place, create_run

    root = create_run(
        out,
        created_by="benchmark",
        data_name=samples.name,
        data_sha256=samples.sha256,
        languages=samples.languages,
        samples=sample_columns(samples),
    )
    session = begin(model, samples, work, Place(out), root, manifest={})
    extraction = Extraction(model, samples, work, session)
    for _ in extraction:
        pass
    session.finish({})
    return extraction
