"""All metrics with intervals and nulls from a store, beside loops over NumPy and scikit-learn.

    python -m benchmarks separation [--json] [--layers 4] [--languages 2] [--texts 5000]

Writes a store of random states through the package's own writer, computes every metric with 1,000
permutations and 1,000 bootstraps, and scales to 33 layers and 11 languages. The peer does what a
script does for six of the numbers: one resample after another. It is timed on a few resamples of
one cell, and its time for the whole store is that times the number of resamples and cells.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, silhouette_score
from sklearn.model_selection import StratifiedKFold

from benchmarks import harness
from safetyspace_fast.analysis import separation
from safetyspace_fast.api import open_run
from safetyspace_fast.data import NUM_FOLDS, read_samples
from safetyspace_fast.extract.chance import AXES, Chance
from safetyspace_fast.extract.finish import finish_language
from safetyspace_fast.ops import STATISTICS, label_sums, pack_labels
from safetyspace_fast.runner import sample_columns
from safetyspace_fast.store import ModelWriter, create_run
from safetyspace_fast.store.layout import COMPONENTS, ROW_ARRAYS

FULL = (33, 11)
"""Layers and languages of the store that the figures are scaled to."""
HIDDEN = 128
PROJ = 64
SPACES = 2
"""Spaces of components in which `separation` sums distances over labellings (silhouettes)."""


def write_store(path: Path, layers: int, languages: int, texts: int) -> None:
    """A store of one model and pooling whose states are Gaussian, with planted classes."""
    rng = np.random.default_rng(0)
    names = tuple(f"l{chr(ord('a') + i)}" for i in range(languages))
    rows = [
        {"text": f"text {i} in {name}", "label": int(2 * i >= texts), "lang": name}
        for name in names
        for i in range(texts)
    ]
    data = path.with_name("texts.jsonl")
    data.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    samples = read_samples(data)
    root = create_run(
        path,
        created_by="benchmarks",
        data_name="random",
        data_sha256=samples.sha256,
        languages=names,
        samples=sample_columns(samples),
    )
    sizes = {
        "layer": layers, "pooling": 1, "sample": len(samples), "lang": languages, "basis": 0,
        "hidden": HIDDEN, "proj": PROJ, "component": COMPONENTS, "class": 2, "label": 2,
        "fold": NUM_FOLDS, **AXES,
    }  # fmt: skip
    writer = ModelWriter(root, "m", sizes)
    hookpoints = [f"block.{i}" for i in range(layers)]
    about = {"hookpoints": hookpoints, "poolings": ["last"], "statistics": list(STATISTICS)}
    writer.create(about)
    tokens = np.full(len(samples), 20, np.int32)
    writer.write("n_tokens", tokens)
    writer.write("truncated", np.zeros(len(samples), bool))
    projection = rng.standard_normal((HIDDEN, PROJ)) / np.sqrt(PROJ)
    spread = np.exp(0.5 * rng.standard_normal(HIDDEN))
    for i_lang, name in enumerate(names):
        span = samples.lang_range(name)
        x = rng.standard_normal((layers, texts, HIDDEN)) * spread
        x[..., :4] += 0.5 * samples.labels[span, None]
        states = torch.from_numpy(np.concatenate([x, x @ projection], -1)).float()
        arrays = finish_language(
            lambda i_layer, _, states=states: states[i_layer],
            Chance(samples, name),
            (layers, 1),
            samples.labels[span],
            samples.fold[span],
            tokens[span],
            HIDDEN,
            [0],
            torch.device("cpu"),
        )
        for array, values in arrays.items():
            if array in ROW_ARRAYS:
                writer.write_rows(array, span.start, values)
            else:
                writer.write_language(array, i_lang, values)
    writer.finish({})


def loops(x: np.ndarray, coords: np.ndarray, label: np.ndarray, resamples: int) -> None:
    """What a script does for one cell: ratio, Bhattacharyya, silhouettes, held-out AUC, in turn."""
    rng = np.random.default_rng(0)

    def once(x: np.ndarray, coords: np.ndarray, label: np.ndarray) -> None:
        a, b = x[label == 0], x[label == 1]
        gap = b.mean(0) - a.mean(0)
        within = a.var(0, ddof=1).sum() * (len(a) - 1) + b.var(0, ddof=1).sum() * (len(b) - 1)
        between = len(a) * len(b) / len(x) * gap @ gap
        between / (between + within)
        c, d = coords[label == 0, :10], coords[label == 1, :10]
        s0, s1 = np.cov(c.T), np.cov(d.T)
        s, gap = (s0 + s1) / 2, d.mean(0) - c.mean(0)
        logs = [np.linalg.slogdet(cov)[1] for cov in (s, s0, s1)]
        gap @ np.linalg.solve(s, gap) / 8 + (logs[0] - (logs[1] + logs[2]) / 2) / 2
        for width in (2, 10):
            silhouette_score(coords[:, :width], label)
        silhouette_score(x, label)
        for train, test in StratifiedKFold(10).split(x, label):
            m0, m1 = (x[train][label[train] == value].mean(0) for value in (0, 1))
            roc_auc_score(label[test], x[test] @ (m1 - m0))

    for _ in range(resamples):
        once(x, coords, rng.permutation(label))


def measure(layers: int, languages: int, texts: int, resamples: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        write_store(path, layers, languages, texts)
        run = open_run(path)
        taken = {}
        for name in ("all", "default"):
            began = time.perf_counter()
            numbers = separation(
                run,
                metrics=None if name == "default" else "all",
                bootstraps=resamples,
                permutations=resamples,
            )
            taken[name] = time.perf_counter() - began
            refused = numbers["refused"].to_numpy()
            assert set(refused.ravel()) <= {"", "the texts are not paired"}, set(refused.ravel())
        setup = (
            "from safetyspace_fast.api import open_run\n"
            "from safetyspace_fast.analysis import separation\n"
            f"run = open_run({str(path)!r})\n"
            "separation(run, metrics=['rho'], layers=['block.0'], languages=['la'])"
        )
        statement = (
            f"separation(run, metrics='all', bootstraps={resamples}, permutations={resamples})"
        )
        memory = harness.extra_memory_bytes(setup, statement)
        model, span = run.model("m"), run.lang_range("la")
        x = model.read("projected", layer=0, pooling=0, samples=span).astype(np.float64)
        coords = model.read("pca_coords", layer=0, pooling=0, samples=span).astype(np.float64)
        few = 3
        began = time.perf_counter()
        loops(x, coords, np.asarray(run.samples.label[span]), few)
        peer = (time.perf_counter() - began) / few
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    distances = torch.rand(128, texts, dtype=torch.float64)
    single, labellings = distances.float(), torch.rand(texts, resamples).round()
    packed = pack_labels(labellings.T)
    cases = {
        "product": lambda: single @ labellings,
        "lookup": lambda: label_sums(distances, packed),
    }
    rates = {
        name: 2 * len(distances) * texts * resamples / timing.median_s / 1e9
        for name, timing in harness.interleaved(cases).items()
    }
    torch.set_num_threads(threads)
    cells = layers * languages
    full_cells = FULL[0] * FULL[1]
    gflop = SPACES * 2 * texts**2 * resamples / 1e9
    return {
        "cells": cells,
        "texts": texts,
        "resamples": resamples,
        "seconds": taken,
        "whole_s": {name: seconds / cells * full_cells for name, seconds in taken.items()},
        "loop_s_per_resample": peer,
        "loop_whole_s": peer * 2 * resamples * full_cells,
        "distance_gflop_per_cell": gflop,
        "gflops_a_core": rates,
        "share_of_lookup": gflop * cells / (rates["lookup"] * threads * taken["all"]),
        "extra_memory_bytes": memory,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks separation")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--languages", type=int, default=2)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    about = harness.machine()  # before: it says how busy the machine was
    figures = measure(options.layers, options.languages, options.texts, options.resamples)
    report = {"machine": about, **figures}
    harness.finish("separation", report, options.json, text_of(report))
    return 0


def text_of(report: dict[str, Any]) -> str:
    about, seconds = report["machine"], report["seconds"]
    full, loop, rates = report["whole_s"], report["loop_whole_s"], report["gflops_a_core"]
    return (
        f"{about['cpu']}, {about['threads']} threads, {about['simd']}, torch {about['torch']}\n"
        f"{report['cells']} cells of {report['texts']:,} texts, {report['resamples']:,} bootstraps "
        f"and permutations: all metrics {seconds['all']:.1f} s, the default ones "
        f"{seconds['default']:.1f} s, {report['extra_memory_bytes'] / harness.MIB:.0f} MiB beyond "
        "the imports\n"
        f"scaled to {FULL[0]} layers and {FULL[1]} languages: {full['all'] / 60:.1f} and "
        f"{full['default'] / 60:.1f} min; one resample after another, six of the numbers: "
        f"{loop / 3600:.0f} h ({report['loop_s_per_resample']:.2f} s a resample of one cell)\n"
        f"distances times labellings, {report['distance_gflop_per_cell']:.0f} GFLOP a cell, are "
        f"{report['share_of_lookup']:.0%} of that time: by lookup {rates['lookup']:.0f} GF/s a "
        f"core, as a product in float32 {rates['product']:.0f}"
    )
