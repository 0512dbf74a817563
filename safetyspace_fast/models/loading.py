"""From a ModelSpec to a model that is ready to run: weights, tokenizer, hookpoints, identity.

transformers, peft and huggingface_hub are imported inside functions: they take seconds.
"""

import gc
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..config import Weights
from ..errors import ModelError
from . import layers
from .adapters import adds_to_weights, merge_adapter
from .device import check_room, find_device, find_dtype, fits
from .fused import has_fused, try_fusing
from .sharded import Leader, Loading, Ranks, check_plan, joined
from .skeleton import open_streamed
from .source import Source, find_source, sha256
from .spec import ModelSpec, split_revision
from .stored import why_not_streamed
from .streamed import StreamedBlocks
from .tokenizer import load_tokenizer, tokenizer_sha256, tokenizer_source
from .weights import (
    RANDOM_SEED,
    find_backbone,
    load_weights,
    quiet_transformers,
    random_weights,
    stored,
)

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_RANDOM_WEIGHTS = {"random": f"seed {RANDOM_SEED}"}
"""What takes the place of the hashes of files in a control."""
DEFAULT_WINDOW = 8192
"""Tokens, for a model that names no window (ALiBi models). Longer texts are cut and counted."""


@dataclass(frozen=True)
class LoadedModel:
    """A model without its head, ready to run.

    Call it as `backbone(input_ids=ids, use_cache=False)` with `ids: [B, T] int64`, padded on the
    right with any token. A causal model needs no attention mask: a hidden state never sees tokens
    to its right. An encoder needs `attention_mask: [B, T]`, 1 at tokens and 0 at padding.

    name: the spec's name.
    backbone: in evaluation mode, without gradients; its result has `last_hidden_state: [B, T, D]`.
    blocks: the backbone's list of transformer blocks, in order.
    causal: no hidden state depends on a token to its right (tested on loading). Only then can a
        shared prefix run once for all texts.
    hookpoints: names of the points where hidden states can be read, in depth order. `final_norm` is
        the last hidden state; without a norm after the last block (BERT) the two are equal.
    hidden_size: D.
    tokenizer: a transformers fast tokenizer, which gives character offsets. Any: transformers has
        no type that mypy can read.
    max_tokens: the longest prompt that the model takes.
    pad_token_id: an ordinary token to fill rows with; no text's hidden state depends on it.
    device, dtype: of the weights.
    identify: returns what `identity` gives.
    streamed: the blocks, if they stay on disk. Until a run begins, one of each kind is in its place
        in the backbone, and all others hand on the states that they get.
    leader: announces forward passes to the other devices of a model that is shared out.
    """

    name: str
    backbone: nn.Module = field(repr=False)
    blocks: nn.ModuleList = field(repr=False)
    causal: bool
    hookpoints: tuple[str, ...]
    hidden_size: int
    tokenizer: Any = field(repr=False)
    max_tokens: int
    pad_token_id: int
    device: torch.device
    dtype: torch.dtype
    identify: Callable[[], dict[str, Json]] = field(repr=False)
    streamed: StreamedBlocks | None = field(default=None, repr=False)
    leader: Leader | None = field(default=None, repr=False)

    @property
    def most_tokens(self) -> float:
        """In a batch, padding included, as larger ones have failed; infinite: none has."""
        return math.inf if self.leader is None else self.leader.most_tokens

    @cached_property
    def identity(self) -> dict[str, Json]:
        """What the store's manifest says about the model; waits until its files are hashed."""
        return self.identify()

    def watch(self, hookpoint: str, callback: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `callback` with a hookpoint's `hidden_states: [B, T, D]` in every forward pass."""
        return layers.watch(self.backbone, self.blocks, hookpoint, callback)


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
    files = {} if spec.random or follows else _weight_files(source, adapters)
    with _hashing(files, wait=target.type == "cpu") as hashes, quiet_transformers(note):
        streamed = None
        at_first, home = working, target
        if adapters and not _merges_by_layer(source, adapters, working):
            at_first, home = torch.float32, torch.device("cpu")
        if streams:
            model, streamed = open_streamed(
                source, adapters, at_first, working, target, trust_remote_code, note
            )
            quantization = None
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
        _merge_adapters(model, spec, () if streams else adapters, note)
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
            **_identity(spec, source, adapters, config, hashes() or _RANDOM_WEIGHTS),
            "tokenizer": tokenizer_home.asked,
            "tokenizer_sha256": tokenizer_sha256(tokenizer_home, tokenizer),
            "dtype": str(working).removeprefix("torch."),
            "quantization": quantization,
        },
        leader=None if ranks is None or follows else Leader(ranks, backbone),
    )


@contextmanager
def _hashing(files: Mapping[str, Path], wait: bool) -> Iterator[Callable[[], dict[str, str]]]:
    """Hash files in threads while they load: both read the same pages, and hashlib frees the GIL.

    Args:
        files: by name.
        wait: for the hashes, at the end of the block. Beside a GPU they may take longer than
            loading; on a CPU they would slow down what follows.

    Yields:
        A function that waits for the hashes, and returns them by name.
    """
    pool = ThreadPoolExecutor(4)
    hashes = {name: pool.submit(sha256, file) for name, file in files.items()}
    try:
        yield lambda: {name: digest.result() for name, digest in hashes.items()}
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(wait)


def find_sources(
    spec: ModelSpec,
    allow_pickle: bool,
    trust_remote_code: bool,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[Source, list[Source]]:
    """Find and check the files of the base and of its adapters.

    Raises:
        ModelError: one is not there, or not complete.
    """
    source = find_source(spec.base, spec.revision, allow_pickle, trust_remote_code)
    source.check(allow_pickle)
    if source.holds_two_models():
        names = ", ".join(file.name for file in source.weight_files())
        note(f"{spec.base} holds a whole and a split model; transformers reads {names} only")
    if not spec.adapters:
        source.check_alone()
    adapters = []
    for asked in spec.adapters:
        adapter = find_source(*split_revision(asked), allow_pickle, trust_remote_code)
        adapter.check_adapter(allow_pickle)
        adapters.append(adapter)
    if source.holds_adapter() and all(a.directory != source.directory for a in adapters):
        note(f"the adapter that lies in {spec.base} is not merged")
    return source, adapters


def _merges_by_layer(source: Source, adapters: list[Source], working: torch.dtype) -> bool:
    """Whether adapters are merged into weights of the working dtype, one layer at a time.

    Only where this gives the same numbers as a model in float32, which is the other way: it takes
    more memory, and is therefore done on the CPU.
    """
    if working == torch.float32:
        return True
    tensors = stored(source)
    return (
        len(adapters) == 1
        and adds_to_weights(adapters[0])
        and tensors is not None
        and all(dtype == working for shape, dtype in tensors if len(shape) > 1)
    )


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
    reason = None if weights == "load" else why_not_streamed(source, random=spec.random)
    if weights == "stream":
        if reason is not None:
            raise ModelError(
                f"{spec.base}: its weights cannot be streamed: {reason}; use --weights load"
            )
        return True
    tensors = stored(source) if device.type == "cuda" or weights == "auto" else None
    if tensors is None:
        return False
    numbers = sum(math.prod(shape) for shape, _ in tensors) // tensor_parallel
    if weights == "auto" and reason is None and not fits(numbers, dtype, device):
        note("its weights do not fit into memory, so they are streamed from disk")
        return True
    if device.type == "cuda":
        check_room(spec.base, numbers, dtype, device)
    return False


def _merge_adapters(
    model: Any, spec: ModelSpec, adapters: Sequence[Source], note: Callable[[str], None]
) -> None:
    base = spec.base
    for asked, adapter in zip(spec.adapters, adapters, strict=False):
        merge_adapter(model, adapter, base)
        note(f"adapter {asked} merged into {base} in float32")
        base = f"{base}+{asked}"


def _weight_files(source: Source, adapters: list[Source]) -> dict[str, Path]:
    """All files that hold weights, by their names in the store's manifest."""
    files = {file.name: file for file in source.weight_files()}
    for number, adapter in enumerate(adapters, 1):
        for file in adapter.adapter_files():
            files[file.name if number == 1 else f"{number}/{file.name}"] = file
    return files


def weights_changed(
    spec: ModelSpec,
    identity: Mapping[str, Any],
    ended: float,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> bool:
    """Whether a model is not the one that was run under its name.

    Its weight files are hashed only if they could be others: if the model was named in another way,
    or a file is newer than the run.

    Args:
        spec: the model.
        identity: of the model that was run, as a store keeps it.
        ended: when that run ended, in seconds since 1970.
        allow_pickle, trust_remote_code: as in `load_model`.

    Raises:
        ModelError: a file of the model is not there, or not complete.
    """
    source, adapters = find_sources(spec, allow_pickle, trust_remote_code)
    files = _weight_files(source, adapters)
    if spec.random:
        control = (spec.asked, _listing_sha256(_RANDOM_WEIGHTS))
        return control != (identity.get("id"), identity.get("weights_sha256"))
    same_name = (spec.base, "+".join(spec.adapters) or None, source.commit) == (
        identity.get("id"),
        identity.get("adapter"),
        identity.get("commit"),
    )
    if same_name and all(file.stat().st_mtime < ended for file in files.values()):
        return False
    with ThreadPoolExecutor(4) as pool:
        digests = dict(zip(files, pool.map(sha256, files.values()), strict=True))
    return _listing_sha256(digests) != identity.get("weights_sha256")


def _listing_sha256(weights: Mapping[str, str]) -> str:
    """Hash of what `sha256sum` prints for files: their hashes by name."""
    listing = "".join(f"{digest}  {name}\n" for name, digest in weights.items())
    return hashlib.sha256(listing.encode()).hexdigest()


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


def _identity(
    spec: ModelSpec,
    source: Source,
    adapters: list[Source],
    config: Any,
    weights: Mapping[str, str],
) -> dict[str, Json]:
    """The facts that identify a model's weights: names and hashes.

    weights_sha256 is the hash of what `sha256sum` prints for all weight files: the base's in name
    order, then the adapters'.
    """
    config_file = source.directory / "config.json"
    commits = [adapter.commit for adapter in adapters]
    return {
        "id": spec.asked,
        "revision": spec.revision,
        "commit": source.commit,
        "architecture": (config.architectures or [None])[0],
        "model_type": config.model_type,
        "config_sha256": sha256(config_file) if source.gguf is None else None,
        "weights_sha256": _listing_sha256(weights),
        "weights": dict(weights),
        "adapter": "+".join(spec.adapters) or None,
        "adapter_commit": "+".join(commit or "" for commit in commits) if any(commits) else None,
    }
