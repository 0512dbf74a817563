"""Layers of a model on a CPU with AVX-512: products with packed weights, norms, attention.

Inference only, float32 only; kernels in `csrc/cpu/linear.cpp` and `attention.cpp`. They have no
reference: `models/fused.py` compares each layer with the one that it replaces.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from . import _native

PANEL = 32
"""Output features that the compiled kernel computes together."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}
"""Activations that `gated_linear` applies to the gates."""


def can_pack() -> bool:
    """Whether these kernels can run: the library is compiled and the processor has AVX-512."""
    return _native.simd_level() == "avx512"


def pack_linear(weight: Tensor) -> Tensor:
    """Pack a weight for `linear`.

    Args:
        weight: [N, K] float32.

    Returns:
        [N / 32 rounded up, K, 32] float32, zeros for features beyond N.
    """
    padded = functional.pad(weight, (0, 0, 0, -len(weight) % PANEL))
    N, K = padded.shape
    return padded.view(N // PANEL, PANEL, K).transpose(1, 2).contiguous()


def pack_gated(gate: Tensor, up: Tensor) -> Tensor:
    """Pack two weights for `gated_linear`.

    Args:
        gate, up: [N, K] float32.

    Returns:
        [2 * (N / 32 rounded up), K, 32] float32, panels of the two weights alternating.
    """
    return torch.stack([pack_linear(gate), pack_linear(up)], 1).flatten(0, 1)


def unpack_linear(panels: Tensor, features: int) -> Tensor:
    """Undo `pack_linear`: the weight [N, K]; `features` is N."""
    return panels.transpose(1, 2).flatten(0, 1)[:features].contiguous()


def linear(x: Tensor, panels: Tensor, bias: Tensor | None, features: int) -> Tensor:
    """`torch.nn.functional.linear` with a packed weight.

    Args:
        x: [..., K] float32.
        panels: result of `pack_linear`.
        bias: [N] float32, or None.
        features: N.

    Returns:
        [..., N] float32, as exact as MKL's product; bit-identical for any number of threads.
    """
    product: Tensor = torch.ops.safetyspace_fast.linear(x, panels, bias, features)
    return product


def gated_linear(x: Tensor, panels: Tensor, features: int, activation: str) -> Tensor:
    """`activation(x @ gate.T) * (x @ up.T)`.

    Args:
        x: [..., K] float32.
        panels: result of `pack_gated`.
        features: N.
        activation: one of `ACTIVATIONS`.

    Returns:
        [..., N] float32.
    """
    gated: Tensor = torch.ops.safetyspace_fast.gated_linear(x, panels, features, activation)
    return gated


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`torch.nn.functional.rms_norm` over the last dimension.

    Args:
        x: [..., D] float32.
        weight: [D] float32.
        epsilon: added to the mean square.

    Returns:
        [..., D] float32.
    """
    normed: Tensor = torch.ops.safetyspace_fast.rms_norm(x, weight, epsilon)
    return normed


def rotary_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    scaling: float,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    epsilon: float = 0.0,
    past_keys: Tensor | None = None,
    past_values: Tensor | None = None,
) -> Tensor:
    """Causal attention with rotary position embeddings (Su et al. 2021).

    With x and y the halves of a query or key, rotation gives x cos - y sin and y cos + x sin.
    Several query heads may share one head of keys and values (Ainslie et al. 2023).

    Args:
        qkv: [B, T, (num_heads + 2 num_kv_heads) dim] float32: queries, keys and values side by
            side.
        cos, sin: [1 or B, T, dim] float32, of the rotation angles.
        num_heads: heads of queries, a multiple of `num_kv_heads`.
        num_kv_heads: heads of keys and of values.
        scaling: factor of the products of queries and keys.
        q_norm, k_norm: [dim] float32, weights of root mean square norms of each head's queries and
            keys, applied before the rotation; or None.
        epsilon: of these norms.
        past_keys, past_values: [num_kv_heads, P, dim] float32, of tokens before every sample, keys
            already rotated; or None.

    Returns:
        [B, T, num_heads dim] float32.
    """
    mixed: Tensor = torch.ops.safetyspace_fast.rotary_attention(
        qkv, cos, sin, num_heads, num_kv_heads, scaling, q_norm, k_norm, epsilon,
        past_keys, past_values,
    )  # fmt: skip
    return mixed
