"""From texts to the work of a model: tokens, the prefix they share, what to capture, batches."""

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
    """All that the forward passes of one model need beside the model."""

    hookpoints: tuple[str, ...]
    """Where hidden states are read, in order of depth."""
    projection: torch.Tensor
    """`[D, P] float32`, on the model's device."""
    prompts: Tokenized
    """Whole prompts."""
    tokens: Tokenized
    """What runs: the prompts without the prefix."""
    prefix: "SharedPrefix | None"
    """Keys and values of the tokens that all prompts begin with; None: nothing is shared."""
    token_budget: int
    """Padded tokens in a batch."""
    plan: Plan

    @property
    def prefix_tokens(self) -> int:
        """Length of the shared prefix, which runs once."""
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
        model: the model, which `compiled` changes.
        texts: in the order in which their results are wanted.
        languages: the texts of each language, in order; None takes all as one.
        layers: as in a run, like `poolings`, `template`, `max_tokens`, `proj_dim` and `seed`.
        token_budget: padded tokens in a batch; None measures which size is fast.
        compiled: compile the model's blocks.
        on_note: called with what a person should know.

    Raises:
        ConfigError: a layer, pooling or template does not exist.
        ModelError: the template does not show the text, or the blocks cannot be compiled.
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
