"""`--devices` against one worker: how much faster two workers of one core each are.

Both run the same model over the same texts, in turn, and each worker may use one core. The whole
run counts, with loading; the time from the first batch to the end is given beside it.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from safetyspace_fast import api
from safetyspace_fast.sweep.devices import run_on_devices

from .small_models import small_model


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks workers", description=__doc__)
    parser.add_argument("--model", help="default: SmolLM2 135M from the cache")
    parser.add_argument("--data", default="sample:polite")
    parser.add_argument("--limit", type=int, help="texts of each language and label")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    model = given.model or small_model("smollm2")
    if model is None:
        parser.error("no model here: run `python -m benchmarks.small_models smollm2`")
    config = api.RunConfig(models=f"m={model}", data=given.data, limit=given.limit, out="unused")
    seconds: dict[int, list[tuple[float, float]]] = {1: [], given.workers: []}
    for _ in range(given.rounds):  # in turn, so that a busy moment hits both
        for workers in seconds:
            seconds[workers].append(timed(config, workers))
    whole, batches = (
        {workers: statistics.median(t[i] for t in times) for workers, times in seconds.items()}
        for i in range(2)
    )
    ratios = {
        name: each[1] / each[given.workers] for name, each in (("run", whole), ("batches", batches))
    }
    if given.json:
        print(json.dumps({"seconds": seconds, "ratios": ratios}))
        return
    for workers in seconds:
        print(
            f"{workers} workers: {whole[workers]:7.1f} s, "
            f"{batches[workers]:7.1f} s of them from the first batch"
        )
    print(f"ratio: {ratios['run']:.2f} of the run, {ratios['batches']:.2f} from the first batch")


def timed(config: api.RunConfig, workers: int) -> tuple[float, float]:
    """Seconds of a run, and of the part of it from the first batch on; each worker has a core."""
    folder, own = Path(tempfile.mkdtemp()), os.sched_getaffinity(0)
    if len(own) < workers:
        raise SystemExit(f"{workers} workers need {workers} cores, this process has {len(own)}")
    begun = None
    started = time.perf_counter()
    try:
        os.sched_setaffinity(0, sorted(own)[:workers])  # workers share what the parent has
        for event in run_on_devices([replace(config, out=folder / "run.zarr")], ["cpu"] * workers):
            if begun is None and isinstance(event, api.Progressed):
                begun = time.perf_counter()
    finally:
        os.sched_setaffinity(0, own)
        shutil.rmtree(folder)
    ended = time.perf_counter()
    return ended - started, ended - (begun or started)
