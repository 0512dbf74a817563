"""The CPU kernels against the libraries that people use, and against the machine's own limits.

    python -m benchmarks ops [--json] [--only silhouette|permutations|pool] [--repeats 5]

Every result is compared with the truth before anything is timed. All cases of a table run in turn
in one process with the same number of threads (OMP_NUM_THREADS). "bound" is the matrix product of
half the Gram matrix, or reading the hidden states from memory once, measured in the same run.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.metrics import silhouette_samples

from benchmarks import harness
from benchmarks.harness import MIB, Timing
from safetyspace_fast import ops

SILHOUETTE_SIZES = [(1000, 576), (2000, 2048), (5000, 2048), (8000, 4096)]
PERMUTATION_SIZES = [(5000, 2048), (5000, 4096)]
TILE = 1024


def two_classes(N: int, D: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, a small shift between the classes, and four huge dimensions, as models have them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (N,), generator=generator)
    x = torch.randn(N, D, generator=generator)
    x[:, 4:20] += labels[:, None] * 0.5
    x[:, :4] = x[:, :4] * 30 + 300
    return x, labels


def from_sums(sums: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Silhouettes of two classes from sums of distances to each: [N, 2] -> [N]."""
    count = torch.bincount(labels, minlength=2)
    own = labels[:, None]
    a = sums.gather(1, own)[:, 0] / (count[labels] - 1)
    b = sums.gather(1, 1 - own)[:, 0] / count[1 - labels]
    return (b - a) / torch.maximum(a, b)


def with_cdist(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    one_hot = torch.nn.functional.one_hot(labels).to(x.dtype)
    return from_sums(torch.cdist(x, x) @ one_hot, labels)


def with_tiles(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A dozen lines of torch: symmetric tiles. What a careful user writes."""
    one_hot = torch.nn.functional.one_hot(labels).to(x.dtype)
    sums = torch.zeros(len(x), 2, dtype=x.dtype)
    norms = x.square().sum(1)
    for i in range(0, len(x), TILE):
        a = slice(i, i + TILE)
        for j in range(i, len(x), TILE):
            b = slice(j, j + TILE)
            tile = torch.addmm(norms[b], x[a], x[b].T, alpha=-2)
            tile = tile.add_(norms[a, None]).clamp_(min=0).sqrt_()
            if i == j:
                tile.fill_diagonal_(0)
            else:
                sums[b] += tile.T @ one_hot[a]
            sums[a] += tile @ one_hot[b]
    return from_sums(sums, labels)


def with_faiss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    squared = torch.from_numpy(faiss.pairwise_distances(x.numpy(), x.numpy()))
    one_hot = torch.nn.functional.one_hot(labels).to(x.dtype)
    return from_sums(squared.clamp_(min=0).sqrt_().fill_diagonal_(0) @ one_hot, labels)


def with_keops(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from pykeops.torch import LazyTensor

    one_hot = torch.nn.functional.one_hot(labels).to(x.dtype)
    distances = ((LazyTensor(x[:, None]) - LazyTensor(x[None])) ** 2).sum(-1).sqrt()
    return from_sums(distances @ one_hot, labels)


def silhouette(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for N, D in SILHOUETTE_SIZES:
        x, labels = two_classes(N, D)
        cases: dict[str, Callable[[], Any]] = {
            "safetyspace-fast": partial(ops.silhouette_samples, x, labels),
            "reference": partial(ops.silhouette_samples, x, labels, impl="reference"),
            "scikit-learn": partial(silhouette_samples, x.numpy(), labels.numpy()),
            "torch.cdist": partial(with_cdist, x, labels),
            "tiled torch": partial(with_tiles, x, labels),
        }
        if find_spec("faiss"):
            cases["faiss"] = partial(with_faiss, x, labels)
        if find_spec("pykeops") and D <= 1024:  # 45 times torch.cdist's time above
            cases["KeOps"] = partial(with_keops, x, labels)
        truth = silhouette_samples(x.numpy().astype(np.float64), labels.numpy())
        errors = {name: float(np.abs(np.asarray(f()) - truth).max()) for name, f in cases.items()}
        assert errors["safetyspace-fast"] < 1e-6, errors
        timings = harness.interleaved({**cases, "bound": harness.half_matrix_product(x)}, repeats)
        setup = f"import torch; from benchmarks.ops import *; x, y = two_classes({N}, {D})"
        setup += "; ops.silhouette_samples(x[:300].clone(), y[:300])"
        memory = harness.extra_memory_bytes(setup, "ops.silhouette_samples(x, y)")
        rows.append(
            {
                "N": N,
                "D": D,
                "timings": timings,
                "errors": errors,
                "extra_memory_bytes": memory,
                "bound_gflops": N * N * D / timings["bound"].median_s / 1e9,
            }
        )
    return rows


def permutations(repeats: int, R: int = 1000) -> list[dict[str, Any]]:
    rows = []
    for N, D in PERMUTATION_SIZES:
        x, labels = two_classes(N, D)
        generator = torch.Generator().manual_seed(1)
        many = torch.stack([labels[torch.randperm(N, generator=generator)] for _ in range(R)])
        few = ops.energy_distance(x[:600].double(), many[:3, :600], biased=True)
        ours = ops.energy_distance(x[:600], many[:3, :600], biased=True)
        error = float((few - ours).abs().max() / few.abs().max())
        assert error < 1e-4, error
        cases: dict[str, Callable[[], Any]] = {
            "plain reduction": partial(ops.pairwise_reduce, x, x, labels, 2),
            f"{R} permutations": partial(ops.energy_distance, x, many),
        }
        rows.append({"N": N, "D": D, "timings": harness.interleaved(cases, repeats)})
    return rows


def pool_with_index_add(hidden_states: torch.Tensor) -> torch.Tensor:
    """Mean over all tokens, accumulated in float32, as sentence-transformers pools flat batches."""
    B, T, D = hidden_states.shape
    flat = hidden_states.reshape(B * T, D).float()
    sample = torch.arange(B).repeat_interleave(T)
    return torch.zeros(B, D).index_add_(0, sample, flat) / T


def pool(repeats: int) -> list[dict[str, Any]]:
    rows = []
    B, T, D = 64, 256, 4096
    spans = torch.tensor([[[0, T], [T - 1, T]]] * B, dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        hidden_states = torch.randn(B, T, D, generator=torch.Generator().manual_seed(0)).to(dtype)
        truth = hidden_states.double().mean(1)
        cases: dict[str, Callable[[], Any]] = {
            "safetyspace-fast": partial(ops.pool_project, hidden_states, spans),
            "reference": partial(ops.pool_project, hidden_states, spans, impl="reference"),
            "index_add_": partial(pool_with_index_add, hidden_states),
            "bound": harness.read_everything(hidden_states.nbytes),
        }
        errors = {"safetyspace-fast": cases["safetyspace-fast"]()[0][:, 0] - truth}
        errors["index_add_"] = cases["index_add_"]() - truth
        largest = {name: float(error.abs().max()) for name, error in errors.items()}
        assert largest["safetyspace-fast"] < 1e-6, largest
        timings = harness.interleaved(cases, 3 * repeats)
        rate = hidden_states.nbytes / 1e9
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "shape": [B, T, D],
                "timings": timings,
                "errors": largest,
                "gbps": {name: rate / timing.median_s for name, timing in timings.items()},
            }
        )
    return rows


BENCHMARKS = {"silhouette": silhouette, "permutations": permutations, "pool": pool}


def table(title: str, names: list[str], timings: dict[str, Timing], ours: str, note: str) -> str:
    lines = [title]
    base = timings[ours].median_s
    for name in names:
        t = timings[name]
        lines.append(
            f"  {name:<18} {t.median_s * 1e3:9.1f} ms"
            f"  ({t.low_s * 1e3:.1f} .. {t.high_s * 1e3:.1f})  {t.median_s / base:6.2f} x"
        )
    return "\n".join([*lines, f"  {note}"])


def text_of(report: dict[str, Any]) -> str:
    about = report["machine"]
    parts = [f"{about['cpu']}, {about['threads']} threads, {about['simd']}, torch {about['torch']}"]
    for row in report.get("silhouette", []):
        t = row["timings"]
        share = t["bound"].median_s / t["safetyspace-fast"].median_s
        note = (
            f"{share:.0%} of the half-matrix product ({row['bound_gflops']:.0f} GF/s), "
            f"{row['extra_memory_bytes'] / MIB:.0f} MiB extra memory, "
            f"error {row['errors']['safetyspace-fast']:.1e} "
            f"(tiled torch {row['errors']['tiled torch']:.1e})"
        )
        title = f"silhouette, float32, N = {row['N']}, D = {row['D']}"
        parts.append(table(title, list(t), t, "safetyspace-fast", note))
    for row in report.get("permutations", []):
        t = row["timings"]
        title = f"energy distance, float32, N = {row['N']}, D = {row['D']}"
        parts.append(table(title, list(t), t, "plain reduction", ""))
    for row in report.get("pool", []):
        t, rate = row["timings"], row["gbps"]
        note = (
            f"{rate['safetyspace-fast']:.1f} GB/s, "
            f"{rate['safetyspace-fast'] / rate['bound']:.0%} of the read bandwidth measured here"
        )
        title = f"pool_project, mean and last token, {row['dtype']}, {row['shape']}"
        parts.append(table(title, list(t), t, "safetyspace-fast", note))
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ops", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="one table of several")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of every case (5)")
    options = parser.parse_args(argv)
    # OpenBLAS-based peers would otherwise be held to an older processor.
    os.environ.pop("OPENBLAS_CORETYPE", None)
    report: dict[str, Any] = {"machine": harness.machine()}
    for name in options.only or BENCHMARKS:
        report[name] = BENCHMARKS[name](options.repeats)
    harness.finish("ops", report, options.json, text_of(report))
    return 0
