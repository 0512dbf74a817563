"""Weights that stay on disk: against the same model in memory, and accelerate's disk offload.

The oracle comes first: both stores have the same bytes. Then a run from memory and a streamed one
take turns; what counts is loading and forward passes, since what follows is the same. accelerate
runs the same batches, with the blocks on disk, and pools nothing.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import harness
from benchmarks.end_to_end import default_data
from benchmarks.small_models import make
from safetyspace_fast import api
from safetyspace_fast.data import read_samples
from safetyspace_fast.extract.capture import padded
from safetyspace_fast.extract.prepare import Prepared, prepare
from safetyspace_fast.models import LoadedModel, StreamedBlocks, load_model, parse_model


class Runs:
    """Whole runs over the same texts."""

    def __init__(self, model: str, data: str, limit: int, scratch: int | None) -> None:
        """Take the English texts of a data file."""
        self.fields: dict[str, Any] = {
            "models": (f"m={model}",),
            "data": data,
            "languages": ("en",),
            "limit": limit,
            "poolings": ("mean",),
            "template": "none",
            "dtype": "float32",
            "scratch": scratch,
        }

    def __call__(self, weights: str, out: Path) -> dict[str, float]:
        """Seconds, of the clock and of processors, until all states are pooled; bytes read."""
        streamed: list[StreamedBlocks] = []
        with _noting_streamed(streamed):
            began, planned_s, done = time.perf_counter(), 0.0, None
            for event in api.iter_run(out=out, weights=weights, **self.fields):
                if isinstance(event, api.Planned):
                    planned_s = time.perf_counter() - began
                if isinstance(event, api.ModelDone):
                    done = event
        assert done is not None
        return {
            "load_s": planned_s,
            "forward_s": done.forward_seconds,
            "bytes": streamed[0].bytes_read if streamed else 0,
        }


@contextmanager
def _noting_streamed(made: list[StreamedBlocks]) -> Iterator[None]:
    begin = StreamedBlocks.__init__

    def noted(self: StreamedBlocks, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)

    StreamedBlocks.__init__ = noted  # type: ignore[method-assign]  # undone below
    try:
        yield
    finally:
        StreamedBlocks.__init__ = begin  # type: ignore[method-assign]  # undoes it


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two stores hold the same numbers."""
    names = [p.relative_to(one) for p in (one / "models").rglob("*") if p.is_file()]
    chunks = [name for name in names if name.name != "zarr.json"]
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in chunks)


def offloaded(model: LoadedModel, path: str, work: Prepared, batches: int) -> dict[str, float]:
    """Seconds and weight bytes a batch of accelerate, with the blocks on disk."""
    import transformers
    from accelerate.utils import OffloadedWeightsLoader

    read = 0
    really = OffloadedWeightsLoader.__getitem__

    def counted(self: Any, key: str) -> Any:
        nonlocal read
        tensor = really(self, key)
        read += tensor.nbytes
        return tensor

    with tempfile.TemporaryDirectory() as folder:
        empty = transformers.AutoModel.from_pretrained(path, dtype=torch.float32)
        places = {name: "cpu" for name, _ in empty.named_children()} | {"layers": "disk"}
        peer = transformers.AutoModel.from_pretrained(
            path, dtype=torch.float32, device_map=places, offload_folder=folder
        ).eval()
        OffloadedWeightsLoader.__getitem__ = counted
        try:
            with torch.inference_mode():
                began = time.perf_counter()
                for batch in islice(work.plan, batches):
                    ids, _, mask = padded(model, work.tokens, batch)
                    peer(input_ids=ids, attention_mask=mask, use_cache=False)
                seconds = time.perf_counter() - began
        finally:
            OffloadedWeightsLoader.__getitem__ = really
    return {"s": seconds / batches, "bytes": read / batches}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks streamed")
    parser.add_argument("--model", default="smollm2", help="a small model, or a directory")
    parser.add_argument("--data", default=default_data())
    parser.add_argument("--limit", type=int, default=100, help="texts of a label")
    parser.add_argument("--scratch", type=int, help="bytes of the scratch file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-batches", type=int, default=3, help="that accelerate runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    path = options.model if Path(options.model).is_dir() else str(make(options.model))
    report: dict[str, Any] = {"machine": harness.machine()}
    runs = Runs(path, options.data, options.limit, options.scratch)
    kinds = ("load", "stream")
    with tempfile.TemporaryDirectory() as folder:
        stores = {kind: Path(folder) / kind for kind in kinds}
        for kind in kinds:
            runs(kind, stores[kind])
        report["same_bytes"] = same_bytes(stores["load"], stores["stream"])
        taken: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for i_round in range(options.rounds):
            for kind in kinds:
                taken[kind].append(runs(kind, Path(folder) / f"{kind}-{i_round}"))
    for kind, rounds in taken.items():
        report[kind] = {key: median(r[key] for r in rounds) for key in rounds[0]}
    resident, streamed = (report[kind]["load_s"] + report[kind]["forward_s"] for kind in kinds)
    report["speed"] = resident / streamed
    report["forward_speed"] = report["load"]["forward_s"] / report["stream"]["forward_s"]

    model = load_model(parse_model(path), dtype="float32")
    samples = read_samples(options.data, languages=("en",), limit=options.limit)
    work = prepare(model, samples.texts, template="none", poolings=("mean",))
    batches = sum(1 for _ in work.plan)
    peer = offloaded(model, path, work, min(options.peer_batches, batches))
    report |= {"batches": batches, "texts": len(samples), "accelerate_batch": peer}
    report["fewer_bytes"] = batches * peer["bytes"] / report["stream"]["bytes"]
    report["times_faster"] = batches * peer["s"] / report["stream"]["forward_s"]
    harness.finish("streamed", report, options.json, text_of(report))
    return 0 if report["same_bytes"] else 1


def text_of(report: dict[str, Any]) -> str:
    about, resident, streamed = report["machine"], report["load"], report["stream"]
    peer = report["accelerate_batch"]
    return "\n".join(
        [
            f"{about['cpu']}, {about['threads']} threads, load before {about['load_before']:.1f}",
            f"{report['texts']} texts, {report['batches']} batches; "
            f"{'the same bytes' if report['same_bytes'] else 'OTHER BYTES'} as from memory",
            f"from memory: loading {resident['load_s']:.2f} s, forward "
            f"{resident['forward_s']:.2f} s",
            f"streamed:    loading {streamed['load_s']:.2f} s, forward "
            f"{streamed['forward_s']:.2f} s, {streamed['bytes'] / 1e6:.0f} MB of weights read",
            f"speed of the streamed run: {report['speed']:.0%}, of its forward passes "
            f"{report['forward_speed']:.0%} (with reading)",
            f"accelerate, blocks on disk: {peer['s']:.2f} s and {peer['bytes'] / 1e6:.0f} MB a "
            f"batch; streamed reads {report['fewer_bytes']:.0f}x fewer bytes and is "
            f"{report['times_faster']:.1f}x as fast",
        ]
    )
