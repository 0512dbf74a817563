"""From a ModelSpec to a model that is ready to run: weights, tokenizer, hookpoints, identity.

Only safetensors and GGUF weights are opened, and no code that comes with a model runs, unless the
caller asks for it by name. transformers, peft and huggingface_hub are imported when first needed.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ConfigError, ModelError, first_line
from . import layers
from .fused import try_fusing
from .source import Source, find_source, sha256
from .spec import ModelSpec, split_revision
from .weights import find_backbone, load_weights, merge_adapter, quiet_transformers

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Window of a model that names none (ALiBi models): longer texts would be cut, and counted.
DEFAULT_WINDOW = 8192


@dataclass(frozen=True)
class LoadedModel:
    """A model without its head, ready to run, with everything the engine must know of it.

    Call it as `backbone(input_ids=ids, use_cache=False)` with ids: [B, T] int64 padded on the right
    with any token. A causal model needs no attention mask: its states never see what is to their
    right. Any other (an encoder) needs `attention_mask`: [B, T], 1 at tokens and 0 at padding.

    name: the spec's name.
    backbone: in evaluation mode, no gradients; its result has `last_hidden_state`: [B, T, D].
    blocks: the backbone's own list of blocks, in order.
    causal: no state depends on a token to its right, as a probe found. Only then may a prefix that
        texts share be run once for all of them.
    hookpoints: names of the places that can be read, in depth order. `final_norm` is the last
        hidden state; in a model without a norm after its last block (BERT) it equals that block's.
    hidden_size: D.
    tokenizer: a transformers fast tokenizer, which gives offsets.
    max_tokens: the longest prompt the model takes.
    pad_token_id: an ordinary token to fill rows with; no state of a text ever depends on it.
    identity: what the store's manifest says about the model.
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
    identity: dict[str, Json] = field(repr=False)

    def watch(self, hookpoint: str, callback: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `callback` with a hookpoint's hidden_states: [B, T, D] in every forward pass."""
        return layers.watch(self.backbone, self.blocks, hookpoint, callback)


def load_model(
    spec: ModelSpec,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> LoadedModel:
    """Load a language model or an encoder, merge its adapter, and find its hookpoints.

    On a CPU with AVX-512, layers in float32 are fused: see `fused`.

    device: `cpu`, `cuda`, `cuda:1`, or `auto` (a GPU where there is one).
    dtype: `auto` (bfloat16 on a GPU that has it, else float16; float32 on a CPU without AMX,
        bfloat16 on one with it), or a name.
    allow_pickle: also open pickled weights, which can run any code they hold.
    trust_remote_code: run Python files that come with the model.
    on_note: called with one line for each thing the user should know but need not act on.

    Raises ModelError, naming the file or directory and what to do.
    """
    note = on_note or (lambda _line: None)
    target = _device(device)
    working = _dtype(dtype, target)
    source = find_source(spec.base, spec.revision, allow_pickle, trust_remote_code)
    source.check(allow_pickle)
    adapter = None
    if spec.adapter is not None:
        adapter = find_source(*split_revision(spec.adapter), allow_pickle, trust_remote_code)
        adapter.check_adapter(allow_pickle)

    with ThreadPoolExecutor(4) as pool, quiet_transformers():
        # Hashing runs beside loading: both read the same pages, and hashlib releases the lock.
        files = [*source.weight_files(), *(adapter.weight_files() if adapter else ())]
        digests = pool.map(sha256, files)
        model, quantization = load_weights(
            source, torch.float32 if adapter else working, allow_pickle, trust_remote_code
        )
        packed = getattr(model.config, "quantization_config", None) is not None
        if adapter is not None:
            if packed:
                raise ModelError(
                    f"{spec.base}: its weights are quantised ({quantization}), so merging an "
                    "adapter would round it away; expected plain weights"
                )
            model = merge_adapter(model, adapter, spec)
            note(f"{spec.name}: adapter {spec.adapter} merged into {spec.base} in float32")
        if quantization is not None and not packed:
            form = "GGUF" if source.gguf else quantization
            note(f"{spec.name}: {form} weights unpacked to {str(working).removeprefix('torch.')}")
        tokenizer_home = adapter if adapter and adapter.tokenizer_files() else source
        tokenizer = _load_tokenizer(tokenizer_home, trust_remote_code)
        weights = dict(zip((f.name for f in files), digests, strict=True))

    backbone = find_backbone(model)
    config = model.config
    del model  # and with it the head
    if not packed:
        backbone.to(dtype=working)
    backbone.to(target).eval().requires_grad_(False)
    _check_vocabulary(tokenizer, backbone, spec)
    text_config = backbone.config.get_text_config()
    blocks = layers.find_blocks(backbone, text_config.num_hidden_layers, spec.name)
    if target.type == "cpu" and (reason := try_fusing(backbone)) is not None:
        note(f"{spec.name}: its layers run as they are, without the compiled kernels: {reason}")
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
        identity=_identity(
            spec, source, adapter, config, working, weights, tokenizer_home, quantization
        ),
    )


def _load_tokenizer(source: Source, trust_remote_code: bool) -> Any:
    import transformers

    options = {"gguf_file": source.gguf} if source.gguf is not None else {}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.directory,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **options,
        )
    except Exception as error:
        raise ModelError(f"{source.asked}: no usable tokenizer: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{source.asked}: {type(tokenizer).__name__} gives no character offsets, by which a "
            "text's tokens are found; expected a fast tokenizer (tokenizer.json)"
        )
    _keep_spaces_in_offsets(tokenizer.backend_tokenizer)
    return tokenizer


def _keep_spaces_in_offsets(backend: Any) -> None:
    """Let offsets cover a token's leading spaces, which some post-processors trim away.

    Trimmed, a token made of spaces covers nothing and could not be told to belong to a text.
    """
    post_processor = backend.post_processor
    if post_processor is None:
        return
    state = json.loads(post_processor.__getstate__())
    parts = [state, *state.get("processors", ())]
    if any(part.get("trim_offsets") for part in parts):
        for part in parts:
            if "trim_offsets" in part:
                part["trim_offsets"] = False
        post_processor.__setstate__(json.dumps(state).encode())
        backend.post_processor = post_processor


def _check_vocabulary(tokenizer: Any, backbone: Any, spec: ModelSpec) -> None:
    # Added tokens may lie beyond the embedding (Gemma's image token does); texts hold none of them.
    rows = backbone.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"{spec.name}: the tokenizer has {tokenizer.vocab_size} tokens but the model embeds "
            f"only {rows}; they belong to different models"
        )


def _window(config: Any, tokenizer: Any) -> int:
    """The longest prompt, in tokens, whose states do not depend on the others in its batch."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # These two change their frequencies with the longest row of a batch, past this length.
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
    """Learned positions that no token gets: RoBERTa counts from the padding token's id on."""
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
    """The first ordinary token: at a model's own padding token some models warn, or do more."""
    special = {*tokenizer.all_special_ids, config.get_text_config(decoder=True).pad_token_id}
    return next(token_id for token_id in count() if token_id not in special)


def _identity(
    spec: ModelSpec,
    source: Source,
    adapter: Source | None,
    config: Any,
    dtype: torch.dtype,
    weights: dict[str, str],
    tokenizer_home: Source,
    quantization: str | None,
) -> dict[str, Json]:
    """What tells this model from any other.

    weights_sha256: of the listing that `sha256sum` prints for all weight files, the base's in name
    order, then the adapter's.
    """
    listing = "".join(f"{digest}  {name}\n" for name, digest in weights.items())
    config_file = source.directory / "config.json"
    tokenizer_file = next(iter(tokenizer_home.tokenizer_files()), None)
    return {
        "id": spec.base,
        "revision": spec.revision,
        "commit": source.commit,
        "architecture": (config.architectures or [None])[0],
        "model_type": config.model_type,
        "config_sha256": sha256(config_file) if source.gguf is None else None,
        "weights_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "weights": dict(weights),
        "adapter": spec.adapter,
        "adapter_commit": adapter.commit if adapter else None,
        "tokenizer": tokenizer_home.asked,
        "tokenizer_sha256": sha256(tokenizer_file) if tokenizer_file and not source.gguf else None,
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": quantization,
    }


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        if target.type not in ("cpu", "cuda"):
            raise RuntimeError(f"no {target.type} here")
    except RuntimeError as error:
        raise ConfigError(
            f"device {device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'"
        ) from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices here"
        )
    return target


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        if device.type != "cuda":  # only with tiles of its own is a CPU faster in bfloat16
            return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: expected 'auto', {', '.join(map(repr, DTYPES))}")
    return DTYPES[dtype]
