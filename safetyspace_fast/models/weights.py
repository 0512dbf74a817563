"""Loading weights with transformers: plain, quantised or GGUF, with or without an adapter.

Models of transformers have no common type (each architecture is a class of its own), hence `Any`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ModelError, first_line
from .source import Source, read_json
from .spec import ModelSpec


def load_weights(
    source: Source, dtype: torch.dtype, allow_pickle: bool, trust_remote_code: bool
) -> tuple[Any, str | None]:  # transformers has no types
    """Load a model with its head.

    Args:
        source: a model, checked before.
        dtype: of the weights; quantised ones keep theirs.
        allow_pickle, trust_remote_code: as in `load_model`.

    Returns:
        The model, and the method by which its files are quantised, None for plain weights.

    Raises:
        ModelError: transformers cannot load it, or weights are missing.
    """
    import transformers

    where: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    how: dict[str, Any] = {"dtype": dtype, "use_safetensors": None if allow_pickle else True}
    if dtype == torch.float64:  # grouped products of experts do not take float64
        how["experts_implementation"] = "eager"
    if source.gguf is not None:
        where["gguf_file"] = source.gguf
        if hasattr(transformers, "GgufConfig"):  # older versions always dequantise
            how["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if source.gguf is None and not trust_remote_code:
        _check_own_code(source)
    try:
        config = transformers.AutoConfig.from_pretrained(source.directory, **where)
        _check_config(config, source)
        quantization = _quantization(config)  # loading may delete it from the config
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
    backbone = {id(parameter) for parameter in find_backbone(model).parameters()}
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


def merge_adapter(model: Any, adapter: Source, spec: ModelSpec) -> Any:  # peft has no types
    """Add an adapter to a model's weights; ModelError if it does not belong to the model."""
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
    # PEFT ignores weights without a counterpart in the model; here they mean a wrong base.
    expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if unmatched := sorted(saved.keys() ^ expected.keys()):
        raise ModelError(
            f"{adapter.asked}: not an adapter for {spec.base}: {len(unmatched)} weights do not "
            f"match the model (first: {unmatched[0]})"
        )
    if not hasattr(adapted, "merge_and_unload"):
        raise ModelError(
            f"{adapter.asked}: an adapter of type {adapted.active_peft_config.peft_type.value} "
            "cannot be merged into weights; expected LoRA or one of its variants"
        )
    return adapted.merge_and_unload()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings; what users must know is raised or noted."""
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
