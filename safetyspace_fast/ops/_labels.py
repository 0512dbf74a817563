"""Sums of a matrix's columns over many choices of them, for the CPU."""

import torch
from torch import Tensor

from . import _native

LABELS = 64
"""The compiled kernel takes labellings by so many."""


def pack_labels(labels: Tensor) -> Tensor:
    """Bring labellings into the form that `label_sums` reads quickest.

    Args:
        labels: [R, n], one labelling a row, 0 or 1.

    Returns:
        [n / 32, R rounded up to 64] int32, bit i of word w: the label of sample 32 w + i; or, for
        processors without AVX-512, [n, R] float32.
    """
    if _native.simd_level() != "avx512":
        return labels.T.float().contiguous()
    number, n = labels.shape
    words = -(-n // 32)
    bits = torch.zeros(-(-number // LABELS) * LABELS, 32 * words, dtype=torch.uint8)
    bits[:number, :n] = labels
    weights = 1 << torch.arange(8, dtype=torch.uint8)
    # Sums of bytes' bits below 256, eight at a time: no wide copy of all labels.
    octets: Tensor = (bits.reshape(len(bits), -1, 8) * weights).sum(-1, dtype=torch.uint8)
    return octets.view(torch.int32).T.contiguous()


def label_sums(values: Tensor, packed: Tensor) -> Tensor:
    """Sum every row over the samples that a labelling marks with 1.

    Args:
        values: [M, n] float64, contiguous, rounded to float32.
        packed: what `pack_labels` returned.

    Returns:
        [M, R] float32; R may be rounded up, with zeros.
    """
    if packed.dtype == torch.float32:
        return values.float() @ packed
    found: Tensor = torch.ops.safetyspace_fast.label_sums(values, packed)
    return found
