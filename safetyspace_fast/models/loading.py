"""From a ModelSpec to a model that is ready to run: weights, tokenizer, hookpoints, identity.

Only safetensors and GGUF weights are opened, and no code that comes with a model runs, unless the
caller asks for it by name. transformers, peft and huggingface_hub are imported when first needed.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ConfigError, ModelError, first_line
from . import layers
from .fused import try_fusing
from .spec import ModelSpec, split_revision

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Window of a model that names none (ALiBi models): longer texts would be cut, and counted.
DEFAULT_WINDOW = 8192
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


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
    source = _locate(spec.base, spec.revision, allow_pickle, trust_remote_code)
    source.check(allow_pickle)
    adapter = None
    if spec.adapter is not None:
        adapter = _locate(*split_revision(spec.adapter), allow_pickle, trust_remote_code)
        adapter.check_adapter(allow_pickle)

    with ThreadPoolExecutor(4) as pool, quiet_transformers():
        # Hashing runs beside loading: both read the same pages, and hashlib releases the lock.
        files = [*source.weight_files(), *(adapter.weight_files() if adapter else ())]
        digests = pool.map(_sha256, files)
        model, quantization = _load_weights(
            source, torch.float32 if adapter else working, allow_pickle, trust_remote_code
        )
        packed = getattr(model.config, "quantization_config", None) is not None
        if adapter is not None:
            if packed:
                raise ModelError(
                    f"{spec.base}: its weights are quantised ({quantization}), so merging an "
                    "adapter would round it away; expected plain weights"
                )
            model = _merge_adapter(model, adapter, spec)
            note(f"{spec.name}: adapter {spec.adapter} merged into {spec.base} in float32")
        if quantization is not None and not packed:
            form = "GGUF" if source.gguf else quantization
            note(f"{spec.name}: {form} weights unpacked to {str(working).removeprefix('torch.')}")
        tokenizer_home = adapter if adapter and adapter.has_tokenizer() else source
        tokenizer = _load_tokenizer(tokenizer_home, trust_remote_code)
        weights = dict(zip((f.name for f in files), digests, strict=True))

    backbone = _backbone(model)
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


@dataclass(frozen=True)
class _Source:
    """Where a model or an adapter lies: a directory, and the GGUF file in it if it is one."""

    asked: str  # as the user named it, for messages
    directory: Path
    gguf: str | None = None
    commit: str | None = None

    def weight_files(self) -> list[Path]:
        """The files that hold weights, in name order."""
        if self.gguf is not None:
            return [self.directory / self.gguf]
        indexes = sorted(self.directory.glob("*.safetensors.index.json"))
        if indexes:
            names = _index_files(indexes[0])
            return [self.directory / name for name in names]
        found = [
            path
            for name in ("model.safetensors", "adapter_model.safetensors")
            if (path := self.directory / name).is_file()
        ]
        return found or sorted(p for pattern in _PICKLES for p in self.directory.glob(pattern))

    def check(self, allow_pickle: bool) -> None:
        if self.gguf is not None:
            with (self.directory / self.gguf).open("rb") as file:
                if (magic := file.read(4)) != b"GGUF":
                    raise ModelError(
                        f"{self.asked}: expected a GGUF file, beginning with b'GGUF', got {magic!r}"
                    )
            return
        if not (self.directory / "config.json").is_file():
            hint = "no config.json in it"
            if (self.directory / "adapter_config.json").is_file():
                hint = f"it holds an adapter; write BASE+{self.asked}"
            elif any(self.directory.glob("*.gguf")):
                hint = "it holds GGUF files; name one of them"
            raise ModelError(f"{self.asked}: not a model directory: {hint}")
        _read_json(self.directory / "config.json")
        self._check_weights(allow_pickle)

    def check_adapter(self, allow_pickle: bool) -> None:
        if not (self.directory / "adapter_config.json").is_file():
            raise ModelError(f"{self.asked}: not a PEFT adapter: no adapter_config.json in it")
        self._check_weights(allow_pickle)

    def _check_weights(self, allow_pickle: bool) -> None:
        files = self.weight_files()
        if not files:
            raise ModelError(f"{self.asked}: no weights in it: expected *.safetensors files")
        for file in files:
            if not file.is_file():
                raise ModelError(f"{file}: named by the index beside it, but missing")
            if file.suffix == ".safetensors":
                _check_safetensors(file)
            elif not allow_pickle:
                raise ModelError(
                    f"{file}: pickled weights can run code when they are opened; expected "
                    "safetensors; convert them, or allow pickle by name if you trust their origin"
                )

    def has_tokenizer(self) -> bool:
        return any((self.directory / name).is_file() for name in _TOKENIZER_FILES)


def _locate(
    asked: str, revision: str | None, allow_pickle: bool, trust_remote_code: bool
) -> _Source:
    path = Path(os.path.expanduser(asked))
    # Asked through os.path, which takes any string, however long or odd.
    if os.path.isfile(path) and path.suffix == ".gguf":
        return _Source(asked, path.parent, gguf=path.name)
    if os.path.isdir(path):
        if revision is not None:
            raise ModelError(f"{asked}: a directory has no revision, got {revision!r}")
        return _Source(asked, path)
    if os.path.exists(path):
        raise ModelError(f"{asked}: expected a directory, a .gguf file or a hub id, got a file")
    if asked.startswith(("/", ".", "~")) or asked.count("/") > 1 or path.suffix == ".gguf":
        raise ModelError(f"{asked}: no such directory or file")
    return _download(asked, revision, allow_pickle, trust_remote_code)


def _download(
    repo_id: str, revision: str | None, allow_pickle: bool, trust_remote_code: bool
) -> _Source:
    """Fetch what loading needs from the hub, or find it in the hub's cache."""
    import huggingface_hub

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    wanted += _PICKLES if allow_pickle else ()
    wanted += ["*.py"] if trust_remote_code else ()
    try:
        snapshot = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=wanted,
            # Copies of the same weights in other formats.
            ignore_patterns=["*/*", "consolidated*"],
        )
    except Exception as error:
        at_revision = f" at revision {revision}" if revision else ""
        advice = ""
        if isinstance(error, huggingface_hub.errors.GatedRepoError):
            advice = "; ask for access on its page, then log in with `hf auth login`"
        raise ModelError(
            f"{repo_id}: no such directory, and not to be had from the model hub{at_revision} "
            f"({type(error).__name__}: {first_line(error)}){advice}"
        ) from error
    return _Source(repo_id, Path(snapshot), commit=Path(snapshot).name)


def _load_weights(
    source: _Source, dtype: torch.dtype, allow_pickle: bool, trust_remote_code: bool
) -> tuple[Any, str | None]:
    """The model with its head, and the method by which its files are quantised, if any."""
    import transformers

    where: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    how: dict[str, Any] = {"dtype": dtype, "use_safetensors": None if allow_pickle else True}
    if dtype == torch.float64:  # the grouped products of mixtures of experts stop at float32
        how["experts_implementation"] = "eager"
    if source.gguf is not None:
        where["gguf_file"] = source.gguf
        if hasattr(transformers, "GgufConfig"):  # older versions always unpack
            how["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if source.gguf is None and not trust_remote_code:
        _check_own_code(source)
    try:
        config = transformers.AutoConfig.from_pretrained(source.directory, **where)
        _check_config(config, source)
        quantization = _quantization(config)  # transformers drops it where it unpacks the weights
        model, info = _auto_class(config).from_pretrained(
            source.directory, config=config, output_loading_info=True, **where, **how
        )
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(
            f"{source.asked}: a package is missing to load it: {first_line(error)}"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{source.asked}: transformers cannot load it as a language model: {first_line(error)}"
        ) from error
    backbone = {id(parameter) for parameter in _backbone(model).parameters()}
    missing = sorted(
        name
        for name, parameter in model.named_parameters()
        if name in info["missing_keys"] and id(parameter) in backbone
    )
    if missing:
        raise ModelError(
            f"{source.asked}: {len(missing)} weights of {type(model).__name__} are not in its "
            f"files (first: {missing[0]}); the files belong to another model or are incomplete"
        )
    return model, "gguf" if source.gguf else quantization


def _check_own_code(source: _Source) -> None:
    """Refuse a model whose architecture transformers does not have."""
    import transformers

    written = _read_json(source.directory / "config.json")
    own = written.get("auto_map")
    if own and written.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{source.asked}: {written.get('model_type')!r} is not part of transformers and comes "
            f"with code of its own ({', '.join(sorted(own))}), which does not run unless you trust "
            "it: read it, then allow remote code by name"
        )


def _check_config(config: Any, source: _Source) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if getattr(config.get_text_config(encoder=config.is_encoder_decoder), "expert_capacity", None):
        raise ModelError(
            f"{source.asked}: the experts of {config.model_type} take a fixed number of tokens in "
            "each batch (expert_capacity), so a text's states would depend on the texts beside it; "
            "expected experts without capacity"
        )
    method = _quantization(config)
    # Loading such weights as if they were plain ones would be the alternative.
    if method not in (None, "bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise ModelError(
            f"{source.asked}: its weights are quantised by {method!r}, which this version of "
            "transformers does not know; use a newer one, or the plain weights"
        )


def _quantization(config: Any) -> str | None:
    """The method by which a checkpoint's weights are quantised, as its config names it."""
    written = getattr(config, "quantization_config", None)
    if written is None:
        return None
    method = written.get("quant_method", "bitsandbytes") if isinstance(written, dict) else None
    method = method or written.quant_method  # old checkpoints of bitsandbytes name no method
    return str(getattr(method, "value", method))


def _auto_class(config: Any) -> Any:
    """The transformers class that loads a checkpoint and adds no part (a pooler) that it lacks."""
    import transformers

    remote = getattr(config, "auto_map", None) or {}
    for name, mapping in (
        ("AutoModelForCausalLM", transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        ("AutoModelForMaskedLM", transformers.MODEL_FOR_MASKED_LM_MAPPING),
        ("AutoModelForTextEncoding", transformers.MODEL_FOR_TEXT_ENCODING_MAPPING),
    ):
        # As causal models, encoder-decoders would come without their encoders.
        if not config.is_encoder_decoder and (type(config) in mapping or name in remote):
            return getattr(transformers, name)
    return transformers.AutoModel


def _backbone(model: Any) -> Any:
    """The part that turns token ids into hidden states: no head, no images, no second stack."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    if model.config.get_text_config() is not model.config:  # one part of several
        return model.get_decoder()
    # Llama 4 gives another name to its base than the one it goes by.
    return model.base_model if model.base_model is not model else getattr(model, "model", model)


def _merge_adapter(model: Any, adapter: _Source, spec: ModelSpec) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"{adapter.asked}: adapters need peft: pip install peft") from error

    saved = peft.utils.load_peft_weights(str(adapter.directory), device="cpu")
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(adapter.directory))
    except Exception as error:
        raise ModelError(
            f"{adapter.asked}: not an adapter for {spec.base}: {first_line(error)}"
        ) from error
    # PEFT passes over weights that have no place in the model; here they mean a wrong base.
    expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if odd := sorted(saved.keys() ^ expected.keys()):
        raise ModelError(
            f"{adapter.asked}: not an adapter for {spec.base}: {len(odd)} weights do not match the "
            f"model (first: {odd[0]})"
        )
    if not hasattr(adapted, "merge_and_unload"):
        raise ModelError(
            f"{adapter.asked}: an adapter of type {adapted.active_peft_config.peft_type.value} "
            "cannot be merged into weights; expected LoRA or a relative"
        )
    return adapted.merge_and_unload()


def _load_tokenizer(source: _Source, trust_remote_code: bool) -> Any:
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
    source: _Source,
    adapter: _Source | None,
    config: Any,
    dtype: torch.dtype,
    weights: dict[str, str],
    tokenizer_home: _Source,
    quantization: str | None,
) -> dict[str, Json]:
    """What tells this model from any other.

    weights_sha256: of the listing that `sha256sum` prints for all weight files, the base's in name
    order, then the adapter's.
    """
    listing = "".join(f"{digest}  {name}\n" for name, digest in weights.items())
    config_file = source.directory / "config.json"
    tokenizer_files = [tokenizer_home.directory / name for name in _TOKENIZER_FILES]
    return {
        "id": spec.base,
        "revision": spec.revision,
        "commit": source.commit,
        "architecture": (config.architectures or [None])[0],
        "model_type": config.model_type,
        "config_sha256": _sha256(config_file) if source.gguf is None else None,
        "weights_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "weights": dict(weights),
        "adapter": spec.adapter,
        "adapter_commit": adapter.commit if adapter else None,
        "tokenizer": tokenizer_home.asked,
        "tokenizer_sha256": _first_sha256(tokenizer_files) if source.gguf is None else None,
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


def _check_safetensors(file: Path) -> None:
    """Read a file's header, which also holds it to the file's length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise ModelError(
            f"{file}: not a whole safetensors file ({error}); copy or download it again"
        ) from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: not readable as JSON ({first_line(error)})") from error


def _index_files(index: Path) -> list[str]:
    content = _read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(
            f"{index}: expected a 'weight_map' from weights to files; copy or download it again"
        )
    return sorted(set(names.values()))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _first_sha256(files: Iterable[Path]) -> str | None:
    return next((_sha256(file) for file in files if file.is_file()), None)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and warnings off the terminal; what matters is raised or noted."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
