"""Writing a store, beside zarr-python layer by layer; the writer's memory; files and size.

    python -m benchmarks store [--json] [--hidden 4096] [--shards 1] [--limit 100]

Throughput. All sides get the same batches of pooled states, `[hookpoint, pooling, 32, D + P]`, and
the same rows of a store's arrays. Ours appends the states to a segment, fsynced every few
megabytes, and writes whole shards, fsynced and renamed. The peer does what a loop over a model does
with zarr-python: for every batch and hookpoint one assignment to an array of that hookpoint,
chunked and compressed as zarr-python chooses, with no fsync. A second, stronger peer has our chunks
and codecs and gathers a whole chunk of 256 texts in memory before it writes each hookpoint's.

Memory. A disk of which every batch takes a tenth of a second: the loop must be slowed, and the
memory be the same for sixty batches as for twelve.

Size. A run of SmolLM2 over a part of the TextDetox data, against the float16 states of all its
tokens at all hookpoints. For D = 4096 and 33 hookpoints the layout gives every array's shape; a
value's bytes on disk are taken from the run, and, without any compression, from its type.

`zarrs` (0.2.3) as zarr-python's codec pipeline: only zarr-python's own local store goes through it,
so that a store which fsyncs and renames falls back to zarr-python. On such a plain store its whole
shards are measured here where it is installed.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr
import zarr.storage
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from benchmarks import harness
from benchmarks.small_models import make, small_model
from safetyspace_fast import api
from safetyspace_fast.data import NUM_FOLDS, Samples, read_samples
from safetyspace_fast.extract.transfer import OrderedThread
from safetyspace_fast.store import ModelWriter, create_run
from safetyspace_fast.store.layout import COMPONENTS, MODEL, SAMPLES, SHARD_SAMPLES, ArraySpec
from safetyspace_fast.store.segments import Segments

SHARED = Path(os.environ.get("SAFETYSPACE_FAST_SHARED", "../shared"))
LAYERS, POOLINGS, PROJ = 33, 2, 64
BATCH = 32
LANGUAGES = ("de", "en", "hi")
"""Together about as many tokens a text as all eleven languages of the data."""
ROWS = [spec for spec in MODEL if spec.by_sample]
Array = np.ndarray[Any, np.dtype[Any]]


def axes(n: int, languages: int, hidden: int, layers: int = LAYERS) -> dict[str, int]:
    return {
        "layer": layers, "pooling": POOLINGS, "sample": n, "lang": languages, "hidden": hidden,
        "proj": PROJ, "component": COMPONENTS, "class": 2, "label": 2, "fold": NUM_FOLDS,
    }  # fmt: skip


class Batches:
    """Pooled states as a loop yields them, and the rows that belong to them."""

    def __init__(self, hidden: int, shards: int) -> None:
        rng = np.random.default_rng(0)
        self.hidden, self.n = hidden, shards * SHARD_SAMPLES
        shape = (LAYERS, POOLINGS, BATCH, hidden + PROJ)
        self._states = [rng.standard_normal(shape, np.float32) for _ in range(4)]
        sizes = axes(self.n, 1, hidden)
        self.rows: dict[str, Array] = {
            spec.name: rng.standard_normal([sizes[dim] for dim in spec.dims]).astype(spec.dtype)
            for spec in ROWS
        }

    def by(self, step: int) -> Iterator[tuple[slice, Array]]:
        """Rows and states of `step` texts at a time."""
        for start in range(0, self.n, step):
            first = start // BATCH
            parts = [self._states[i % 4] for i in range(first, first + step // BATCH)]
            yield (
                slice(start, start + step),
                parts[0] if len(parts) == 1 else np.concatenate(parts, 2),
            )

    @property
    def n_bytes(self) -> int:
        kept = sum(array.nbytes for array in self.rows.values())
        return self._states[0].nbytes * (self.n // BATCH) + kept


def new_store(path: Path, batches: Batches) -> tuple[ModelWriter, Segments]:
    n = batches.n
    columns = {spec.name: np.zeros((n, 32)[: len(spec.dims)], spec.dtype) for spec in SAMPLES}
    root = create_run(
        path,
        created_by="benchmarks",
        data_name="random",
        data_sha256="0" * 64,
        languages=("en",),
        samples=columns,
    )
    writer = ModelWriter(root, "m", axes(n, 1, batches.hidden))
    writer.create({"hookpoints": [], "poolings": []})
    return writer, Segments(path.parent, (LAYERS, POOLINGS, batches.hidden + PROJ))


def ours(folder: Path, batches: Batches) -> dict[str, float]:
    """Segments on the writer's thread, then whole shards; seconds of each."""
    writer, segments = new_store(folder / "run.zarr", batches)
    began = time.perf_counter()
    thread = OrderedThread("writer")
    for rows, states in batches.by(BATCH):
        shard = rows.start // SHARD_SAMPLES
        thread.put(partial(segments.append, shard, np.arange(rows.start, rows.stop), states))
        if rows.stop % SHARD_SAMPLES == 0:
            thread.flush()
            segments.sync(shard)
    thread.close()
    appended = time.perf_counter()
    for name, values in batches.rows.items():
        for low in range(0, batches.n, SHARD_SAMPLES):
            writer.write_rows(name, low, values[:, :, low : low + SHARD_SAMPLES])
    written = time.perf_counter()
    return {"states": appended - began, "rows": written - appended}


def layer_by_layer(folder: Path, batches: Batches, whole_chunks: bool) -> dict[str, float]:
    """One assignment for every batch, or chunk, and hookpoint and array."""
    step = SHARD_SAMPLES if whole_chunks else BATCH
    group = zarr.create_group(folder / "run.zarr")
    sizes = axes(batches.n, 1, batches.hidden, layers=1) | {"width": batches.hidden + PROJ}
    states = ArraySpec("states", ("layer", "pooling", "sample", "width"), "float32", "", "")

    def create(layer: int, spec: ArraySpec) -> zarr.Array[Any]:
        how: dict[str, Any] = {}
        if whole_chunks:
            size = np.dtype(spec.dtype).itemsize
            how["chunks"] = (1, 1, SHARD_SAMPLES, *(sizes[dim] for dim in spec.dims[3:]))
            how["compressors"] = BloscCodec(
                cname="zstd", clevel=1, shuffle=BloscShuffle.shuffle, typesize=size
            )
        shape = [sizes[dim] for dim in spec.dims]
        return group.create_array(f"{layer}/{spec.name}", shape=shape, dtype=spec.dtype, **how)

    arrays = {(i, s.name): create(i, s) for i in range(LAYERS) for s in (states, *ROWS)}
    began = time.perf_counter()
    for rows, values in batches.by(step):
        for i in range(LAYERS):
            arrays[i, "states"][0, :, rows] = values[i]
    appended = time.perf_counter()
    for low in range(0, batches.n, step):
        rows = slice(low, low + step)
        for i in range(LAYERS):
            for name, kept in batches.rows.items():
                arrays[i, name][0, :, rows] = kept[i, :, rows]
    written = time.perf_counter()
    last = batches.n - 1
    for name, kept in batches.rows.items():  # the oracle
        assert np.array_equal(arrays[LAYERS - 1, name][0, 0, last], kept[-1, 0, last])
    return {"states": appended - began, "rows": written - appended}


def throughput(hidden: int, shards: int, rounds: int = 3) -> dict[str, Any]:
    """Every side in turn, `rounds` times; the medians."""
    batches = Batches(hidden, shards)
    sides: dict[str, Callable[[Path, Batches], dict[str, float]]] = {
        "ours": ours,
        "zarr-python": partial(layer_by_layer, whole_chunks=False),
        "zarr-python, whole chunks": partial(layer_by_layer, whole_chunks=True),
    }
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    files: dict[str, int] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                taken[name].append(side(Path(folder), batches))
                files[name] = sum(len(names) for *_, names in os.walk(Path(folder, "run.zarr")))
    seconds = {
        name: {part: median([one[part] for one in runs]) for part in ("states", "rows")}
        for name, runs in taken.items()
    }
    totals = {name: sum(parts.values()) for name, parts in seconds.items()}
    return {
        "hidden": hidden,
        "texts": batches.n,
        "bytes": batches.n_bytes,
        "seconds": seconds,
        "files": files,
        "mib_per_s": {name: batches.n_bytes / harness.MIB / s for name, s in totals.items()},
        "times_faster": {name: s / totals["ours"] for name, s in totals.items() if name != "ours"},
    }


def shards_through_zarrs() -> dict[str, float] | None:
    """MiB/s of whole shards of `projected` to a plain local store; None without zarrs."""
    if importlib.util.find_spec("zarrs") is None:
        return None
    values = np.random.default_rng(0).standard_normal(
        (LAYERS, POOLINGS, SHARD_SAMPLES, PROJ), np.float32
    )
    rates = {}
    for pipeline in ("zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"):
        with (
            tempfile.TemporaryDirectory() as folder,
            zarr.config.set({"codec_pipeline.path": pipeline}),
        ):
            array = zarr.create_group(zarr.storage.LocalStore(folder)).create_array(
                "a",
                shape=(*values.shape[:2], 8 * SHARD_SAMPLES, PROJ),
                dtype="f4",
                chunks=(1, 1, *values.shape[2:]),
                shards=values.shape,
                compressors=[BloscCodec(cname="zstd", clevel=1, typesize=4), Crc32cCodec()],
            )
            taken = []
            for low in range(0, 8 * SHARD_SAMPLES, SHARD_SAMPLES):
                began = time.perf_counter()
                array[:, :, low : low + SHARD_SAMPLES] = values
                taken.append(time.perf_counter() - began)
        rates[pipeline.partition(".")[0]] = values.nbytes / harness.MIB / median(taken)
    return rates


def memory() -> dict[str, Any]:
    """Peak memory of a loop whose disk is slow, for a few batches and for many."""
    peaks: dict[str, Any] = {"batch_bytes": 4 * LAYERS * POOLINGS * BATCH * (1024 + PROJ)}
    with tempfile.TemporaryDirectory() as folder:
        setup = f"""
import time
from functools import partial
from pathlib import Path
import numpy as np
from safetyspace_fast.extract.transfer import OrderedThread
from safetyspace_fast.store.segments import Segments
shape = ({LAYERS}, {POOLINGS}, {BATCH}, {1024 + PROJ})
segments = Segments(Path({folder!r}), (*shape[:2], shape[3]))
def slow(values):
    segments.append(0, np.arange({BATCH}), values)
    time.sleep(0.1)
def loop(batches):
    thread = OrderedThread("writer")
    for i in range(batches):
        thread.put(partial(slow, np.full(shape, i, np.float32)))
    thread.close()
loop(1)
"""
        for batches in (12, 60):
            began = time.perf_counter()
            peaks[f"peak_bytes_{batches}"] = harness.extra_memory_bytes(setup, f"loop({batches})")
            peaks[f"seconds_{batches}"] = time.perf_counter() - began
    return peaks


def size(limit: int | None) -> dict[str, Any]:
    """Bytes of a real store against the states it stands for, and what the layout makes of them."""
    data = SHARED / "data" / "textdetox_toxicity.jsonl"
    if not data.exists():
        raise SystemExit(f"{data}: not there; set SAFETYSPACE_FAST_SHARED")
    model = make("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        run = api.run(
            api.RunConfig(
                models=(f"m={model}",),
                data=str(data),
                out=Path(folder, "run.zarr"),
                template="none",
                languages=LANGUAGES,
                limit=limit,
            )
        )
        store = run.model("m")
        layers, n = len(store.hookpoints), len(run.samples.label)
        hidden = store.read("class_mean", layer=0).shape[-1]
        sizes = axes(n, len(run.languages), hidden, layers)
        states = 2 * hidden * layers * int(store.read("n_tokens").sum())
        disk, packed, n_files = _disk(run.path, sizes)
    samples = read_samples(data)
    grown = {
        f"{model}, {per_language:,} texts a language": _by_layout(tokens, per_language, packed)
        for model, tokens in _tokens_a_text(samples).items()
        for per_language in (len(samples) // len(samples.languages), 5000)
    }
    return {
        "texts": n,
        "tokens": states // (2 * hidden * layers),
        "hookpoints": layers,
        "hidden": hidden,
        "states_bytes": states,
        "store_bytes": sum(disk.values()),
        "times_smaller": states / sum(disk.values()),
        "bytes_by_array": disk,
        "bytes_per_value": packed,
        "files": n_files,
        "shards": -(-n // SHARD_SAMPLES),
        "at_4096": grown,
    }


def _disk(path: Path, sizes: dict[str, int]) -> tuple[dict[str, int], dict[str, float], int]:
    """Bytes of each array, bytes of each of its values, and files of one array by sample."""
    disk, packed = {}, {}
    for spec in MODEL:
        files = [f for f in (path / "models/m" / spec.name / "c").rglob("*") if f.is_file()]
        disk[spec.name] = sum(f.stat().st_size for f in files)
        packed[spec.name] = disk[spec.name] / prod(sizes[dim] for dim in spec.dims)
        if spec.by_sample:
            n_files = len(files)
    rest = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) - sum(disk.values())
    return disk | {"samples and metadata": rest}, packed, n_files


def _tokens_a_text(samples: Samples) -> dict[str, float]:
    """Mean tokens of a text for the tokenizers that are at hand."""
    from transformers import AutoTokenizer

    tokens_per_text = {}
    for name in ("smollm2", "gemma"):
        if path := small_model(name):
            ids = AutoTokenizer.from_pretrained(path)(samples.texts, add_special_tokens=False)
            tokens_per_text[name] = sum(map(len, ids["input_ids"])) / len(samples)
    return tokens_per_text


def _by_layout(tokens: float, per_language: int, packed: dict[str, float]) -> dict[str, float]:
    """How many times smaller than the states a store is at D = 4096 and 33 hookpoints."""
    sizes = axes(11 * per_language, 11, 4096)
    states = 2 * 4096 * LAYERS * tokens * sizes["sample"]
    values = {spec.name: prod(sizes[dim] for dim in spec.dims) for spec in MODEL}
    plain = sum(values[spec.name] * np.dtype(spec.dtype).itemsize for spec in MODEL)
    samples = sum(32 if "byte" in s.dims else np.dtype(s.dtype).itemsize for s in SAMPLES)
    columns = samples * sizes["sample"]
    return {
        "tokens_a_text": tokens,
        "uncompressed": states / (plain + columns),
        "as_packed": states / (sum(values[name] * packed[name] for name in values) + columns),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks store")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--limit", type=int, default=100, help="texts of a language and label")
    parser.add_argument("--part", choices=("throughput", "memory", "size"), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"machine": harness.machine()}
    parts = options.part or ("throughput", "memory", "size")
    if "throughput" in parts:
        report["throughput"] = throughput(options.hidden, options.shards)
        report["zarrs_mib_per_s"] = shards_through_zarrs()
    if "memory" in parts:
        report["memory"] = memory()
    if "size" in parts:
        report["size"] = size(options.limit)
    harness.finish("store", report, options.json, text_of(report))
    return 0


def text_of(report: dict[str, Any]) -> str:
    about = report["machine"]
    lines = [f"{about['cpu']}, {about['threads']} threads, load before {about['load_before']:.1f}"]
    if speed := report.get("throughput"):
        lines.append(
            f"{speed['texts']} texts, {LAYERS} hookpoints x {POOLINGS} poolings x "
            f"{speed['hidden']}, {speed['bytes'] / harness.MIB:.0f} MiB"
        )
        for name, seconds in speed["seconds"].items():
            lines.append(
                f"  {name:25} {speed['mib_per_s'][name]:6.1f} MiB/s  states {seconds['states']:.2f}"
                f" s, rows {seconds['rows']:.2f} s, {speed['files'][name]:,} files"
                + (f"  {speed['times_faster'][name]:.1f}x" if name != "ours" else "")
            )
        if rates := report["zarrs_mib_per_s"]:
            lines.append(
                "whole shards, plain store: "
                + ", ".join(f"{name} {rate:.0f} MiB/s" for name, rate in rates.items())
            )
    if peaks := report.get("memory"):
        lines.append(
            f"slow disk: peak {peaks['peak_bytes_12'] / harness.MIB:.0f} MiB for 12 batches, "
            f"{peaks['peak_bytes_60'] / harness.MIB:.0f} MiB for 60, a batch "
            f"{peaks['batch_bytes'] / harness.MIB:.1f} MiB; {peaks['seconds_12']:.1f} s and "
            f"{peaks['seconds_60']:.1f} s"
        )
    if stored := report.get("size"):
        lines.append(
            f"SmolLM2, {stored['texts']:,} texts, {stored['tokens']:,} tokens: states "
            f"{stored['states_bytes'] / 1e6:.0f} MB, store {stored['store_bytes'] / 1e6:.1f} MB, "
            f"1/{stored['times_smaller']:.0f}; {stored['files']} files an array for "
            f"{stored['shards']} shards"
        )
        for name, n_bytes in sorted(stored["bytes_by_array"].items(), key=lambda item: -item[1]):
            share = n_bytes / stored["store_bytes"]
            lines.append(f"  {name:22} {n_bytes / 1e6:8.2f} MB {share:6.1%}")
        for name, at in stored["at_4096"].items():
            lines.append(
                f"D = 4096, {LAYERS} hookpoints, {name}: {at['tokens_a_text']:.1f} tokens a text, "
                f"1/{at['as_packed']:.0f} (uncompressed 1/{at['uncompressed']:.0f})"
            )
    return "\n".join(lines)
