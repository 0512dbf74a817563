"""Block after block of the rows, with the kernels and the arithmetic of `pairwise_reduce`.

For a block of B new rows after N earlier ones, L layers, D dimensions: 6 * 2 L D B (N + B / 2)
flops on tensor cores, and 10 L D (N + B) bytes to split all rows again, which the products hide
from B = 64 on. Only tiles with a new row run.
"""

from torch import Tensor

from safetyspace_fast.errors import ConfigError
from safetyspace_fast.ops.triton.pairwise_reduce import add_pairs, reduction_reasons


def supports(
    x: Tensor,
    center: Tensor,
    labels: Tensor,
    start: int,
    metric: str,
    gammas: list[float],
    *_results: Tensor,
) -> list[str]:
    """Reasons why this implementation cannot take these arguments; empty if it can."""
    return reduction_reasons("x", x, gammas)


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
    """Add all pairs with a row from `start` on, in place and without synchronisation.

    x: [L, N, D] float32, bfloat16 or float16, any strides; center: [L, D] float64; labels: [N]
    int64; start: a multiple of PAIRWISE_BLOCK; sum, min, max, kernel_sum: of `pairwise_empty`, or
    the first N rows of that. Raises ConfigError on another layout.
    """
    results = {"sum": sum, "min": min, "max": max, "kernel_sum": kernel_sum}
    for name, result in results.items():
        pitch = sum.stride(0) // sum.shape[2] * result.shape[2:].numel()
        if result.numel() and (result.stride(0) != pitch or not result[0].is_contiguous()):
            raise ConfigError(
                f"{name}: expected the layout of pairwise_empty, got strides {result.stride()}"
            )
    add_pairs(x, None, center, labels, start, metric, gammas, tuple(results.values()))
