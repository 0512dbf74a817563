"""Hooks that reduce the hidden states of every wanted layer while the forward pass runs."""

from types import TracebackType
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import ModelError
from ..ops import pool_project


class CausalModel(Protocol):
    """What the extraction needs of a loaded model."""

    backbone: nn.Module
    blocks: nn.ModuleList
    hidden_size: int
    device: torch.device


class _DeepestLayerReached(Exception):  # noqa: N818 - a signal, not an error
    """Ends the forward pass: no wanted layer lies deeper."""


class Capture:
    """Attaches hooks for as long as it is entered; keeps nothing of shape `[B, T, D]`."""

    def __init__(
        self,
        model: CausalModel,
        hookpoints: tuple[str, ...],
        projection: torch.Tensor,
        impl: str | None = None,
    ) -> None:
        """Say what to capture.

        Args:
            model: the model.
            hookpoints: names in order of depth: `embed`, `block.i`, `final_norm`.
            projection: `[D, P] float32` on the model's device.
            impl: a forced implementation of `pool_project`.

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
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._spans: torch.Tensor
        self._out: torch.Tensor

    def __enter__(self) -> "Capture":
        """Attach the hooks."""
        for i_layer, name in enumerate(self._hookpoints):
            last = i_layer == len(self._hookpoints) - 1
            if name == "embed":
                handle = self._model.blocks[0].register_forward_pre_hook(
                    lambda _, args, kwargs, i=i_layer, last=last: self._reduce(
                        i, args[0] if args else kwargs["hidden_states"], last
                    ),
                    with_kwargs=True,
                )
            elif name == "final_norm":
                handle = self._model.backbone.register_forward_hook(
                    lambda _, args, output, i=i_layer: self._reduce(i, output[0], False)
                )
            else:
                block = self._model.blocks[int(name.removeprefix("block."))]
                handle = block.register_forward_hook(
                    lambda _, args, output, i=i_layer, last=last: self._reduce(
                        i, output if isinstance(output, torch.Tensor) else output[0], last
                    )
                )
            self._handles.append(handle)
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
    def run(self, input_ids: torch.Tensor, spans: torch.Tensor, **forward: Any) -> torch.Tensor:
        """Run the model and return what the hooks made of its hidden states.

        Args:
            input_ids: `[B, T] int64`, padded on the right; a causal state never sees the padding.
            spans: `[B, S, 2] int32`, half-open token ranges.
            forward: more arguments for the model.

        Returns:
            `[B, L, S, D + P] float32`, pooled states and their projection, on the device.
        """
        batch, poolings = spans.shape[:2]
        width = sum(self._projection.shape)
        self._spans = spans
        self._out = input_ids.new_empty(
            (batch, len(self._hookpoints), poolings, width), dtype=torch.float32
        )
        try:
            self._model.backbone(input_ids=input_ids, use_cache=False, **forward)
        except _DeepestLayerReached:
            pass
        out = self._out
        del self._out, self._spans
        return out

    def _reduce(self, i_layer: int, hidden_states: torch.Tensor, last: bool) -> None:
        pooled, projected = pool_project(
            hidden_states, self._spans, self._projection, impl=self._impl
        )
        assert projected is not None
        width = pooled.shape[-1]
        self._out[:, i_layer, :, :width] = pooled
        self._out[:, i_layer, :, width:] = projected
        if last:
            raise _DeepestLayerReached


def seeded_projection(hidden_size: int, proj_dim: int, seed: int) -> torch.Tensor:
    """Gaussian random projection that keeps squared distances on average.

    Entries are drawn from N(0, 1/P) (Johnson and Lindenstrauss 1984; Indyk and Motwani 1998).

    Returns:
        `[D, P] float32` on the CPU, the same for every model of this width.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(hidden_size, proj_dim, generator=generator, dtype=torch.float64)
    return (draws / proj_dim**0.5).float()
