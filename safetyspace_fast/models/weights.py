"""Loading weights with transformers: plain, quantised or GGUF; or a model without them.

Models of transformers have no common type (each architecture is a class of its own), hence `Any`.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError, first_line
from .backbone import check_report
from .source import Source, read_json


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
