"""What makes the forward pass fast changes no number beyond rounding."""

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CHAT_TEMPLATE, save_tiny

from safetyspace_fast.errors import ModelError
from safetyspace_fast.extract import (
    Batching,
    Capture,
    compile_blocks,
    find_batching,
    make_plan,
    seeded_projection,
    tune,
)
from safetyspace_fast.extract.plan import Batch
from safetyspace_fast.extract.tune import batch_cost
from safetyspace_fast.models import (
    LoadedModel,
    Template,
    Tokenized,
    load_model,
    parse_model,
    share_prefix,
    tokenize,
)

TEXTS = ["one text", "another one", "a longer text than the two before it", "short", "the last"]


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    path = save_tiny("llama", tmp_path / "llama", chat_template=CHAT_TEMPLATE)
    return load_model(parse_model(str(path)))


def of_lengths(lengths: Any) -> Tokenized:
    """Different texts of these lengths."""
    starts = np.concatenate([[0], lengths.cumsum()])
    spans = np.stack([np.zeros_like(lengths), lengths], 1)[:, None].astype(np.int32)
    flags = np.zeros(len(lengths), bool)
    ids = np.arange(starts[-1], dtype=np.int32)
    counts = lengths.astype(np.int32)
    return Tokenized(ids, starts, spans, counts, flags, flags, ("mean",), Template("none"), 0)


def states(model: LoadedModel, tokens: Tokenized, prefix: Any) -> list[torch.Tensor]:
    plan = make_plan(tokens, batching=Batching(40, part_samples=8))
    with Capture(model, model.hookpoints, seeded_projection(32, 4, 0), cache=prefix) as capture:
        return [capture.run(tokens, batch) for batch in plan]


@pytest.mark.parametrize("template", [pytest.param("none", marks=pytest.mark.slow), "chat"])
def test_compiled_blocks_give_the_same_states(model: LoadedModel, template: str) -> None:
    prefix, tokens, _ = share_prefix(model, tokenize(model, TEXTS, template=template))
    assert (prefix is None) == (template == "none")
    expected = states(model, tokens, prefix)
    compile_blocks(model, tokens, prefix)
    calls = []
    handle = model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    for got, before in zip(states(model, tokens, prefix), expected, strict=True):
        torch.testing.assert_close(got, before, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert len(calls) == len(expected)


def test_blocks_that_cannot_be_compiled_are_an_error_that_says_what_to_do(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        def forward(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no working C++ compiler\nsecond line")

        return forward

    monkeypatch.setattr(torch, "compile", no_compiler)
    tokens = tokenize(model, TEXTS, template="none")
    with pytest.raises(ModelError, match=r"no working C\+\+ compiler\); run it without --compile"):
        compile_blocks(model, tokens)


@pytest.mark.parametrize(
    ("seconds_per_token", "expected"),
    [((1, 1, 1), 512), ((1, 0.9, 0.89), 1024), ((1, 0.99, 0.9), 2048), ((1, 1.1, 0.99), 512)],
)
def test_the_budget_is_the_smallest_that_no_larger_one_beats(
    model: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    seconds_per_token: tuple[float, ...],
    expected: int,
) -> None:
    speed = cycle(np.repeat(seconds_per_token, tune._ROUNDS))
    seen = []

    def seconds(_capture: Capture, _tokens: Tokenized, batch: Batch) -> float:
        seen.append(batch.padded_tokens)
        return float(next(speed)) * batch.padded_tokens

    monkeypatch.setattr(tune, "_seconds", seconds)
    monkeypatch.setattr(tune, "WORTHWHILE", 0)
    assert find_batching(model, tokenize(model, TEXTS, template="none")) == Batching(expected)
    assert all(
        0.8 * budget < size <= budget
        for budget, size in zip(
            np.repeat((512, *tune.LARGER["cpu"]), tune._ROUNDS), seen, strict=True
        )
    )


def test_short_runs_and_full_memories_take_the_smallest_budget(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tune, "_seconds", never)
    assert find_batching(model, tokenize(model, TEXTS, template="none")) == Batching(512)
    monkeypatch.setattr(tune, "WORTHWHILE", 0)
    assert find_batching(model, tokenize(model, TEXTS, template="none")) == Batching(512)


def test_a_real_try_finds_one_of_the_budgets(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "WORTHWHILE", 0)
    tokens = tokenize(model, TEXTS, template="none")
    assert find_batching(model, tokens).token_budget in (512, *tune.LARGER["cpu"])
    assert find_batching(model, tokens, token_budget=700) == Batching(700)


@pytest.mark.parametrize("token_budget", [None, 700])
def test_on_a_gpu_the_cost_of_a_batch_is_measured(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, token_budget: int | None
) -> None:
    """Planted: 3 ms a batch and 1 us a token; on a CPU the same times change nothing."""
    monkeypatch.setattr(tune, "_seconds", lambda _c, _t, batch: 3e-3 + 1e-6 * batch.padded_tokens)
    tokens = tokenize(model, TEXTS, template="none")
    assert find_batching(model, tokens, token_budget=token_budget).batch_cost == 16
    on_a_gpu = replace(model, device=torch.device("cuda", 0))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    found = find_batching(on_a_gpu, tokens, token_budget=token_budget)
    assert found.batch_cost == pytest.approx(3000, rel=1e-2)
    assert found.token_budget == (token_budget or tune.USUAL["cuda"].token_budget)


def test_a_batch_costs_what_one_text_takes() -> None:
    """Planted: 3 ms a batch and 1 us a token; and a host that is slower than any batch."""

    def seconds(tokens: int) -> float:
        return 3e-3 + 1e-6 * tokens

    assert batch_cost(seconds(60), 60, 16_384, 16_384 / seconds(16_384)) == pytest.approx(
        3000, 1e-3
    )
    assert batch_cost(0.02, 60, 16_384, 16_384 / 0.02) == 16_384
    assert batch_cost(60e-6, 60, 16_384, 1e6) == 0


def test_a_costly_batch_makes_fewer_batches_of_more_padding() -> None:
    """As on a GPU, where 627 batches of 1,068 tokens were planned for a budget of 16,384."""
    draws = np.random.default_rng(0)
    lengths = np.clip(np.exp(draws.normal(3.8, 0.8, 4096)), 3, 1000).astype(np.int64)
    tokens = of_lengths(lengths)
    cheap = make_plan(tokens, batching=tune.USUAL["cpu"])
    costly = make_plan(tokens, batching=tune.USUAL["cuda"])
    assert len(list(costly)) < len(list(cheap)) / 15
    assert costly.padded_tokens < 1.06 * cheap.padded_tokens
    assert max(batch.padded_tokens for batch in costly) > 10_000
