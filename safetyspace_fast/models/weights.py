"""Loading weights with transformers: plain, quantised or GGUF; its report, and its warnings.

Models of transformers have no common type (each architecture is a class of its own), hence `Any`.
"""

import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError, first_line
from .source import Source, read_json

# Weights of a checkpoint that no forward pass reads, by the ends of their names: buffers that older
# versions of transformers saved, and copies that DeBERTa's training left.
_UNUSED = re.compile(
    r"(^|\.)([a-z_]*inv_freq|(cos|sin)_cached|position_ids|causal_mask|version|num_batches_tracked"
    r"|_weight|masked_bias|(attn|attention)\.bias)$"
)
_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Numbers beside quantised weights, which have no place once these are unpacked.
_SCALES = re.compile(r"(scale|zero|g_idx|absmax|quant|packed|shape)[^.]*$")
# Parts beside the blocks that other tasks use: poolers, towers for images and sound, more heads.
_OTHER_PARTS = re.compile(r"pool|mtp|vis|image|audio|multi_modal|mm_|head|score|classifier")
# Blocks behind the last one that predict further tokens (DeepSeek-V3, GLM-4.5) and are never run.
_FURTHER_BLOCKS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
_NOT_MERGED = (
    "its weights were saved with an adapter that is not merged: call PEFT's merge_and_unload, then "
    "save the model"
)
# Warnings about what this package reads or does itself, or never does.
_NO_NEWS = re.compile(
    r"LOAD REPORT|missing adapter keys|save_embedding_layers|generation (config|flags)"
    r"|tie_word_embeddings=True|no longer tied|tied weights mapping|is_decoder=True"
    r"|default to dequantizing"
)


def load_weights(
    source: Source,
    dtype: torch.dtype,
    device: torch.device,
    allow_pickle: bool,
    trust_remote_code: bool,
    note: Callable[[str], None],
    tensor_parallel: int = 1,
) -> tuple[Any, str | None]:  # transformers has no types
    """Load a model with its head.

    Args:
        source: a model, checked before.
        dtype: of the weights; quantised ones keep theirs.
        device: where they are put. On the way to a GPU the host holds a few tensors at a time.
        allow_pickle, trust_remote_code: as in `load_model`.
        note: called with notes of one line.
        tensor_parallel: ranks that share the weights, by transformers' plan; each calls this.

    Returns:
        The model, and the method by which its files are quantised, None for plain weights.

    Raises:
        ModelError: transformers cannot load it, or the weights in its files are not those of the
            part that runs.
    """
    import transformers

    where: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    how: dict[str, Any] = {"dtype": dtype, "use_safetensors": None if allow_pickle else True}
    if tensor_parallel > 1:
        how["distributed_config"] = transformers.distributed.DistributedConfig(
            tp_size=tensor_parallel
        )
    else:
        how |= placed_on(device)
    if dtype == torch.float64:  # grouped products of experts do not take float64
        how["experts_implementation"] = "eager"
    if source.gguf is not None:
        where["gguf_file"] = source.gguf
        if hasattr(transformers, "GgufConfig"):  # older versions always dequantise
            how["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if source.gguf is None and not trust_remote_code:
        _check_own_code(source)
    try:
        with without_adapter(source.directory) as directory:
            config = transformers.AutoConfig.from_pretrained(directory, **where)
            _check_config(config, source)
            quantization = _quantization(config)  # loading may delete it from the config
            if quantization is None:
                _check_numbers(source)
            model, report = _auto_class(config).from_pretrained(
                directory,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report names them, an exception would not
                **where,
                **how,
            )
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(
            f"{source.asked}: a package is missing to load it: {first_line(error)}"
        ) from error
    except Exception as error:
        reason = first_line(error)
        if "conversion of the weights" in reason:  # it refers to a report that nobody sees
            reason = "its weights are incomplete or of another architecture than config.json says"
        raise ModelError(
            f"{source.asked}: transformers cannot load it as a language model: {reason}"
        ) from error
    method = "gguf" if source.gguf else quantization
    check_report(source, model, report, method is not None, note)
    return model, method


RANDOM_SEED = 1
"""Of the weights of controls."""


def random_weights(source: Source, trust_remote_code: bool) -> Any:  # transformers has no types
    """Make a model with its head from a configuration, with weights as before any training.

    The weights are drawn in float32, on the CPU, the same each time.

    Raises:
        ModelError: transformers cannot make it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return _from_config(source, torch.float32, trust_remote_code, packed=True)


def empty_model(source: Source, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """Make a model with its head on torch's device `meta`, where weights take no memory.

    Raises:
        ModelError: transformers cannot make it, or its weights are quantised.
    """
    _check_numbers(source)
    with torch.device("meta"):
        return _from_config(source, dtype, trust_remote_code, packed=False).eval()


def _from_config(source: Source, dtype: torch.dtype, trust_remote_code: bool, packed: bool) -> Any:
    """Make a model from its configuration; `packed`: it may describe quantised weights."""
    import transformers

    where: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.gguf is None and not trust_remote_code:
        _check_own_code(source)
    try:
        with without_adapter(source.directory) as directory:
            config = transformers.AutoConfig.from_pretrained(
                directory, local_files_only=True, gguf_file=source.gguf, **where
            )
            _check_config(config, source)
            if not packed and (method := _quantization(config)) is not None:
                raise ModelError(
                    f"{source.asked}: its weights are quantised ({method}) and are unpacked as a "
                    "whole, so they cannot be streamed; use --weights load"
                )
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            return _auto_class(config).from_config(config, dtype=dtype, **where)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{source.asked}: transformers cannot make it from its configuration: "
            f"{first_line(error)}"
        ) from error


@contextmanager
def without_adapter(directory: Path) -> Iterator[Path]:
    """A model's folder without the adapter in it, which transformers would apply unasked."""
    if not (directory / "adapter_config.json").is_file():
        yield directory
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in directory.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(folder) / file.name).symlink_to(file.resolve())
        yield Path(folder)


def check_report(
    source: Source,
    model: Any,
    report: dict[str, Any],
    packed: bool,
    note: Callable[[str], None],
) -> None:
    """Refuse a model unless its files fill every place of the backbone, and nothing is left over.

    Args:
        source: for messages.
        model: as loaded.
        report: what transformers says of missing, mismatched and unexpected weights.
        packed: whether the files are quantised: they hold scales, which have no place.
        note: told of weights beside the backbone's parts that no known task uses.
    """
    backbone = find_backbone(model)
    own = {id(tensor) for tensor in chain(backbone.parameters(), backbone.buffers())}
    names = {name for name, tensor in _tensors(model) if id(tensor) in own}
    wrong = sorted(entry for entry in report["mismatched_keys"] if entry[0] in names)
    if wrong:
        name, found, expected = wrong[0]
        raise ModelError(
            f"{source.asked}: {len(wrong)} weights have other sizes than config.json says (first: "
            f"{name} is {list(found)}, expected {list(expected)}); use the config.json of these "
            "weights"
        )
    missing = sorted(names & report["missing_keys"])
    if packed:  # scales that the quantiser computes are no parameters
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        missing = [name for name in missing if name in parameters or not _SCALES.search(name)]
    if missing:
        raise ModelError(
            f"{source.asked}: {len(missing)} weights of {type(model).__name__} are not in its "
            f"files (first: {missing[0]}); {_why_missing(missing, report['unexpected_keys'])}"
        )
    path = path_of(backbone, model)
    unexpected = [
        name
        for name in sorted(report["unexpected_keys"] - names)
        if not (_UNUSED.search(name) or (packed and _SCALES.search(name)))
    ]
    if left := [name for name in unexpected if belongs(name.removeprefix(path), backbone)]:
        if any(_is_of_adapter(name) for name in left):
            raise ModelError(f"{source.asked}: {_NOT_MERGED} (first: {left[0]})")
        raise ModelError(
            f"{source.asked}: {len(left)} weights of its files have no place in "
            f"{type(model).__name__} (first: {left[0]}); config.json describes another model: use "
            "the one that belongs to these weights"
        )
    beside = [
        name
        for name in unexpected
        if path
        and name.startswith(path)
        and not _is_part(name.removeprefix(path), backbone)
        and not _OTHER_PARTS.search(name)
    ]
    if beside:
        note(f"{len(beside)} weights of its files are not used (first: {beside[0]})")


def _why_missing(missing: list[str], unexpected: set[str]) -> str:
    """What names the files have instead, and what to do."""
    if any(map(_is_of_adapter, unexpected)):
        return _NOT_MERGED
    for name, wanted in product(sorted(unexpected), missing):  # tied weights are in no file
        if name.endswith(f".{wanted}"):
            prefix = name.removesuffix(wanted)
            return f"they begin with {prefix!r} there: rename them without it"
    return "the files belong to another model or are incomplete"


def _is_of_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name or ".base_layer." in name


def _is_part(name: str, backbone: Any) -> bool:
    """Whether a weight would lie in one of the backbone's parts: no head, pooler or image tower."""
    parts = chain(backbone.named_children(), backbone.named_parameters(recurse=False))
    return name.partition(".")[0] in {part for part, _ in parts}


def belongs(name: str, backbone: Any) -> bool:
    """Whether a weight would lie in one of the backbone's parts, and would be run."""
    config = backbone.config.get_text_config()
    number = name.split(".")[1] if "." in name else ""
    further = max((getattr(config, key, None) or 0) for key in _FURTHER_BLOCKS)
    is_further = (
        number.isdecimal()
        and config.num_hidden_layers <= int(number) < config.num_hidden_layers + further
    )
    return _is_part(name, backbone) and not is_further


def path_of(module: Any, whole: Any) -> str:
    """The path of a part of a model, with a dot at its end; empty for the model itself."""
    path = next(name for name, part in whole.named_modules() if part is module)
    return f"{path}." if path else ""


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """All parameters and buffers under all of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _check_own_code(source: Source) -> None:
    """Refuse a model whose architecture transformers does not have."""
    import transformers

    written = read_json(source.directory / "config.json")
    own = written.get("auto_map")
    if own and written.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{source.asked}: {written.get('model_type')!r} is not part of transformers; the model "
            f"brings its own code ({', '.join(sorted(own))}), which runs only if you allow it: "
            "read it, then allow remote code"
        )


def _check_config(config: Any, source: Source) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if getattr(config.get_text_config(encoder=config.is_encoder_decoder), "expert_capacity", None):
        raise ModelError(
            f"{source.asked}: the experts of {config.model_type} take a fixed number of tokens of "
            "each batch (expert_capacity), so a text's hidden states would depend on the other "
            "texts of its batch; expected experts without a capacity"
        )
    method = _quantization(config)
    # Without this check transformers would load such weights as if they were plain ones.
    if method not in (None, "bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise ModelError(
            f"{source.asked}: its weights are quantised with {method!r}, which this version of "
            "transformers does not know; use a newer version, or the plain weights"
        )


def _check_numbers(source: Source) -> None:
    """Refuse integers as plain weights: transformers would take them for the weights' values."""
    from safetensors import safe_open

    for file in source.weight_files():
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            for name in (name for name in names if name.endswith(".weight")):
                kind = opened.get_slice(name).get_dtype()
                if kind.startswith(("I", "U")):
                    raise ModelError(
                        f"{source.asked}: {name} holds integers ({kind}), so it is quantised, but "
                        "config.json has no quantization_config: use the one of these weights"
                    )


def placed_on(device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told so that weights go to a GPU without a copy on the host.

    Without accelerate there is no such way: they go by way of the main memory, when they are moved.
    """
    return {"device_map": {"": device}} if device.type != "cpu" and find_spec("accelerate") else {}


def stored(source: Source) -> list[tuple[tuple[int, ...], torch.dtype]] | None:
    """Shape and dtype of every tensor in a model's files; None if some are no plain numbers."""
    from safetensors import safe_open

    tensors: list[tuple[tuple[int, ...], torch.dtype]] = []
    for file in source.weight_files():
        if file.suffix != ".safetensors":
            return None
        with safe_open(file, framework="pt") as opened:
            parts = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118 - no dict
        if any(part.get_dtype() not in _FLOATS for part in parts):
            return None
        tensors += [(tuple(part.get_shape()), _FLOATS[part.get_dtype()]) for part in parts]
    return tensors


def _quantization(config: Any) -> str | None:
    """The method by which a checkpoint's weights are quantised; None for plain weights."""
    written = getattr(config, "quantization_config", None)
    if written is None:
        return None
    method = written.get("quant_method", "bitsandbytes") if isinstance(written, dict) else None
    method = method or written.quant_method  # old checkpoints of bitsandbytes name no method
    return str(getattr(method, "value", method))


def _auto_class(config: Any) -> Any:
    """The transformers class that loads a checkpoint without adding untrained parts (a pooler)."""
    import transformers

    remote = getattr(config, "auto_map", None) or {}
    for name, mapping in (
        ("AutoModelForCausalLM", transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        ("AutoModelForMaskedLM", transformers.MODEL_FOR_MASKED_LM_MAPPING),
        ("AutoModelForTextEncoding", transformers.MODEL_FOR_TEXT_ENCODING_MAPPING),
    ):
        # Loaded as causal models, encoder-decoders would lack their encoders.
        if not config.is_encoder_decoder and (type(config) in mapping or name in remote):
            return getattr(transformers, name)
    return transformers.AutoModel


def find_backbone(model: Any) -> Any:  # transformers has no types
    """The part that turns token ids into hidden states: no head, no image tower, no decoder."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    if model.config.get_text_config() is not model.config:  # one part of several
        return model.get_decoder()
    # In Llama 4 `base_model` is the model itself: the attribute has another name than it says.
    return model.base_model if model.base_model is not model else getattr(model, "model", model)


@contextmanager
def quiet_transformers(tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep transformers from writing to the terminal; `tell` is called with its warnings.

    Each warning of transformers, and each `UserWarning` of Python, comes once, as one line.
    """
    from transformers.utils import logging as transformers_logging

    told: set[str] = set()

    def once(text: str) -> None:
        line = " ".join(text.split())
        if tell is not None and line not in told and not _NO_NEWS.search(line):
            told.add(line)
            tell(line)

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, (UserWarning, RuntimeWarning)):  # others are for programmers
            once(str(message))

    logger = logging.getLogger("transformers")
    kept = logger.handlers, logger.propagate, logger.level
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.warning_once.cache_clear()  # or a second model would load in silence
    logger.handlers, logger.propagate = [_Listener(once)], False
    logger.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            yield
    finally:
        logger.handlers, logger.propagate = kept[:2]
        logger.setLevel(kept[2])
        if bars:
            transformers_logging.enable_progress_bar()


class _Listener(logging.Handler):
    """Calls a function with the text of each record."""

    def __init__(self, listen: Callable[[str], None]) -> None:
        super().__init__()
        self._listen = listen

    def emit(self, record: logging.LogRecord) -> None:
        self._listen(record.getMessage())
