"""From texts to forward passes: tokens, the prefix that they share, hookpoints, batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..models import LoadedModel, Tokenized, resolve_layers, share_prefix, tokenize
from .capture import seeded_projection
from .plan import Plan, make_plan
from .tune import compile_blocks, find_token_budget

if TYPE_CHECKING:
    from ..models.prefix import SharedPrefix


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
    prefix: "SharedPrefix | None"
    """Keys and values of the tokens that all prompts share; None: whole prompts run."""
    token_budget: int
    """Largest number of padded tokens in a batch."""
    plan: Plan

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the shared prefix."""
        return self.prompts.prefix_length if self.prefix is not None else 0


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
    compiled: bool = False,
    on_note: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Prepare the forward passes of a model over texts.

    Args:
        model: the model.
        texts: in the order of the results.
        languages: the texts of each language, in order; None: all are one language.
        layers, poolings, template, max_tokens, proj_dim, seed: as in `RunConfig`.
        token_budget: largest number of padded tokens in a batch; None: measure which is fast.
        compiled: compile the model's blocks, which changes `model`.
        on_note: called with each message for the user.

    Raises:
        ConfigError: a layer, pooling or template does not exist.
        ModelError: the template changes the text, or the blocks cannot be compiled.
    """
    hookpoints = resolve_layers(layers, model.hookpoints)
    projection = seeded_projection(model.hidden_size, proj_dim, seed).to(model.device)
    prompts = tokenize(model, texts, template=template, poolings=poolings, max_tokens=max_tokens)
    prefix, tokens, reason = share_prefix(model, prompts)
    if reason is not None:
        on_note(reason)
    if compiled:
        compile_blocks(model, tokens, prefix)
    if token_budget is None:
        token_budget = find_token_budget(model, tokens, prefix)
    plan = make_plan(tokens, languages, token_budget=token_budget)
    return Prepared(hookpoints, projection, prompts, tokens, prefix, token_budget, plan)
