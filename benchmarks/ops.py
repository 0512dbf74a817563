"""The CPU kernels against the libraries that people use, and against the machine's own limits.

    python -m benchmarks ops [--json] [--only silhouette|energy|permutations|pool] [--repeats 5]

Every result is compared with the truth before anything is timed. All cases of a table run in turn
in one process with the same number of threads (OMP_NUM_THREADS). The limits of the machine are
measured in the same run: the matrix product of half the Gram matrix (the faster of two ways to call
the library), or reading the hidden states from memory once. A peer that is slow is timed once, one
that is hopeless or not installed is listed as that.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.metrics import pairwise_distances, silhouette_samples

from benchmarks import harness
from benchmarks.harness import MIB, Timing
from safetyspace_fast import ops

SILHOUETTE_SIZES = [(1000, 576), (2000, 2048), (5000, 2048), (8000, 4096)]
ENERGY_SIZES = [(1000, 576), (5000, 2048)]
PERMUTATION_SIZES = [(5000, 2048), (5000, 4096)]
SLOW_S = 10.0  # above scikit-learn at the largest size, which has to be timed in turn
HOPELESS_S = 60.0
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


def with_scikit_learn(x: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    return silhouette_samples(x.numpy(), labels.numpy())


Peer = Callable[[torch.Tensor, torch.Tensor], Any]
# Name: function, the module that it needs.
SILHOUETTE_PEERS: dict[str, tuple[Peer, str]] = {
    "scikit-learn": (with_scikit_learn, "sklearn"),
    "torch.cdist": (with_cdist, "torch"),
    "tiled torch": (with_tiles, "torch"),
    "faiss": (with_faiss, "faiss"),
    "KeOps": (with_keops, "pykeops"),
}


class Peers:
    """Runs peers at growing sizes, once where they are slow, and not at all where that is hopeless.

    ran: at this size, several times. slow: once. skipped: why not.
    """

    def __init__(self, peers: dict[str, tuple[Peer, str]]) -> None:
        self.peers = peers
        self.rates: dict[str, float] = {}

    def at(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        self.ran: dict[str, Callable[[], Any]] = {}
        self.slow: dict[str, Timing] = {}
        self.skipped: dict[str, str] = {}
        self.results: dict[str, Any] = {}
        work = len(x) ** 2 * x.shape[1]
        for name, (peer, module) in self.peers.items():
            if find_spec(module) is None:
                self.skipped[name] = "not installed: make bench, or pip install -e .[bench]"
                continue
            expected_s = self.rates.get(name, 0.0) * work
            if expected_s > HOPELESS_S:
                self.skipped[name] = f"not run: about {expected_s:.0f} s at the last size's rate"
                continue
            with redirect_stdout(sys.stderr):  # KeOps talks, and compiles for every D
                peer(x[:64], labels[:64])
            start = time.perf_counter()
            self.results[name] = np.asarray(peer(x, labels))
            seconds = time.perf_counter() - start
            self.rates[name] = seconds / work
            if seconds > SLOW_S:
                self.slow[name] = Timing(seconds, seconds, seconds, 1)
            else:
                self.ran[name] = partial(peer, x, labels)

    def row(
        self, x: torch.Tensor, timings: dict[str, Timing], errors: dict[str, float]
    ) -> dict[str, Any]:
        """One size of a table, with the peers that were too slow to be timed in turn."""
        N, D = x.shape
        timings = {**timings, **self.slow}
        return {"N": N, "D": D, "timings": timings, "skipped": self.skipped, "errors": errors}


def silhouette(repeats: int) -> list[dict[str, Any]]:
    rows = []
    peers = Peers(SILHOUETTE_PEERS)
    for N, D in SILHOUETTE_SIZES:
        x, labels = two_classes(N, D)
        peers.at(x, labels)
        cases: dict[str, Callable[[], Any]] = {
            "safetyspace-fast": partial(ops.silhouette_samples, x, labels),
            "reference": partial(ops.silhouette_samples, x, labels, impl="reference"),
        }
        truth = silhouette_samples(x.numpy().astype(np.float64), labels.numpy())
        results = {name: np.asarray(case()) for name, case in cases.items()} | peers.results
        errors = {name: float(np.abs(result - truth).max()) for name, result in results.items()}
        assert errors["safetyspace-fast"] < 1e-6, errors
        products = harness.half_matrix_products(x)
        timings = harness.interleaved({**cases, **peers.ran, **products}, repeats)
        bound_s = min(timings[name].median_s for name in products)
        setup = f"import torch; from benchmarks.ops import *; x, y = two_classes({N}, {D})"
        setup += "; ops.silhouette_samples(x[:300].clone(), y[:300])"
        memory = harness.extra_memory_bytes(setup, "ops.silhouette_samples(x, y)")
        rows.append(
            peers.row(x, timings, errors)
            | {
                "extra_memory_bytes": memory,
                "bound_s": bound_s,
                "bound_gflops": N * N * D / bound_s / 1e9,
            }
        )
    return rows


def energy_with_geomloss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from geomloss import SamplesLoss

    # Half the energy distance, samples counted against themselves.
    return 2 * SamplesLoss("energy", backend="tensorized")(x[labels == 1], x[labels == 0])


def energy_with_cdist(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    a, b = x[labels == 1], x[labels == 0]
    between, within = torch.cdist(a, b).mean(), torch.cdist(a, a).mean() + torch.cdist(b, b).mean()
    return 2 * between - within


def energy_with_scikit_learn(x: torch.Tensor, labels: torch.Tensor) -> float:
    a, b = x[labels == 1].numpy(), x[labels == 0].numpy()
    within = pairwise_distances(a).mean() + pairwise_distances(b).mean()
    return 2 * pairwise_distances(a, b).mean() - within


def energy_with_keops(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from pykeops.torch import LazyTensor

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        distances = ((LazyTensor(a[:, None]) - LazyTensor(b[None])) ** 2).sum(-1).sqrt()
        return distances.sum(1).sum() / (len(a) * len(b))

    a, b = x[labels == 1].contiguous(), x[labels == 0].contiguous()
    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


ENERGY_PEERS: dict[str, tuple[Peer, str]] = {
    "geomloss": (energy_with_geomloss, "geomloss"),
    "torch.cdist": (energy_with_cdist, "torch"),
    "scikit-learn": (energy_with_scikit_learn, "sklearn"),
    "KeOps": (energy_with_keops, "pykeops"),
}


def energy(repeats: int) -> list[dict[str, Any]]:
    rows = []
    peers = Peers(ENERGY_PEERS)
    for N, D in ENERGY_SIZES:
        x, labels = two_classes(N, D)
        peers.at(x, labels)
        ours = partial(ops.energy_distance, x, labels, biased=True)
        truth = float(ops.energy_distance(x.double(), labels, biased=True, impl="reference"))
        results = {"safetyspace-fast": ours(), **peers.results}
        errors = {name: abs(float(value) / truth - 1) for name, value in results.items()}
        assert errors["safetyspace-fast"] < 1e-4, errors
        timings = harness.interleaved({"safetyspace-fast": ours, **peers.ran}, repeats)
        rows.append(peers.row(x, timings, errors))
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
            "bound": harness.read_everything(hidden_states),
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


BENCHMARKS = {
    "silhouette": silhouette,
    "energy": energy,
    "permutations": permutations,
    "pool": pool,
}


def table(title: str, row: dict[str, Any], ours: str, note: str) -> str:
    lines = [title]
    base = row["timings"][ours].median_s
    for name, t in row["timings"].items():
        error = f"  error {row['errors'][name]:.1e}" if name in row.get("errors", {}) else ""
        runs = "  (once)" if t.runs == 1 else f"  ({t.low_s * 1e3:.1f} .. {t.high_s * 1e3:.1f})"
        lines.append(
            f"  {name:<20} {t.median_s * 1e3:9.1f} ms{runs:<22}{t.median_s / base:7.2f} x{error}"
        )
    lines += [f"  {name:<20} {reason}" for name, reason in row.get("skipped", {}).items()]
    return "\n".join([*lines, f"  {note}"] if note else lines)


def text_of(report: dict[str, Any]) -> str:
    about = report["machine"]
    parts = [f"{about['cpu']}, {about['threads']} threads, {about['simd']}, torch {about['torch']}"]
    for row in report.get("silhouette", []):
        share = row["bound_s"] / row["timings"]["safetyspace-fast"].median_s
        note = (
            f"{share:.0%} of the faster half product ({row['bound_gflops']:.0f} GF/s), "
            f"{row['extra_memory_bytes'] / MIB:.0f} MiB extra memory"
        )
        title = f"silhouette, float32, N = {row['N']}, D = {row['D']}"
        parts.append(table(title, row, "safetyspace-fast", note))
    for row in report.get("energy", []):
        title = f"energy distance, float32, N = {row['N']}, D = {row['D']} (relative errors)"
        parts.append(table(title, row, "safetyspace-fast", ""))
    for row in report.get("permutations", []):
        title = f"permuted energy distance, float32, N = {row['N']}, D = {row['D']}"
        parts.append(table(title, row, "plain reduction", ""))
    for row in report.get("pool", []):
        rate = row["gbps"]
        note = (
            f"{rate['safetyspace-fast']:.1f} GB/s, "
            f"{rate['safetyspace-fast'] / rate['bound']:.0%} of the read bandwidth measured here"
        )
        title = f"pool_project, mean and last token, {row['dtype']}, {row['shape']}"
        parts.append(table(title, row, "safetyspace-fast", note))
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
