"""From a ModelSpec to a model that is ready to run: weights, tokenizer, hookpoints, identity.

transformers, peft and huggingface_hub are imported inside functions: they take seconds.
"""

import gc
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import nn

from ..config import Weights
from ..errors import ModelError
from . import layers
from .adapters import adds_to_weights, merge_adapter, merges_by_block
from .backbone import find_backbone
from .device import find_device, find_dtype, fits, too_large
from .fused import has_fused, try_fusing
from .identity import RANDOM_WEIGHTS, hashing, identity_of, weight_files
from .model import LoadedModel
from .quiet import quiet_transformers
from .sharded import Leader, Loading, Ranks, check_plan, joined
from .skeleton import count_weights, open_streamed, why_not_streamed
from .source import Source, find_sources
from .spec import ModelSpec
from .stored import plain_numbers
from .tokenizer import load_tokenizer, tokenizer_sha256, tokenizer_source
from .weights import RANDOM_SEED, load_weights, random_weights

DEFAULT_WINDOW = 8192
"""Tokens, for a model that names no window (ALiBi models). Longer texts are cut and counted."""


def load_model(
    spec: ModelSpec,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    weights: Weights = "load",
    tensor_parallel: int = 1,
    on_note: Callable[[str], None] | None = None,
) -> LoadedModel:
    """Load a language model or an encoder, merge its adapters, and find its hookpoints.

    On a CPU with AVX-512, layers in float32 are replaced by faster ones (`fused`).

    Args:
        spec: which model.
        device: `cpu`, `cuda`, `cuda:1`, or `auto` (a GPU if there is one).
        dtype: `float64`, `float32`, `bfloat16`, `float16` or `auto` (on a GPU bfloat16 if it has
            that, else float16; on a CPU bfloat16 with AMX, else float32).
        allow_pickle: also open pickled weights, which can run code.
        trust_remote_code: run Python files that come with the model.
        chat_template: Jinja text that replaces the tokenizer's own.
        weights: `load`; `stream`: blocks stay on disk; `auto`: so if they do not fit into memory.
        tensor_parallel: devices that share the weights; this process is one of as many ranks.
        on_note: called with notes of one line, warnings of transformers among them.

    Raises:
        ModelError: the model cannot be loaded; the message names the file and what to do.
        ConfigError: a device or dtype that does not exist or is not here.
    """
    note = on_note or (lambda _line: None)
    target = find_device(device, note)
    working = find_dtype(dtype, target)
    source, adapters = find_sources(spec, allow_pickle, trust_remote_code, note)
    ranks: Ranks | None = None
    if tensor_parallel > 1:
        check_plan(
            source,
            tensor_parallel,
            alone=not (adapters or spec.random),
            trust_remote_code=trust_remote_code,
        )
        ranks = joined(tensor_parallel)
        gc.collect()  # a model and its `Leader` know each other, and its memory is for this one
        ranks.announce(
            Loading(spec, device, dtype, allow_pickle, trust_remote_code, tensor_parallel)
        )
    streams = _streams(spec, source, weights, working, target, tensor_parallel, note)
    follows = ranks is not None and ranks.rank > 0
    files = {} if spec.random or follows else weight_files(source, adapters)
    with hashing(files, wait=target.type == "cpu") as hashes, quiet_transformers(note):
        streamed = None
        at_first, home = working, target
        by_block = streams
        if adapters and not _merges_by_layer(source, adapters, working):
            at_first, home = torch.float32, torch.device("cpu")
            by_block |= _merges_by_block(source, adapters)
        if by_block:
            model, streamed = open_streamed(
                source, adapters, at_first, working, target, trust_remote_code, note
            )
            quantization = "gguf" if source.gguf else None
        elif spec.random:
            model, quantization = random_weights(source, trust_remote_code), None
            note(f"a control: random weights (seed {RANDOM_SEED}) instead of those of {spec.base}")
        else:
            model, quantization = load_weights(
                source, at_first, home, allow_pickle, trust_remote_code, note, tensor_parallel
            )
        if ranks is not None:
            ranks.meet()
        packed = getattr(model.config, "quantization_config", None) is not None
        if adapters and packed:
            raise ModelError(
                f"{spec.base}: its weights are quantised ({quantization}), so an adapter "
                "merged into them would be rounded away; expected plain weights"
            )
        _merge_adapters(model, spec, adapters, note, already=by_block)
        if quantization is not None and not packed:
            form = "GGUF" if source.gguf else quantization
            type_name = str(working).removeprefix("torch.")
            note(f"{form} weights dequantised to {type_name}")
        tokenizer_home = tokenizer_source(source, adapters)
        tokenizer = load_tokenizer(tokenizer_home, trust_remote_code, note)
        if chat_template is not None:
            tokenizer.chat_template = chat_template

        backbone = find_backbone(model)
        config = model.config
        del model  # frees the head
        if not packed:
            backbone.to(dtype=working)
        backbone.to(target).eval().requires_grad_(False)
        if streamed is not None and not streams:
            streamed.stay()
            streamed = None
        samples = streamed.place_samples() if streamed is not None else []
        _check_vocabulary(tokenizer, backbone, spec)
        text_config = backbone.config.get_text_config()
        blocks = layers.find_blocks(backbone, text_config.num_hidden_layers, spec.name)
        if ranks is not None:
            note(f"its weights are shared out over {ranks.size} devices")
        elif target.type == "cpu" and (reason := try_fusing(backbone)) is not None:
            note(f"its layers run without the compiled kernels: {reason}")
        if streamed is not None:
            streamed.fused = has_fused(backbone)
            streamed.try_alone(backbone, samples, spec.name)
    return LoadedModel(
        name=spec.name,
        backbone=backbone,
        blocks=blocks.modules,
        causal=blocks.causal,
        hookpoints=layers.hookpoint_names(len(blocks.modules)),
        hidden_size=blocks.width,
        tokenizer=tokenizer,
        max_tokens=_window(text_config, tokenizer) - _skipped_positions(backbone),
        pad_token_id=_filler(config, tokenizer),
        device=target,
        dtype=working,
        streamed=streamed,
        identify=lambda: {
            **identity_of(spec, source, adapters, config, hashes() or RANDOM_WEIGHTS),
            "tokenizer": tokenizer_home.asked,
            "tokenizer_sha256": tokenizer_sha256(tokenizer_home, tokenizer),
            "dtype": str(working).removeprefix("torch."),
            "quantization": quantization,
        },
        leader=None if ranks is None or follows else Leader(ranks, backbone),
    )


def _merges_by_layer(source: Source, adapters: list[Source], working: torch.dtype) -> bool:
    """Whether adapters are merged into weights of the working dtype, one layer at a time.

    Only where this gives the same numbers as a model in float32, which is the other way: it takes
    more memory, and is therefore done on the CPU.
    """
    if working == torch.float32:
        return True
    tensors = plain_numbers(source)
    return (
        len(adapters) == 1
        and adds_to_weights(adapters[0])
        and tensors is not None
        and all(dtype == working for shape, dtype in tensors if len(shape) > 1)
    )


def _merges_by_block(source: Source, adapters: list[Source]) -> bool:
    """Whether a model can be read block by block in float32, adapters merged, and then rounded.

    These are the same numbers as those of a whole model in float32, in less memory.
    """
    plain = source.gguf is not None or plain_numbers(source) is not None
    return plain and why_not_streamed(source) is None and all(map(merges_by_block, adapters))


def _streams(
    spec: ModelSpec,
    source: Source,
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device,
    tensor_parallel: int,
    note: Callable[[str], None],
) -> bool:
    """Whether a model's blocks stay on disk.

    Raises:
        ModelError: they cannot, though it was asked for; or the model does not fit on the GPU.
    """
    if tensor_parallel > 1:
        weights = "load"
    if weights == "load" and device.type == "cpu":
        return False
    shared = "they are shared out over several devices" if tensor_parallel > 1 else None
    reason = shared or why_not_streamed(source, random=spec.random)
    if weights == "stream":
        if reason is not None:
            raise ModelError(
                f"{spec.base}: its weights cannot be streamed: {reason}; use --weights load"
            )
        return True
    numbers = count_weights(source)
    if numbers is None or fits(numbers // tensor_parallel, dtype, device):
        return False
    if weights == "auto" and reason is None:
        note("its weights do not fit into memory, so they are streamed from disk")
        return True
    if device.type == "cuda":
        raise ModelError(
            f"{spec.base}: {too_large(numbers // tensor_parallel, dtype, device, reason)}"
        )
    note(f"its weights need more memory than there is, and cannot be streamed: {reason}")
    return False


def _merge_adapters(
    model: Any,
    spec: ModelSpec,
    adapters: Sequence[Source],
    note: Callable[[str], None],
    *,
    already: bool,
) -> None:
    """Merge adapters, one after the other; `already`: done where blocks are read."""
    base = spec.base
    for asked, adapter in zip(spec.adapters, adapters, strict=True):
        if not already:
            merge_adapter(model, adapter, base)
        note(f"adapter {asked} merged into {base} in float32")
        base = f"{base}+{asked}"


def _check_vocabulary(tokenizer: Any, backbone: Any, spec: ModelSpec) -> None:
    # Without added tokens: they may lie beyond the embedding (Gemma's image token), in no text.
    rows = layers.embedding_rows(backbone, spec.name)
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"{spec.name}: the tokenizer has {tokenizer.vocab_size} tokens but the model embeds "
            f"only {rows}; they belong to different models"
        )


def _window(config: Any, tokenizer: Any) -> int:
    """The longest prompt, in tokens, whose hidden states do not depend on the rest of its batch."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Beyond this length these two choose their frequencies by the longest row of a batch.
    if rope.get("rope_type") in ("dynamic", "longrope"):
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        return int(original or config.max_position_embeddings)
    window = getattr(config, "max_position_embeddings", None)
    if window is None and tokenizer.model_max_length < 1 << 30:  # larger: "no limit known"
        window = tokenizer.model_max_length
    return int(window or DEFAULT_WINDOW)


def _skipped_positions(backbone: nn.Module) -> int:
    """Learned positions that are never used: RoBERTa starts at the padding token's id + 1."""
    return max(
        (
            table.padding_idx + 1
            for name, table in backbone.named_modules()
            if name.endswith("position_embeddings")
            and isinstance(table, nn.Embedding)
            and table.padding_idx is not None
        ),
        default=0,
    )


def _filler(config: Any, tokenizer: Any) -> int:
    """The first ordinary token; at their padding token some models warn or act differently."""
    text_config = config.get_text_config(decoder=True)
    special = {*tokenizer.all_special_ids, getattr(text_config, "pad_token_id", None)}
    return next(token_id for token_id in count() if token_id not in special)
