"""Hooks that pool and project the hidden states of layers while the forward pass runs."""

from contextlib import ExitStack, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import ModelError
from ..models import (
    DeepestLayerReached,
    LoadedModel,
    Tokenized,
    attention_kernels,
    memory_errors,
    to_device,
)
from ..ops import PoolProject
from .plan import Batch

if TYPE_CHECKING:
    from transformers import Cache


class Capture:
    """Runs batches with hooks on the wanted layers, for as long as a `with` block lasts.

    A hook hands a layer's output `[B, T, D]` to `ops.PoolProject`, and nothing keeps it.
    """

    def __init__(
        self,
        model: LoadedModel,
        hookpoints: tuple[str, ...],
        projection: torch.Tensor,
        impl: str | None = None,
        cache: "Cache | None" = None,
        *,
        packed: bool = False,
    ) -> None:
        """Choose what to capture.

        Args:
            model: the model.
            hookpoints: where, in order of depth: `embed`, `block.i`, `final_norm`.
            projection: `[D, P] float32`, on the model's device.
            impl: implementation of `pool_project`; None: the fastest that works here.
            cache: keys and values of the tokens before every prompt, see `share_prefix`; or one
                that keeps nothing.
            packed: the texts of a batch stand one behind the other in one row, without padding;
                see `models.packed`.

        Raises:
            ModelError: the model as a whole is compiled, so torch would ignore the hooks.
        """
        if hasattr(model.backbone, "_orig_mod"):
            raise ModelError(
                "the model was compiled before its hooks were attached, so torch would ignore "
                "them; expected the uncompiled model"
            )
        self._model = model
        self._hookpoints = hookpoints
        self._projection = projection
        self._impl = impl
        self._reading: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            self._reading = {"use_cache": True, "past_key_values": cache}
        self._packed = packed
        self._open = ExitStack()
        self._pool: PoolProject | None = None

    def __enter__(self) -> "Capture":
        """Attach the hooks."""
        deepest = len(self._hookpoints) - 1
        for i_layer, name in enumerate(self._hookpoints):
            stop = i_layer == deepest and self._ends_at(name)
            handle = self._model.watch(name, partial(self._reduce, i_layer, stop))
            self._open.callback(handle.remove)
            if stop and self._model.leader is not None:
                self._open.enter_context(self._model.leader.ending(name))
        self._open.enter_context(attention_kernels(self._model.device))
        if self._packed:
            from ..models.packed import packing

            self._open.enter_context(packing(self._model))
        return self

    def _ends_at(self, name: str) -> bool:
        """Whether the forward pass ends at the deepest wanted layer, which has this name."""
        return name != "final_norm"  # there it has ended

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Detach the hooks."""
        self._open.close()

    @memory_errors()
    @torch.inference_mode()
    def run(self, tokens: Tokenized, batch: Batch) -> torch.Tensor:
        """Run one batch, and pool the hidden states of all hookpoints.

        Args:
            tokens: prompts and spans of all samples, without the prefix.
            batch: which of them to run, in `B` rows.

        Returns:
            `[L, S, B, D + P] float32` on the device: pooled states and, behind them, their
            projection.

        Raises:
            torch.OutOfMemoryError: the device's memory is too small for the batch.
        """
        return self._pooled(tokens, batch).finish()

    def _pooled(self, tokens: Tokenized, batch: Batch) -> PoolProject:
        """Run one batch; returns what has averaged the states of all hookpoints."""
        if self._packed:
            inputs, spans = packed(self._model, tokens, batch)
        else:
            input_ids, spans, attention_mask = padded(self._model, tokens, batch)
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **self._reading}
        pool = self._pool = PoolProject(
            spans, self._projection, len(self._hookpoints), self._impl, batch.length
        )
        try:
            with suppress(DeepestLayerReached):
                self._model.backbone(**inputs)
            return pool
        finally:
            self._pool = None  # a batch that failed leaves nothing on the device

    def _reduce(self, i_layer: int, stop: bool, hidden_states: torch.Tensor) -> None:
        if self._pool is not None:
            self._pool(i_layer, hidden_states)
        if stop:
            raise DeepestLayerReached


def padded(
    model: LoadedModel, tokens: Tokenized, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The input of one batch, padded on the right.

    Args:
        model: gives the padding token and the device.
        tokens: prompts and spans of all samples.
        batch: which of them.

    Returns:
        On the model's device: input ids `[B, T] int64`; spans `[B, S, 2] int32`, half-open ranges
        of tokens; and the attention mask `[B, T] int64`, 1 at tokens and 0 at padding. A causal
        model never attends to padding on the right, so its mask is None.
    """
    ids = torch.full((len(batch.unique), batch.length), model.pad_token_id, dtype=torch.int64)
    mask = None if model.causal else torch.zeros_like(ids)
    for i_row, row in enumerate(batch.unique):
        prompt = tokens.prompt(row)
        ids[i_row, : len(prompt)] = torch.from_numpy(prompt)
        if mask is not None:
            mask[i_row, : len(prompt)] = 1

    spans = torch.from_numpy(tokens.spans[batch.unique])
    device = model.device
    return (
        to_device(ids, device),
        to_device(spans, device),
        None if mask is None else to_device(mask, device),
    )


def packed(
    model: LoadedModel, tokens: Tokenized, batch: Batch
) -> tuple[dict[str, Any], torch.Tensor]:
    """The input of one batch, packed; see `models.packed`.

    Args:
        model: a causal model, which gives the device.
        tokens: prompts and spans of all samples.
        batch: which of them.

    Returns:
        What the backbone is called with; and, on the model's device, spans `[B, S, 2] int32` of
        the tokens of all texts.
    """
    from ..models.packed import packed_inputs

    lengths = tokens.lengths[batch.unique]
    ids = np.concatenate([tokens.prompt(row) for row in batch.unique]).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    spans = tokens.spans[batch.unique] + starts[:, None, None].astype(np.int32)
    inputs = packed_inputs(
        torch.from_numpy(lengths), to_device(torch.from_numpy(ids), model.device)
    )
    return inputs, to_device(torch.from_numpy(spans), model.device)


def seeded_projection(hidden_size: int, proj_dim: int, seed: int) -> torch.Tensor:
    """A Gaussian random projection, which keeps squared distances on average.

    Entries are drawn from N(0, 1/P) (Johnson and Lindenstrauss 1984; Indyk and Motwani 1998).

    Args:
        hidden_size: D.
        proj_dim: P.
        seed: of the draws.

    Returns:
        `[D, P] float32` on the CPU; the same for all models of this width.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(hidden_size, proj_dim, generator=generator, dtype=torch.float64)
    scaled: torch.Tensor = draws / proj_dim**0.5
    return scaled.float()
