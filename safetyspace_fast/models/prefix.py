"""A key/value cache of the tokens that all prompts share (BOS, a chat template's start).

In a causal model, keys and values of the first tokens do not depend on the tokens after them. The
shared tokens run once; every batch reads their keys and values, and runs only the tokens behind.

This module imports transformers, which takes seconds: import it inside functions.
"""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..errors import ModelError

_PROBES = ((5, 6, 7), (9, 8, 5))  # tokens after the prefix, to try it with


class NoCache(DynamicCache):  # type: ignore[misc]  # mypy does not read transformers
    """A cache that keeps nothing: a forward pass with it is one without a cache.

    Without any cache, transformers looks at the positions to see whether several texts share a row,
    and so waits for the GPU once a batch.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """The batch's own keys and values."""
        return key_states, value_states

    @classmethod
    @torch.inference_mode()
    def of(cls, backbone: nn.Module, device: torch.device) -> "NoCache | None":
        """For a causal model; None if it changes a bit of the states, or fails."""
        ids = torch.tensor(_PROBES, device=device)
        try:
            expected = backbone(input_ids=ids, use_cache=False).last_hidden_state
            cache = cls()
            for _ in range(2):  # the second finds what the first one left
                got = backbone(input_ids=ids, use_cache=True, past_key_values=cache)
                if not torch.equal(got.last_hidden_state, expected):
                    return None
        except Exception:  # a model's own code may raise anything
            return None
        return cache


class SharedPrefix(Cache):  # type: ignore[misc]  # mypy does not read transformers
    """Keys and values of the tokens before every prompt, for each layer of a model.

    Pass it to a backbone as `past_key_values` with `use_cache=True`, as often as you like: a
    forward pass reads it and never changes it. Keys and values of a batch are not kept.
    """

    def __init__(self, layers: list[DynamicLayer]) -> None:
        """Use the layers of a cache that holds the prefix: keys and values [1, heads, P, dim]."""
        super().__init__(layers=layers)
        for layer in layers:
            _make_contiguous(layer)
        # All layers of a forward pass get the same mask, so it is examined once.
        self._is_causal: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()

    @classmethod
    @torch.inference_mode()
    def of(cls, backbone: nn.Module, ids: Tensor) -> "SharedPrefix":
        """Run the shared tokens, then check that the model continues from them correctly.

        Args:
            backbone: a causal model without its head.
            ids: [P] int64 on the backbone's device.

        Raises:
            ModelError: the model keeps more than keys and values, or its hidden states after the
                prefix differ from those of the full prompt by more than rounding.
        """
        result = backbone(input_ids=ids[None], use_cache=True)
        cache: Any = getattr(result, "past_key_values", None)
        if not keeps_keys_and_values(cache):
            raise ModelError("the model keeps more than their keys and values")
        prefix = cls(cache.layers)
        ends = torch.tensor(_PROBES, device=ids.device)
        full = torch.cat([ids.expand(len(ends), -1), ends], 1)
        expected = backbone(input_ids=full, use_cache=False).last_hidden_state[:, len(ids) :]
        got = backbone(input_ids=ends, past_key_values=prefix, use_cache=True).last_hidden_state
        gap = torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected)
        if not gap <= torch.finfo(got.dtype).eps ** 0.5:  # wrong positions or masks: far more
            raise ModelError("hidden states after the prefix would change")
        return prefix

    def set_layer(self, number: int, layer: DynamicLayer) -> None:
        """Replace what a layer keeps of the prefix, for models whose blocks are streamed."""
        self.layers += [DynamicLayer() for _ in range(len(self.layers), number + 1)]
        _make_contiguous(layer)
        self.layers[number] = layer

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives no type
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """A layer's prefix followed by a batch's keys and values [B, heads, T, dim]."""
        layer, batch = self.layers[layer_idx], len(key_states)
        first, second = (kept.expand(batch, -1, -1, -1) for kept in (layer.keys, layer.values))
        return torch.cat([first, key_states], 2), torch.cat([second, value_states], 2)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives no type
    def before(self, layer_idx: int, mask: Tensor) -> tuple[Tensor, Tensor] | None:
        """A layer's keys and values, for attention that reads them without `update`.

        Args:
            layer_idx: the layer's number.
            mask: [..., T, P + T] boolean, True where a token is seen.

        Returns:
            Two tensors [heads, P, dim]; None if the mask hides an earlier token or shows a later
            one, since the caller applies a causal mask only.
        """
        causal = self._is_causal.get(mask)
        if causal is None:
            T, S = mask.shape[-2:]
            full = torch.ones(T, S, dtype=torch.bool).tril(S - T)
            causal = mask.dtype == torch.bool and bool((mask == full).all())
            self._is_causal[mask] = causal
        layer = self.layers[layer_idx]
        return (layer.keys[0], layer.values[0]) if causal else None


def keeps_keys_and_values(cache: Cache | None) -> bool:
    """Whether a model keeps nothing else of the tokens that it has read."""
    return isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def _make_contiguous(layer: DynamicLayer) -> None:
    if layer.is_initialized:  # of a block that is not in memory nothing is kept yet
        layer.keys, layer.values = layer.keys.contiguous(), layer.values.contiguous()
