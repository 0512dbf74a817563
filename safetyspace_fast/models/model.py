"""`LoadedModel`: a model without its head, ready to run."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import layers
from .sharded import Leader
from .streamed import StreamedBlocks

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class LoadedModel:
    """A model without its head, ready to run.

    Call it as `backbone(input_ids=ids, use_cache=False)` with `ids: [B, T] int64`, padded on the
    right with any token. A causal model needs no attention mask: a hidden state never sees tokens
    to its right. An encoder needs `attention_mask: [B, T]`, 1 at tokens and 0 at padding.

    name: the spec's name.
    backbone: in evaluation mode, without gradients; its result has `last_hidden_state: [B, T, D]`.
    blocks: the backbone's list of transformer blocks, in order.
    causal: no hidden state depends on a token to its right (tested on loading). Only then can a
        shared prefix run once for all texts.
    hookpoints: names of the points where hidden states can be read, in depth order. `final_norm` is
        the last hidden state; without a norm after the last block (BERT) the two are equal.
    hidden_size: D.
    tokenizer: a transformers fast tokenizer, which gives character offsets. Any: transformers has
        no type that mypy can read.
    max_tokens: the longest prompt that the model takes.
    pad_token_id: an ordinary token to fill rows with; no text's hidden state depends on it.
    device, dtype: of the weights.
    identify: returns what `identity` gives.
    streamed: the blocks, if they stay on disk. Until a run begins, one of each kind is in its place
        in the backbone, and all others hand on the states that they get.
    leader: announces forward passes to the other devices of a model that is shared out.
    """

    name: str
    backbone: nn.Module = field(repr=False)
    blocks: nn.ModuleList = field(repr=False)
    causal: bool
    hookpoints: tuple[str, ...]
    hidden_size: int
    tokenizer: Any = field(repr=False)
    max_tokens: int
    pad_token_id: int
    device: torch.device
    dtype: torch.dtype
    identify: Callable[[], dict[str, Json]] = field(repr=False)
    streamed: StreamedBlocks | None = field(default=None, repr=False)
    leader: Leader | None = field(default=None, repr=False)

    @property
    def most_tokens(self) -> float:
        """In a batch, padding included, as larger ones have failed; infinite: none has."""
        return math.inf if self.leader is None else self.leader.most_tokens

    @cached_property
    def identity(self) -> dict[str, Json]:
        """What the store's manifest says about the model; waits until its files are hashed."""
        return self.identify()

    def watch(self, hookpoint: str, callback: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `callback` with a hookpoint's `hidden_states: [B, T, D]` in every forward pass."""
        return layers.watch(self.backbone, self.blocks, hookpoint, callback)
