"""Every pooled state equals the mean of transformers' own hidden states of the text run alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import (
    ARCHITECTURES,
    CHAT_TEMPLATE,
    ENCODERS,
    FURTHER_ARCHITECTURES,
    NUM_BLOCKS,
    PADDING_READERS,
    save_tiny,
    tiny_tokenizer,
)
from torch.nn import functional

from safetyspace_fast import api
from safetyspace_fast.errors import ModelError
from safetyspace_fast.extract import Batching, Capture, make_plan, seeded_projection
from safetyspace_fast.extract.capture import padded
from safetyspace_fast.extract.plan import Batch
from safetyspace_fast.extract.prepare import prepare, reads_padding
from safetyspace_fast.models import (
    LoadedModel,
    Template,
    Tokenized,
    load_model,
    parse_model,
    share_prefix,
    tokenize,
)
from safetyspace_fast.ops import PoolProject, can_pack

POOLINGS = ("mean", "mean_all", "last", "last_text")
TEXTS = [
    "short",
    "a text of middling length, with a comma",
    "привет, как дела?",
    "天地玄黄,宇宙洪荒。",
    "the same text twice",
    "the same text twice",
    "one rather longer text that goes on for a while, so that its row pads all the others well",
    "ሰላም ለዓለም ሁሉ ይሁን።",
]
FLOOR = 1e-7
"""Relative; float32 rounds at 6e-8, and a lucky reference must not make the test fail."""


def pooled_states(
    model: LoadedModel, template: str, token_budget: int, shared: bool = True, **reading: Any
) -> np.ndarray:
    """What the engine computes, `[text, hookpoint, pooling, D]`."""
    tokens = tokenize(model, TEXTS, template=template, poolings=POOLINGS)
    if shared:
        reading["cache"], tokens, _ = share_prefix(model, tokens)
    plan = make_plan(tokens, batching=Batching(token_budget, part_samples=4))
    projection = seeded_projection(model.hidden_size, 8, seed=0)
    result = np.full((len(TEXTS), len(model.hookpoints), len(POOLINGS), model.hidden_size), np.nan)
    with Capture(model, model.hookpoints, projection, **reading) as capture:
        for batch in plan:
            out = capture.run(tokens, batch)
            states = out[..., : model.hidden_size].permute(2, 0, 1, 3).numpy()
            result[batch.rows] = states[batch.source]
    return result


def assert_close_states(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding in float32, text by text."""
    error = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < 2e-6


def two_prompts() -> tuple[Tokenized, Batch]:
    """Two prompts of five tokens, and the batch that holds them."""
    both = np.arange(2)
    tokens = Tokenized(
        ids=np.arange(10, dtype=np.int32),
        starts=np.array([0, 5, 10]),
        spans=np.array([[[0, 5]], [[1, 3]]], np.int32),
        n_text_tokens=np.array([5, 2], np.int32),
        begins_with_text=np.array([True, False]),
        truncated=np.zeros(2, np.bool_),
        poolings=("mean",),
        template=Template("none"),
        prefix_length=0,
    )
    return tokens, Batch(both, both, both, 5)


def transformers_states(
    path: Path, model: LoadedModel, template: str, dtype: torch.dtype
) -> np.ndarray:
    """The definition, `[text, hookpoint, pooling, D]`: each text alone, without padding."""
    tokens = tokenize(model, TEXTS, template=template, poolings=POOLINGS)
    auto = transformers.AutoModelForCausalLM if model.causal else transformers.AutoModel
    # the grouped matrix product of experts knows no float64
    oracle = auto.from_pretrained(path, dtype=dtype, experts_implementation="eager").eval()
    if oracle.config.is_encoder_decoder:
        oracle = oracle.get_encoder()
    result = []
    for i_text in range(len(TEXTS)):
        ids = torch.from_numpy(tokens.prompt(i_text).astype(np.int64))[None]
        with torch.no_grad():
            states = oracle(ids, output_hidden_states=True).hidden_states
        # hidden_states[-1] is normed: the last block's own output is not among them.
        result.append(
            [
                [
                    state[0, start:stop].mean(0).double().numpy()
                    for start, stop in tokens.spans[i_text]
                ]
                for state in states
            ]
        )
    return np.array(result)


def assert_as_exact_as_transformers(path: Path, template: str, budget: int) -> None:
    model = load_model(parse_model(str(path)))
    last_block = model.hookpoints.index("final_norm") - 1
    ours = np.delete(pooled_states(model, template, budget), last_block, axis=1)
    truth = transformers_states(path, model, template, torch.float64)
    theirs = transformers_states(path, model, template, torch.float32)
    norm = np.linalg.norm
    ours = norm(ours - truth, axis=-1) / norm(truth, axis=-1)
    theirs = norm(theirs - truth, axis=-1) / norm(truth, axis=-1)
    over_texts = (0, 2)
    assert (ours.mean(over_texts) <= 2 * theirs.mean(over_texts) + FLOOR).all()
    assert ours.max() <= 2 * theirs.max() + FLOOR


@pytest.mark.parametrize("template", ["none", "chat"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pooled_states_are_those_of_the_text_alone(
    name: str, template: str, tmp_path: Path
) -> None:
    path = save_tiny(name, tmp_path / name, chat_template=CHAT_TEMPLATE)
    assert_as_exact_as_transformers(path, template, budget=100)


KEEP_MORE = {"rwkv", "mamba", "mamba2", "jamba", "bamba", "falcon_h1", "granitemoehybrid", "zamba2"}
KEEP_MORE |= {"qwen3_next"}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *FURTHER_ARCHITECTURES])
def test_a_prefix_runs_once_where_keys_and_values_are_all_there_is(
    name: str, tmp_path: Path
) -> None:
    path = save_tiny(name, tmp_path / name, chat_template=CHAT_TEMPLATE)
    model = load_model(parse_model(str(path)))
    tokens = tokenize(model, TEXTS, template="chat")
    prefix, rest, reason = share_prefix(model, tokens)
    if name in KEEP_MORE:
        assert prefix is None
        assert rest is tokens
        assert reason is not None
        assert "7 tokens that all prompts share run each time" in reason
        return
    assert reason is None
    assert rest.lengths.tolist() == [length - 7 for length in tokens.lengths]
    np.testing.assert_allclose(
        pooled_states(model, "chat", 100),
        pooled_states(model, "chat", 100, shared=False),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.skipif(not can_pack(), reason="needs the compiled CPU kernels and AVX-512")
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_attention_behind_a_prefix_is_fused_where_nothing_is_hidden(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny(name, tmp_path / name, chat_template=CHAT_TEMPLATE)
    model = load_model(parse_model(str(path)))
    steps = []  # of attention as transformers does it
    sdpa = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda *a, **k: steps.append(1) or sdpa(*a, **k)
    )
    assert pooled_states(model, "chat", 100).size
    # The prefix itself is run once with transformers' cache; mistral's window hides some of it.
    assert (len(steps) > NUM_BLOCKS) == (name == "mistral")


def test_a_model_that_goes_on_otherwise_behind_a_prefix_runs_whole_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny("llama", tmp_path / "llama", chat_template=CHAT_TEMPLATE)
    model = load_model(parse_model(str(path)))
    tokens = tokenize(model, TEXTS, template="chat")
    monkeypatch.setattr(transformers.Cache, "get_query_offset", lambda *_, **__: 0)
    prefix, rest, reason = share_prefix(model, tokens)
    assert prefix is None
    assert rest is tokens
    assert reason is not None
    assert "would change" in reason


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_get_their_mask(name: str, tmp_path: Path) -> None:
    path = save_tiny(name, tmp_path / name)
    assert not load_model(parse_model(str(path))).causal
    assert_as_exact_as_transformers(path, "none", budget=100)


@pytest.mark.parametrize("name", PADDING_READERS)
def test_texts_of_a_model_that_reads_padding_run_in_batches_of_one_length(
    name: str, tmp_path: Path
) -> None:
    model = load_model(parse_model(str(save_tiny(name, tmp_path / name))))
    notes: list[str] = []
    work = prepare(model, TEXTS, template="none", token_budget=10_000, on_note=notes.append)
    assert notes == [
        f"padding changes the states of {type(model.backbone).__name__}, so each batch holds texts "
        "of one length"
    ]
    assert work.plan.padded_tokens == work.plan.tokens
    for batch in work.plan:
        assert {len(work.tokens.prompt(row)) for row in batch.unique} == {batch.length}


class ReadsItsBatch(torch.nn.Module):
    """Mixes the texts of a batch, as batch normalisation does."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        states = self.backbone(**inputs).last_hidden_state
        return SimpleNamespace(last_hidden_state=states - states.mean(0))


class Fails(torch.nn.Module):
    def forward(self, **inputs: torch.Tensor) -> None:
        raise RuntimeError("the length must be a multiple of 8\nat layer 3")


def test_a_model_that_reads_the_other_texts_is_refused(tmp_path: Path) -> None:
    model = load_model(parse_model(str(save_tiny("bert", tmp_path / "bert"))))
    tokens = tokenize(model, TEXTS, template="none")
    assert not reads_padding(model, tokens)
    mixing = replace(model, backbone=ReadsItsBatch(model.backbone))
    with pytest.raises(ModelError, match="bert: its states of a text depend on the other texts"):
        reads_padding(mixing, tokens)
    with pytest.raises(ModelError, match=r"tokens failed \(RuntimeError: the length must be a mul"):
        reads_padding(replace(model, backbone=Fails()), tokens)


def test_states_that_are_not_finite_are_told_after_a_run(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():  # of one token that is in few texts
        model.get_input_embeddings().weight[tiny_tokenizer()("z")["input_ids"][-1]] = torch.inf
    model.save_pretrained(path)
    rows = [{"text": f"{i} {'z' if i == 3 else 'a'}", "label": i % 2} for i in range(40)]
    (tmp_path / "en.jsonl").write_text("\n".join(map(json.dumps, rows)))
    events = api.iter_run(
        models=f"m={path}",
        data=str(tmp_path / "en.jsonl"),
        out=tmp_path / "o.zarr",
        poolings=("mean",),
    )
    notes = [event.message for event in events if isinstance(event, api.Note)]
    assert notes == [
        "up to 1 pooled states of a layer (first: embed) are not finite in float32 and count in no "
        "number; the model's weights may be damaged"
    ]


@pytest.mark.parametrize("template", ["none", "chat"])
def test_a_real_model(smollm2: Path, template: str) -> None:
    assert_as_exact_as_transformers(smollm2, template, budget=256)


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_the_token_budget_changes_nothing(tmp_path: Path, budget: int) -> None:
    model = load_model(parse_model(str(save_tiny("llama", tmp_path / "llama"))))
    expected = pooled_states(model, "none", 100)
    np.testing.assert_allclose(pooled_states(model, "none", budget), expected, rtol=1e-5, atol=1e-6)


def test_the_last_block_is_what_the_final_norm_reads(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "llama")
    model = load_model(parse_model(str(path)))
    every = pooled_states(model, "none", 100)
    states = torch.from_numpy(every[:, :, POOLINGS.index("last")]).float()
    norm: Callable[[torch.Tensor], torch.Tensor] = model.backbone.norm
    torch.testing.assert_close(norm(states[:, -2]), states[:, -1])


def test_capture_keeps_nothing_and_leaves_no_hook(tmp_path: Path) -> None:
    model = load_model(parse_model(str(save_tiny("llama", tmp_path / "llama"))))
    shapes: list[tuple[int, ...]] = []
    with Capture(model, ("block.1",), seeded_projection(32, 4, seed=0)) as capture:
        handle = model.blocks[2].register_forward_hook(lambda *_: shapes.append((1,)))
        out = capture.run(*two_prompts())
        handle.remove()
    assert out.shape == (1, 1, 2, 36)
    assert not shapes, "the forward pass went on after the deepest wanted layer"
    assert all(not module._forward_hooks for module in model.backbone.modules())


def test_a_model_compiled_after_the_hooks_are_on_runs_as_one_graph(tmp_path: Path) -> None:
    model = load_model(parse_model(str(save_tiny("llama", tmp_path / "llama"))))
    hookpoints = ("embed", "block.0", "block.1", "block.2", "final_norm")
    tokens, batch = two_prompts()
    input_ids, spans, _ = padded(model, tokens, batch)
    projection = seeded_projection(32, 4, seed=0)
    with Capture(model, hookpoints, projection) as capture:
        expected = capture.run(tokens, batch)
        capture._pool = PoolProject(spans, projection, len(hookpoints))
        compiled = torch.compile(model.backbone, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            compiled(input_ids=input_ids, use_cache=False)
            torch.testing.assert_close(capture._pool.finish(), expected)


def test_hooks_on_a_compiled_model_are_refused(tmp_path: Path) -> None:
    model = load_model(parse_model(str(save_tiny("llama", tmp_path / "llama"))))
    compiled = replace(model, backbone=torch.compile(model.backbone, backend="eager"))
    with pytest.raises(ModelError, match="compiled before its hooks"):
        Capture(compiled, ("embed",), seeded_projection(32, 4, seed=0))
