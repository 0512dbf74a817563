"""From texts to token ids: which tokens are the text's, and which all prompts share.

A prompt is `prefix + text + suffix`; prefix and suffix come from the model's chat template, or are
empty. A text's tokens are all that contain at least one of its characters, so a token across the
border between template and text is the text's. Tokens that the tokenizer adds (BOS) and tokens of
the template are not.

Many models without BOS collect attention at the first position of a sequence, whatever token it
holds. Its state is then far larger than all others, and a mean over a text's tokens would measure
one over their number. The pooling `mean` therefore leaves out that position.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import POOLINGS, TEMPLATES
from ..errors import ConfigError, ModelError, first_line
from .layers import embedding_rows
from .model import LoadedModel

if TYPE_CHECKING:
    from .prefix import SharedPrefix

MIN_SHARED_TOKENS = 4
"""A shorter prefix costs more than it saves: attention after one needs a mask, otherwise none."""
MIN_SHARED_SHARE = 1 / 8
"""The same on a GPU, where a mask rules out FlashAttention: of the tokens of a prompt."""

# Some templates print today's date, but results must not depend on the day. This macro replaces
# transformers' function; Jinja drops the line break after it.
FIXED_DATE = """{% macro strftime_now(form) -%}
{{ {"%d %b %Y": "26 Jul 2024", "%B %d, %Y": "July 26, 2024"}.get(form, "2024-07-26") }}
{%- endmacro %}
"""


@dataclass(frozen=True)
class Template:
    """What surrounds every text.

    kind: `chat` (the model's chat template: one user turn, then the start of the answer) or `none`
        (the text alone, with the special tokens that the tokenizer adds).
    prefix, suffix: the template's characters before and after the text.
    """

    kind: str
    prefix: str = ""
    suffix: str = ""

    @property
    def sha256(self) -> str:
        """Identifies the template."""
        parts = json.dumps([self.kind, self.prefix, self.suffix])
        return hashlib.sha256(parts.encode()).hexdigest()


@dataclass(frozen=True)
class Tokenized:
    """N texts as one model reads them.

    ids: [total] int32, all prompts one after the other.
    starts: [N + 1] int64, prompt i is ids[starts[i]:starts[i + 1]].
    spans: [N, S, 2] int32, half-open token ranges to average, one per pooling, counted from the
        prompt's start; empty for a text without tokens.
    n_text_tokens: [N] int32, tokens of the text itself.
    begins_with_text: [N] bool, the prompt's first token is one of the text's.
    truncated: [N] bool, the text was cut to fit the window; the template never is.
    poolings: names of the S spans.
    template: what surrounds the texts.
    prefix_length: how many leading tokens all prompts share. None of them is in a span, and every
        prompt has at least one token more.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    spans: NDArray[np.int32]
    n_text_tokens: NDArray[np.int32]
    begins_with_text: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    poolings: tuple[str, ...]
    template: Template
    prefix_length: int

    def __len__(self) -> int:
        """Count the prompts: N."""
        return len(self.starts) - 1

    @property
    def only_first(self) -> NDArray[np.bool_]:
        """Texts whose only token is the prompt's first, so that `mean` keeps it: [N] bool."""
        alone: NDArray[np.bool_] = self.begins_with_text & (self.n_text_tokens == 1)
        return alone

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each prompt: [N] int64."""
        return np.diff(self.starts)

    def prompt(self, index: int) -> NDArray[np.int32]:
        """Token ids of one prompt: [T] int32."""
        return self.ids[self.starts[index] : self.starts[index + 1]]

    def without_prefix(self) -> "Tokenized":
        """The same prompts without their shared prefix; spans count from the new start."""
        cut = self.prefix_length
        inside = np.ones(len(self.ids), np.bool_)
        inside[(self.starts[:-1, None] + np.arange(cut)).ravel()] = False
        return replace(
            self,
            ids=self.ids[inside],
            starts=self.starts - cut * np.arange(len(self.starts)),
            spans=np.maximum(self.spans - cut, 0),
            prefix_length=0,
        )


def tokenize(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    template: str = "auto",
    poolings: Sequence[str] = ("mean", "last"),
    max_tokens: int | None = None,
) -> Tokenized:
    """Turn texts into prompts and spans for one model.

    Prompts of a causal model end with the last token that a pooling reads; tokens after it could
    not change the result.

    Args:
        model: a loaded model.
        texts: N texts.
        template: `auto` (the model's chat template if it has one), `chat`, or `none`.
        poolings: any of `mean` (the text's tokens, but the first position of the prompt only if
            the text has no other), `mean_all` (all of the text's tokens), `last` (last token of the
            prompt) and `last_text` (last token of the text).
        max_tokens: cut texts so that prompts have at most this many tokens; None: the model's
            window, which is never exceeded.

    Raises:
        ConfigError: an unknown choice, or a window too small for the template.
        ModelError: the chat template changes the text.
    """
    if unknown := [p for p in poolings if p not in POOLINGS]:
        raise ConfigError(f"pooling {unknown[0]!r}: expected one of {', '.join(POOLINGS)}")
    window = model.max_tokens if max_tokens is None else min(max_tokens, model.max_tokens)
    chosen = _template(model, template)
    if chosen.kind == "chat":
        encoded = _encode_chat(model, chosen, texts)
    else:
        encoded = _encode_plain(model.tokenizer, texts)
    ids, text_spans, truncated = _cut_to_window(encoded, window, model.name)
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    spans = _spans(text_spans, lengths, poolings)
    if model.causal:
        stop = spans[:, :, 1].max(1)
        lengths = np.where(stop > 0, stop, lengths)
        ids = [prompt[:length] for prompt, length in zip(ids, lengths, strict=True)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate([*ids, np.empty(0, np.int32)])
    _check_ids(flat, model)
    return Tokenized(
        ids=flat,
        starts=starts,
        spans=spans,
        n_text_tokens=(text_spans[:, 1] - text_spans[:, 0]).astype(np.int32),
        begins_with_text=(text_spans[:, 0] == 0) & (text_spans[:, 1] > 0),
        truncated=truncated,
        poolings=tuple(poolings),
        template=chosen,
        prefix_length=_shared_prefix(flat, starts, text_spans),
    )


def share_prefix(
    model: LoadedModel, tokens: Tokenized
) -> "tuple[SharedPrefix | None, Tokenized, str | None]":
    """Run the tokens that all prompts share once, and cut them off the prompts.

    Args:
        model: a loaded model.
        tokens: full prompts.

    Returns:
        The prefix's keys and values, or None; the tokens left to run in every batch; and, if
        prompts share a prefix but the model cannot use it, the reason.
    """
    length = tokens.prefix_length
    if length < MIN_SHARED_TOKENS or not model.causal:
        return None, tokens, None
    if model.device.type == "cuda" and length < MIN_SHARED_SHARE * tokens.lengths.mean():
        return None, tokens, None
    from .prefix import SharedPrefix

    ids = torch.from_numpy(tokens.prompt(0)[:length].astype(np.int64)).to(model.device)
    try:
        prefix = SharedPrefix.of(model.backbone, ids)
    except Exception as error:  # a model's own code may raise anything
        kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        reason = f"{kind}{first_line(error)}"
        return None, tokens, f"the {length} tokens that all prompts share run each time: {reason}"
    return prefix, tokens.without_prefix(), None


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a new tensor of the CPU to a device, without waiting for it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


_Encoded = list[tuple[NDArray[np.int32], int, int]]  # ids, first text token, one past the last


def _template(model: LoadedModel, asked: str) -> Template:
    if asked not in TEMPLATES:
        raise ConfigError(f"template {asked!r}: expected one of {', '.join(TEMPLATES)}")
    if asked == "chat" and not model.tokenizer.chat_template:
        raise ModelError(
            f"{model.name}: its tokenizer has no chat template; use template 'none' or 'auto'"
        )
    if asked == "none" or not model.tokenizer.chat_template:
        return Template("none")
    # Two prompts whose texts have no character in common share only the template.
    one, other = _render(model, ["x", "7"])
    return Template(
        "chat", _common_prefix(one, other), _common_prefix(one[::-1], other[::-1])[::-1]
    )


def _render(model: LoadedModel, texts: Sequence[str]) -> list[str]:
    try:
        rendered: list[str] = model.tokenizer.apply_chat_template(
            [[{"role": "user", "content": text}] for text in texts],
            chat_template=FIXED_DATE + model.tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:
        raise ModelError(
            f"{model.name}: its chat template fails on one user turn ({first_line(error)}); use "
            "template 'none'"
        ) from error
    return rendered


def _common_prefix(one: str, other: str) -> str:
    pairs = zip(one, other, strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _encode_chat(model: LoadedModel, template: Template, texts: Sequence[str]) -> _Encoded:
    """Encode rendered prompts; the template writes BOS, so the tokenizer must not add one."""
    if not texts:
        return []
    rendered = _render(model, texts)
    before, after = len(template.prefix), len(template.suffix)
    for i_text, (text, prompt) in enumerate(zip(texts, rendered, strict=True)):
        middle = prompt[before : len(prompt) - after]
        # Many templates strip the text; after any other change the spans would be a guess.
        unchanged = middle in (text, text.strip())
        if not unchanged or prompt != template.prefix + middle + template.suffix:
            raise ModelError(
                f"{model.name}: its chat template changes sample {i_text}, or what surrounds it; "
                "use template 'none'"
            )
    batch = model.tokenizer(
        rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    encoded = []
    for prompt, ids, offsets in zip(
        rendered, batch["input_ids"], batch["offset_mapping"], strict=True
    ):
        begin, end = np.array(offsets, np.int64).reshape(-1, 2).T
        of_text = np.flatnonzero((end > before) & (begin < len(prompt) - after))
        first, stop = (of_text[0], of_text[-1] + 1) if len(of_text) else (0, 0)
        encoded.append((np.array(ids, np.int32), int(first), int(stop)))
    return encoded


def _encode_plain(tokenizer: Any, texts: Sequence[str]) -> _Encoded:
    """Encode texts alone; every token but those that the tokenizer adds is the text's."""
    if not texts:
        return []
    batch = tokenizer(list(texts), return_special_tokens_mask=True, verbose=False)
    encoded = []
    for ids, added in zip(batch["input_ids"], batch["special_tokens_mask"], strict=True):
        of_text = np.flatnonzero(np.array(added) == 0)
        first, stop = (of_text[0], of_text[-1] + 1) if len(of_text) else (0, 0)
        encoded.append((np.array(ids, np.int32), int(first), int(stop)))
    return encoded


def _cut_to_window(
    encoded: _Encoded, window: int, name: str
) -> tuple[list[NDArray[np.int32]], NDArray[np.int64], NDArray[np.bool_]]:
    """Drop each text's last tokens until its prompt fits; the template stays complete."""
    ids = []
    spans = np.zeros((len(encoded), 2), np.int64)
    truncated = np.zeros(len(encoded), np.bool_)
    for i, (tokens, first, stop) in enumerate(encoded):
        excess = len(tokens) - window
        if excess > 0:
            if excess >= stop - first:
                raise ConfigError(
                    f"max_tokens {window}: {name}'s template alone has "
                    f"{len(tokens) - (stop - first)} tokens; expected at least one more"
                )
            tokens = np.concatenate([tokens[: stop - excess], tokens[stop:]])
            stop -= excess
            truncated[i] = True
        ids.append(tokens)
        spans[i] = first, stop
    return ids, spans, truncated


def _check_ids(ids: NDArray[np.int32], model: LoadedModel) -> None:
    rows = embedding_rows(model.backbone, model.name)
    if len(ids) and (largest := int(ids.max())) >= rows:
        token = model.tokenizer.convert_ids_to_tokens(largest)
        raise ModelError(
            f"{model.name}: a text or the chat template holds the token {token!r} ({largest}), but "
            f"the model embeds only {rows}; save the embedding of added tokens with the model or "
            "adapter, or use another tokenizer or --template none"
        )


def _spans(
    text_spans: NDArray[np.int64], lengths: NDArray[np.int64], poolings: Sequence[str]
) -> NDArray[np.int32]:
    spans = np.zeros((len(lengths), len(poolings), 2), np.int32)
    for s, pooling in enumerate(poolings):
        spans[:, s] = text_spans
        if pooling == "mean":
            first, stop = text_spans.T
            spans[:, s, 0] += (first == 0) & (stop > 1)
        elif pooling == "last":
            spans[:, s] = np.stack([np.maximum(lengths - 1, 0), lengths], axis=1)
        elif pooling == "last_text":
            spans[:, s, 0] = np.maximum(text_spans[:, 1] - 1, text_spans[:, 0])
    return spans


def _shared_prefix(
    ids: NDArray[np.int32], starts: NDArray[np.int64], text_spans: NDArray[np.int64]
) -> int:
    """How many leading tokens all prompts share, without a text's tokens or a prompt's last."""
    has_text = text_spans[:, 1] > text_spans[:, 0]
    if not has_text.any():
        return 0
    shortest = max(0, int(min(np.diff(starts).min() - 1, text_spans[has_text, 0].min())))
    prompts = ids[starts[:-1, None] + np.arange(shortest)]
    same = (prompts == prompts[:1]).all(axis=0)
    return shortest if same.all() else int(np.argmin(same))
