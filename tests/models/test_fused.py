"""Fused layers give the states of plain ones, and step back where a model needs those."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from tiny_models import save_tiny
from torch import nn
from torch.nn import functional

from safetyspace_fast import ops
from safetyspace_fast.models import (
    GatedLinear,
    PackedLinear,
    fuse,
    load_model,
    parse_model,
    unfuse,
)
from safetyspace_fast.models.fused import FusedAttention, FusedRMSNorm, try_fusing

pytestmark = pytest.mark.skipif(
    not ops.can_pack(),
    reason="needs the compiled CPU kernels and AVX-512; without, layers stay as they are",
)


def kinds(model):
    return {type(m) for m in model.modules() if hasattr(m, "in_features")}


def test_unpacked_layers_have_the_weights_they_had():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": nn.Linear(8, 24), "b": shared, "c": nn.Sequential(shared)})
    model["d"] = Gated(functional.silu)
    model["e"], model["f"] = Gated(functional.silu), Gated(functional.silu)
    model["f"].up_proj = model["e"].up_proj
    model.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(2, 6)
    expected = [model[name](x) for name in "def"]
    fuse(model)
    for name, states in zip("def", expected, strict=True):
        torch.testing.assert_close(model[name](x), states, rtol=1e-5, atol=1e-5)
    assert kinds(model) == FUSED
    assert model["b"] is model["c"][0]
    unfuse(model)
    assert kinds(model) == {nn.Linear}
    assert model["b"] is model["c"][0]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


FUSED = {PackedLinear, GatedLinear}


def norms(model):
    return {type(m) for m in model.modules() if "RMSNorm" in type(m).__name__}


def attentions(model):
    return {type(m) for m in model.modules() if "Attention" in type(m).__name__}


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen2", "qwen3"])
def test_a_loaded_model_is_fused_on_a_cpu(kind, tmp_path):
    path = save_tiny(kind, tmp_path / kind)
    backbone = load_model(parse_model(str(path))).backbone
    assert kinds(backbone) == FUSED
    assert norms(backbone) == {FusedRMSNorm}
    assert attentions(backbone) == {FusedAttention}
    half = load_model(parse_model(str(path)), dtype="bfloat16").backbone
    assert kinds(half) == {nn.Linear}
    assert FusedRMSNorm not in norms(half)
    tokens = torch.tensor([[5, 6, 7, 8, 9, 8, 7, 6]])
    fused, alike = backbone(tokens).last_hidden_state, deepcopy(backbone)
    unfuse(backbone)
    assert kinds(backbone) == {nn.Linear}
    assert norms(backbone) == norms(half)
    assert attentions(backbone) == attentions(half)
    plain = backbone(tokens).last_hidden_state
    assert not torch.equal(fused, plain)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(alike(tokens).last_hidden_state, fused)


class Gated(nn.Module):
    """What the blocks of most models have, with a difference."""

    def __init__(self, activation, bias=False, factor=1.0):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(6, 10, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(10, 6)
        self.activation, self.factor = activation, factor

    def forward(self, x):
        gates = self.activation(self.gate_proj(x))
        return self.factor * self.down_proj(gates * self.up_proj(x))


class Norm(nn.Module):
    """A norm, with a difference."""

    def __init__(self, function, epsilon=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 6))
        self.eps, self.function = epsilon, function

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    ("module", "fits"),
    [
        (Gated(functional.silu), True),
        (Gated(partial(functional.gelu, approximate="tanh")), True),
        (Gated(functional.gelu), False),
        (Gated(functional.relu), False),
        (Gated(functional.silu, bias=True), False),
        (Gated(functional.silu, factor=1.001), False),
        (Gated(lambda x: x.nosuch), False),
        (Norm(lambda m, x: functional.rms_norm(x, (6,), m.weight, m.eps)), True),
        (Norm(lambda m, x: functional.rms_norm(x, (6,), 1 + m.weight, m.eps)), True),
        (Norm(lambda m, x: functional.rms_norm(x, (6,), m.weight, 2 * m.eps)), False),
        (Norm(lambda m, x: functional.rms_norm(x, (6,), m.weight, m.eps) + x), False),
        (Norm(lambda m, x: functional.layer_norm(x, (6,), m.weight, None, m.eps)), False),
        (Norm(lambda m, x: functional.rms_norm(x, (6,), m.weight, m.eps), None), False),
    ],
)
def test_what_a_layer_does_decides_and_not_how_it_looks(module, fits):
    model = nn.Sequential(module).requires_grad_(False)
    # Where epsilon counts
    x = torch.randn(3, 5, 6) * torch.tensor([1e-3, 1, 100])[:, None, None]
    try:
        expected = model(x)
    except AttributeError:
        expected = None
    fuse(model)
    assert (model[0] is not module) == fits
    if expected is not None:
        gap = (model(x) - expected).norm(dim=-1)
        assert (gap <= 1e-5 * expected.norm(dim=-1)).all()


@pytest.mark.parametrize("scale", [0.1, 0.25, 0.5, 1, 2, 4])
def test_one_gelu_is_not_taken_for_the_other_whatever_its_weights(scale):
    for seed in range(20):
        torch.manual_seed(seed)
        module = Gated(functional.gelu)
        module.gate_proj.weight.data *= scale
        model = nn.Sequential(module).requires_grad_(False)
        fuse(model)
        assert model[0] is module


class Attention(nn.Module):
    """What the blocks of most models have, with a difference."""

    def __init__(self, bias=(False, False, False), scaling=0.3, head_dim=16, change=None):
        super().__init__()
        self.head_dim, self.scaling, self.change = head_dim, scaling, change
        widths = zip(("q_proj", "k_proj", "v_proj"), (96, 32, 32), bias, strict=True)
        for name, features, with_bias in widths:
            setattr(self, name, nn.Linear(6, features, bias=with_bias))
        self.o_proj = nn.Linear(96, 6)

    def forward(self, states, position_embeddings, attention_mask=None, past_key_values=None):
        heads = (*states.shape[:2], -1, self.head_dim)
        q, k, v = (layer(states).view(heads).transpose(1, 2) for layer in self.layers())
        q, k, scores = (
            self.turned(q, *position_embeddings),
            self.turned(k, *position_embeddings),
            {},
        )
        if self.change == "full":
            scores["is_causal"] = False
        if attention_mask is not None:
            scores = {"attn_mask": attention_mask, "is_causal": False}
        scores = {"is_causal": True, "scale": self.scaling, "enable_gqa": True} | scores
        mixed = functional.scaled_dot_product_attention(q, k, v, **scores)
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.o_proj(mixed * (1.01 if self.change == "gate" else 1)), None

    def layers(self):
        return self.q_proj, self.k_proj, self.v_proj

    def turned(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        other = torch.cat([-b, a], -1)
        if self.change == "pairs":
            other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        if self.change == "still":
            return x
        return x * cos[:, None] + other * sin[:, None]


class WithSinks(Attention):
    def __init__(self):
        super().__init__()
        self.sinks = nn.Parameter(torch.zeros(6))


@pytest.mark.parametrize(
    ("module", "fits"),
    [
        (Attention(), True),
        (Attention(bias=(True, True, True)), True),
        (Attention(scaling=1.0), True),
        (Attention(bias=(True, True, False)), False),
        (Attention(head_dim=8), True),
        (Attention(head_dim=64), False),
        (Attention(scaling=None), False),
        (Attention(change="full"), False),
        (Attention(change="gate"), False),
        (Attention(change="pairs"), False),
        (Attention(change="still"), False),
        (WithSinks(), False),
    ],
)
def test_what_attention_does_decides(module, fits):
    model = nn.Sequential(module).requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, angles = torch.randn(4, 20, 6), torch.rand(4, 20, module.head_dim)
    calls = [{}, {"attention_mask": torch.rand(20, 20) > 0.2}]
    given = {"position_embeddings": (angles.cos(), angles.sin())}
    run = module.head_dim != 64  # keys of half a head
    expected = [model[0](x, **given, **call)[0] for call in calls] if run else []
    fuse(model)
    assert (type(model[0]) is FusedAttention) == fits
    for call, states in zip(calls, expected, strict=False):
        torch.testing.assert_close(model[0](x, **given, **call)[0], states, rtol=1e-4, atol=1e-5)
    if fits:  # the layers by themselves are parts of the one product
        parts = [layer.weight.untyped_storage().data_ptr() for layer in module.layers()]
        assert set(parts) == {model[0].qkv_proj.weight.untyped_storage().data_ptr()}
    unfuse(model)
    assert model[0] is module
    after = model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(state[name], after[name]) for name in state)


class Model(nn.Module):
    """A backbone that does with the weight of its layer what few do."""

    def __init__(self, use):
        super().__init__()
        self.layer, self.use = nn.Linear(10, 10), use

    def forward(self, input_ids, use_cache):
        x = functional.one_hot(input_ids, 10).float()
        return type("Output", (), {"last_hidden_state": self.use(self.layer, x)})


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda layer, x: functional.linear(x, layer.weight), "Error"),
        (lambda layer, x: layer(x) * (1 + isinstance(layer, PackedLinear)), "change by 1.0e+00"),
        (lambda layer, x: layer(x) * torch.nan, "change by nan"),
        (lambda layer, x: layer(x), None),
    ],
)
def test_a_model_that_needs_plain_layers_keeps_them(use, reason):
    model = Model(use).requires_grad_(False)
    weight = model.layer.weight.clone()
    found = try_fusing(model)
    assert found is None if reason is None else reason in found
    assert kinds(model) == {PackedLinear if reason is None else nn.Linear}
    if reason is not None:
        assert torch.equal(model.layer.weight, weight)
