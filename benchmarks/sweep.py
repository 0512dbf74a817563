"""A sweep of small models against its bare forward passes, and its estimate against the truth.

The sweep runs in this process: it tokenises, loads, runs, finishes and writes. The other side are
the forward passes of the same batches with nothing captured, for all models, and the load of one
model: what no sweep can do without. Seconds are those of the clock and, beside them, those of the
processors, which a busy machine changes less. If torch has one thread and the machine more, parts
of the sweep run beside each other and add up to more than the sweep.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from safetyspace_fast.config import RunConfig
from safetyspace_fast.extract import loop
from safetyspace_fast.extract.capture import Capture, padded
from safetyspace_fast.extract.prepare import prepare
from safetyspace_fast.models import load_model, parse_model
from safetyspace_fast.store import Session
from safetyspace_fast.store.writer import ModelWriter
from safetyspace_fast.sweep import SharedWork, Truths, forecast, run_sweep
from safetyspace_fast.sweep.file import decode_sweep

from . import harness
from .small_models import make


@dataclass(frozen=True)
class Seconds:
    """Of the clock, and of all processors."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Seconds":
        return cls(time.perf_counter(), time.process_time())

    def since(self, began: "Seconds") -> "Seconds":
        return Seconds(self.wall - began.wall, self.cpu - began.cpu)

    def plus(self, began: "Seconds") -> "Seconds":
        """With what has passed since then."""
        took = Seconds.now().since(began)
        return Seconds(self.wall + took.wall, self.cpu + took.cpu)


def bare(configs: tuple[RunConfig, ...], shared: SharedWork) -> tuple[Seconds, Seconds]:
    """The load of the first model, and the forward passes of all."""
    load = None
    forward = Seconds(0, 0)
    for config in configs:
        began = Seconds.now()
        model = load_model(parse_model(*config.models), dtype=config.dtype)
        load = load or Seconds.now().since(began)
        samples = shared.samples(config)
        work = prepare(
            model,
            samples.texts,
            samples.lang_ranges,
            template=config.template,
            poolings=config.poolings,
            token_budget=config.token_budget,
        )
        began = Seconds.now()
        with torch.inference_mode():
            for batch in work.plan:
                ids, _, mask = padded(model, work.tokens, batch)
                model.backbone(input_ids=ids, attention_mask=mask, use_cache=False)
        forward = forward.plus(began)
    assert load is not None
    return load, forward


class Parts:
    """Where the time of a sweep goes: seconds of the clock, and of all processors meanwhile."""

    def __init__(self) -> None:
        self.seconds: dict[str, Seconds] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function; its seconds are added to those of this name."""

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            began = Seconds.now()
            try:
                return function(*args, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, Seconds(0, 0)).plus(began)

        return call

    def __enter__(self) -> "Parts":
        self._plain = [
            (SharedWork, "_load", "load"),
            (SharedWork, "_tokenize", "tokens"),
            (Capture, "run", "forward"),
            (loop, "finish_language", "finish"),
            (ModelWriter, "create", "write"),
            (Session, "write_language", "write"),
            (loop, "write_rest", "write"),
        ]
        self._undo = [(owner, name, getattr(owner, name)) for owner, name, _ in self._plain]
        for owner, name, part in self._plain:
            setattr(owner, name, self.timed(part, getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, function in self._undo:
            setattr(owner, name, function)


def measure(
    models: list[str], data: str, languages: list[str] | None, limit: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source: dict[str, Any] = {"data": data, "limit": limit}
        content = {
            "out": str(Path(folder) / "stores"),
            "models": [f"m{i}={model}" for i, model in enumerate(models)],
            "data": [source | ({"languages": languages} if languages else {})],
            "template": "none",
            "token_budget": 512,
            "dtype": "float32",
        }
        configs = decode_sweep(content).configs()
        shared = SharedWork(configs)
        texts = sum(len(shared.samples(config)) for config in configs)
        began = Seconds.now()
        forecasts = forecast(configs, shared)
        estimating = Seconds.now().since(began)
        load, forward = bare(configs, shared)
        truths = Truths(time.perf_counter)
        with Parts() as parts:
            shared = SharedWork(configs)
            for config in configs:
                shared.samples(config)
            began = Seconds.now()
            for event in run_sweep(configs, shared):
                truths.add(event)
            sweep = Seconds.now().since(began)
    runs = [
        {
            "model": run.model,
            "estimated_s": run.seconds,
            "took_s": truth.seconds,
            "estimated_bytes": run.store_bytes,
            "wrote_bytes": truth.store_bytes,
        }
        for run in forecasts
        if (truth := truths.of_run.get((run.model, run.out)))
    ]
    return {
        "texts": texts,
        "estimating_s": estimating,
        "load_s": load,
        "forward_s": forward,
        "sweep_s": sweep,
        "parts_s": parts.seconds,
        "ratio_wall": sweep.wall / (load.wall + forward.wall),
        "ratio_cpu": sweep.cpu / (load.cpu + forward.cpu),
        "runs": runs,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks sweep")
    parser.add_argument("--model", action="append", help="four times; default: two small models")
    parser.add_argument("--data", default="sample:polite")
    parser.add_argument("--languages", help="default: all of the data")
    parser.add_argument("--limit", type=int, default=100, help="texts of each label and language")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    about = harness.machine()
    models = options.model or 2 * [str(make("smollm2")), str(make("gemma"))]
    languages = options.languages.split(",") if options.languages else None
    measured = measure(models, options.data, languages, options.limit)
    report = {"machine": about, **measured}
    harness.finish("sweep", report, options.json, text_of(report))
    return 0


def text_of(report: dict[str, Any]) -> str:
    lines = [
        f"{report['texts']} texts; bare: one load {report['load_s'].wall:.1f} s, forward passes "
        f"{report['forward_s'].wall:.1f} s",
        f"sweep: {report['sweep_s'].wall:.1f} s, {report['ratio_wall']:.2f}x by the clock, "
        f"{report['ratio_cpu']:.2f}x by processors; estimated before in "
        f"{report['estimating_s'].wall:.1f} s",
    ]
    lines += [
        f"  {name:8} {part.wall:6.1f} s, {part.cpu:6.1f} s of processors"
        for name, part in report["parts_s"].items()
    ]
    lines += [
        f"{run['model']}: estimated {run['estimated_s']:.1f} s, took {run['took_s']:.1f} s "
        f"({run['took_s'] / run['estimated_s'] - 1:+.0%}); estimated "
        f"{run['estimated_bytes'] / 1e6:.1f} MB, wrote {run['wrote_bytes'] / 1e6:.1f} MB"
        for run in report["runs"]
    ]
    return "\n".join(lines)
