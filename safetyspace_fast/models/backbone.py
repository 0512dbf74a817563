"""The part of a model that runs, and whether a checkpoint's files fill it: all of it, nothing over.

Models of transformers have no common type (each architecture is a class of its own), hence `Any`.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain, product
from typing import Any

from ..errors import ModelError
from .source import Source

# Weights of a checkpoint that no forward pass reads, by the ends of their names: buffers that older
# versions of transformers saved, and copies that DeBERTa's training left.
_UNUSED = re.compile(
    r"(^|\.)([a-z_]*inv_freq|(cos|sin)_cached|position_ids|causal_mask|version|num_batches_tracked"
    r"|_weight|masked_bias|(attn|attention)\.bias)$"
)
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


def find_backbone(model: Any) -> Any:  # transformers has no types
    """The part that turns token ids into hidden states: no head, no image tower, no decoder."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    if model.config.get_text_config() is not model.config:  # one part of several
        return model.get_decoder()
    # In Llama 4 `base_model` is the model itself: the attribute has another name than it says.
    return model.base_model if model.base_model is not model else getattr(model, "model", model)


def path_of(module: Any, whole: Any) -> str:
    """The path of a part of a model, with a dot at its end; empty for the model itself."""
    path = next(name for name, part in whole.named_modules() if part is module)
    return f"{path}." if path else ""


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
        name, shape, expected = wrong[0]
        raise ModelError(
            f"{source.asked}: {len(wrong)} weights have other sizes than config.json says (first: "
            f"{name} is {list(shape)}, expected {list(expected)}); use the config.json of these "
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


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """All parameters and buffers under all of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
