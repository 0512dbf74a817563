"""Making the forward pass fast on this machine: compiled blocks, and the size of batches."""

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ModelError, first_line
from ..models import LoadedModel, Tokenized
from .capture import Capture, seeded_projection
from .plan import Batch, Batching, Plan

if TYPE_CHECKING:
    from transformers import Cache

USUAL = {
    "cpu": Batching(token_budget=512),
    "cuda": Batching(token_budget=16_384, batch_cost=512, part_samples=4096),
}
"""What a short run takes. A GPU idles while the host starts a batch, hence its cost."""
LARGER = {"cpu": (1024, 2048), "cuda": (32_768, 65_536)}
"""Token budgets that a long run tries too."""
TRIAL_BLOCKS = 4
"""Blocks that a try runs: few, but too many for the caches."""
WORTHWHILE = 100
"""A run that is shorter than this many tries does without one."""
GAIN = 0.02
"""A larger size must be faster by this share, because it takes more memory."""
_ROUNDS = 3  # the first one warms up


def compile_blocks(model: LoadedModel, tokens: Tokenized, cache: "Cache | None" = None) -> None:
    """Compile every block of a model, for any number and length of texts.

    Blocks of the same kind share one graph. Hooks are outside it, so they can change afterwards.

    Args:
        model: the model; it is changed.
        tokens: prompts without the shared prefix.
        cache: as for `Capture`.

    Raises:
        ModelError: torch.compile fails on this machine or model, or its blocks are streamed.
    """
    if model.streamed is not None:
        raise ModelError(
            f"{model.name}: compile needs the whole model in memory, and its blocks are streamed "
            "from disk; leave it out, or choose weights 'load'"
        )
    import torch._dynamo

    # Blocks differ in their number, an attribute; it must not make a graph of its own for each.
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for block in model.blocks:
        block.forward = torch.compile(block.forward, dynamic=True)
    rows = np.argsort(tokens.lengths, kind="stable")[-2:]
    two = Batch(rows, np.arange(len(rows)), rows, int(tokens.lengths[rows[-1]]))
    projection = seeded_projection(model.hidden_size, 2, 0).to(model.device)
    try:
        with Capture(model, model.hookpoints, projection, cache=cache) as capture:
            capture.run(tokens, two)
    except Exception as error:
        raise ModelError(
            f"{model.name}: cannot be compiled here ({type(error).__name__}: {first_line(error)}); "
            "run it without --compile"
        ) from error


def find_batching(
    model: LoadedModel,
    tokens: Tokenized,
    cache: "Cache | None" = None,
    token_budget: int | None = None,
) -> Batching:
    """The smallest size of batches that no larger one clearly beats in tokens per second.

    On a GPU the cost of a batch is measured too: what a batch of one text takes, in tokens of a
    large one. On a CPU it is nearly nothing.

    Args:
        model: the model.
        tokens: prompts without the shared prefix.
        cache: as for `Capture`.
        token_budget: the size, if it is chosen already.
    """
    kind = "cuda" if model.device.type == "cuda" else "cpu"
    usual = USUAL[kind]
    budgets = () if token_budget else tuple(b for b in LARGER[kind] if b <= model.most_tokens)
    num_blocks = min(TRIAL_BLOCKS, len(model.blocks))
    share = _ROUNDS * num_blocks / len(model.blocks)
    if len(tokens.ids) < WORTHWHILE * share * (usual.token_budget + sum(budgets)):
        budgets = ()
    if not len(tokens.ids) or (kind == "cpu" and not budgets):
        return replace(usual, token_budget=token_budget or usual.token_budget)
    lengths = tokens.lengths
    rows = np.argsort(lengths, kind="stable")
    # The text that holds the middle token: half of all tokens are in texts of its length or less.
    middle = np.searchsorted(np.cumsum(lengths[rows]), len(tokens.ids) // 2)
    length = max(1, int(lengths[rows[middle]]))
    deepest = f"block.{num_blocks - 1}"
    projection = seeded_projection(model.hidden_size, 2, 0).to(model.device)
    rates: dict[int, float] = {}
    batching = usual
    with Capture(model, (deepest,), projection, cache=cache) as capture:

        def seconds(size: int) -> float:
            """What a batch of `size` texts takes."""
            chosen = np.resize(rows[: middle + 1][-size:], size)
            batch = Batch(chosen, np.arange(size), chosen, length)
            return min(_seconds(capture, tokens, batch) for _ in range(_ROUNDS))

        with suppress(torch.OutOfMemoryError):
            for budget in (usual.token_budget, *budgets):
                size = max(1, budget // length)
                rates[budget] = size * length / seconds(size)
        if kind == "cuda" and rates:
            largest = max(rates)
            size = max(1, largest // length)
            cost = batch_cost(seconds(1), length, size * length, rates[largest])
            batching = replace(usual, batch_cost=cost)
    best = usual.token_budget
    for budget, rate in rates.items():
        if rate > (1 + GAIN) * rates[best]:
            best = budget
    return replace(batching, token_budget=token_budget or best)


def batch_cost(one_text: float, length: int, tokens: int, rate: float) -> int:
    """What a batch costs beside its tokens, in tokens.

    Args:
        one_text: seconds of a batch of one text.
        length: its tokens.
        tokens: of a large batch.
        rate: its tokens per second.
    """
    slope = max(0.0, tokens / rate - one_text) / max(1, tokens - length)  # seconds a token
    if slope * tokens <= one_text:  # even a large batch waits for the host
        return tokens
    return max(0, round(one_text / slope - length))


def packing_pays(
    model: LoadedModel, tokens: Tokenized, plan: Plan, cache: "Cache | None" = None
) -> bool:
    """Whether the batches of a plan run faster without padding: measured, and only on a GPU.

    Args:
        model: the model.
        tokens: whole prompts.
        plan: their batches.
        cache: as for `Capture` of padded batches.
    """
    if model.device.type != "cuda" or not model.causal or not plan.padded_tokens or model.leader:
        return False
    batch = max(plan, key=lambda batch: batch.padded_tokens)
    num_blocks = min(TRIAL_BLOCKS, len(model.blocks))
    cost = 2 * _ROUNDS * batch.padded_tokens * num_blocks / len(model.blocks)
    if plan.tokens < WORTHWHILE * cost:
        return False
    from ..models.packed import why_not_packed

    if why_not_packed(model) is not None:
        return False
    hookpoints = (f"block.{num_blocks - 1}",)
    projection = seeded_projection(model.hidden_size, 2, 0).to(model.device)

    def seconds(*, packed: bool) -> float:
        with Capture(model, hookpoints, projection, cache=cache, packed=packed) as capture:
            return min(_seconds(capture, tokens, batch) for _ in range(_ROUNDS))

    try:
        return (1 + GAIN) * seconds(packed=True) < seconds(packed=False)
    except torch.OutOfMemoryError:
        return False


def _seconds(capture: Capture, tokens: Tokenized, batch: Batch) -> float:
    started = time.perf_counter()
    capture.run(tokens, batch).sum().item()  # waits for a GPU
    return time.perf_counter() - started
