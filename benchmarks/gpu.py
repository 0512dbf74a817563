"""The GPU kernels on the GPU that is here.

    python -m benchmarks gpu [--json] [--case TEXT]

The cases of gpu-static, on random numbers, without its variants. Every implementation first has to
agree with the reference, then it is timed with cold caches: median, 20th and 80th percentile of the
device's time, the same inside a CUDA graph, and what a call costs the host. Shares are of peaks
measured in the same run: a copy of 1 GiB for bytes, a bfloat16 product of 8192 x 8192 matrices for
matrix flops.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from triton.testing import do_bench

from benchmarks import harness
from benchmarks.gpu_static import CASES, Case
from safetyspace_fast.ops._select import IMPLEMENTATIONS

LARGEST_ERROR = 1e-5
HOST_CALLS = 20


def _quantiles_ms(call: Callable[[], Any]) -> list[float]:
    return [float(ms) for ms in do_bench(call, quantiles=[0.5, 0.2, 0.8])]


def largest_error(result: Any, expected: Any) -> float:
    """Largest difference relative to the largest number, over all results."""
    errors = [0.0]
    for got, wanted in zip(result, expected, strict=True):
        if wanted.numel():
            finite = wanted.isfinite()
            scale = wanted[finite].abs().max().clamp(min=1e-30)
            errors.append(float((got[finite] - wanted[finite]).abs().max() / scale))
    return max(errors)


def _host_us(call: Callable[[], Any]) -> float:
    """Time until a call returns, with the device idle before it."""
    times = []
    for _ in range(HOST_CALLS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(times) * 1e6


def measure(case: Case, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Time every implementation that can take the case."""
    kernels = IMPLEMENTATIONS[case.op]
    expected = None
    rows = []
    for name in ("reference", "cuda", "triton"):
        torch.manual_seed(0)
        arguments = case.arguments("cuda")
        if kernels[name].unsupported(*arguments):
            continue

        call = partial(kernels[name].call, *arguments)
        result = call() or [arguments[i] for i in case.results]
        if expected is None:
            expected = [tensor.clone() for tensor in result]
        error = largest_error(result, expected)
        if not error <= LARGEST_ERROR:  # NaN is none either
            raise SystemExit(f"{case.name}: {name} is off by {error:.1e}; nothing was timed")
        median, low, high = _quantiles_ms(call)
        graph = None
        if name != "reference":
            replay, _ = harness.as_graph(call)
            graph = _quantiles_ms(replay)[0]
        rows.append(
            {
                "case": case.name,
                "implementation": name,
                "error": error,
                "median_ms": median,
                "p20_ms": low,
                "p80_ms": high,
                "graph_ms": graph,
                "host_us": _host_us(call),
                "copy_share": case.bytes / median * 1e3 / peaks["bytes_per_s"],
                "matrix_share": case.matrix_flops / median * 1e3 / peaks["matrix_flops_per_s"],
            }
        )
    for row in rows:
        # What a run takes: the first that can, in the order in which `rows` were made.
        row["default"] = row is (rows[1] if len(rows) > 1 else rows[0])
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("torch sees no CUDA device; gpu-static needs none", file=sys.stderr)
        return 1
    peaks = harness.measured_peaks(torch.device("cuda"))
    rows = [row for case in CASES if args.case in case.name for row in measure(case, peaks)]
    report = {"machine": harness.machine(), "peaks": peaks, "rows": rows}
    harness.finish("gpu", report, args.json, text_of(report))
    return 0


def text_of(report: dict[str, Any]) -> str:
    """The table."""
    peaks = report["peaks"]
    lines = [
        f"{report['machine']['gpu']}: copy {peaks['bytes_per_s'] / 1e9:.0f} GB/s, "
        f"bfloat16 product {peaks['matrix_flops_per_s'] / 1e12:.0f} Tflop/s"
    ]
    line = "{:<66}{:<11}{:>9}{:>9}{:>9}{:>9}{:>9}{:>7}{:>8}{:>10}"
    head = ["case", "", "ms", "p20", "p80", "graph", "host us", "copy", "matrix", "error"]
    lines.append(line.format(*head))
    for row in report["rows"]:
        graph_ms = "" if row["graph_ms"] is None else f"{row['graph_ms']:.4f}"
        lines.append(
            line.format(
                row["case"],
                row["implementation"],
                f"{row['median_ms']:.4f}",
                f"{row['p20_ms']:.4f}",
                f"{row['p80_ms']:.4f}",
                graph_ms,
                f"{row['host_us']:.0f}",
                f"{row['copy_share']:.0%}",
                f"{row['matrix_share']:.0%}",
                f"{row['error']:.0e}",
            )
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
