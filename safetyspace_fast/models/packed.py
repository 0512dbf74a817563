"""Batches without padding: the texts of a batch stand one behind the other in one row.

Attention keeps them apart by their limits (`torch.nn.attention.varlen.varlen_attn`, which runs
FlashAttention on a GPU); all other layers treat tokens one by one. No token is padding, and no mask
is made.

This module imports transformers, which takes seconds: import it inside functions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from ..errors import ModelError, first_line
from .model import LoadedModel
from .tokens import to_device

NAME = "safetyspace_packed"
"""Under which transformers knows the attention below."""
_UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some models ask of attention beside a scale and a window, and `varlen_attn` has not."""
_LENGTHS = (7, 3, 5)  # of the texts that a model is tried with


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,  # as transformers passes them
) -> tuple[Tensor, None]:
    """Causal attention within each text; called by transformers' layers.

    Args:
        module: the layer.
        query: [1, H, T, dim]; key, value: [1, K, T, dim], H a multiple of K.
        attention_mask: None.
        scaling: of the scores; None: dim^-0.5.
        sliding_window: tokens that a token sees, itself included; None: all before it.
        cu_seq_lens_q: [B + 1] int32, where each text starts, and T.
        max_length_q: tokens of the longest.
        options: the rest; what would change the result is refused.

    Returns:
        [1, T, H, dim].

    Raises:
        ModelError: the layer asks for what this attention has not.
    """
    asked = [name for name in _UNKNOWN if options.get(name) is not None]
    if cu_seq_lens_q is None or attention_mask is not None or options.get("is_causal") is False:
        asked.append("a mask")
    if asked:
        raise ModelError(f"its attention needs {', '.join(asked)}")
    assert cu_seq_lens_q is not None
    assert max_length_q is not None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    out = varlen_attn(
        query,
        key,
        value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None], None


AttentionInterface.register(NAME, attend)


@contextmanager
def packing(model: LoadedModel) -> Iterator[None]:
    """The model's attention keeps packed texts apart, as long as a `with` block lasts.

    Raises:
        ModelError: its layers do not take their attention from transformers' interface.
    """
    backbone: Any = model.backbone  # a transformers model
    before = backbone.config._attn_implementation
    backbone.set_attn_implementation(NAME)
    try:
        if backbone.config._attn_implementation != NAME:
            raise ModelError("its attention cannot be replaced")
        yield
    finally:
        backbone.set_attn_implementation(before)


def packed_inputs(lengths: Tensor, ids: Tensor) -> dict[str, Any]:
    """What a backbone is called with.

    Args:
        lengths: [B] int64 on the CPU, tokens of each text.
        ids: [T] int64, all tokens one behind the other, on the model's device.
    """
    limits = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    positions = torch.arange(len(ids)) - limits[:-1].repeat_interleave(lengths)
    device_limits = to_device(limits.int(), ids.device)
    longest = int(lengths.max())
    return {
        "input_ids": ids[None],
        "position_ids": to_device(positions, ids.device)[None],
        "use_cache": False,
        "cu_seq_lens_q": device_limits,
        "cu_seq_lens_k": device_limits,
        "max_length_q": longest,
        "max_length_k": longest,
    }


@torch.inference_mode()
def why_not_packed(model: LoadedModel) -> str | None:
    """Why a model's texts cannot be packed; None if a few were, and their states were right.

    Args:
        model: a causal model.
    """
    ids = (torch.arange(sum(_LENGTHS)) % 5).to(model.device)  # any tokens
    lengths = torch.tensor(_LENGTHS)
    call: Callable[..., Any] = model.backbone
    try:
        alone = [
            call(input_ids=text[None], use_cache=False).last_hidden_state[0]
            for text in torch.split(ids, list(_LENGTHS))
        ]
        with packing(model):
            together = call(**packed_inputs(lengths, ids)).last_hidden_state[0]
    except Exception as error:  # a model's own code may raise anything
        return first_line(error)
    expected = torch.cat(alone)
    gap = torch.linalg.vector_norm((together - expected).float())
    gap /= torch.linalg.vector_norm(expected.float())
    if not gap <= torch.finfo(expected.dtype).eps ** 0.5:  # texts that see each other: far more
        return "its states would change"
    return None
