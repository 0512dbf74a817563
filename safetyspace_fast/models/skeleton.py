"""A model of which all but its blocks is read: what `StreamedBlocks` needs to begin.

It takes the same steps as `from_pretrained`, with transformers' own functions for names and
conversions of weights. Models of transformers have no common type, hence `Any`. transformers takes
seconds to import, and is imported inside functions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from .adapters import AddedWeights
from .backbone import check_report, find_backbone, path_of
from .gguf import gguf_shapes, gguf_tensors, why_not_one_by_one
from .source import Source
from .stored import TensorOnDisk, plain_numbers, stored_tensors
from .streamed import StreamedBlocks
from .weights import empty_model


def why_not_streamed(source: Source, *, random: bool = False) -> str | None:
    """Why a model's weights cannot be read block by block; None if nothing is known against it."""
    if random:
        return "the random weights of a control are drawn for the whole model"
    files = source.weight_files()
    if source.gguf is not None:
        return why_not_one_by_one(files[0])
    if any(file.suffix != ".safetensors" for file in files):
        return "its weights are pickled, and a pickle is read as a whole: save them as safetensors"
    return None


def count_weights(source: Source) -> int | None:
    """How many numbers a model's files hold, unpacked; None if that cannot be told."""
    if source.gguf is not None:
        path = source.weight_files()[0]
        return sum(map(prod, gguf_shapes(path))) if why_not_one_by_one(path) is None else None
    tensors = plain_numbers(source)
    return None if tensors is None else sum(prod(shape) for shape, _ in tensors)


def open_streamed(
    source: Source,
    adapters: Sequence[Source],
    dtype: torch.dtype,
    working: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    note: Callable[[str], None],
) -> tuple[Any, StreamedBlocks]:
    """Build a model whose blocks stay on disk; all else is read.

    Args:
        source: a model, checked before.
        adapters: merged into each block.
        dtype: in which weights are read and adapters merged.
        working: in which they run.
        device: where they run.
        trust_remote_code: as in `load_model`.
        note: called with notes of one line.

    Returns:
        The model with its head, which has no weights; and its blocks.

    Raises:
        ModelError: the model cannot be built, its files are not its own, or its blocks cannot be
            told from the rest.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    model = empty_model(source, dtype, trust_remote_code)
    backbone = find_backbone(model)
    own = {id(tensor) for tensor in (*backbone.parameters(), *backbone.buffers())}
    wanted = {
        name
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
        if id(tensor) in own
    }
    packed = source.gguf is not None
    tensors: Mapping[str, TensorOnDisk] = (
        gguf_tensors(source.weight_files()[0], model, dtype) if packed else stored_tensors(source)
    )
    on_disk = LoadStateDictConfig(
        ignore_mismatched_sizes=True,
        device_map={"": "meta"},
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=get_model_conversion_mapping(model),
    )
    names = _names_in_model(model, tensors, on_disk.weight_mapping)
    shapes = {name: tensor.empty() for name, tensor in tensors.items()}
    info, _ = convert_and_load_state_dict_in_model(model, shapes, on_disk)
    model.mark_tied_weights_as_initialized(info)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    check_report(source, model, info.to_dict(), packed, note)

    blocks, path = _blocks(model, backbone, source.asked)
    of_blocks: list[dict[str, TensorOnDisk]] = [{} for _ in blocks]
    others = {}
    for name, tensor in tensors.items():
        inside = names[name].startswith(path)
        number = names[name].removeprefix(path).partition(".")[0] if inside else ""
        if number.isdecimal() and int(number) < len(blocks):
            of_blocks[int(number)][name] = tensor
        elif names[name] in wanted:
            others[name] = tensor
    resident = replace(on_disk, device_map={"": str(device)})
    info, _ = convert_and_load_state_dict_in_model(model, others, resident)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._move_missing_keys_from_meta_to_device(set(), resident.device_map, None, None)
    model._initialize_missing_keys(False)  # fills buffers that are in no file, as rotary tables
    added = [AddedWeights(model, backbone, adapter, blocks, source.asked) for adapter in adapters]

    def shell(i_block: int, block: nn.Module) -> nn.Module:
        return _shell(model, f"{path}{i_block}", block)

    streamed = StreamedBlocks(blocks, of_blocks, shell, resident, working, added)
    streamed.bytes_read += sum(tensor.nbytes for tensor in others.values())
    return model, streamed


def _names_in_model(model: Any, names: Iterable[str], mapping: Sequence[Any]) -> dict[str, str]:
    """The name in a model of each tensor of its files."""
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    places = model.state_dict()
    prefix = model.base_model_prefix
    new_names = {}
    for name in names:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, places)
        if renamed not in places and name in places:
            renamed, _ = rename_source_key(name, [], [], prefix, places)
        new_names[name] = renamed
    return new_names


def _blocks(model: Any, backbone: Any, asked: str) -> tuple[nn.ModuleList, str]:
    """The list that holds most weights, and its path; `find_blocks` sees later whether it fits."""
    number = backbone.config.get_text_config().num_hidden_layers
    lists = [
        (sum(p.numel() for p in module.parameters()), path, module)
        for path, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
    ]
    if not lists:
        raise ModelError(
            f"{asked}: {type(backbone).__name__} has no list of {number} blocks, so its weights "
            "cannot be streamed; use --weights load"
        )
    _, _, blocks = max(lists, key=lambda entry: entry[0])
    weights = [id(weight) for block in blocks for weight in block.parameters()]
    if len(set(weights)) < len(weights):
        raise ModelError(
            f"{asked}: the blocks of {type(backbone).__name__} share weights, so they cannot be "
            "streamed; use --weights load"
        )
    return blocks, path_of(blocks, model)


def _shell(model: Any, path: str, block: nn.Module) -> nn.Module:
    """A module in which a block has the name that it has in the model, and nothing else."""
    shell: Any = nn.Module()
    inner = shell
    *outer, last = path.split(".")
    for name in outer:
        inner.add_module(name, nn.Module())
        inner = getattr(inner, name)
    inner.add_module(last, block)
    shell.base_model_prefix, shell.config = model.base_model_prefix, model.config
    return shell  # type: ignore[no-any-return]  # mypy does not read transformers
