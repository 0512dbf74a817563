"""The operators in plain torch: their definition, the default kernels, and the oracle for tests.

Arguments are those of `_schema`, unchecked. Any device of torch will do.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PAIRWISE_BLOCK = 1024
"""Rows compared at a time; part of the contract of `pairwise_update`, so all kernels use it."""

NEAR = 1 / 64
"""Squared distances below this share of |a|^2 + |b|^2 are computed again from a - b in float64.

|a|^2 + |b|^2 - 2ab keeps about 1e-7 (|a|^2 + |b|^2) of error in float32; above this bound that is
at most 4e-6 of the distance, below it anything, and two equal rows would be 3e-4 |a| apart.
"""


def pool_project(
    hidden_states: Tensor, spans: Tensor, projection: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Average token ranges and project the averages.

    Args:
        hidden_states: [B, T, D] float32, bfloat16 or float16.
        spans: [B, S, 2] int32, half-open.
        projection: [D, P] float32, or None.

    Returns:
        pooled: [B, S, D] float32, and projected: [B, S, P] float32, P = 0 without a projection.
    """
    B, S, _ = spans.shape
    T, D = hidden_states.shape[1:]
    pooled = hidden_states.new_empty((B, S, D), dtype=torch.float32)
    pool_into(hidden_states, spans, pooled, T)
    if projection is None:
        return pooled, pooled.new_empty((B, S, 0))
    return pooled, pooled @ projection


def pool_into(hidden_states: Tensor, spans: Tensor, out: Tensor, longest: int) -> None:
    """Average token ranges into `out`; the arguments are those of `_schema`."""
    token = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    for s in range(spans.shape[1]):
        start, stop = spans[:, s, :1], spans[:, s, 1:]
        inside = (token >= start) & (token < stop)
        # `where`, not a product with 0 and 1: a NaN outside the span must not spread
        kept = torch.where(inside[..., None], hidden_states, 0)
        out[:, s] = kept.sum(1, dtype=torch.float32) / (stop - start).clamp(min=0)


def center_of(rows: Tensor, metric: str) -> Tensor:
    """A point near most rows: the median, by dimension, of 32 of the first block's rows.

    Distances do not depend on it; their rounding errors do. The median, because one text in a
    hundred may have a hidden state 1,000 times as long as the others, which would shift the mean.
    The first block, because later ones may not have been computed yet.

    Args:
        rows: [L, N, D], N >= 1.
        metric: of `ops.METRICS`.

    Returns:
        [L, D] float64.
    """
    first = rows[:, :PAIRWISE_BLOCK]
    sample = first[:, :: max(1, first.shape[1] // 32)].double()
    if metric == "cosine":
        sample = sample / sample.norm(dim=-1, keepdim=True)
    return sample.nanmedian(dim=1).values.nan_to_num(0.0)


class _Block(NamedTuple):
    """Rows in float64 (of length 1 for cosine), the same centred, and their squared norms."""

    scaled: Tensor
    centered: Tensor
    norms: Tensor


def _block(rows: Tensor, center: Tensor, metric: str) -> _Block:
    work = torch.float64 if rows.dtype == torch.float64 else torch.float32
    scaled = rows.double()
    if metric == "cosine":
        scaled = scaled / scaled.norm(dim=-1, keepdim=True)
    centered = (scaled - center).to(work)
    norms = centered.double().square().sum(-1)
    return _Block(scaled, centered, torch.where(norms.isfinite(), norms, torch.nan))


def _squared_distances(a: _Block, b: _Block) -> Tensor:
    norms = (a.norms[:, None] + b.norms).to(a.centered.dtype)
    squared = torch.addmm(norms, a.centered, b.centered.T, alpha=-2).clamp_(min=0)
    near = (squared < NEAR * norms).nonzero()
    for pairs in torch.split(near, max(1, 2**20 // a.scaled.shape[1])):
        i, j = pairs.unbind(1)
        squared[i, j] = (a.scaled[i] - b.scaled[j]).square_().sum(-1).to(squared.dtype)
    return squared


def _add_tile(
    squared: Tensor,
    labels: Tensor,
    metric: str,
    gammas: list[float],
    results: tuple[Tensor, ...],
    *,
    diagonal: bool = False,
) -> None:
    """Add a tile's columns, of classes `labels`, to the results of its rows."""
    total, low, high, kernel_total = results
    kernels = [_values(squared, metric, gamma) for gamma in gammas]
    distances = _values(squared, metric, None)

    def without_diagonal(tile: Tensor, value: float) -> Tensor:
        return tile.fill_diagonal_(value) if diagonal else tile

    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero()[:, 0]

        def of_class(tile: Tensor, value: float, members: Tensor = members) -> Tensor:
            return without_diagonal(tile, value).index_select(1, members)

        total[:, label] += of_class(distances, 0.0).sum(1, dtype=torch.float64)
        smallest = of_class(distances, torch.inf).amin(1).float()
        low[:, label] = torch.minimum(low[:, label], smallest)
        largest = of_class(distances, -torch.inf).amax(1).float()
        high[:, label] = torch.maximum(high[:, label], largest)
        for g, kernel in enumerate(kernels):
            kernel_total[:, label, g] += of_class(kernel, 0.0).sum(1, dtype=torch.float64)


def pairwise_empty(
    like: Tensor, num_rows: int, num_classes: int, num_gammas: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Results without any pair: sums 0, minimum inf, maximum -inf."""
    shape = (like.shape[0], num_rows, num_classes)
    return (
        like.new_zeros(shape, dtype=torch.float64),
        like.new_full(shape, torch.inf, dtype=torch.float32),
        like.new_full(shape, -torch.inf, dtype=torch.float32),
        like.new_zeros((*shape, num_gammas), dtype=torch.float64),
    )


def pairwise_update(
    x: Tensor,
    center: Tensor,
    labels: Tensor,
    start: int,
    metric: str,
    gammas: list[float],
    sum: Tensor,
    min: Tensor,
    max: Tensor,
    kernel_sum: Tensor,
) -> None:
    """Add every pair of `x` with a row at or after `start`, in place; each tile serves both rows.

    Blocks are added to a row in ascending order, however calls divide them, so block by block and
    all at once are bit-identical.

    Args:
        x: [L, N, D].
        center: [L, D] float64.
        labels: [N] int64.
        start: first new row, a multiple of PAIRWISE_BLOCK.
        metric: of `ops.METRICS`.
        gammas: of the kernels.
        sum, min, max, kernel_sum: as `pairwise_reduce` returns them, for the N rows.
    """
    N = x.shape[1]
    blocks = [slice(i, i + PAIRWISE_BLOCK) for i in range(0, N, PAIRWISE_BLOCK)]
    for layer in range(x.shape[0]):
        results = tuple(t[layer] for t in (sum, min, max, kernel_sum))
        for i in range(start // PAIRWISE_BLOCK, len(blocks)):
            rows = _block(x[layer, blocks[i]], center[layer], metric)
            of_rows = tuple(t[blocks[i]] for t in results)
            for j in range(i):
                cols = _block(x[layer, blocks[j]], center[layer], metric)
                squared = _squared_distances(rows, cols)
                _add_tile(squared, labels[blocks[j]], metric, gammas, of_rows)
                of_cols = tuple(t[blocks[j]] for t in results)
                _add_tile(squared.T, labels[blocks[i]], metric, gammas, of_cols)
            squared = _squared_distances(rows, rows)
            _add_tile(squared, labels[blocks[i]], metric, gammas, of_rows, diagonal=True)


def pairwise_reduce(
    rows: Tensor,
    cols: Tensor | None,
    center: Tensor,
    col_labels: Tensor,
    num_classes: int,
    metric: str,
    gammas: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, smallest and largest distance from every row to the columns of each class.

    Args:
        rows: [L, M, D].
        cols: [L, N, D], or None for the rows themselves without the diagonal.
        center: [L, D] float64.
        col_labels: [N] int64.
        num_classes: C.
        metric: of `ops.METRICS`.
        gammas: of the kernels, G numbers.

    Returns:
        sum: [L, M, C] float64; min, max: [L, M, C] float32; kernel_sum: [L, M, C, G] float64.
    """
    results = pairwise_empty(rows, rows.shape[1], num_classes, len(gammas))
    if cols is None:
        pairwise_update(rows, center, col_labels, 0, metric, gammas, *results)
        return results
    for layer in range(rows.shape[0]):
        for i in range(0, rows.shape[1], PAIRWISE_BLOCK):
            block = slice(i, i + PAIRWISE_BLOCK)
            a = _block(rows[layer, block], center[layer], metric)
            of_rows = tuple(t[layer, block] for t in results)
            for j in range(0, cols.shape[1], PAIRWISE_BLOCK):
                others = slice(j, j + PAIRWISE_BLOCK)
                b = _block(cols[layer, others], center[layer], metric)
                squared = _squared_distances(a, b)
                _add_tile(squared, col_labels[others], metric, gammas, of_rows)
    return results


def pairwise_within(
    x: Tensor, center: Tensor, masks: Tensor, metric: str, gamma: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum the values of all pairs within each mask, for many masks in one pass over the distances.

    The value of a pair is its distance d or, with gamma, exp(-gamma d^2).

    Args:
        x: [L, N, D].
        center: [L, D] float64.
        masks: [N, R] float32 of 0 and 1.
        metric: of `ops.METRICS`.
        gamma: [L] float64, or None.
        shift: [L] float32, a typical value; subtracted before float32 products, it keeps the
            digits in which pairs differ.

    Returns:
        total: [L, N] float64, sum of each sample's values with all others; within: [L, R] float64,
        sum of value - shift over the pairs i < j with both samples in the mask.
    """
    L, N, _ = x.shape
    total = x.new_zeros((L, N), dtype=torch.float64)
    within = x.new_zeros((L, masks.shape[1]), dtype=torch.float64)
    for layer in range(L):
        decay = None if gamma is None else float(gamma[layer])
        for i in range(0, N, PAIRWISE_BLOCK):
            block = slice(i, i + PAIRWISE_BLOCK)
            rows = _block(x[layer, block], center[layer], metric)
            for j in range(0, i + 1, PAIRWISE_BLOCK):
                others = slice(j, j + PAIRWISE_BLOCK)
                cols = rows if i == j else _block(x[layer, others], center[layer], metric)
                squared = _squared_distances(rows, cols)
                values = _values(squared, metric, decay)
                if i == j:
                    values = values.tril(-1)
                total[layer, block] += values.sum(1, dtype=torch.float64)
                total[layer, others] += values.sum(0, dtype=torch.float64)
                values = (values - shift[layer]).to(masks.dtype)
                if i == j:
                    values = values.tril(-1)
                products = masks[block] * (values @ masks[others])
                within[layer] += products.sum(0, dtype=torch.float64)
    return total, within


def _values(squared: Tensor, metric: str, gamma: float | None) -> Tensor:
    if gamma is not None:
        return (squared * -gamma).exp()
    return squared.sqrt() if metric == "euclidean" else squared / (2 if metric == "cosine" else 1)
