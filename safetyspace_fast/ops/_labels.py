"""Sums of a matrix's columns over many subsets of them, on the CPU (for label permutations)."""

import torch
from torch import Tensor

from . import _native

LABELS = 64
"""How many labellings the compiled kernel takes at a time."""


def pack_labels(labels: Tensor) -> Tensor:
    """Pack labellings for `label_sums`.

    Args:
        labels: [R, n], one labelling per row, 0 or 1.

    Returns:
        [n / 32, R rounded up to 64] int32, bit i of word w is the label of sample 32 w + i; on a
        GPU and on processors without AVX-512 [n, R] float32.
    """
    if labels.is_cuda or _native.simd_level() != "avx512":
        return labels.T.float().contiguous()
    number, n = labels.shape
    words = -(-n // 32)
    bits = torch.zeros(-(-number // LABELS) * LABELS, 32 * words, dtype=torch.uint8)
    bits[:number, :n] = labels
    weights = 1 << torch.arange(8, dtype=torch.uint8)
    # Eight bits sum to a byte, so the labels are never copied into a wider type.
    octets: Tensor = (bits.reshape(len(bits), -1, 8) * weights).sum(-1, dtype=torch.uint8)
    return octets.view(torch.int32).T.contiguous()


def label_sums(values: Tensor, packed: Tensor) -> Tensor:
    """Sum every row over the samples that each labelling marks with 1.

    Args:
        values: [M, n] float64, contiguous, rounded to float32.
        packed: result of `pack_labels`.

    Returns:
        [M, R] float32; where R is rounded up, the additional sums are 0.
    """
    if packed.dtype == torch.float32:
        return values.float() @ packed
    sums: Tensor = torch.ops.safetyspace_fast.label_sums(values, packed)
    return sums
