"""The whole path on the GPU that is here, with a model of random weights.

    python -m benchmarks gpu-run --model 8b|0.6b|tiny [--device cpu] --out DIR [--seconds N]

Nothing is downloaded and nothing is installed. Each part is timed alone and written at once, so a
run that is cut off keeps what it has. Parts for which no time is left, or that this machine cannot
do, are left out and named. At the end: every figure beside the best that this device could do, by
the rates of a copy and of a matrix product, and the verdict on each goal. The exit status is 1 if a
goal was missed or a part failed, and 2 if nothing could be measured.
"""

import argparse
import gc
import json
import re
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_goals, harness
from benchmarks.gpu_parts import GRAPH_PAYS, PARTS, LeftOut
from benchmarks.gpu_subject import MODELS, Subject, make_subject
from safetyspace_fast import ops
from safetyspace_fast.errors import ConfigError, first_line
from safetyspace_fast.models.device import find_device, memory_errors

Report = dict[str, Any]


class Run:
    """Parts, one after the other, within a time; the report is written after each."""

    def __init__(self, subject: Subject, seconds: float) -> None:
        """Begin a report, and a time of `seconds`."""
        self._subject = subject
        self._until = time.perf_counter() + seconds
        machine = harness.machine()
        on_gpu = subject.device.type == "cuda"
        card = torch.cuda.get_device_name(subject.device) if on_gpu else machine["cpu"]
        stamp = machine["when"].replace(":", "").replace("+0000", "Z")
        words = "-".join(re.findall(r"\w+", card))
        self.file = subject.out / f"gpu-run-{words}-{subject.name}-{stamp}.json"
        self.report: Report = {
            "card": card,
            "model": subject.name,
            "device": str(subject.device),
            "dtype": str(subject.model.dtype).removeprefix("torch."),
            "machine": machine,
            "peaks": subject.peaks,
            "implementations": ops.implementations(),
            "parts": {},
        }
        if on_gpu:
            facts = torch.cuda.get_device_properties(subject.device)
            self.report["memory_bytes"] = facts.total_memory
            self.report["capability"] = f"{facts.major}.{facts.minor}"

    def do(self, name: str) -> None:
        """Run a part, and keep what it returns, how it failed, or why it was left out."""
        part, needed = PARTS[name]
        left = self._until - time.perf_counter()
        if left < (needed if self._subject.device.type == "cuda" else 1):
            outcome: Report = {"left_out": f"{max(left, 0):.0f} s left, {needed:.0f} needed"}
        else:
            began = time.perf_counter()
            try:
                outcome = {"result": part(self._subject)}
            except LeftOut as reason:
                outcome = {"left_out": str(reason)}
            except (Exception, SystemExit) as error:  # time on a GPU is too dear to end here
                outcome = {
                    "failed": f"{type(error).__name__}: {error}"[:300],
                    "traceback": traceback.format_exc()[-2000:],
                }
            outcome["seconds"] = time.perf_counter() - began
        self.report["parts"][name] = outcome
        self.report["goals"] = gpu_goals.verdicts(self.report)
        self.file.write_text(json.dumps(self.report, indent=1) + "\n", "utf-8")
        if self._subject.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def text_of(report: Report) -> str:
    """The tables."""
    peaks = report["peaks"]
    lines = [
        f"{report['card']}, model {report['model']} with random weights in {report['dtype']}",
        "Best possible: by what this device has just reached, "
        f"{peaks['bytes_per_s'] / 1e9:.0f} GB/s in a copy and "
        f"{peaks['matrix_flops_per_s'] / 1e12:.3g} Tflop/s in a matrix product.",
    ]
    if report["model"] == "tiny":
        lines.append("The tiny model shows that every part works; its times say nothing else.")
    rows = [("figure", "measured", "best possible", "reached"), *_rows(report)]
    width = max(58, *(len(row[0]) for row in rows))
    lines += ["", *(f"{row[0]:<{width}}{row[1]:>14}{row[2]:>16}{row[3]:>9}" for row in rows), ""]
    lines += [f"part {name}: {_how(part)}" for name, part in report["parts"].items() if _how(part)]
    lines += ["", *gpu_goals.lines_of(report), "", _summary(report)]
    return "\n".join(lines)


def _how(part: Report) -> str:
    """How a part went that has no result."""
    if "left_out" in part:
        return f"left out: {part['left_out']}"
    return f"FAILED: {part['failed']}" if "failed" in part else ""


def _summary(report: Report) -> str:
    """All in one line."""
    met = [goal["met"] for goal in report["goals"].values()]
    failed = sum("failed" in part for part in report["parts"].values())
    return (
        f"goals: {met.count(True)} met, {met.count(False)} missed, {met.count(None)} not judged; "
        f"parts that failed: {failed}"
    )


def _rows(report: Report) -> Iterable[tuple[str, str, str, str]]:
    """Figures with the best that the device could do by its measured rates, where that is known."""
    result = {name: part.get("result", {}) for name, part in report["parts"].items()}

    def ms(value: float) -> str:
        return f"{value:.3f} ms"

    for shape, figures in result.get("capture", {}).items():
        best = figures["roofline"]
        bare = figures["bare"]["ms"]
        num_texts, length = shape.split("x")
        share = f"{best['bare_ms'] / bare:.0%}"
        yield f"forward pass, {num_texts} x {length} tokens", ms(bare), ms(best["bare_ms"]), share
        for name, added in figures["shares"].items():
            limit = "" if name == "empty hooks" else f"{best['capture_share']:+.2%}"
            what = name if name == "empty hooks" else f"capture of all layers, {name}"
            yield f"  added by {what}", f"{added:+.2%}", limit, ""
        usual = figures["output_hidden_states"]["ms"]
        yield "  with output_hidden_states instead", ms(usual), "", ""
    for name, row in result.get("kernels", {}).items():
        if "failed" in row:
            yield name, "failed", "", ""
            continue
        best_ms = row["device_ms"] * row["roofline_share"]
        yield name, ms(row["device_ms"]), ms(best_ms), f"{row['roofline_share']:.0%}"
    for impl, gap in result.get("agreement", {}).items():
        yield f"states by {impl}: gap to output_hidden_states", f"{gap:.1e}", "", ""
    run = result.get("whole run")
    if run:
        yield f"whole run of {run['texts']} texts, into a store", f"{run['seconds']:.2f} s", "", ""
        yield "  of it forward passes, as the host sees them", f"{run['forward_s']:.2f} s", "", ""
        yield "  of it statistics of languages", f"{run['finish_s']:.2f} s", "", ""
        usual = f"{run['usual_s']:.2f} s"
        yield "  output_hidden_states in batches of 32 (128 texts, scaled)", usual, "", ""
    every = dict(result.get("plans", {}))
    ideal = every.pop("ideal_s", 0.0)
    every.pop("packed", None)  # why nothing was packed
    for name, plan in every.items():
        seconds = plan["seconds_for_all"]
        share = f"{ideal / seconds:.0%}"
        yield f"all batches of {name}", f"{seconds:.2f} s", f"{ideal:.2f} s", share
    for size, cell in result.get("finish of a cell", {}).items():
        num_texts, width = size.split("x")
        best_ms = cell["distances_ideal_ms"]
        name = f"distances and components, {num_texts} texts of width {width}"
        yield name, ms(cell["ms"]), ms(best_ms), f"{best_ms / cell['ms']:.0%}"
    for order, calls in result.get("attention", {}).items():
        yield f"first batch of a new shape, attention {order}", ms(calls["first_ms"]), "", ""
        yield "  second batch of this shape", ms(calls["second_ms"]), "", ""
    for shape, figures in result.get("graphs", {}).items():
        num_texts, length = shape.split("x")
        name = f"forward pass, {num_texts} x {length} tokens, as one CUDA graph"
        yield name, ms(figures["graph"]["ms"]), "", ""
        name = f"  share of the time of separate launches (pays up to {GRAPH_PAYS:.0%})"
        yield name, f"{figures['share']:.0%}", "", ""
    block = result.get("streamed weights")
    if block:
        name = f"weights of a block ({block['bytes'] / 1e6:.3g} MB) from their file"
        yield name, ms(block["read_ms"]), ms(block["copy_ms"]), f"{block['copy_share']:.0%}"
        yield (
            "  tokens that run through the block in this time",
            f"{block['tokens_to_hide']:,}",
            "",
            "",
        )
    for where, count in result.get("host waits", {}).get("lines", {}).items():
        yield f"host waits: {where[-44:]}", str(count), "0", ""


def main(argv: list[str] | None = None) -> int:
    """Print the tables; the exit status is 1 if a part failed or a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu-run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", choices=MODELS, default="8b", help="default: 8b")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu; default: cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=480, help="time for all; default: 480")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    args = parser.parse_args(argv)
    try:
        device = find_device(args.device)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"--out: expected a folder: {error}", file=sys.stderr)
        return 2
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where kernels are timed and graphs are recorded
    began = time.perf_counter()
    try:
        with memory_errors():
            subject = make_subject(args.model, device, args.out)
    except torch.OutOfMemoryError as error:
        smaller = " or ".join(list(MODELS)[list(MODELS).index(args.model) + 1 :])
        advice = f"use --model {smaller}" if smaller else "free some of it"
        print(
            f"--model {args.model}: does not fit into the memory of {device} "
            f"({first_line(error)}); {advice}",
            file=sys.stderr,
        )
        return 2
    run = Run(subject, args.seconds - (time.perf_counter() - began))
    for name in args.part or PARTS:
        run.do(name)
        part = run.report["parts"][name]
        print(f"{name}: {_how(part) or format(part['seconds'], '.1f') + ' s'}", flush=True)
    print(f"\n{text_of(run.report)}\nall figures: {run.file}")
    failed = any("failed" in part for part in run.report["parts"].values())
    missed = any(goal["met"] is False for goal in run.report["goals"].values())
    return int(failed or missed)


if __name__ == "__main__":
    raise SystemExit(main())
