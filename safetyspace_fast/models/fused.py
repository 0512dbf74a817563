"""Faster layers for a model on a CPU with AVX-512, put in place of its linear layers, norms, gated
MLPs and attention.

Two costs disappear: torch copies a weight into another memory order in every product (here it is
packed once), and a block passes over its hidden states in many small steps (here they are fused).
See `csrc/cpu/linear.cpp`. A layer is replaced only if the replacement, run beside it, gives the
same states; names of classes play no role.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..errors import first_line
from ..ops import (
    ACTIVATIONS,
    PANEL,
    can_pack,
    gated_linear,
    linear,
    pack_gated,
    pack_linear,
    rms_norm,
    rotary_attention,
    unpack_linear,
)


class PackedLinear(nn.Module):
    """`nn.Linear` in float32, for inference.

    weight: [N / 32 rounded up, K, 32] float32, packed by `ops.pack_linear`.
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, out_features: int) -> None:
        """Make a layer from a packed weight; `out_features` is N."""
        super().__init__()
        self.in_features, self.out_features = weight.shape[1], out_features
        self.register_buffer("weight", weight)
        self.bias = bias

    @classmethod
    def of(cls, plain: nn.Linear) -> "PackedLinear":
        """Pack a layer's weight; the layer itself loses it."""
        weight = pack_linear(plain.weight.detach())
        del plain.weight
        return cls(weight, plain.bias, plain.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias, self.out_features)

    def plain(self) -> nn.Linear:
        """The layer as it was before packing."""
        return _plain_linear(self.weight, self.out_features, self.bias)


class GatedLinear(nn.Module):
    """`act(gate(x)) * up(x)` of two linear layers without bias, in one product.

    weight: both weights, packed by `ops.pack_gated`.
    out_features: of both layers together.
    """

    weight: Tensor

    def __init__(self, gate: nn.Linear, up: nn.Linear, activation: str) -> None:
        """Pack two layers' weights; the layers lose them. `activation`: of `ops.ACTIVATIONS`."""
        super().__init__()
        self.in_features, self.out_features = gate.in_features, 2 * gate.out_features
        self.activation = activation
        self.register_buffer("weight", pack_gated(gate.weight.detach(), up.weight.detach()))
        del gate.weight, up.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features / 2]."""
        return gated_linear(x, self.weight, self.out_features // 2, self.activation)

    def plain(self) -> tuple[nn.Linear, nn.Linear]:
        """The two layers as they were before packing."""
        features = self.out_features // 2
        return (
            _plain_linear(self.weight[::2], features),
            _plain_linear(self.weight[1::2], features),
        )


class GatedMLP(nn.Module):
    """`down_proj(act_fn(gate_proj(x)) * up_proj(x))`, in place of a module that computes it."""

    def __init__(self, plain: nn.Module, activation: str) -> None:
        """Pack the weights of a module's layers; the layers lose them."""
        super().__init__()
        layers: Any = plain
        self.gate_up = GatedLinear(layers.gate_proj, layers.up_proj, activation)
        self.down_proj = PackedLinear.of(layers.down_proj)
        self._of = (plain,)  # in a tuple: no submodule

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        states: Tensor = self.down_proj(self.gate_up(x))
        return states

    def plain(self) -> nn.Module:
        """The module as it was."""
        layers: Any = self._of[0]
        layers.gate_proj, layers.up_proj = self.gate_up.plain()
        layers.down_proj = self.down_proj.plain()
        return self._of[0]


class FusedRMSNorm(nn.Module):
    """A root mean square norm, in place of a module that computes it."""

    weight: Tensor

    def __init__(self, plain: nn.Module, weight: Tensor, epsilon: float) -> None:
        """Replace a module; weight: [D] float32, the factor of each dimension."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.epsilon = epsilon
        self._of = (plain,)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return rms_norm(x, self.weight, self.epsilon)

    def plain(self) -> nn.Module:
        """The module as it was."""
        return self._of[0]


class FusedAttention(nn.Module):
    """Causal attention with rotary positions, with or without a `SharedPrefix` before the batch.

    Calls with another mask or cache go to the module that it replaces.
    """

    def __init__(self, plain: nn.Module, norms: "tuple[FusedRMSNorm, FusedRMSNorm] | None") -> None:
        """Pack the weights of a module's layers; the layers lose them.

        Args:
            plain: the attention module.
            norms: its norms of queries and of keys, if it has them.
        """
        super().__init__()
        layers: Any = plain
        parts = [PackedLinear.of(getattr(layers, name)) for name in _QKV]
        biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
        bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
        weight = torch.cat([part.weight for part in parts])
        self.qkv_proj = PackedLinear(weight, bias, sum(part.out_features for part in parts))
        panels = torch.split(weight, [len(part.weight) for part in parts])
        for name, part, panel in zip(_QKV, parts, panels, strict=True):
            part.weight = panel  # a view: the weight is in memory once
            setattr(layers, name, part)
        self.o_proj = layers.o_proj = PackedLinear.of(layers.o_proj)
        self.mix = _mixing(layers, norms)
        self._of = (plain,)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: object = None,
        **rest: object,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, T, D] to [B, T, D], and None in place of attention weights."""
        past = self._past(past_key_values, attention_mask)
        if (
            past is None
            or position_embeddings is None
            or not rest.keys() <= {"position_ids", "use_cache"}
        ):
            states_and_weights: tuple[Tensor, Tensor | None] = self._of[0](
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **rest,
            )
            return states_and_weights
        qkv = self.qkv_proj(hidden_states)
        return self.o_proj(self.mix(qkv, *position_embeddings, **past)), None

    def _past(self, past_key_values: object, mask: Tensor | None) -> dict[str, Tensor] | None:
        """The arguments of `mix` for a cache; None if `mix` cannot take this cache or this mask."""
        if past_key_values is None:
            return {} if mask is None else None
        from .prefix import SharedPrefix  # imports transformers

        if mask is None or not isinstance(past_key_values, SharedPrefix):
            return None
        past = past_key_values.before(self._of[0].layer_idx, mask)
        return None if past is None else {"past_keys": past[0], "past_values": past[1]}

    def plain(self) -> nn.Module:
        """The module as it was."""
        layers: Any = self._of[0]
        for name in (*_QKV, "o_proj"):
            setattr(layers, name, getattr(layers, name).plain())
        return self._of[0]


_QKV = ("q_proj", "k_proj", "v_proj")


def _mixing(
    attention: Any, norms: tuple[FusedRMSNorm, FusedRMSNorm] | None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The kernel for a module's sizes: from queries, keys, values, cos and sin to mixed values."""
    dim = attention.head_dim
    return partial(
        rotary_attention,
        num_heads=attention.q_proj.out_features // dim,
        num_kv_heads=attention.k_proj.out_features // dim,
        scaling=attention.scaling,
        q_norm=norms and norms[0].weight,
        k_norm=norms and norms[1].weight,
        epsilon=norms[0].epsilon if norms else 0.0,
    )


def _plain_linear(panels: Tensor, features: int, bias: nn.Parameter | None = None) -> nn.Linear:
    with torch.device("meta"):
        plain = nn.Linear(panels.shape[1], features, bias=False)
    plain.weight = nn.Parameter(unpack_linear(panels, features), requires_grad=False)
    plain.register_parameter("bias", bias)
    return plain


FUSED = (PackedLinear, GatedMLP, FusedRMSNorm, FusedAttention)


@torch.no_grad()
def fuse(model: nn.Module) -> None:
    """Replace a model's layers in float32 by those of this file.

    Weights are packed one layer after the other, so a large model is never in memory twice.
    """
    uses = Counter(child for parent in model.modules() for child in parent._modules.values())

    def fused(module: nn.Module) -> nn.Module:
        if _is_plain(module):
            return PackedLinear.of(module)
        # A layer that is used elsewhere too keeps its weight for that use.
        alone = all(uses[child] == 1 for child in module.children())
        if alone and (activation := _gates_with(module)) is not None:
            return GatedMLP(module, activation)
        if alone and (attention := _as_attention(module)) is not None:
            return attention
        if (norm := _as_rms_norm(module)) is not None:
            return norm
        return module

    _replace(model, fused, {})


def has_fused(model: nn.Module) -> bool:
    """Whether a layer of a model was replaced."""
    return any(isinstance(module, FUSED) for module in model.modules())


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`."""

    def plain(module: nn.Module) -> nn.Module:
        return module.plain() if isinstance(module, FUSED) else module

    _replace(model, plain, {})


def _replace(
    parent: nn.Module,
    function: Callable[[nn.Module], nn.Module],
    made: dict[nn.Module, nn.Module],
) -> None:
    """Replace the modules below `parent`; a layer used several times is replaced once."""
    for name, child in list(parent._modules.items()):
        if child is None:
            continue
        if child not in made:
            made[child] = function(child)
            if made[child] is child:
                _replace(child, function, made)
        if made[child] is not child:
            setattr(parent, name, made[child])


def _is_plain(layer: Any) -> TypeGuard[nn.Linear]:
    return type(layer) is nn.Linear and layer.weight.dtype == torch.float32


def _as_rms_norm(module: nn.Module) -> FusedRMSNorm | None:
    """A replacement for a module that is a root mean square norm with a weight."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        not isinstance(weight, nn.Parameter)
        or weight.dtype != torch.float32
        or weight.ndim != 1
        or not isinstance(epsilon, float)
        or len(list(module.parameters())) > 1
    ):
        return None
    for scale in (weight.detach(), 1 + weight.detach()):
        norm = FusedRMSNorm(module, scale, epsilon)
        if _agree(module, norm, len(weight)):
            return norm
    return None


def _gates_with(module: nn.Module) -> str | None:
    """The activation of a module that computes what a `GatedMLP` does; None for any other."""
    gate, up, down = (getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down"))
    if (
        not (_is_plain(gate) and _is_plain(up) and _is_plain(down))
        or gate.weight.shape != up.weight.shape
        or not (gate.bias is up.bias is None)
    ):
        return None
    for name, activation in ACTIVATIONS.items():

        def gated(x: Tensor, activation: Callable[[Tensor], Tensor] = activation) -> Tensor:
            states: Tensor = down(activation(gate(x)) * up(x))
            return states

        if _agree(module, gated, gate.in_features):
            return name
    return None


def _as_attention(module: Any) -> FusedAttention | None:
    """A replacement for a module that is causal attention with rotary positions."""
    layers: list[Any] = [getattr(module, name, None) for name in (*_QKV, "o_proj")]
    dim, scaling = getattr(module, "head_dim", None), getattr(module, "scaling", None)
    if not all(map(_is_plain, layers)) or type(dim) is not int or type(scaling) is not float:
        return None
    q, k, v, o = layers
    if (
        len({(layer.bias is None, layer.in_features) for layer in (q, k, v)}) > 1
        or k.out_features != v.out_features
        or q.out_features % k.out_features
        or k.out_features % dim
        or k.out_features % PANEL
    ):
        return None
    norms = None
    of_heads = [norm for name in ("q_norm", "k_norm") if (norm := getattr(module, name, None))]
    if of_heads:
        q_norm, k_norm = (_as_rms_norm(norm) for norm in (of_heads[0], of_heads[-1]))
        if q_norm is None or k_norm is None or q_norm.epsilon != k_norm.epsilon:
            return None
        norms = q_norm, k_norm
    used = [weight for layer in (*layers, *of_heads) for weight in layer.parameters()]
    if set(module.parameters()) != set(used):  # others might be attention sinks
        return None
    T = 5
    angles = torch.randn(2, 1, T, dim, generator=torch.Generator().manual_seed(1)).unbind()
    mix = _mixing(module, norms)

    def attend(states: Tensor) -> Tensor:
        mixed: Tensor = o(mix(torch.cat([q(states), k(states), v(states)], -1), *angles))
        return mixed

    def expected(states: Tensor) -> Tensor:
        mixed: Tensor = module(states, position_embeddings=angles, attention_mask=None)[0]
        return mixed

    # Without the largest states: there the rounding of a score decides which token is attended to.
    if _agree(expected, attend, q.in_features, (1e-3, 1), T, tolerance=1e-4):
        return FusedAttention(module, norms)
    return None


def _agree(
    one: Callable[[Tensor], Tensor],
    other: Callable[[Tensor], Tensor],
    width: int,
    sizes: Sequence[float] = (1e-3, 1, 4, 16, 100),
    num_tokens: int = 2,
    tolerance: float = 1e-5,
) -> bool:
    """Whether two functions of [B, T, width] agree up to rounding, on states of several sizes.

    The two GELUs differ by more than rounding only near inputs of 1 to 4, which a gate gets from
    states of 4 or of 16 when its weights are small.
    """
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(sizes), num_tokens, width, generator=generator)
    states *= torch.tensor(sizes)[:, None, None]
    try:
        got, expected = one(states), other(states)
    except Exception:  # a model's own code may do anything
        return False
    return (
        isinstance(got, Tensor)
        and got.shape == expected.shape
        and bool(((got - expected).norm(dim=-1) <= tolerance * expected.norm(dim=-1)).all())
    )


@torch.no_grad()
def try_fusing(backbone: nn.Module) -> str | None:
    """Fuse a backbone's layers and keep them if its hidden states stay the same up to rounding.

    Without compiled kernels for this processor it does nothing.

    Returns:
        Why the layers were left as they are; None if they were fused, or if there are no kernels.
    """
    if not can_pack():
        return None
    tokens = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    expected = backbone(input_ids=tokens, use_cache=False).last_hidden_state
    try:
        fuse(backbone)
        got = backbone(input_ids=tokens, use_cache=False).last_hidden_state
        gap = torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected)
        if gap <= torch.finfo(got.dtype).eps ** 0.5:
            return None
        reason = f"hidden states would change by {float(gap):.1e}"
    except Exception as error:  # a model's own code may do anything with a layer
        reason = f"{type(error).__name__}: {first_line(error)}"
    unfuse(backbone)
    return reason
