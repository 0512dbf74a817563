"""Tokens that all prompts begin with (BOS, a chat template's start), run once for all of them.

A causal model's keys and values of the first tokens do not depend on what follows. They are kept
from one forward pass over the prefix and every batch reads them, so that only what differs between
the prompts runs. What a batch adds to them is never kept.
"""

from functools import partial
from typing import Any

import numpy as np
import torch

from ..errors import first_line
from ..models import LoadedModel, Tokenized

MIN_TOKENS = 4
"""Fewer cost more than they save: attention behind a prefix needs a mask, otherwise none."""
_PROBES = ((5, 6, 7), (9, 8, 5))  # what follows the prefix when it is tried out


def share_prefix(model: LoadedModel, tokens: Tokenized) -> tuple[Any, Tokenized, str | None]:
    """Take off the prompts what they all begin with, where the model can go on from there.

    Args:
        model: the model.
        tokens: whole prompts.

    Returns:
        The keys and values of the prefix, for `Capture`, or None; the tokens that are left to run;
        and the reason why a prefix that is there is not shared.
    """
    length = tokens.prefix_length
    if length < MIN_TOKENS or not model.causal:
        return None, tokens, None
    ids = torch.from_numpy(tokens.prompt(0)[:length].astype(np.int64)).to(model.device)
    try:
        cache = _keys_and_values(model, ids)
    except Exception as error:  # a model's own code may raise anything
        kind = "" if isinstance(error, _CannotShare) else f"{type(error).__name__}: "
        reason = f"{kind}{first_line(error)}"
        return None, tokens, f"the {length} tokens that all prompts share run each time: {reason}"
    return cache, tokens.without_prefix(), None


class _CannotShare(Exception):  # noqa: N818 - an answer, not an error
    """Why the model cannot go on from kept keys and values."""


@torch.inference_mode()
def _keys_and_values(model: LoadedModel, ids: torch.Tensor) -> Any:
    """The cache of a prefix `[T] int64`, which forward passes read and do not change."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    cache = getattr(model.backbone(input_ids=ids[None], use_cache=True), "past_key_values", None)
    if not isinstance(cache, DynamicCache) or not all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    ):
        raise _CannotShare("the model keeps more than keys and values of them")
    kept = [(layer.keys.contiguous(), layer.values.contiguous()) for layer in cache.layers]
    cache.shared_prefix = kept  # read by fused attention, which has no use for `update`
    cache.update = torch.compiler.disable(partial(_followed_by, kept))  # type: ignore[no-untyped-call]

    ends = torch.tensor(_PROBES, device=ids.device)
    whole = torch.cat([ids.expand(len(ends), -1), ends], 1)
    expected = model.backbone(input_ids=whole, use_cache=False).last_hidden_state[:, len(ids) :]
    got = model.backbone(input_ids=ends, past_key_values=cache, use_cache=True).last_hidden_state
    gap = torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected)
    if not gap <= torch.finfo(got.dtype).eps ** 0.5:  # other positions or masks differ by far more
        raise _CannotShare("the states after it would be others")
    return cache


def _followed_by(
    kept: list[tuple[torch.Tensor, torch.Tensor]],
    keys: torch.Tensor,
    values: torch.Tensor,
    layer_idx: int,
    *_args: Any,
    **_options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `update` of the cache returns: a layer's `[1, H, P, d]` before `[B, H, T, d]`."""
    batch = len(keys)
    first, second = (states.expand(batch, -1, -1, -1) for states in kept[layer_idx])
    return torch.cat([first, keys], 2), torch.cat([second, values], 2)
