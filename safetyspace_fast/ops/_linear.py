"""Products with weights that were packed beforehand, for the CPU."""

import torch
from torch import Tensor

from . import _native

PANEL = 32
"""Output features that the compiled kernel takes together."""


def can_pack() -> bool:
    """Whether there is a kernel for packed weights: compiled, on a processor with AVX-512."""
    return _native.simd_level() == "avx512"


def pack_linear(weight: Tensor) -> Tensor:
    """Bring a weight into the order that `linear` reads.

    Args:
        weight: [N, K] float32.

    Returns:
        [N / 32 rounded up, K, 32] float32, zeros beyond N.
    """
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -len(weight) % PANEL))
    N, K = padded.shape
    return padded.view(N // PANEL, PANEL, K).transpose(1, 2).contiguous()


def unpack_linear(panels: Tensor, features: int) -> Tensor:
    """The weight [N, K] that `pack_linear` was given; `features` is N."""
    return panels.transpose(1, 2).flatten(0, 1)[:features].contiguous()


def linear(x: Tensor, panels: Tensor, bias: Tensor | None, features: int) -> Tensor:
    """`torch.nn.functional.linear` with a packed weight, without a gradient.

    Args:
        x: [..., K] float32.
        panels: what `pack_linear` returned.
        bias: [N] float32, or None.
        features: N.

    Returns:
        [..., N] float32. The rounding is that of MKL; the same over any number of threads.
    """
    found: Tensor = torch.ops.safetyspace_fast.linear(x, panels, bias, features)
    return found
