"""Two workers of one core each against one, as processes (`--devices`) and as actors (`--ray`).

All run the same model over the same texts, in turn, and each worker may use one core. The whole run
counts, with loading; the time from the first batch to the end is given beside it. A Ray cluster is
started before a run and is not timed; what its processes need is taken from the workers' cores.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from safetyspace_fast import api
from safetyspace_fast.sweep.devices import run_on_devices
from safetyspace_fast.sweep.events import raising
from safetyspace_fast.sweep.ray_cluster import run_on_ray

from .small_models import small_model


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks workers", description=__doc__)
    parser.add_argument("--model", help="default: SmolLM2 135M from the cache")
    parser.add_argument("--data", default="sample:polite")
    parser.add_argument("--limit", type=int, help="texts of each language and label")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="time Ray too")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    model = given.model or small_model("smollm2")
    if model is None:
        parser.error("no model here: run `python -m benchmarks.small_models smollm2`")
    config = api.RunConfig(models=f"m={model}", data=given.data, limit=given.limit, out="unused")
    ways = ("devices", "ray") if given.ray else ("devices",)
    seconds: dict[str, dict[int, list[tuple[float, float]]]] = {
        way: {1: [], given.workers: []} for way in ways
    }
    for _ in range(given.rounds):  # in turn, so that a busy moment hits all
        for way, of_way in seconds.items():
            for workers in of_way:
                of_way[workers].append(timed(config, way, workers))
    medians = {
        way: {
            n: [statistics.median(part) for part in zip(*times, strict=True)]
            for n, times in t.items()
        }
        for way, t in seconds.items()
    }
    ratios = {
        way: [one / many for one, many in zip(of_way[1], of_way[given.workers], strict=True)]
        for way, of_way in medians.items()
    }
    if given.json:
        print(json.dumps({"seconds": seconds, "ratios": ratios}))
        return
    for way, of_way in medians.items():
        for workers, (run, batches) in of_way.items():
            print(
                f"{way:7}  {workers} workers: {run:7.1f} s, {batches:7.1f} s of them from the "
                "first batch"
            )
        run, batches = ratios[way]
        print(f"{way:7}  ratio: {run:.2f} of the run, {batches:.2f} from the first batch")


def timed(config: api.RunConfig, way: str, workers: int) -> tuple[float, float]:
    """Seconds of a run, and of the part of it from the first batch on; each worker has a core."""
    own, begun = os.sched_getaffinity(0), None
    if len(own) < workers:
        raise SystemExit(f"{workers} workers need {workers} cores, this process has {len(own)}")
    folder = Path(tempfile.mkdtemp())
    placed = [replace(config, out=folder / "run.zarr")]
    try:
        os.sched_setaffinity(0, sorted(own)[:workers])  # workers share what the parent has
        with cluster(workers) if way == "ray" else nullcontext():
            started = time.perf_counter()
            events = (
                run_on_ray(placed, workers=workers)
                if way == "ray"
                else run_on_devices(placed, ["cpu"] * workers)
            )
            with closing(raising(events)) as running:
                for event in running:
                    if begun is None and isinstance(event, api.Progressed):
                        begun = time.perf_counter()
            ended = time.perf_counter()
    finally:
        os.sched_setaffinity(0, own)
        shutil.rmtree(folder)
    return ended - started, ended - (begun or started)


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """A Ray cluster of this machine, with so many cores."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=80 * 1024**2,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()
