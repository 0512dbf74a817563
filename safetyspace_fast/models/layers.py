"""Hookpoints: the points of a model where hidden states are read.

There is no table of architectures. The model runs once on a few tokens, and every `nn.ModuleList`
is watched: its transformer blocks are the list whose members run once each, in order, each reading
the output of the one before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..config import layer_name
from ..errors import ConfigError, ModelError, first_line
from ..names import nearest


def hookpoint_names(num_blocks: int) -> tuple[str, ...]:
    """All hookpoints of a model in depth order."""
    return ("embed", *(f"block.{i}" for i in range(num_blocks)), "final_norm")


def embedding_rows(backbone: Any, name: str) -> int:  # transformers has no types
    """How many tokens a backbone embeds.

    Raises:
        ModelError: it has no table of token embeddings.
    """
    try:
        return int(backbone.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"{name}: {type(backbone).__name__} gives no table of token embeddings; expected a "
            "model that embeds the tokens of its tokenizer"
        ) from error


def resolve_layers(asked: str | Sequence[str], hookpoints: Sequence[str]) -> tuple[str, ...]:
    """The hookpoints that a selection such as `all` or `embed,block.3,-1` names, in depth order.

    Args:
        asked: names, or negative numbers that count from the end; a list, or joined by commas.
        hookpoints: all of the model, in depth order.

    Raises:
        ConfigError: there is no such hookpoint.
    """
    parts = [part.strip() for part in (asked.split(",") if isinstance(asked, str) else asked)]
    if parts == ["all"]:
        return tuple(hookpoints)
    chosen = set()
    for part in parts:
        name = layer_name(part, hookpoints)
        if name not in hookpoints:
            raise ConfigError(
                f"layer {part!r} of {','.join(parts)!r}: expected 'all', or names and negative "
                f"numbers from {hookpoints[0]}, {hookpoints[1]} .. {hookpoints[-2]}, "
                f"{hookpoints[-1]} (-1 .. -{len(hookpoints)}){nearest(part, hookpoints)}"
            )
        chosen.add(name)
    return tuple(name for name in hookpoints if name in chosen)


class DeepestLayerReached(Exception):  # noqa: N818 - a signal, not an error
    """Ends the forward pass: all wanted layers have run."""


def watch(
    backbone: nn.Module,
    blocks: nn.ModuleList,
    hookpoint: str,
    callback: Callable[[Tensor], None],
) -> RemovableHandle:
    """Call `callback` with a hookpoint's hidden states in every later forward pass.

    The callback gets `hidden_states: [B, T, D]` in the model's dtype. It is the tensor that the
    model continues with, so the callback must neither change nor keep it.
    """
    if hookpoint == "embed":
        return blocks[0].register_forward_pre_hook(
            lambda _module, args, kwargs: callback(block_input(args, kwargs)), with_kwargs=True
        )
    if hookpoint == "final_norm":
        return backbone.register_forward_hook(
            lambda _module, _args, output: callback(output.last_hidden_state)
        )
    block = blocks[int(hookpoint.removeprefix("block."))]
    return block.register_forward_hook(
        lambda _module, _args, output: callback(block_output(output))
    )


# Blocks of different models take and return different things, hence Any.
def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A block's hidden states: its first argument, or the one named `hidden_states`."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def block_output(output: Any) -> Tensor:  # of any block
    """A block's hidden states: its only result, or the first of several."""
    states: Tensor = output[0] if isinstance(output, tuple) and output else output
    return states


@dataclass
class _Candidate:
    """A ModuleList and what its members did in the trial run."""

    path: str
    modules: nn.ModuleList
    calls: list[int] = field(default_factory=list)  # member numbers in the order they ran
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def objection(self, num_blocks: int, num_tokens: int) -> str | None:
        """Why this list does not hold the blocks; None if it does."""
        if len(self.modules) != num_blocks:
            return f"not {num_blocks} long"
        if self.calls != list(range(num_blocks)):
            return "members did not run once each in order"
        states = [*self.inputs, *self.outputs]
        if not all(isinstance(s, Tensor) and s.ndim == 3 for s in states):
            return "members do not map one [B, T, D] tensor to another"
        if any(s.shape[1] != num_tokens or s.shape != states[0].shape for s in states):
            return "members change the shape of their input"
        if not all(map(torch.equal, self.inputs[1:], self.outputs)):
            return "a member does not read what the one before it wrote"
        if not _same(self.inputs[0][0, :-1], self.inputs[0][1, :-1]):
            return "the first member does not read the embedding of each token alone"
        return None

    def describe(self, objection: str) -> str:
        kind = type(self.modules[0]).__name__ if len(self.modules) else "nothing"
        return f"{self.path} ({len(self.modules)} x {kind}: {objection})"


class Blocks(NamedTuple):
    """The transformer blocks of a model.

    modules: the list of blocks, in order.
    width: D of every hookpoint.
    causal: no hidden state depends on a token to its right.
    """

    modules: nn.ModuleList
    width: int
    causal: bool


def find_blocks(backbone: nn.Module, num_blocks: int, name: str) -> Blocks:
    """Find the blocks of a backbone by running it on two rows of tokens.

    Raises:
        ModelError: not exactly one list of modules fits (the message lists all of them, each with
            what speaks against it), the last hidden state has another width than the blocks, or a
            state is not finite.
    """
    candidates = [
        _Candidate(path, module)
        for path, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList)
    ]
    handles = [handle for candidate in candidates for handle in _record(candidate)]
    device = next(backbone.parameters()).device
    # Rows differ in their last token only, so a causal model agrees on all states before it.
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]], device=device)
    try:
        with torch.no_grad():
            last = backbone(input_ids=tokens, use_cache=False).last_hidden_state
    except Exception as error:
        raise ModelError(
            f"{name}: a forward pass on four tokens failed ({type(error).__name__}: "
            f"{first_line(error)}); expected a language model that runs on token ids alone"
        ) from error
    finally:
        for handle in handles:
            handle.remove()

    _refuse_overflow(candidates, last, name)
    objections = [c.objection(num_blocks, tokens.shape[1]) for c in candidates]
    fitting = [c for c, objection in zip(candidates, objections, strict=True) if objection is None]
    # The parts of a block may be a list of blocks by themselves.
    fitting = [c for c in fitting if not any(c.path.startswith(f"{o.path}.") for o in fitting)]
    if len(fitting) != 1:
        described = "; ".join(
            c.describe(objection or "fits")
            for c, objection in zip(candidates, objections, strict=True)
        )
        raise ModelError(
            f"{name}: expected one list of {num_blocks} blocks in {type(backbone).__name__}, each "
            f"reading the last one's output, found {len(fitting)}: {described or 'no ModuleList'}"
        )
    width = fitting[0].inputs[0].shape[-1]
    if last.shape[-1] != width:
        raise ModelError(
            f"{name}: its blocks are {width} wide but its last hidden state {last.shape[-1]}; "
            "expected one width at every hookpoint"
        )
    return Blocks(fitting[0].modules, width, causal=_same(last[0, :-1], last[1, :-1]))


def _refuse_overflow(candidates: list[_Candidate], last: Tensor, name: str) -> None:
    """Raise ModelError if a module of a list writes states that are not finite."""
    written = [
        (f"{c.path}.{number}", state)
        for c in candidates
        for number, state in zip(c.calls, c.outputs, strict=True)
    ]
    for where, state in [*written, ("the last hidden state", last)]:
        if isinstance(state, Tensor) and not state.isfinite().all():
            dtype = str(state.dtype).removeprefix("torch.")
            advice = "its weights are damaged, or it needs another dtype"
            if state.dtype == torch.float16:
                advice = "its states are too large for it; use dtype bfloat16 or float32"
            raise ModelError(f"{name}: {where} is not finite in {dtype}: {advice}")


def _record(candidate: _Candidate) -> list[RemovableHandle]:
    def hook(number: int) -> Callable[..., None]:
        def record(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            candidate.calls.append(number)
            candidate.inputs.append(args[0] if args else kwargs.get("hidden_states"))
            candidate.outputs.append(block_output(output))

        return record

    return [
        module.register_forward_hook(hook(number), with_kwargs=True)
        for number, module in enumerate(candidate.modules)
    ]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to rounding in their dtype."""
    tolerance = 32 * torch.finfo(a.dtype).eps * a.abs().max()
    return not bool(((a - b).abs() > tolerance).any())  # NaN is reported elsewhere
