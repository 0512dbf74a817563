"""Linear layers that keep their weights in the order in which the kernel reads them.

An ordinary product copies a weight into that order each time. See `csrc/cpu/linear.cpp`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import first_line
from ..ops import can_pack, linear, pack_linear, unpack_linear


class PackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU in float32.

    weight: what `ops.pack_linear` made of the layer's.
    """

    weight: Tensor

    def __init__(self, plain: nn.Linear) -> None:
        """Take over a plain layer."""
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_buffer("weight", pack_linear(plain.weight.detach()))
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: [..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias, self.out_features)


def pack_linears(model: nn.Module) -> None:
    """Put a `PackedLinear` in the place of every plain linear layer in float32.

    Those lose their weights, one after the other: a large model is not in memory twice.
    """

    def pack(layer: nn.Module) -> nn.Module:
        if type(layer) is not nn.Linear or layer.weight.dtype != torch.float32:
            return layer
        packed = PackedLinear(layer)
        del layer.weight
        return packed

    _replace(model, pack)


def unpack_linears(model: nn.Module) -> None:
    """Undo `pack_linears`."""

    def unpack(packed: nn.Module) -> nn.Module:
        if not isinstance(packed, PackedLinear):
            return packed
        with torch.device("meta"):
            plain = nn.Linear(packed.in_features, packed.out_features, bias=False)
        weight = unpack_linear(packed.weight, packed.out_features)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = packed.bias
        del packed.weight
        return plain

    _replace(model, unpack)


def _replace(model: nn.Module, function: Callable[[nn.Module], nn.Module]) -> None:
    made: dict[nn.Module, nn.Module] = {}  # one layer may stand in several places
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            if child not in made:
                made[child] = function(child)
            if made[child] is not child:
                setattr(parent, name, made[child])


@torch.no_grad()
def try_packing(backbone: nn.Module) -> str | None:
    """Pack a backbone's linear layers if it then gives the same states; else say why not.

    Where there is no kernel for it, it does nothing.
    """
    if not can_pack():
        return None
    tokens = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    expected = backbone(input_ids=tokens, use_cache=False).last_hidden_state
    try:
        pack_linears(backbone)
        got = backbone(input_ids=tokens, use_cache=False).last_hidden_state
        gap = torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected)
        if gap <= torch.finfo(got.dtype).eps ** 0.5:
            return None
        reason = f"the states would be others by {float(gap):.1e}"
    except Exception as error:  # a model's own code may do anything with a layer
        reason = f"{type(error).__name__}: {first_line(error)}"
    unpack_linears(backbone)
    return reason
