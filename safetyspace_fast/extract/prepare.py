"""From texts to forward passes: tokens, the prefix that they share, hookpoints, batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from ..errors import ImplementationError, ModelError, SafetySpaceError, first_line
from ..models import (
    LoadedModel,
    Tokenized,
    memory_errors,
    resolve_layers,
    share_prefix,
    tokenize,
)
from ..ops import PoolProject, pairwise_reduce, written
from .capture import seeded_projection
from .plan import Batching, Plan, make_plan
from .tune import compile_blocks, find_batching, packing_pays

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True)
class Prepared:
    """All that forward passes need beside the model."""

    hookpoints: tuple[str, ...]
    """Where hidden states are pooled, in order of depth."""
    projection: torch.Tensor
    """Random projection `[D, P] float32`, on the model's device."""
    prompts: Tokenized
    """Whole prompts."""
    tokens: Tokenized
    """The prompts without the shared prefix: what runs in each batch."""
    cache: "Cache | None"
    """Keys and values of the tokens that all prompts share; or a `NoCache`, on a GPU; or None."""
    batching: Batching
    """How the plan cuts texts into batches."""
    plan: Plan
    packed: bool
    """Whether the texts of a batch stand in one row, without padding; see `models.packed`."""

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the shared prefix; 0: whole prompts run."""
        return self.prompts.prefix_length if self.tokens is not self.prompts else 0


def prepare(
    model: LoadedModel,
    texts: Sequence[str],
    languages: Sequence[slice] | None = None,
    *,
    layers: str | Sequence[str] = "all",
    poolings: Sequence[str] = ("mean", "last"),
    template: str = "auto",
    max_tokens: int | None = None,
    proj_dim: int = 64,
    seed: int = 0,
    token_budget: int | None = None,
    batching: Batching | None = None,
    packed: bool | None = None,
    compiled: bool = False,
    impl: str | None = None,
    encode: Callable[..., Tokenized] | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Prepare the forward passes of a model over texts.

    Args:
        model: the model.
        texts: in the order of the results.
        languages: the texts of each language, in order; None: all are one language.
        layers, poolings, template, max_tokens, proj_dim, seed: as in `RunConfig`.
        token_budget: largest number of padded tokens in a batch; None: measure which is fast.
        batching: of an earlier run that goes on; None: measure it.
        packed: whether batches run without padding, as another worker found; None: measure it.
        compiled: compile the model's blocks, which changes `model`.
        impl: the implementation of kernels that will be forced.
        encode: turns texts into tokens; None: `tokenize`.
        on_note: called with each message for the user.

    Raises:
        ConfigError: a layer, pooling or template does not exist.
        ModelError: the template changes the text, the blocks cannot be compiled, or a text's states
            depend on the other texts of its batch.
        ImplementationError: a kernel cannot be used or compiled here.
    """
    if model.streamed is not None:
        model.streamed.place_samples()  # an earlier run over other texts has removed them
    hookpoints = resolve_layers(layers, model.hookpoints)
    projection = seeded_projection(model.hidden_size, proj_dim, seed).to(model.device)
    if impl is not None or model.device.type == "cuda":
        _try_kernels(model, projection, impl)
    encode = encode or tokenize
    prompts = encode(model, texts, template=template, poolings=poolings, max_tokens=max_tokens)
    if "mean" in poolings and (number := int(prompts.only_first.sum())):
        on_note(
            f"texts whose only token is the first of the prompt: {number}; `mean` is this token"
        )
    prefix, tokens, reason = share_prefix(model, prompts)
    if reason is not None:
        on_note(reason)
    cache = prefix
    if prefix is None and model.causal and model.device.type == "cuda":
        from ..models.prefix import NoCache

        cache = NoCache.of(model.backbone, model.device)
    if compiled:
        compile_blocks(model, tokens, cache)
    if batching is None:
        batching = find_batching(model, tokens, cache, token_budget)
    elif token_budget is not None:
        batching = replace(batching, token_budget=token_budget)
    padding = not reads_padding(model, tokens)
    if not padding:
        on_note(
            f"padding changes the states of {type(model.backbone).__name__}, so each batch holds "
            "texts of one length"
        )
    plan = make_plan(tokens, languages, batching=batching, padding=padding)
    if packed is None:
        packed = prefix is None and not compiled and packing_pays(model, tokens, plan, cache)
    return Prepared(hookpoints, projection, prompts, tokens, cache, batching, plan, packed)


def _try_kernels(model: LoadedModel, projection: torch.Tensor, impl: str | None) -> None:
    """Call every kernel of a run on two states; raises ImplementationError if one cannot be used.

    Triton compiles its kernels at their first call: here, not at the end of the first language.
    """
    states = torch.zeros(2, model.hidden_size, device=model.device)
    spans = torch.tensor([[[0, 1]]], dtype=torch.int32, device=model.device)
    labels = torch.tensor([0, 1], device=model.device)
    try:
        with memory_errors():
            pool = PoolProject(spans, projection, 1, impl)
            pool(0, states[None].to(model.dtype))
            pool.finish()
            pairwise_reduce(states, states, labels, 2, impl=written("pairwise_reduce", impl))
    except (SafetySpaceError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # of Triton, of a compiler, of a file
        raise ImplementationError(
            f"kernels cannot be compiled here ({type(error).__name__}: {first_line(error)}); "
            "Triton needs a C compiler, Python's headers (python3-dev) and a folder to write to "
            "(set TRITON_CACHE_DIR); or use --impl reference, which is slower"
        ) from error


@torch.inference_mode()
def reads_padding(model: LoadedModel, tokens: Tokenized) -> bool:
    """Whether padding on the right changes a text's states, in spite of the attention mask.

    A short text runs alone, beside a text of its length, and beside a longer one. Causal models
    never see what is on the right.

    Args:
        model: the model.
        tokens: prompts.

    Raises:
        ModelError: the states depend on the other texts of a batch, padded or not, or on chance; or
            a forward pass fails.
    """
    lengths = tokens.lengths
    if model.causal or not (lengths > 0).any():
        return False
    short = lengths[lengths > 0].min()
    longer = np.flatnonzero(lengths >= min(lengths.max(), short + 8))
    text = tokens.prompt(int(np.flatnonzero(lengths == short)[0]))
    other = tokens.prompt(int(longer[lengths[longer].argmin()]))
    alone = _states(model, text)
    if not _close(alone, _states(model, text, other[:short])[:1]):
        raise ModelError(
            f"{model.name}: its states of a text depend on the other texts of its batch, or differ "
            f"from run to run; {type(model.backbone).__name__} cannot be measured"
        )
    return not _close(alone, _states(model, text, other)[:1, :short])


def _states(model: LoadedModel, *prompts: NDArray[np.int32]) -> torch.Tensor:
    """Last hidden states of prompts `[T]` in one batch: `[B, T, D]`."""
    rows = [torch.from_numpy(prompt.astype(np.int64)) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=model.pad_token_id)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    try:
        states: torch.Tensor = model.backbone(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
        ).last_hidden_state
    except Exception as error:
        raise ModelError(
            f"{model.name}: a forward pass on {ids.shape[1]} tokens failed "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    return states


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two states of each token are as close as half the digits of their dtype."""
    distance = (one - other).float().norm(dim=-1)
    return bool((distance <= torch.finfo(one.dtype).eps ** 0.5 * one.float().norm(dim=-1)).all())
