"""Distances from every row to the columns of each class: reduced on the way, never stored."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from . import _select, reference

METRICS = ("euclidean", "sqeuclidean", "cosine")
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class PairwiseResult(NamedTuple):
    """Distances from each of M rows to the columns of each of C classes, summarised.

    sum: [M, C] float64, sum of distances; 0 for a class without columns.
    min: [M, C] float32, smallest distance; inf for a class without columns.
    max: [M, C] float32, largest distance; -inf for a class without columns.
    kernel_sum: [M, C, G] float64, sum of exp(-gamma d^2) with d the Euclidean distance; None
        without gammas.

    For rows of shape [L, M, D] every field has a leading dimension L.
    """

    sum: Tensor
    min: Tensor
    max: Tensor
    kernel_sum: Tensor | None


def pairwise_reduce(
    rows: Tensor,
    cols: Tensor,
    col_labels: Tensor,
    num_classes: int,
    *,
    metric: str = "euclidean",
    gammas: Sequence[float] | None = None,
    impl: str | None = None,
) -> PairwiseResult:
    """Sum, smallest and largest distance from every row to the columns of each class.

    No [M, N] matrix is stored. Distances are computed in float32 (float64 for float64 input) with a
    relative error below 1e-5, whatever the data's offset: rows are centred first, and pairs of near
    rows are computed again in float64. Values between 1e-15 and 1e15 are in range. A value that is
    not finite makes NaN of its row's results, and of every row's results for its class: leave such
    rows out first.

    Args:
        rows: [M, D] or [L, M, D] float32, bfloat16, float16 or float64.
        cols: [N, D] or [L, N, D], same dtype. If `cols is rows`, the distance of a row to itself is
            left out, and half the work is done.
        col_labels: [N] int64, in 0 .. num_classes - 1.
        num_classes: C.
        metric: "euclidean", "sqeuclidean" or "cosine" (1 - cosine; a zero row gives NaN).
        gammas: also sum RBF kernels exp(-gamma d^2), one for each gamma; not with "cosine".
        impl: the implementation to use; None: the fastest that supports the arguments.

    Raises:
        ConfigError: wrong tensors (labels are checked on the CPU only: elsewhere that would wait
            for the device).
        ImplementationError: `impl` cannot be used; the message lists the reasons.
    """
    gammas = validate(rows, cols, col_labels, num_classes, metric, gammas)
    batched = rows.ndim == 3
    others = None if cols is rows else cols if batched else cols[None]
    rows = rows if batched else rows[None]
    origin = center(rows if others is None else others, metric)
    args = (rows, others, origin, col_labels.long(), num_classes, metric, gammas)
    total, low, high, kernel_total = _select.choose("pairwise_reduce", impl, *args)(*args)
    result = PairwiseResult(total, low, high, kernel_total if gammas else None)
    return result if batched else _first_layer(result)


def pairwise_empty(
    num_rows: int,
    num_classes: int,
    *,
    num_gammas: int = 0,
    num_layers: int | None = None,
    device: torch.device | str = "cpu",
) -> PairwiseResult:
    """Results without any pair, for `pairwise_update` to add to."""
    like = torch.empty((num_layers or 1, 0), device=device)
    total, low, high, kernels = reference.pairwise_empty(like, num_rows, num_classes, num_gammas)
    result = PairwiseResult(total, low, high, kernels if num_gammas else None)
    return result if num_layers is not None else _first_layer(result)


def pairwise_update(
    result: PairwiseResult,
    x: Tensor,
    labels: Tensor,
    start: int,
    *,
    metric: str = "euclidean",
    gammas: Sequence[float] | None = None,
    impl: str | None = None,
) -> None:
    """Add new rows to a result, in place: their pairs with all earlier rows and with each other.

    Calls for one block of rows after the other give bit-identical results to one
    `pairwise_reduce(x, x, ...)` on all rows.

    Args:
        result: from `pairwise_empty` with room for at least N rows, and from earlier calls; rows
            from N on stay as they are.
        x: [N, D] or [L, N, D], all rows so far.
        labels: [N] int64.
        start: first new row, a multiple of PAIRWISE_BLOCK; only the last block may be shorter.
        metric, gammas, impl: as in `pairwise_reduce`, the same at every call.

    Raises:
        ConfigError, ImplementationError: as in `pairwise_reduce`.
    """
    num_classes = result.sum.shape[-1]
    gammas = validate(x, x, labels, num_classes, metric, gammas)
    N = x.shape[-2]
    if start % reference.PAIRWISE_BLOCK or not 0 <= start <= N:
        raise ConfigError(
            f"start: expected a multiple of {reference.PAIRWISE_BLOCK} up to {N}, got {start}"
        )
    lead = list(x.shape[:-2])
    if list(result.sum.shape[:-2]) != lead or result.sum.shape[-2] < N:
        raise ConfigError(
            f"result: expected sums of shape {[*lead, f'>= {N}', num_classes]}, "
            f"got {list(result.sum.shape)}"
        )
    num_gammas = 0 if result.kernel_sum is None else result.kernel_sum.shape[-1]
    if num_gammas != len(gammas):
        raise ConfigError(f"gammas: expected {num_gammas} as in result, got {len(gammas)}")
    if start == N:
        return
    kernel_sum = result.kernel_sum
    if kernel_sum is None:
        kernel_sum = result.sum.new_empty((*result.sum.shape, 0))
    state = tuple(t if lead else t[None] for t in (*result[:3], kernel_sum))
    x = x if lead else x[None]
    args = (x, center(x, metric), labels.long(), start, metric, gammas)
    _select.choose("pairwise_update", impl, *args)(*args, *(t[:, :N] for t in state))


def center(rows: Tensor, metric: str) -> Tensor:
    """`reference.center_of`; zeros if there are no rows."""
    if rows.shape[1] == 0:
        return rows.new_zeros((rows.shape[0], rows.shape[2]), dtype=torch.float64)
    return reference.center_of(rows, metric)


def _first_layer(result: PairwiseResult) -> PairwiseResult:
    kernel_sum = None if result.kernel_sum is None else result.kernel_sum[0]
    return PairwiseResult(result.sum[0], result.min[0], result.max[0], kernel_sum)


def validate(
    rows: Tensor,
    cols: Tensor,
    labels: Tensor,
    num_classes: int,
    metric: str,
    gammas: Sequence[float] | None,
) -> list[float]:
    """Check the arguments of `pairwise_reduce`, and return the gammas as a list of floats."""
    for name, tensor in (("cols", cols), ("labels", labels)):
        if tensor.device != rows.device:
            raise ConfigError(f"{name}: on {tensor.device}, but rows are on {rows.device}; move it")
    if rows.dtype not in _FLOATS:
        raise ConfigError(f"rows: expected a floating-point type, got {rows.dtype}")
    if cols.dtype != rows.dtype:
        raise ConfigError(f"cols: expected {rows.dtype} as rows, got {cols.dtype}")
    if labels.dtype not in (torch.int64, torch.int32):
        raise ConfigError(f"labels: expected int64, got {labels.dtype}; use .long()")
    if rows.ndim not in (2, 3):
        raise ConfigError(f"rows: expected shape [M, D] or [L, M, D], got {list(rows.shape)}")
    D = rows.shape[-1]
    if cols.ndim != rows.ndim or cols.shape[-1] != D or cols.shape[:-2] != rows.shape[:-2]:
        expected = [*rows.shape[:-2], "N", D]
        raise ConfigError(f"cols: expected shape {expected} as rows, got {list(cols.shape)}")
    if D == 0:
        raise ConfigError("rows: expected at least one dimension, got D = 0")
    if list(labels.shape) != [cols.shape[-2]]:
        raise ConfigError(f"labels: expected shape [{cols.shape[-2]}], got {list(labels.shape)}")
    if num_classes < 1:
        raise ConfigError(f"num_classes: expected at least 1, got {num_classes}")
    if metric not in METRICS:
        raise ConfigError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    values = [float(gamma) for gamma in gammas or ()]
    if values and metric == "cosine":
        raise ConfigError("gammas: not with metric='cosine'; use 'euclidean' on unit rows")
    if not all(0 <= gamma < float("inf") for gamma in values):
        raise ConfigError(f"gammas: expected finite numbers >= 0, got {values}")
    if labels.device.type == "cpu" and labels.numel():
        low, high = (int(limit) for limit in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ConfigError(f"labels: expected 0 .. {num_classes - 1}, got {low} .. {high}")
    return values
