"""Layers of a model on the CPU: products with packed weights, norms, attention. Inference only."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from . import _native

PANEL = 32
"""Output features that the compiled kernel takes together."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}
"""What `gated_linear` can do with the gates."""


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
    padded = functional.pad(weight, (0, 0, 0, -len(weight) % PANEL))
    N, K = padded.shape
    return padded.view(N // PANEL, PANEL, K).transpose(1, 2).contiguous()


def pack_gated(gate: Tensor, up: Tensor) -> Tensor:
    """Bring two weights into the order that `gated_linear` reads.

    Args:
        gate, up: [N, K] float32.

    Returns:
        [2 * (N / 32 rounded up), K, 32] float32, a panel of one and a panel of the other in turn.
    """
    return torch.stack([pack_linear(gate), pack_linear(up)], 1).flatten(0, 1)


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


def gated_linear(x: Tensor, panels: Tensor, features: int, activation: str) -> Tensor:
    """`activation(x @ gate.T) * (x @ up.T)`, without a gradient.

    Args:
        x: [..., K] float32.
        panels: what `pack_gated` returned.
        features: N.
        activation: one of `ACTIVATIONS`.

    Returns:
        [..., N] float32.
    """
    found: Tensor = torch.ops.safetyspace_fast.gated_linear(x, panels, features, activation)
    return found


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`torch.nn.functional.rms_norm` over the last dimension, without a gradient.

    Args:
        x: [..., D] float32.
        weight: [D] float32.
        epsilon: added to the mean square.

    Returns:
        [..., D] float32.
    """
    found: Tensor = torch.ops.safetyspace_fast.rms_norm(x, weight, epsilon)
    return found


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
    """Causal attention with rotary position embeddings (Su et al. 2021), without a gradient.

    The halves x, y of a head are turned to x cos - y sin and y cos + x sin. Several heads of
    queries may share one of keys and values (Ainslie et al. 2023).

    Args:
        qkv: [B, T, (num_heads + 2 num_kv_heads) dim] float32: queries, keys and values side by
            side, a multiple of `num_kv_heads` of the first.
        cos, sin: [1 or B, T, dim] float32.
        scaling: of the products of queries and keys.
        q_norm, k_norm: [dim] float32, weights of root mean square norms of queries and keys over
            each head, before they are turned; or None.
        epsilon: of these norms.
        past_keys, past_values: [num_kv_heads, P, dim] float32, of tokens before all samples, the
            keys turned already; or None.

    Returns:
        [B, T, num_heads dim] float32.
    """
    found: Tensor = torch.ops.safetyspace_fast.rotary_attention(
        qkv, cos, sin, num_heads, num_kv_heads, scaling, q_norm, k_norm, epsilon,
        past_keys, past_values,
    )  # fmt: skip
    return found
