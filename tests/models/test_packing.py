"""Packed linear layers give the products of plain ones, and step back where a model needs those."""

import pytest
import torch
from tiny_models import save_tiny
from torch import nn

from safetyspace_fast import ops
from safetyspace_fast.models import (
    PackedLinear,
    load_model,
    pack_linears,
    parse_model,
    unpack_linears,
)
from safetyspace_fast.models.packing import try_packing

pytestmark = pytest.mark.skipif(
    not ops.can_pack(), reason="no AVX-512 here, or nothing is compiled: layers stay plain"
)


def kinds(model):
    return {type(m) for m in model.modules() if hasattr(m, "in_features")}


def test_unpacked_layers_have_the_weights_they_had():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": nn.Linear(8, 24), "b": shared, "c": nn.Sequential(shared)})
    model.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack_linears(model)
    assert kinds(model) == {PackedLinear}
    assert model["b"] is model["c"][0]
    unpack_linears(model)
    assert kinds(model) == {nn.Linear}
    assert model["b"] is model["c"][0]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loaded_model_is_packed_on_a_cpu(tmp_path):
    path = save_tiny("llama", tmp_path / "llama")
    assert kinds(load_model(parse_model(str(path))).backbone) == {PackedLinear}
    half = load_model(parse_model(str(path)), dtype="bfloat16")
    assert kinds(half.backbone) == {nn.Linear}


class Model(nn.Module):
    """A backbone that does with the weight of its layer what few do."""

    def __init__(self, use):
        super().__init__()
        self.layer, self.use = nn.Linear(10, 10), use

    def forward(self, input_ids, use_cache):
        x = nn.functional.one_hot(input_ids, 10).float()
        return type("Output", (), {"last_hidden_state": self.use(self.layer, x)})


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda layer, x: nn.functional.linear(x, layer.weight), "Error"),
        (lambda layer, x: layer(x) * (1 + isinstance(layer, PackedLinear)), "others by 1.0e+00"),
        (lambda layer, x: layer(x) * torch.nan, "others by nan"),
        (lambda layer, x: layer(x), None),
    ],
)
def test_a_model_that_needs_plain_layers_keeps_them(use, reason):
    model = Model(use).requires_grad_(False)
    weight = model.layer.weight.clone()
    found = try_packing(model)
    assert found is None if reason is None else reason in found
    assert kinds(model) == {PackedLinear if reason is None else nn.Linear}
    if reason is not None:
        assert torch.equal(model.layer.weight, weight)
