"""Merging PEFT adapters into a model, whatever head they were trained with.

Neither transformers nor PEFT has types that mypy can read, hence `Any`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product, takewhile
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..errors import ModelError, first_line
from .backbone import belongs, find_backbone, path_of
from .source import Source, read_json

_PREFIX = "base_model.model."  # before all names of weights in an adapter


def merge_adapter(model: Any, adapter: Source, base: str) -> None:  # peft has no types
    """Add an adapter to a model's weights.

    Its weights in a head are left out. If it comes with an embedding of another number of tokens,
    the model's is resized first. Layer by layer, the sum is taken in float32, on the device of the
    model, and rounded once to the dtype of the layer.

    Args:
        model: with its head; changed in place.
        adapter: checked before.
        base: what the adapter is for, in messages.

    Raises:
        ModelError: the adapter does not belong to the model, or cannot be merged.
    """
    adapted = _adapted(model, adapter, base)
    for layer in _tuners(adapted).values():
        layer.merge = partial(_merge_in_float32, layer.get_base_layer(), layer.merge)
    adapted.merge_and_unload()


class AddedWeights:
    """What an adapter adds to the weights of each block, for blocks that are read one by one."""

    def __init__(
        self, model: Any, backbone: Any, adapter: Source, blocks: nn.ModuleList, base: str
    ) -> None:
        """Read an adapter; what it adds beside the blocks is added at once.

        Args:
            model, base: as in `merge_adapter`; its blocks have no weights yet.
            backbone: of the model.
            adapter: checked before.
            blocks: of the backbone.

        Raises:
            ModelError: it does not belong to the model, or does more than add to weights.
        """
        if not merges_by_block(adapter):
            raise ModelError(
                f"{adapter.asked}: this adapter does more than add to weights, so it cannot be "
                "merged block by block; use --weights load"
            )
        device = model.get_input_embeddings().weight.device
        with _weights_without_memory(blocks, device):
            adapted = _adapted(model, adapter, base)
        self._of_block: list[dict[str, Any]] = [{} for _ in blocks]
        number = {
            id(module): (i, path)
            for i, block in enumerate(blocks)
            for path, module in block.named_modules()
        }
        for layer in _tuners(adapted).values():
            if found := number.get(id(layer)):
                self._of_block[found[0]][found[1]] = layer
            elif not layer.get_base_layer().weight.is_meta:
                _merge_in_float32(layer.get_base_layer(), layer.merge)
        adapted.unload()

    def merge(self, i_block: int, block: nn.Module) -> None:
        """Add to the weights of a block that has been read."""
        for path, layer in self._of_block[i_block].items():
            empty, base = layer.base_layer, block.get_submodule(path)
            layer.base_layer = base
            _merge_in_float32(base, layer.merge)
            layer.merged_adapters.clear()
            layer.base_layer = empty


@contextmanager
def _weights_without_memory(blocks: nn.ModuleList, device: torch.device) -> Iterator[None]:
    """Let weights on `meta` be on a device, one number each: peft puts its own beside them."""
    weights = [
        (module, name, weight)
        for module in blocks.modules()
        for name, weight in module.named_parameters(recurse=False)
    ]
    try:
        for module, name, weight in weights:
            number = torch.zeros((), dtype=weight.dtype, device=device).expand(weight.shape)
            setattr(module, name, nn.Parameter(number, requires_grad=False))
        yield
    finally:
        for module, name, weight in weights:
            setattr(module, name, weight)


def _tuners(adapted: Any) -> dict[str, Any]:
    """The layers of an adapter by path."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name: layer for name, layer in adapted.named_modules() if isinstance(layer, BaseTunerLayer)
    }


def _adapted(model: Any, adapter: Source, base: str) -> Any:
    """A model with an adapter put on, not merged; errors are those of `merge_adapter`."""
    import peft

    config, saved = _read(adapter)
    trained, wrapper = _trained_part(model, [name.removeprefix(_PREFIX) for name in saved])
    names = [name.removeprefix(_PREFIX).removeprefix(wrapper) for name in saved]
    saved = {_PREFIX + name: w for name, w in zip(names, saved.values(), strict=True)}
    backbone = find_backbone(model)
    _leave_out_heads(config, names, trained, backbone)
    _resize_embedding(model, trained, saved)
    _untie_head(model, names)
    prefix = _PREFIX + path_of(backbone, trained)
    refusal = f"{adapter.asked}: not an adapter for {base}"
    try:
        adapted = peft.PeftModel(trained, config)
        # Adapters of older transformers name modules that newer ones have renamed.
        renamed = dict(getattr(trained, "_checkpoint_conversion_mapping", None) or {})
        if wrapper:
            renamed = {f"^{re.escape(wrapper)}": ""}
        result = adapted.load_adapter(
            str(adapter.directory),
            "default",
            torch_device=str(model.device),
            key_mapping=renamed,
        )
    except Exception as error:
        raise ModelError(f"{refusal}: {_reason(error)}") from error
    # PEFT ignores weights without a counterpart in the model; here they mean a wrong base.
    unmatched = [name for name in result.missing_keys if name.startswith(prefix)]
    unmatched += [
        name
        for name in result.unexpected_keys
        if name.startswith(prefix)
        and belongs(name.removeprefix(prefix), backbone)
        and not _is_second_copy(name, saved)
    ]
    if unmatched:
        raise ModelError(
            f"{refusal}: {len(unmatched)} weights do not match the model (first: {min(unmatched)})"
        )
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise _unmergeable(adapter, config)
    return adapted


def adds_to_weights(adapter: Source) -> bool:
    """Whether all that an adapter does to a weight of the model's files is one sum.

    Then rounding the sum to the weight's dtype is the same as rounding a merged float32 model. Some
    adapters change weights already when they are put on (PiSSA), or bring the weights to add to.
    """
    config = read_json(adapter.directory / "adapter_config.json")
    if (
        not isinstance(config, dict)
        or config.get("peft_type") != "LORA"
        or config.get("init_lora_weights", True) not in (True, False, "gaussian")
        or config.get("bias", "none") != "none"
        or config.get("lora_bias")
        or adapter.adapter_files()[0].suffix != ".safetensors"
    ):
        return False
    names = _names(adapter)
    adapted = {module for name in names for module, lora, _ in [name.partition(".lora_")] if lora}
    others = (name for name in names if ".lora_" not in name)
    return not any(name.startswith(f"{module}.") for name in others for module in adapted)


def merges_by_block(adapter: Source) -> bool:
    """Whether `AddedWeights` takes an adapter: it adds to weights, and brings none of its own."""
    return adds_to_weights(adapter) and all(".lora_" in name for name in _names(adapter))


def _names(adapter: Source) -> list[str]:
    """The names of an adapter's weights in its safetensors file."""
    with safe_open(adapter.adapter_files()[0], framework="pt") as opened:
        return list(opened.keys())


def _merge_in_float32(base: Any, merge: Callable[..., None], **options: Any) -> None:
    """Call a tuner layer's `merge` while its base layer is in float32."""
    parameters = list(base.parameters())
    dtypes = [parameter.dtype for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    merge(**options)
    for parameter, dtype in zip(parameters, dtypes, strict=True):
        parameter.data = parameter.data.to(dtype)


def _read(adapter: Source) -> tuple[Any, dict[str, torch.Tensor]]:
    """An adapter's configuration and weights; ModelError if it is of no kind that can be merged."""
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"{adapter.asked}: adapters need peft: pip install peft") from error

    directory = str(adapter.directory)
    try:
        config = peft.PeftConfig.from_pretrained(directory)
        saved = peft.utils.load_peft_weights(directory, device="cpu")
    except KeyError as error:
        raise ModelError(
            f"{adapter.asked}: this version of peft has no adapters of type {error}; use a newer "
            "version"
        ) from error
    except Exception as error:
        raise ModelError(f"{adapter.asked}: peft cannot read it: {first_line(error)}") from error
    if config.peft_type is None:
        raise ModelError(f"{adapter.asked}: its adapter_config.json names no peft_type")
    if config.is_prompt_learning:
        raise _unmergeable(adapter, config)
    return config, saved


def _unmergeable(adapter: Source, config: Any) -> ModelError:
    kind = getattr(config.peft_type, "value", config.peft_type)
    return ModelError(
        f"{adapter.asked}: an adapter of type {kind} cannot be merged into weights; expected LoRA "
        "or one of its variants"
    )


def _trained_part(model: Any, names: list[str]) -> tuple[Any, str]:
    """The part of the model that the adapter was trained on, whatever class held that part then.

    Returns:
        The model, or its part without a head; and what the names of the weights have before its
        own names, empty if nothing.
    """
    parts = [
        (part, {name for name, _ in part.named_modules()})
        for part in (model, model.base_model, find_backbone(model))
    ]
    wrappers = ["", *sorted({f"{name.partition('.')[0]}." for name in names})]

    def depth(name: str, modules: set[str]) -> int:
        steps = name.split(".")
        paths = (".".join(steps[:stop]) for stop in range(1, len(steps)))
        return sum(1 for _ in takewhile(modules.__contains__, paths))

    def matches(choice: tuple[str, tuple[Any, set[str]]]) -> int:
        wrapper, (_, modules) = choice
        return sum(
            depth(name.removeprefix(wrapper), modules) for name in names if name.startswith(wrapper)
        )

    wrapper, (part, _) = max(product(wrappers, parts), key=matches)  # the first of equal ones
    return part, wrapper


def _leave_out_heads(config: Any, names: list[str], trained: Any, backbone: Any) -> None:
    """Take heads that the model lacks out of an adapter's configuration."""
    config.task_type = None  # PEFT's classes for tasks ask for the heads and methods of the task
    run, there, saved = (
        {part for name in of for part in name.split(".")}
        for of in (dict(backbone.named_modules()), dict(trained.named_modules()), names)
    )

    def is_kept(module: str) -> bool:
        parts = {*module.split(".")}
        return parts <= run or parts <= there & saved

    if getattr(config, "modules_to_save", None):
        config.modules_to_save = [name for name in config.modules_to_save if is_kept(name)] or None


def _resize_embedding(model: Any, trained: Any, saved: dict[str, torch.Tensor]) -> None:
    """Give the embedding as many rows as the one that comes with the adapter, if one does."""
    embedding = trained.get_input_embeddings()
    path = _PREFIX + path_of(embedding, trained)
    rows, width = embedding.weight.shape
    for name, weight in saved.items():
        is_embedding = name.startswith(path) and name.endswith("weight")
        if is_embedding and weight.shape[1:] == (width,) and len(weight) != rows:
            model.resize_token_embeddings(len(weight), mean_resizing=False)
            return


def _is_second_copy(name: str, saved: dict[str, torch.Tensor]) -> bool:
    """Whether PEFT saved a whole embedding under two names, of which it reads the other one."""
    first = name.replace(".modules_to_save.", ".").replace(".original_module.", ".")
    return first != name and first in saved


def _untie_head(model: Any, names: list[str]) -> None:
    """Give the head weights of its own, or its adapter would be merged into the embedding."""
    head = model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return
    path = path_of(head, model)
    if any(name.startswith(path) for name in names):
        head.weight = torch.nn.Parameter(head.weight.detach().clone())


def _reason(error: Exception) -> str:
    """The line of an error that names a weight and its sizes."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    is_heading = len(lines) > 1 and lines[0].endswith(":")
    return lines[1] if is_heading else first_line(error)
