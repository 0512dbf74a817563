"""All metrics with intervals and nulls from a store, beside loops over NumPy and scikit-learn.

    python -m benchmarks separation [--json] [--layers 4] [--languages 2] [--texts 5000]

Writes a store of random states through the package's own writer, computes every metric with 1,000
permutations and 1,000 bootstraps, and scales to 33 layers and 11 languages. The peer does what a
script does for six of the numbers: one resample after another. It is timed on a few resamples of
one cell, and its time for the whole store is that times the number of resamples and cells.
"""

import argparse
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
from safetyspace_fast.data import NUM_FOLDS
from safetyspace_fast.extract.finish import finish_cell
from safetyspace_fast.ops import label_sums, pack_labels
from safetyspace_fast.store import ModelWriter, create_run
from safetyspace_fast.store.layout import COMPONENTS, ROW_ARRAYS

FULL = (33, 11)
"""Layers and languages of the store that the figures are scaled to."""
HIDDEN = 128
PROJ = 64


def write_store(path: Path, layers: int, languages: int, texts: int) -> None:
    """A store of one model and pooling whose states are Gaussian, with planted classes."""
    rng = np.random.default_rng(0)
    names = tuple(f"l{chr(ord('a') + i)}" for i in range(languages))
    n = languages * texts
    label = np.tile(np.repeat([0, 1], [texts // 2, texts - texts // 2]), languages)
    fold = np.arange(n) % NUM_FOLDS
    columns = {
        "file_position": np.arange(n),
        "text_sha256": rng.integers(0, 256, (n, 32), np.uint8),
        "n_chars": np.full(n, 80),
        "lang": np.repeat(np.arange(languages), texts),
        "label": label,
        "pair": np.full(n, -1),
        "item": np.full(n, -1),
        "cluster": np.arange(n),
        "fold": fold,
    }
    root = create_run(
        path,
        created_by="benchmarks",
        data_name="random",
        data_sha256="0" * 64,
        languages=names,
        samples=columns,
    )
    sizes = {
        "layer": layers, "pooling": 1, "sample": n, "lang": languages, "hidden": HIDDEN,
        "proj": PROJ, "component": COMPONENTS, "class": 2, "label": 2, "fold": NUM_FOLDS,
    }  # fmt: skip
    writer = ModelWriter(root, "m", sizes)
    hookpoints = [f"block.{i}" for i in range(layers)]
    writer.create({"hookpoints": hookpoints, "poolings": ["last"]})
    writer.write("n_tokens", np.full(n, 20))
    writer.write("truncated", np.zeros(n, bool))
    projection = rng.standard_normal((HIDDEN, PROJ)) / np.sqrt(PROJ)
    spread = np.exp(0.5 * rng.standard_normal(HIDDEN))
    for i_lang in range(languages):
        span = slice(i_lang * texts, (i_lang + 1) * texts)
        rows: dict[str, list[np.ndarray]] = {}
        for _ in range(layers):
            x = rng.standard_normal((texts, HIDDEN)) * spread
            x[:, :4] += 0.5 * label[span, None]
            cell = finish_cell(
                torch.from_numpy(x).float(),
                torch.from_numpy(label[span]),
                torch.from_numpy(fold[span]),
            )
            cell["projected"] = torch.from_numpy(x @ projection).float()
            for name, value in cell.items():
                rows.setdefault(name, []).append(value.numpy())
        for name, values in rows.items():
            whole = np.stack(values)[:, None]
            if name in ROW_ARRAYS:
                writer.write_rows(name, span.start, whole)
            else:
                writer.write_language(name, i_lang, whole)
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
            found = separation(
                run,
                metrics=None if name == "default" else "all",
                bootstraps=resamples,
                permutations=resamples,
            )
            taken[name] = time.perf_counter() - began
            refused = found["refused"].to_numpy()
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
    whole = FULL[0] * FULL[1]
    return {
        "cells": cells,
        "texts": texts,
        "resamples": resamples,
        "seconds": taken,
        "whole_s": {name: seconds / cells * whole for name, seconds in taken.items()},
        "loop_s_per_resample": peer,
        "loop_whole_s": peer * 2 * resamples * whole,
        "distance_gflop_per_cell": 4 * 2 * texts**2 * resamples / 1e9,
        "gflops_a_core": rates,
        "share_of_lookup": 4
        * 2
        * texts**2
        * resamples
        * cells
        / 1e9
        / (rates["lookup"] * threads * taken["all"]),
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
    found = measure(options.layers, options.languages, options.texts, options.resamples)
    report = {"machine": about, **found}
    harness.finish("separation", report, options.json, text_of(report))
    return 0


def text_of(report: dict[str, Any]) -> str:
    about, seconds = report["machine"], report["seconds"]
    whole, loop, rates = report["whole_s"], report["loop_whole_s"], report["gflops_a_core"]
    return (
        f"{about['cpu']}, {about['threads']} threads, {about['simd']}, torch {about['torch']}\n"
        f"{report['cells']} cells of {report['texts']:,} texts, {report['resamples']:,} bootstraps "
        f"and permutations: all metrics {seconds['all']:.1f} s, the default ones "
        f"{seconds['default']:.1f} s, {report['extra_memory_bytes'] / harness.MIB:.0f} MiB beyond "
        "the imports\n"
        f"scaled to {FULL[0]} layers and {FULL[1]} languages: {whole['all'] / 60:.1f} and "
        f"{whole['default'] / 60:.1f} min; one resample after another, six of the numbers: "
        f"{loop / 3600:.0f} h ({report['loop_s_per_resample']:.2f} s a resample of one cell)\n"
        f"distances times labellings, {report['distance_gflop_per_cell']:.0f} GFLOP a cell, are "
        f"{report['share_of_lookup']:.0%} of that time: by lookup {rates['lookup']:.0f} GF/s a "
        f"core, as a product in float32 {rates['product']:.0f}"
    )
