"""Layers as the compiled kernels of the CPU run them, in the place of a model's own.

An ordinary product copies a weight into the order in which it reads it, each time; and of the rest
of a block, most is small steps that each pass over the states. See `csrc/cpu/linear.cpp`. What a
layer does is found out by running it, not by its name.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..errors import first_line
from ..ops import (
    ACTIVATIONS,
    can_pack,
    gated_linear,
    linear,
    pack_gated,
    pack_linear,
    rms_norm,
    unpack_linear,
)


class PackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU in float32.

    weight: what `ops.pack_linear` made of the layer's.
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, plain: nn.Linear) -> None:
        """Take over a plain layer, which loses its weight."""
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_buffer("weight", pack_linear(plain.weight.detach()))
        self.bias = plain.bias
        del plain.weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: [..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias, self.out_features)

    def plain(self) -> nn.Linear:
        """The layer as it was."""
        return _plain_linear(self.weight, self.out_features, self.bias)


class GatedLinear(nn.Module):
    """Two linear layers without bias, one of which gates the other: `act(gate(x)) * up(x)`.

    weight: what `ops.pack_gated` made of theirs.
    out_features: of both together, as they are multiplied.
    """

    weight: Tensor

    def __init__(self, gate: nn.Linear, up: nn.Linear, activation: str) -> None:
        """Take over two layers, which lose their weights; `activation`: of `ops.ACTIVATIONS`."""
        super().__init__()
        self.in_features, self.out_features = gate.in_features, 2 * gate.out_features
        self.activation = activation
        self.register_buffer("weight", pack_gated(gate.weight.detach(), up.weight.detach()))
        del gate.weight, up.weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: [..., in_features] to [..., out_features / 2]."""
        return gated_linear(x, self.weight, self.out_features // 2, self.activation)

    def plain(self) -> tuple[nn.Linear, nn.Linear]:
        """The layers as they were."""
        features = self.out_features // 2
        return (
            _plain_linear(self.weight[::2], features),
            _plain_linear(self.weight[1::2], features),
        )


class GatedMLP(nn.Module):
    """`down_proj(act_fn(gate_proj(x)) * up_proj(x))`, whatever module did that."""

    def __init__(self, plain: nn.Module, activation: str) -> None:
        """Take over a module, whose layers lose their weights."""
        super().__init__()
        layers: Any = plain
        self.gate_up = GatedLinear(layers.gate_proj, layers.up_proj, activation)
        self.down_proj = PackedLinear(layers.down_proj)
        self._of = (plain,)  # in a tuple: no submodule

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        found: Tensor = self.down_proj(self.gate_up(x))
        return found

    def plain(self) -> nn.Module:
        """The module as it was."""
        layers: Any = self._of[0]
        layers.gate_proj, layers.up_proj = self.gate_up.plain()
        layers.down_proj = self.down_proj.plain()
        return self._of[0]


class FusedRMSNorm(nn.Module):
    """A root mean square norm, whatever module did that."""

    weight: Tensor

    def __init__(self, plain: nn.Module, weight: Tensor, epsilon: float) -> None:
        """Take over a module; weight: [D] float32, what states are multiplied with."""
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


def _plain_linear(panels: Tensor, features: int, bias: nn.Parameter | None = None) -> nn.Linear:
    with torch.device("meta"):
        plain = nn.Linear(panels.shape[1], features, bias=False)
    plain.weight = nn.Parameter(unpack_linear(panels, features), requires_grad=False)
    plain.register_parameter("bias", bias)
    return plain


@torch.no_grad()
def fuse(model: nn.Module) -> None:
    """Put the compiled kernels in the place of a model's norms, gates and linear layers in float32.

    Those lose their weights, one after the other: a large model is not in memory twice.
    """
    uses = Counter(child for parent in model.modules() for child in parent._modules.values())

    def fused(module: nn.Module) -> nn.Module:
        if _is_plain(module):
            return PackedLinear(module)
        # A layer that stands elsewhere too keeps its weight for that place.
        alone = all(uses[child] == 1 for child in module.children())
        if alone and (activation := _gates_with(module)) is not None:
            return GatedMLP(module, activation)
        if (norm := _as_rms_norm(module)) is not None:
            return norm
        return module

    _replace(model, fused, {})


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`."""

    def plain(module: nn.Module) -> nn.Module:
        return (
            module.plain() if isinstance(module, PackedLinear | GatedMLP | FusedRMSNorm) else module
        )

    _replace(model, plain, {})


def _replace(
    parent: nn.Module,
    function: Callable[[nn.Module], nn.Module],
    made: dict[nn.Module, nn.Module],
) -> None:
    """Replace what is below `parent`; one layer may stand in several places."""
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
    """What does the same as a module, if that is a root mean square norm with a weight."""
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
    """The activation of a module that does what a `GatedMLP` does."""
    gate, up, down = (getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down"))
    if (
        not (_is_plain(gate) and _is_plain(up) and _is_plain(down))
        or gate.weight.shape != up.weight.shape
        or not (gate.bias is up.bias is None)
    ):
        return None
    for name, activation in ACTIVATIONS.items():

        def gated(x: Tensor, activation: Callable[[Tensor], Tensor] = activation) -> Tensor:
            found: Tensor = down(activation(gate(x)) * up(x))
            return found

        if _agree(module, gated, gate.in_features):
            return name
    return None


def _agree(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], width: int) -> bool:
    """Whether two functions of `[B, T, width]` agree up to rounding, on states of many sizes."""
    states = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0))
    states *= torch.tensor([1e-3, 1, 100])[:, None, None]
    try:
        found, expected = one(states), other(states)
    except Exception:  # a model's own code may do anything
        return False
    return (
        isinstance(found, Tensor)
        and found.shape == expected.shape
        and bool(((found - expected).norm(dim=-1) <= 1e-5 * expected.norm(dim=-1)).all())
    )


@torch.no_grad()
def try_fusing(backbone: nn.Module) -> str | None:
    """Fuse a backbone's layers if it then gives the same states; else say why not.

    Where there are no kernels for it, it does nothing.
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
        reason = f"the states would be others by {float(gap):.1e}"
    except Exception as error:  # a model's own code may do anything with a layer
        reason = f"{type(error).__name__}: {first_line(error)}"
    unfuse(backbone)
    return reason
