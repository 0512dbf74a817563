"""Every hookpoint of a padded, unmasked batch holds what the text alone gives in transformers."""

import pytest
import tiny_models
import torch
import transformers
from torch import nn

from safetyspace_fast.errors import ConfigError, ModelError
from safetyspace_fast.models import ModelSpec, load_model, resolve_layers, tokenize
from safetyspace_fast.models.layers import find_blocks, hookpoint_names

TEXTS = [*tiny_models.TRAINING_TEXTS, "a", "🙂 e\u0301", "long " * 20]


@pytest.fixture(scope="module", params=tiny_models.ARCHITECTURES)
def tiny(request, tmp_path_factory):
    return tiny_models.save_tiny(request.param, tmp_path_factory.mktemp(request.param))


def watched_states(model, prompts):
    """Every hookpoint's states of one right-padded batch without a mask: name -> [B, T, D]."""
    seen = {}
    handles = [
        model.watch(name, lambda states, name=name: seen.__setitem__(name, states.clone()))
        for name in model.hookpoints
    ]
    rows = [torch.from_numpy(prompt).long() for prompt in prompts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.pad_token_id)
    with torch.no_grad():
        model.backbone(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def states_alone(path, prompts, dtype):
    """What transformers gives each text alone, with its mask: a list of name -> [T, D].

    The last block's bare output is no part of `output_hidden_states`, so a model with one block
    more, otherwise the same, is asked for it.
    """
    how = {"dtype": dtype, "experts_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(path, **how).eval()
    config = transformers.AutoConfig.from_pretrained(path)
    config.num_hidden_layers += 1
    if getattr(config, "layer_types", None):
        config.layer_types = [*config.layer_types, config.layer_types[-1]]
    deeper = transformers.AutoModelForCausalLM.from_config(config, **how).eval()
    assert not deeper.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    results = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt).long()[None]
        options = {"attention_mask": torch.ones_like(ids), "output_hidden_states": True}
        with torch.no_grad():
            own = model(input_ids=ids, **options).hidden_states
            below = deeper(input_ids=ids, **options).hidden_states[: len(own)]
        for a, b in zip(own[:-1], below, strict=False):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        names = hookpoint_names(len(own) - 1)
        results.append({n: s[0] for n, s in zip(names, [*below, own[-1]], strict=True)})
    return results


def relative_errors(found, truths):
    """Frobenius error of each hookpoint over all texts, relative to the truth's size."""
    errors = {}
    for name in truths[0]:
        difference = sum(
            float((states[name].double() - truth[name]).square().sum())
            for states, truth in zip(found, truths, strict=True)
        )
        size = sum(float(truth[name].square().sum()) for truth in truths)
        errors[name] = (difference / size) ** 0.5
    return errors


def unpadded(states, prompts):
    return [
        {name: batch[i, : len(prompt)] for name, batch in states.items()}
        for i, prompt in enumerate(prompts)
    ]


def test_padded_batch_equals_text_alone(tiny):
    double = load_model(ModelSpec("m", str(tiny)), dtype="float64")
    single = load_model(ModelSpec("m", str(tiny)), dtype="float32")
    tokens = tokenize(double, TEXTS)
    prompts = [tokens.prompt(i) for i in range(len(TEXTS))]
    assert double.hookpoints == hookpoint_names(tiny_models.NUM_BLOCKS)
    assert double.hidden_size == tiny_models.HIDDEN_SIZE

    truth = states_alone(tiny, prompts, torch.float64)
    exact = relative_errors(unpadded(watched_states(double, prompts), prompts), truth)
    # Not 1e-15: several architectures compute their softmax in float32 whatever the dtype.
    assert max(exact.values()) < 1e-6, exact

    ours = relative_errors(unpadded(watched_states(single, prompts), prompts), truth)
    theirs = relative_errors(states_alone(tiny, prompts, torch.float32), truth)
    for name in ours:
        assert ours[name] <= 2 * theirs[name] + 1e-7, (name, ours[name], theirs[name])


def test_real_model_equals_text_alone(shared):
    folder = shared / "data" / "stories260k"
    model = load_model(ModelSpec("stories", str(folder)), dtype="float64")
    tokens = tokenize(model, ["Once upon a time", "Lily", "She saw a big, red ball. " * 8])
    prompts = [tokens.prompt(i) for i in range(3)]
    truth = states_alone(folder, prompts, torch.float64)
    errors = relative_errors(unpadded(watched_states(model, prompts), prompts), truth)
    assert max(errors.values()) < 1e-12, errors


def test_the_head_is_gone_and_nothing_learns(tiny):
    model = load_model(ModelSpec("m", str(tiny)))
    assert not model.backbone.training
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert not any("lm_head" in name for name, _ in model.backbone.named_modules())


class Block(nn.Module):
    """`mix` lets tokens see those to their right; `parts` is a list that runs like blocks."""

    def __init__(self, mix=False, parts=0):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.mix = mix
        self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(parts))

    def forward(self, states):
        for part in self.parts:
            states = part(states)
        if self.mix:
            states = states + states.mean(dim=1, keepdim=True)
        return (states + self.linear(states),)


class Backbone(nn.Module):
    """Embedding, then `order` of the blocks; `early` mixes the tokens before them."""

    def __init__(
        self, order=(0, 1, 2), mix=False, bypass=False, narrow=False, early=False, parts=0
    ):
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.adapters = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.layers = nn.ModuleList(Block(mix, parts) for _ in range(3))
        self.order, self.early, self.bypass = order, early, bypass
        self.width = 4 if narrow else 8

    def forward(self, input_ids, use_cache):
        states = first = self.embedding(input_ids)
        if self.early:
            states = first = states + states.mean(dim=1, keepdim=True)
        for number in self.order:
            states = self.layers[number](first if self.bypass else states)[0]
        return transformers.modeling_outputs.BaseModelOutput(states[..., : self.width])


def test_blocks_are_told_from_other_lists_by_what_they_do():
    backbone = Backbone()
    blocks = find_blocks(backbone, 3, "m")
    assert (blocks.modules is backbone.layers, blocks.width, blocks.causal) == (True, 8, True)


def test_the_parts_of_blocks_are_not_taken_for_blocks():
    backbone = Backbone(parts=3)  # as many as there are blocks
    assert find_blocks(backbone, 3, "m").modules is backbone.layers


def test_a_model_whose_tokens_see_those_to_their_right_is_not_causal():
    assert not find_blocks(Backbone(mix=True), 3, "m").causal


@pytest.mark.parametrize(
    ("backbone", "num_blocks", "message"),
    [
        (Backbone(), 4, r"layers \(3 x Block: not 4 long\)"),
        (Backbone(order=(0, 2, 1)), 3, r"layers .*did not run once each in order"),
        (Backbone(order=(0, 1, 2, 2)), 3, r"adapters .*; layers .*did not run once each"),
        (Backbone(bypass=True), 3, r"layers .*does not read what the one before it wrote"),
        (Backbone(early=True), 3, r"layers .*does not read the embedding of each token alone"),
        (Backbone(narrow=True), 3, r"blocks are 8 wide but its last hidden state 4"),
        (nn.Linear(2, 2), 3, r"failed \(TypeError"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_candidates(backbone, num_blocks, message):
    with pytest.raises(ModelError, match=message) as caught:
        find_blocks(backbone, num_blocks, "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [(torch.float16, "use dtype bfloat16 or float32"), (torch.float32, "its weights are damaged")],
)
def test_a_state_that_is_not_finite_is_named_before_the_blocks_are_sought(dtype, advice):
    backbone = Backbone().to(dtype)
    with torch.no_grad():
        backbone.layers[1].linear.bias.fill_(torch.finfo(dtype).max)
        backbone.layers[1].linear.weight.fill_(torch.finfo(dtype).max)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=rf"^m: layers\.1 is not finite in {name}: .*{advice}"):
        find_blocks(backbone, 3, "m")


def test_a_model_without_a_table_of_tokens_is_refused(tmp_path):
    path = tmp_path / "canine"
    options = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4}
    transformers.CanineModel(transformers.CanineConfig(**options)).save_pretrained(path)
    tiny_models.tiny_tokenizer().save_pretrained(path)
    with pytest.raises(ModelError, match="CanineModel gives no table of token embeddings"):
        load_model(ModelSpec("m", str(path)))


NAMES = ("embed", "block.0", "block.1", "block.2", "final_norm")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", NAMES),
        ("final_norm,embed", ("embed", "final_norm")),
        ("-1", ("final_norm",)),
        ("-5", ("embed",)),
        ("-2, block.0 ,block.2", ("block.0", "block.2")),
    ],
)
def test_layers_resolve_in_depth_order(text, expected):
    assert resolve_layers(text, NAMES) == expected


@pytest.mark.parametrize(
    "text", ["", "block.3", "-6", "-0", "0", "blocks.1", "embed,", "-x", "--1"]
)
def test_layers_that_do_not_exist_are_refused_with_those_that_do(text):
    with pytest.raises(ConfigError, match=r"embed, block\.0 \.\. block\.2, final_norm"):
        resolve_layers(text, NAMES)
