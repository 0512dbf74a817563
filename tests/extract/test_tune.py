"""What makes the forward pass fast changes no number beyond rounding."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CHAT_TEMPLATE, save_tiny

from safetyspace_fast.errors import ModelError
from safetyspace_fast.extract import (
    Capture,
    compile_blocks,
    find_token_budget,
    make_plan,
    seeded_projection,
    tune,
)
from safetyspace_fast.extract.plan import Batch
from safetyspace_fast.models import (
    LoadedModel,
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


def states(model: LoadedModel, tokens: Tokenized, prefix: Any) -> list[torch.Tensor]:
    plan = make_plan(tokens, part_samples=8, token_budget=40)
    with Capture(model, model.hookpoints, seeded_projection(32, 4, 0), prefix=prefix) as capture:
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
    assert find_token_budget(model, tokenize(model, TEXTS, template="none")) == expected
    assert all(
        0.8 * budget < size <= budget
        for budget, size in zip(np.repeat(tune.BUDGETS["cpu"], tune._ROUNDS), seen, strict=True)
    )


def test_short_runs_and_full_memories_take_the_smallest_budget(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tune, "_seconds", never)
    assert find_token_budget(model, tokenize(model, TEXTS, template="none")) == 512
    monkeypatch.setattr(tune, "WORTHWHILE", 0)
    assert find_token_budget(model, tokenize(model, TEXTS, template="none")) == 512


def test_a_real_try_finds_one_of_the_budgets(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "WORTHWHILE", 0)
    tokens = tokenize(model, TEXTS, template="none")
    assert find_token_budget(model, tokens) in tune.BUDGETS["cpu"]
