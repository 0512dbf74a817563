"""Statistics of a language, computed when all its pooled states are on disk."""

import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import NUM_FOLDS
from ..models import memory_errors
from ..ops import pairwise_reduce, written
from ..store import Run
from ..store.layout import COMPONENTS, Array
from ..threads import in_parallel
from .chance import Chance
from .equal_length import at_equal_length

Cell = dict[str, torch.Tensor]
STREAMS = 2
"""Cells at a time on a GPU: one computes while the other one's small steps wait for the host."""


@dataclass(frozen=True)
class Basis:
    """What a language's states in another model, of the same hidden size, were made into.

    components: [.., K, D]; fold_mean: [.., 2, F, D], NaN where a fold has no sample; count:
    [.., 2, F], samples in each mean; foreign: whether the model is in another store, with other
    texts, so that no fold is left out of its direction.
    """

    components: torch.Tensor
    fold_mean: torch.Tensor
    count: torch.Tensor
    foreign: bool = False

    @classmethod
    def read(cls, run: Run, model: str, lang: str, *, foreign: bool = False) -> "Basis":
        """Of all layers and poolings of a finished model.

        Args:
            run: its store.
            model: its name.
            lang: if a foreign store does not have the language, nothing of it is known: all is NaN.
            foreign: see the class.
        """
        known = lang in run.languages
        i_lang = run.languages.index(lang) if known else 0
        names = ("pca_components", "fold_mean", "count")
        store = run.model(model)
        parts = (torch.from_numpy(store.read(name, lang=i_lang)).double() for name in names)
        components, fold_mean, count = (part if known else part * torch.nan for part in parts)
        return cls(components, fold_mean, count, foreign)

    def cell(self, i_layer: int, i_pooling: int, device: torch.device) -> "Basis":
        """Of one layer and pooling."""
        components, fold_mean, count = (
            part[i_layer, i_pooling].to(device)
            for part in (self.components, self.fold_mean, self.count)
        )
        return Basis(components, fold_mean, count, self.foreign)

    def express(
        self, centred: torch.Tensor, fold: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States in these components, and along the directions of the other folds (or of all).

        A language that an earlier version computed has no fold means, and components that are too
        coarse: then both are NaN.

        Args:
            centred: `[n, D] float64` with zero column means; fold: `[n] int64`.

        Returns:
            `[n, K]` and `[n]`, float32.
        """
        known = 1.0 if bool(self.fold_mean.isfinite().any()) else torch.nan
        total = self.fold_mean.nan_to_num(0.0) * self.count[..., None]
        without = 0.0 if self.foreign else 1.0
        left = (self.count.sum(1, keepdim=True) - without * self.count)[..., None]
        others = (total.sum(1, keepdim=True) - without * total) / left
        direction = torch.nn.functional.normalize(others[1] - others[0], dim=1)
        score = (centred @ direction.T).gather(1, fold[:, None])[:, 0]
        return (centred @ self.components.T * known).float(), (score * known).float()


@memory_errors()
def finish_language(
    states: Callable[[int, int], torch.Tensor],
    chance: Chance,
    grid: tuple[int, int],
    labels: NDArray[np.int8],
    folds: NDArray[np.int8],
    tokens: NDArray[np.int32],
    hidden_size: int,
    same: Sequence[int],
    device: torch.device,
    impl: str | None = None,
    bases: Sequence[Basis] = (),
) -> dict[str, Array]:
    """Compute all arrays of one language, several cells at a time.

    Args:
        states: returns the pooled and projected states `[n, D + P]` of a layer and pooling, on the
            CPU.
        chance: the units and labellings of the language.
        grid: numbers of layers and poolings.
        labels: `[n]`, 0 or 1.
        folds: `[n]`, below `NUM_FOLDS`.
        tokens: `[n]`, tokens of each text.
        hidden_size: D.
        same: for each pooling, the first over the same tokens, whose arrays it shares.
        device: where to compute.
        impl: implementation of kernels that have it; None: the fastest that works here.
        bases: of other models.

    Returns:
        By name, each `[layer, pooling, ..]`: the arrays of `finish_cell`, `Chance.of_cell`,
        `at_equal_length` and `dominance`; `projected [n, P]`; and `count [2, 10]` and
        `mean [2, 10, P]` of it, by label and fold.

    Raises:
        torch.OutOfMemoryError: the device's memory is too small for one cell.
    """
    label, fold = (torch.from_numpy(x.astype(np.int64)).to(device) for x in (labels, folds))
    unit, n_tokens = chance.unit.to(device), torch.from_numpy(tokens).to(device)
    i_cell = labels.astype(np.int64) * NUM_FOLDS + folds
    result: dict[str, Array] = {}

    def finish(i_layer: int, i_pooling: int) -> None:
        rows = states(i_layer, i_pooling)
        pooled = rows.to(device, non_blocking=True)[:, :hidden_size]
        others = [basis.cell(i_layer, i_pooling, device) for basis in bases]
        kept = chance.counted(pooled)
        cell = finish_cell(pooled, label, fold, impl, others)
        cell |= chance.of_cell(pooled, kept, cell["pair_sum"])
        cell |= at_equal_length(pooled, label, fold, unit, n_tokens, kept.to(device))
        arrays = {name: tensor.cpu().numpy() for name, tensor in cell.items()}
        arrays["projected"] = rows[:, hidden_size:].numpy().copy()
        arrays |= _fold_means(arrays["projected"], i_cell)
        arrays |= dominance(arrays, tokens)
        for name, array in arrays.items():
            empty = np.empty((*grid, *array.shape), array.dtype)
            result.setdefault(name, empty)[i_layer, i_pooling] = array

    if bases:  # which may have read other tokens
        same = range(grid[1])
    cells = [cell for cell in np.ndindex(grid) if same[cell[1]] == cell[1]]
    in_parallel(finish, cells) if device.type == "cpu" else on_streams(finish, cells, device)
    for i_pooling, first in enumerate(same):
        if first != i_pooling:
            for array in result.values():
                array[:, i_pooling] = array[:, first]
    return result


def on_streams(
    work: Callable[[int, int], None],
    jobs: Sequence[tuple[int, int]],
    device: torch.device,
    cuda: Any = torch.cuda,
) -> None:
    """Run independent jobs on a GPU: on `STREAMS` threads, each on a stream of its own.

    The first job runs alone, so that each kernel is compiled once. A job that runs out of memory
    beside another one runs again alone. Streams are the same in all calls, since cuBLAS keeps
    memory for each one that it ever saw (32 MiB on an H100).

    Args:
        work: called with the arguments of each job.
        jobs: the arguments of each job.
        device: the GPU.
        cuda: the module with streams; tests replace it (hence Any).
    """
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for stream in _streams(device, cuda):
        free.put(stream)
    again: list[tuple[int, int]] = []

    def on_a_stream(*job: int) -> None:
        stream = free.get()
        try:
            with memory_errors(), cuda.stream(stream):
                work(*job)
                stream.synchronize()  # what the job allocated is free for all streams
        finally:
            free.put(stream)

    def attempt(job: tuple[int, int]) -> None:
        try:
            on_a_stream(*job)
        except torch.OutOfMemoryError:
            again.append(job)

    for job in jobs[:1]:
        on_a_stream(*job)
    with ThreadPoolExecutor(STREAMS) as pool:
        tasks = [pool.submit(attempt, job) for job in jobs[1:]]
        try:
            for task in as_completed(tasks):
                task.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if again:
        cuda.empty_cache()
    for job in again:
        on_a_stream(*job)


@cache
def _streams(device: torch.device, cuda: Any) -> list[Any]:
    return [cuda.Stream(device) for _ in range(STREAMS)]


def _fold_means(projected: NDArray[np.float32], i_cell: NDArray[np.int64]) -> dict[str, Array]:
    """Counts and means by label and fold; a mean of no sample is NaN."""
    n_cells = 2 * NUM_FOLDS
    keep = np.isfinite(projected).all(1)
    count = np.bincount(i_cell[keep], minlength=n_cells)
    total = np.zeros((n_cells, projected.shape[1]))
    np.add.at(total, i_cell[keep], projected[keep].astype(np.float64))
    with np.errstate(invalid="ignore"):
        mean = total / count[:, None]
    return {"count": count.reshape(2, -1), "mean": mean.reshape(2, NUM_FOLDS, -1)}


def dominance(cell: Mapping[str, Array], tokens: NDArray[np.int32]) -> dict[str, Array]:
    """Whether one dimension, or the number of tokens, rules the states of a cell.

    Args:
        cell: `count [2, 10]`, `class_mean`, `class_var` `[2, D]`, `pca_coords [n, K]`.
        tokens: `[n]`, tokens of each text.

    Returns:
        Numbers, each `[] float64`: `largest_share` of the total variance in one dimension, and
        `largest_dim`, its index; `pc1_tokens` and `pc1_inverse_tokens`, Pearson correlations of the
        first component with the number of tokens and its inverse. NaN where nothing varies.
    """
    count = cell["count"].sum(1, keepdims=True)
    shift = cell["class_mean"][1] - cell["class_mean"][0]
    within = np.nan_to_num((count - 1) * cell["class_var"]).sum(0)  # a class may have no texts
    squares = within + np.nan_to_num(count.prod() / max(1, count.sum()) * shift**2)
    total, largest = squares.sum(), int(squares.argmax())
    known = total > 0
    first = cell["pca_coords"][:, 0].astype(np.float64)
    keep = np.isfinite(first) & (tokens > 0)
    of_tokens = tokens[keep].astype(np.float64)
    numbers = {
        "largest_share": squares[largest] / total if known else np.nan,
        "largest_dim": largest if known else np.nan,
        "pc1_tokens": _correlation(first[keep], of_tokens),
        "pc1_inverse_tokens": _correlation(first[keep], 1 / of_tokens),
    }
    return {name: np.asarray(value, np.float64) for name, value in numbers.items()}


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Pearson's correlation of two columns `[n]`; NaN if one of them does not vary."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return np.nan
    one, other = one - one.mean(), other - other.mean()
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def finish_cell(
    states: torch.Tensor,
    labels: torch.Tensor,
    folds: torch.Tensor,
    impl: str | None = None,
    bases: Sequence[Basis] = (),
) -> Cell:
    """Compute what the store keeps of one cell: a layer, pooling and language.

    A sample with a state that is not finite counts in no sum, and its own rows are NaN.

    Args:
        states: `[n, D] float32`, pooled states.
        labels: `[n] int64`, 0 or 1.
        folds: `[n] int64`, below `NUM_FOLDS`.
        impl: implementation of kernels that have it; None: the fastest that works here.
        bases: of B other models.

    Returns:
        By sample `pca_coords [n, K]`, `pair_sum`, `pair_min`, `pair_max`, `cos_sum`, `class_sqdist`
        `[n, 2]`, `heldout_score [n]`, and with bases `basis_coords [n, B, K]`, `basis_score
        [n, B]`; and `pca_explained [K]`, `pca_components [K, D]` (float32), `class_mean`,
        `class_var` `[2, D]` (float64), `fold_mean [2, 10, D]` (float32), NaN where a fold has no
        sample. K is `COMPONENTS`; components beyond the rank of the data are zero.
    """
    n, width = states.shape
    keep = states.isfinite().all(1)
    x, y, fold = states[keep], labels[keep], folds[keep]
    euclidean = pairwise_reduce(x, x, y, 2, impl=written("pairwise_reduce", impl))
    member = torch.zeros(2 * NUM_FOLDS, len(x), dtype=torch.float64, device=x.device)
    member[y * NUM_FOLDS + fold, torch.arange(len(x), device=x.device)] = 1
    of_class = member.view(2, NUM_FOLDS, -1).sum(1)
    fold_count = member.sum(1).view(2, NUM_FOLDS, 1)
    count = fold_count.sum(1)
    wide = x.double()
    del x  # here and below: several cells at a time are the peak of a run's memory

    # Cosine distances need no pairs: over a class they sum to n - u . (sum of the class's u).
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    inverse = torch.where(norm > 0, 1 / norm, 0)
    alike = inverse * (wide @ ((of_class * inverse.T) @ wide).T)
    itself = of_class.T * (norm == 0)  # a zero vector has distance 1 from itself too
    cosine = (count.T - alike - itself).clamp_min(0)

    centre = wide.mean(0)
    centred = wide.sub_(centre)
    fold_sum = (member @ centred).view(2, NUM_FOLDS, width)
    total = fold_sum.sum(1)
    means = total / count
    squares = centred.square()
    variances = (of_class @ squares - count * means.square()).clamp_min(0) / (count - 1)
    sqdist = squares.sum(1)[:, None] - 2 * (centred @ means.T) + means.square().sum(1)
    sqdist = sqdist.clamp_min(0)
    del squares

    others = (total[:, None] - fold_sum) / (count[:, None] - fold_count)  # means without the fold
    direction = torch.nn.functional.normalize(others[1] - others[0], dim=1)
    midpoint = (direction * others.sum(0)).sum(1) / 2
    heldout = (centred @ direction.T - midpoint).gather(1, fold[:, None])[:, 0]
    variance, components = principal_components(centred, COMPONENTS)

    def rows(values: torch.Tensor) -> torch.Tensor:
        full = values.new_full((n, *values.shape[1:]), torch.nan)
        full[keep] = values
        return full

    seen = [basis.express(centred, fold) for basis in bases]
    expressed = {}
    if seen:
        expressed = {
            "basis_coords": rows(torch.stack([coords for coords, _ in seen], 1)),
            "basis_score": rows(torch.stack([score for _, score in seen], 1)),
        }
    return expressed | {
        "pca_coords": rows((centred @ components.T).float()),
        "pair_sum": rows(euclidean.sum),
        "pair_min": rows(euclidean.min),
        "pair_max": rows(euclidean.max),
        "cos_sum": rows(cosine),
        "class_sqdist": rows(sqdist),
        "heldout_score": rows(heldout.float()),
        "pca_explained": variance,
        "pca_components": components.float(),
        "class_mean": means + centre,
        "fold_mean": (fold_sum / fold_count).float(),
        "class_var": variances,
    }


def principal_components(centred: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The leading principal components, more exact than float32.

    Block Krylov iteration with full reorthogonalisation on the smaller of the covariance and the
    Gram matrix (Golub and Van Loan, 4th ed., 10.3). If a residual exceeds 1e-8 of its eigenvalue,
    a full eigendecomposition takes its place.

    Args:
        centred: `[n, D] float64` with zero column means.
        k: number of components.

    Returns:
        Variances `[k]` (ddof 1) and components `[k, D]`: orthonormal rows, the largest entry of
        each positive. Those beyond the rank of the data are zero.
    """
    n, width = centred.shape
    variance, components = centred.new_zeros(k), centred.new_zeros(k, width)
    if n < 2:
        return variance, components
    wide = width > n
    matrix = centred @ centred.T if wide else centred.T @ centred
    values, vectors = _leading(matrix, min(k, len(matrix)))
    floor = values.amax().clamp_min(torch.finfo(torch.float64).tiny) * 1e-14 * len(matrix)
    real = values > floor
    if wide:
        vectors = centred.T @ vectors / values.clamp_min(floor).sqrt()
    vectors = vectors * real
    peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * torch.where(peak < 0, -1.0, 1.0)
    variance[: len(values)] = torch.where(real, values, 0) / (n - 1)
    components[: len(values)] = vectors.T
    return variance, components


def _leading(matrix: torch.Tensor, k: int, block: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` largest eigenvalues of a positive semidefinite matrix, and their eigenvectors.

    Up to `block` equal eigenvalues are found.
    """
    n = len(matrix)
    generator = torch.Generator().manual_seed(0)
    newest = torch.randn(n, block, generator=generator, dtype=matrix.dtype).to(matrix.device)
    basis, image = matrix.new_empty(n, n // 2), matrix.new_empty(n, n // 2)  # image: matrix @ basis
    due = 12 * block  # few spectra converge earlier; then look after every third block
    columns = basis.shape[1] if basis.shape[1] >= due else 0  # a small matrix is not worth it
    for m in range(block, columns + 1, block):
        known = basis[:, : m - block]
        for _ in range(2):  # once leaves rounding behind
            newest = newest - known @ (known.T @ newest)
        basis[:, m - block : m] = orthonormal(newest)
        image[:, m - block : m] = newest = matrix @ basis[:, m - block : m]
        if m < due:
            continue
        due += 3 * block
        values, rotation = torch.linalg.eigh((basis[:, :m].T @ image[:, :m]).cpu())  # a small one
        values, rotation = values.to(matrix.device), rotation.to(matrix.device)
        values, rotation = values.flip(0)[:k], rotation.flip(1)[:, :k]
        vectors = basis[:, :m] @ rotation
        residual = torch.linalg.vector_norm(image[:, :m] @ rotation - vectors * values, dim=0)
        if bool((residual <= 1e-8 * values).all()):
            return values, vectors
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


def orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span those of [n, k] float64, for k much smaller than n."""
    if columns.device.type != "cpu":
        return cholesky_qr(columns)
    q: torch.Tensor = torch.linalg.qr(columns)[0]
    return q


def cholesky_qr(columns: torch.Tensor) -> torch.Tensor:
    """The same by products: on a GPU a QR decomposition is a chain of hundreds of small steps.

    The Gram matrix [k, k] is factorised on the CPU, and all is done twice (CholeskyQR2: Yamamoto et
    al. 2015), which is exact to rounding up to a condition number of 1e8. Beyond that the
    factorisation breaks down, and a QR decomposition takes its place.
    """
    exact = columns
    columns = columns / torch.linalg.vector_norm(columns, dim=0)
    for _ in range(2):
        factor, broken = torch.linalg.cholesky_ex((columns.T @ columns).cpu())
        if broken or not factor.isfinite().all():
            q: torch.Tensor = torch.linalg.qr(exact)[0]
            return q
        one = torch.eye(len(factor), dtype=factor.dtype)
        inverse = torch.linalg.solve_triangular(factor, one, upper=False)
        columns = columns @ inverse.T.to(columns.device)
    return columns


def merge_bases(
    counts: NDArray[np.int64],
    class_mean: NDArray[np.float64],
    variances: NDArray[np.float64],
    components: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Merge the components of languages into one basis, for each layer and pooling.

    Args:
        counts: `[L, S, C, 2]`, samples of each of C languages by label.
        class_mean: `[L, S, C, 2, D]`.
        variances: `[L, S, C, K]`, of each language's own components.
        components: `[L, S, C, K, D]`.

    Returns:
        `[L, S, D, K]`, see `merge_cell_bases`.
    """
    # A language without a finite state has a centre of NaN and a count of 0.
    total = np.nan_to_num(counts[..., None] * class_mean).sum(3)
    of_lang = counts.sum(3)
    centres = total / np.maximum(of_lang, 1)[..., None]
    *grid, _, k, width = components.shape
    basis = np.empty((*grid, width, k), np.float32)
    for cell in np.ndindex(*grid):
        parts = (torch.from_numpy(x[cell]) for x in (centres, variances, components))
        basis[cell] = merge_cell_bases(of_lang[cell].tolist(), *parts).numpy()
    return basis


def merge_cell_bases(
    counts: list[int], centres: torch.Tensor, variances: torch.Tensor, components: torch.Tensor
) -> torch.Tensor:
    """Merge the components of languages into one basis, for one layer and pooling.

    A language of n samples gives the rows `sqrt((n - 1) variance) * component` and one row
    `sqrt(n) (centre - grand centre)`. The SVD of all languages' rows is the PCA of all samples,
    but for what each language lost when its components were cut to K (distributed PCA: Liang et
    al. 2014).

    Args:
        counts: samples of each of C languages.
        centres: `[C, D] float64`, the mean of each language.
        variances: `[C, K] float64`, of each language's components.
        components: `[C, K, D]`.

    Returns:
        `[D, K] float32`: orthonormal columns, and columns of zeros beyond the rank of the data.
    """
    weights = torch.tensor(counts, dtype=torch.float64)
    grand = (weights[:, None] * centres).sum(0) / weights.sum().clamp_min(1)
    spread = ((weights - 1).clamp_min(0)[:, None] * variances).sqrt()[:, :, None] * components
    shift = weights.sqrt()[:, None] * (centres - grand)
    k, width = components.shape[1:]
    _, basis = principal_components(torch.cat([spread.reshape(-1, width), shift]).double(), k)
    return basis.T.float()
