"""What a run has to do, counted without loading its model: parameters, tokens, bytes."""

import math
from dataclasses import dataclass, field
from functools import cache
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import RunConfig
from ..data import NUM_FOLDS, Samples
from ..errors import ModelError
from ..extract.chance import AXES
from ..models import hookpoint_names, parse_model, resolve_layers
from ..models.backbone import find_backbone
from ..models.quiet import quiet_transformers
from ..models.source import Source, fetch_file, find_source
from ..models.spec import split_revision
from ..models.tokenizer import load_tokenizer, tokenizer_source
from ..models.weights import random_weights
from ..store import Place
from ..store.layout import COMPONENTS, MODEL, ArraySpec
from .shared import SharedWork

COUNTED_TEXTS = 256
"""Texts that are tokenised to estimate the tokens of all."""
_SMALL_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Shape:
    """A model as its configuration describes it.

    blocks, hidden_size: number of blocks, D.
    parameters: of the whole checkpoint.
    active: parameters in matrix products of one token, experts counted as often as they are chosen.
    weight_bytes: of the checkpoint in its dtype.
    """

    blocks: int
    hidden_size: int
    parameters: int
    active: int
    weight_bytes: int


@dataclass(frozen=True)
class Work:
    """What one run has to do.

    languages, texts: of the data, and the texts of each.
    tokens: that run in forward passes, without padding and without a shared prefix.
    hookpoints, poolings: numbers of layers read, and of poolings.
    bases: models that its store has before.
    reloads: whether its model is not in memory from the run before.
    makes_store: whether its store is not there yet.
    """

    model: str
    out: str
    config: RunConfig
    source: Source = field(repr=False)
    shape: Shape
    languages: tuple[str, ...]
    texts: tuple[int, ...]
    tokens: int
    hookpoints: int
    poolings: int
    bases: int
    reloads: bool
    makes_store: bool

    @property
    def flops(self) -> float:
        """Floating-point operations of the forward passes."""
        return 2.0 * self.shape.active * self.tokens

    @property
    def cells(self) -> int:
        """Layers times poolings: what is finished for each language."""
        return self.hookpoints * self.poolings

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of the axes of the model's arrays."""
        return {
            "layer": self.hookpoints, "pooling": self.poolings, "sample": sum(self.texts),
            "lang": len(self.texts), "hidden": self.shape.hidden_size,
            "proj": self.config.proj_dim, "component": COMPONENTS, "basis": self.bases,
            "class": 2, "label": 2, "fold": NUM_FOLDS, **AXES,
        }  # fmt: skip

    @property
    def store_bytes(self) -> int:
        """Of the model's arrays in the store: their bits that are kept, which do not compress."""
        return round(sum(_kept_bytes(spec, self.sizes) for spec in MODEL if spec.fits(self.sizes)))


def count_work(
    config: RunConfig, shared: SharedWork, *, bases: int = 0, reloads: bool = True
) -> Work:
    """What a run has to do.

    Args:
        config: of the run, with one model.
        shared: holds its data.
        bases: models that its store has before.
        reloads: whether its model is not in memory from the run before.

    Raises:
        SafetySpaceError: the configuration or the tokenizer cannot be read.
    """
    spec = parse_model(*config.models)
    source = source_of(config)
    shape = shape_of(source.directory, source.gguf, config.trust_remote_code)
    samples = shared.samples(config)
    texts = tuple(rows.stop - rows.start for rows in samples.lang_ranges)
    hookpoints = len(resolve_layers(config.layers, hookpoint_names(shape.blocks)))
    poolings = len(config.poolings)
    return Work(
        spec.name,
        str(config.out),
        config,
        source,
        shape,
        samples.languages,
        texts,
        _tokens(config, source, samples),
        hookpoints,
        poolings,
        bases,
        reloads,
        makes_store=not bases and not Place(config.out).exists(),
    )


def source_of(config: RunConfig) -> Source:
    """Where the configuration and the tokenizer of a model are; no weights are downloaded."""
    spec = parse_model(*config.models)
    if Path(spec.base).expanduser().exists():
        return find_source(spec.base, None, config.allow_pickle, config.trust_remote_code)
    folder = fetch_file(spec.base, spec.revision, "config.json").parent
    for name in _SMALL_FILES:
        try:
            fetch_file(spec.base, spec.revision, name)
        except ModelError:  # a model has some of these files
            continue
    return Source(spec.base, folder)


@cache
def shape_of(directory: Path, gguf: str | None, trust_remote_code: bool) -> Shape:
    """Read a model's shape from its configuration: it is made without any numbers in it.

    Raises:
        ModelError: transformers does not know it.
    """
    source = Source(str(directory), directory, gguf=gguf)
    with quiet_transformers(), torch.device("meta"):
        model = random_weights(source, trust_remote_code)
    backbone, config = find_backbone(model), model.config
    text = config.get_text_config()
    chosen = getattr(text, "num_experts_per_tok", None)
    experts = next(
        (n for key in ("num_experts", "num_local_experts", "n_routed_experts")
         if (n := getattr(text, key, None))), None
    )  # fmt: skip
    active = 0.0
    for name, parameter in backbone.named_parameters():
        # Embeddings are looked up; a checkpoint of experts has one tensor for all, or one for each.
        if parameter.dim() < 2 or "embed" in name or name.split(".")[-2:-1] in (["wte"], ["wpe"]):
            continue
        share = chosen / experts if chosen and experts and ".experts." in f"{name}." else 1.0
        active += parameter.numel() * share
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = getattr(config, "dtype", None) or torch.float32
    return Shape(
        blocks=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        parameters=parameters,
        active=round(active),
        weight_bytes=parameters * (dtype.itemsize if isinstance(dtype, torch.dtype) else 4),
    )


def _tokens(config: RunConfig, source: Source, samples: Samples) -> int:
    """Tokens of all different texts, estimated from some of them."""
    picks = np.unique(np.linspace(0, len(samples) - 1, COUNTED_TEXTS).round().astype(int))
    texts = [samples.texts[i] for i in picks]
    adapters = [
        find_source(*split_revision(a), config.allow_pickle, config.trust_remote_code)
        for a in parse_model(*config.models).adapters
    ]
    with quiet_transformers():
        tokenizer = load_tokenizer(tokenizer_source(source, adapters), config.trust_remote_code)
    prompts, shared_tokens = texts, 0
    if config.template == "chat" or (config.template == "auto" and tokenizer.chat_template):
        prompts = [_rendered(tokenizer, text) for text in texts]
        rendered = [_rendered(tokenizer, text) for text in ("x", "7")]
        prefix = commonprefix(rendered)  # noqa: RUF071 - of texts, not of paths
        shared_tokens = len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
    ids = tokenizer(prompts, add_special_tokens=prompts is texts)["input_ids"]
    window = config.max_tokens or math.inf
    tokens = sum(min(len(prompt), window) - shared_tokens for prompt in ids)
    different = len({row.tobytes() for row in samples.text_sha256})
    return round(tokens / len(texts) * different)


def _rendered(tokenizer: Any, text: str) -> str:  # transformers has no types
    rendered: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return rendered


def _kept_bytes(spec: ArraySpec, sizes: dict[str, int]) -> float:
    dtype = np.dtype(spec.dtype)
    kept = float(dtype.itemsize)
    if dtype.kind != "f":
        kept /= 2  # small numbers in wide integers
    elif spec.keepbits is not None:
        exponent = {4: 8, 8: 11}[dtype.itemsize]
        # Neighbours share most of sign and exponent, which compresses to about half.
        kept = (spec.keepbits + (1 + exponent) / 2) / 8
    return kept * math.prod(sizes[dim] for dim in spec.dims)
