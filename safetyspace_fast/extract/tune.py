"""The forward pass made fast on this machine: compiled blocks, and batches of the right size."""

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ModelError, first_line
from ..models import LoadedModel, Tokenized
from .capture import Capture, seeded_projection
from .plan import Batch

if TYPE_CHECKING:
    from ..models.prefix import SharedPrefix

BUDGETS = {"cpu": (512, 1024, 2048), "cuda": (16_384, 32_768, 65_536)}
"""What is tried; the first is taken where a try would not pay."""
TRIAL_BLOCKS = 4
"""A few blocks stand for all, but their weights should not all stay in the caches."""
WORTHWHILE = 100
"""Runs are longer than a try by this factor, or do without it."""
GAIN = 0.02
"""A larger batch takes more memory, so it has to be faster by this share."""
_ROUNDS = 3  # the first one warms up


def compile_blocks(
    model: LoadedModel, tokens: Tokenized, prefix: "SharedPrefix | None" = None
) -> None:
    """Compile every block of a model, for any number and length of texts.

    Hooks stay outside: blocks alike share one graph, and hooks may come and go.

    Args:
        model: the model, which is changed.
        tokens: prompts without the prefix.
        prefix: keys and values before them, of `share_prefix`.

    Raises:
        ModelError: torch.compile does not work here, or not on this model.
    """
    import torch._dynamo

    # A block's own number leads to its keys and values; it should not make a graph of its own.
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for block in model.blocks:
        block.forward = torch.compile(block.forward, dynamic=True)
    rows = np.argsort(tokens.lengths, kind="stable")[-2:]
    two = Batch(rows, np.arange(len(rows)), rows, int(tokens.lengths[rows[-1]]))
    projection = seeded_projection(model.hidden_size, 2, 0).to(model.device)
    try:
        with Capture(model, model.hookpoints, projection, prefix=prefix) as capture:
            capture.run(tokens, two)
    except Exception as error:
        raise ModelError(
            f"{model.name}: cannot be compiled here ({type(error).__name__}: {first_line(error)}); "
            "run it without --compile"
        ) from error


def find_token_budget(
    model: LoadedModel, tokens: Tokenized, prefix: "SharedPrefix | None" = None
) -> int:
    """The smallest batch size, in padded tokens, whose rate no larger one beats clearly.

    Args:
        model: the model.
        tokens: prompts without the prefix.
        prefix: keys and values before them, of `share_prefix`.
    """
    budgets = BUDGETS["cuda" if model.device.type == "cuda" else "cpu"]
    num_blocks = min(TRIAL_BLOCKS, len(model.blocks))
    cost = _ROUNDS * sum(budgets) * num_blocks / len(model.blocks)
    if len(tokens.ids) < WORTHWHILE * cost:
        return budgets[0]
    lengths = tokens.lengths
    rows = np.argsort(lengths, kind="stable")
    middle = np.searchsorted(np.cumsum(lengths[rows]), len(tokens.ids) // 2)  # by token, not text
    length = int(lengths[rows[middle]])
    deepest = f"block.{num_blocks - 1}"
    projection = seeded_projection(model.hidden_size, 2, 0).to(model.device)
    rates: dict[int, float] = {}
    with Capture(model, (deepest,), projection, prefix=prefix) as capture:
        for budget in budgets:
            size = max(1, budget // length)
            chosen = np.resize(rows[: middle + 1][-size:], size)
            batch = Batch(chosen, np.arange(size), chosen, length)
            try:
                seconds = min(_seconds(capture, tokens, batch) for _ in range(_ROUNDS))
            except torch.OutOfMemoryError:
                break
            rates[budget] = size * length / seconds
    best = budgets[0]
    for budget, rate in rates.items():
        if rate > (1 + GAIN) * rates[best]:
            best = budget
    return best


def _seconds(capture: Capture, tokens: Tokenized, batch: Batch) -> float:
    started = time.perf_counter()
    capture.run(tokens, batch).sum().item()  # waits for a GPU
    return time.perf_counter() - started
