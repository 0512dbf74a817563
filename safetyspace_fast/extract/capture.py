"""Hooks that reduce the hidden states of every wanted layer while the forward pass runs."""

from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ModelError
from ..models import LoadedModel, Tokenized
from ..ops import PoolProject
from .plan import Batch

if TYPE_CHECKING:
    from ..models.prefix import SharedPrefix


class _DeepestLayerReached(Exception):  # noqa: N818 - a signal, not an error
    """Ends the forward pass: no wanted layer lies deeper."""


class Capture:
    """Attaches hooks for as long as it is entered; keeps nothing of shape `[B, T, D]`."""

    def __init__(
        self,
        model: LoadedModel,
        hookpoints: tuple[str, ...],
        projection: torch.Tensor,
        impl: str | None = None,
        prefix: "SharedPrefix | None" = None,
    ) -> None:
        """Say what to capture.

        Args:
            model: the model.
            hookpoints: names in order of depth: `embed`, `block.i`, `final_norm`.
            projection: `[D, P] float32` on the model's device.
            impl: a forced implementation of `pool_project`.
            prefix: keys and values of tokens before every prompt, of `share_prefix`.

        Raises:
            ModelError: the model is compiled already, so hooks would be silently ignored.
        """
        if hasattr(model.backbone, "_orig_mod"):
            raise ModelError(
                "the model was compiled before capture was attached, so torch would ignore the "
                "hooks; give the uncompiled model"
            )
        self._model = model
        self._hookpoints = hookpoints
        self._projection = projection
        self._impl = impl
        self._reading: dict[str, Any] = {"use_cache": False}
        if prefix is not None:
            self._reading = {"use_cache": True, "past_key_values": prefix}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._pool: PoolProject

    def __enter__(self) -> "Capture":
        """Attach the hooks."""
        deepest = len(self._hookpoints) - 1
        for i_layer, name in enumerate(self._hookpoints):
            stop = i_layer == deepest and name != "final_norm"
            self._handles.append(self._model.watch(name, partial(self._reduce, i_layer, stop)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Detach the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.inference_mode()
    def run(self, tokens: Tokenized, batch: Batch) -> torch.Tensor:
        """Run one batch and return what the hooks made of its hidden states.

        Args:
            tokens: prompts and spans of all samples, without the prefix.
            batch: which of them; its input has `B` rows.

        Returns:
            `[L, S, B, D + P] float32`, pooled states and their projection, on the device.
        """
        input_ids, spans, attention_mask = padded(self._model, tokens, batch)
        self._pool = PoolProject(spans, self._projection, len(self._hookpoints), self._impl)
        with suppress(_DeepestLayerReached):
            self._model.backbone(
                input_ids=input_ids, attention_mask=attention_mask, **self._reading
            )
        out = self._pool.finish()
        del self._pool
        return out

    def _reduce(self, i_layer: int, stop: bool, hidden_states: torch.Tensor) -> None:
        self._pool(i_layer, hidden_states)
        if stop:
            raise _DeepestLayerReached


def padded(
    model: LoadedModel, tokens: Tokenized, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The input of one batch, on the model's device.

    Returns:
        input ids `[B, T] int64`, padded on the right; spans `[B, S, 2] int32`; and for a model that
        is not causal the attention mask `[B, T] int64`, 1 at tokens and 0 at padding, else None: a
        causal state never sees the padding.
    """
    ids = torch.full((len(batch.unique), batch.length), model.pad_token_id, dtype=torch.int64)
    mask = None if model.causal else torch.zeros_like(ids)
    for i_row, row in enumerate(batch.unique):
        prompt = tokens.prompt(row)
        ids[i_row, : len(prompt)] = torch.from_numpy(prompt)
        if mask is not None:
            mask[i_row, : len(prompt)] = 1

    def on_device(tensor: torch.Tensor) -> torch.Tensor:
        if model.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(model.device, non_blocking=True)

    spans = on_device(torch.from_numpy(tokens.spans[batch.unique]))
    return on_device(ids), spans, None if mask is None else on_device(mask)


def seeded_projection(hidden_size: int, proj_dim: int, seed: int) -> torch.Tensor:
    """Gaussian random projection that keeps squared distances on average.

    Entries are drawn from N(0, 1/P) (Johnson and Lindenstrauss 1984; Indyk and Motwani 1998).

    Returns:
        `[D, P] float32` on the CPU, the same for every model of this width.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(hidden_size, proj_dim, generator=generator, dtype=torch.float64)
    scaled: torch.Tensor = draws / proj_dim**0.5
    return scaled.float()
