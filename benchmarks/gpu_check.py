"""Everything that a GPU has to show, with the Python that runs this and without installing.

    python -m benchmarks gpu-check [--model 8b|0.6b|tiny] [--out DIR] [--step NAME]

Builds the kernels in place, runs the tests that need a GPU, looks for wrong memory accesses where
compute-sanitizer is at hand, and measures (`gpu-run`, whose first part is `benchmarks gpu`) a large
model, for which the device is the limit, and a small one, for which the host may be. A step that
fails does not stop the next ones. Where time is short, run one step at a time.

Counted and not measured: the build 40 s for the card that is here; 136 kernels that the tests
compile in turn, 2.5 min, and their runs, 1.5 min; `gpu-run`, as many seconds as it is given.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.harness import RESULTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "safetyspace_fast"
STEPS = {"build": 300, "tests": 480, "memory": 120, "measure": 560, "small": 330}
"""In order, with the seconds after which a step is stopped."""


def commands(model: str, out: Path) -> dict[str, list[str] | str]:
    """What each step runs; or why it has nothing to do here."""
    python = [sys.executable, "-m"]
    tests = [*python, "pytest", "-m", "needs_cuda", "-p", "no:cacheprovider"]
    kernel = ["tests/ops/test_cuda_pool_project.py", "-k", "test_on_a_gpu and 1000"]
    sanitizer = shutil.which("compute-sanitizer")
    build: list[str] | str = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if is_built():
        build = "built already"
    check: list[str] | str = "compute-sanitizer is not here"
    if sanitizer is not None:
        check = [sanitizer, "--tool", "memcheck", "--error-exitcode", "1", *tests, *kernel]
    measure = [*python, "benchmarks", "gpu-run", "--out", str(out), "--model"]
    small: list[str] | str = "only beside the 8b model"
    if model == "8b":
        parts = ("host waits", "graphs", "plans", "whole run")
        small = [*measure, "0.6b", "--seconds", "270"]
        small += [word for part in parts for word in ("--part", part)]
    return {
        "build": build,
        "tests": [*tests, "-rs"],
        "memory": check,
        "measure": [*measure, model],
        "small": small,
    }


def is_built() -> bool:
    """Whether the kernels for this torch are newer than their sources."""
    try:
        record = json.loads((PACKAGE / "_build_record.json").read_text("utf-8"))
        built = (PACKAGE / "_C.abi3.so").stat().st_mtime
    except (OSError, ValueError):
        return False
    sources = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    newest = max(path.stat().st_mtime for path in [*sources, ROOT / "setup.py"])
    wanted = (str(torch.__version__), torch.version.cuda)
    return newest < built and (record["torch"], record["cuda"]) == wanted


def main(argv: list[str] | None = None) -> int:
    """Run the steps; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu-check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", choices=("8b", "0.6b", "tiny"), default="8b")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--step", action="append", choices=STEPS, help="default: all")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("torch sees no CUDA device; gpu-static needs none", file=sys.stderr)
        return 1
    major, minor = torch.cuda.get_device_capability()
    # Only for the card that is here: faster to build. From Hopper on, `a` allows all instructions.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}{'a' if major >= 9 else ''}")
    words = {}
    for step, command in commands(args.model, args.out).items():
        if step not in (args.step or STEPS):
            continue
        print(f"== {step}", flush=True)
        words[step] = command if isinstance(command, str) else done(command, STEPS[step])
    print(*(f"{step}: {word}" for step, word in words.items()), sep="\n")
    return int(any(word.startswith("FAILED") for word in words.values()))


def done(command: list[str], seconds: float) -> str:
    """Run a command from the repository's root, and say how it went."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "FAIL_WITHOUT_CUDA": "1", "PYTHONPATH": path}
    began = time.perf_counter()
    try:
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return f"FAILED: stopped after {seconds:.0f} s"
    return f"{f'FAILED: exit {code}' if code else 'ok'}, {time.perf_counter() - began:.0f} s"


if __name__ == "__main__":
    raise SystemExit(main())
