"""A model whose transformer blocks stay on disk: each is read when it runs, and then forgotten.

The model is built without memory for its weights (torch's device `meta`). Embedding, rotary tables
and norms are read; in the place of each block stands an `AbsentBlock`, which hands on the states
that it gets. So the model's own forward pass makes masks, positions and tables, and whoever puts a
block into its place gets the same bits from it as in the whole model.

Models of transformers have no common type, hence `Any`. transformers takes seconds to import, and
is imported inside functions.
"""

import copy
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, first_line
from .adapters import AddedWeights
from .fused import fuse
from .layers import block_input, block_output
from .source import Source
from .weights import check_report, empty_model, find_backbone, path_of

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
    "U8": torch.uint8,
}
_TOKENS = [[5, 6, 7, 8], [9, 8, 7, 6]]  # to try blocks with


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; `[...]` reads it, as transformers asks for it.

    It is read, not mapped: a mapped file counts as a whole against a limit of address space.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, _everything: object) -> Tensor:
        """Read it."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        place = tensor.view(-1).view(torch.uint8).numpy().data
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while place:
                n_bytes = file.readinto(place)
                if not n_bytes:
                    raise ModelError(f"{self.path}: ends early; copy or download it again")
                place = place[n_bytes:]
        return tensor

    def empty(self) -> Tensor:
        """The same without content or memory."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def stored_tensors(source: Source) -> dict[str, StoredTensor]:
    """All tensors of a model's files by name.

    Raises:
        ModelError: a file is cut short, or holds other types of numbers.
    """
    tensors = {}
    for path in source.weight_files():
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(n_bytes))
        header.pop("__metadata__", None)
        size = path.stat().st_size
        for name, entry in header.items():
            start, stop = (8 + n_bytes + offset for offset in entry["data_offsets"])
            if stop > size:
                raise ModelError(
                    f"{path}: ends early ({size} of at least {stop} bytes); copy or download it "
                    "again"
                )
            if entry["dtype"] not in _DTYPES:
                raise ModelError(
                    f"{source.asked}: {name} holds numbers of type {entry['dtype']}, which cannot "
                    "be streamed; use --weights load"
                )
            shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
            tensors[name] = StoredTensor(path, start, shape, dtype)
    return tensors


def why_not_streamed(source: Source, *, random: bool = False) -> str | None:
    """Why a model's weights cannot be read block by block; None if nothing is known against it."""
    if random:
        return "the random weights of a control are drawn for the whole model"
    if source.gguf is not None:
        return "the reader of GGUF files unpacks the whole file"
    if any(file.suffix != ".safetensors" for file in source.weight_files()):
        return "its weights are pickled, and a pickle is read as a whole"
    return None


class AbsentBlock(nn.Module):
    """Stands where a block will run: hands on the states that it gets."""

    def __init__(self, block: nn.Module, form: Callable[[Tensor], Any]) -> None:
        """Stand for a block without weights; `form` makes of states what a block returns."""
        super().__init__()
        self._of = (block,)  # in a tuple: no submodule
        self._form = form

    def __getattr__(self, name: str) -> Any:  # models ask their blocks for all sorts of things
        """What the block has, for instance its kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._of[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """[B, T, D] to the same."""
        return self._form(block_input(args, kwargs))


class StreamedBlocks:
    """The blocks of a model, on disk.

    One thread may read blocks while another one runs them.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        tensors: Sequence[Mapping[str, StoredTensor]],
        shell: Callable[[int, nn.Module], nn.Module],
        load_config: Any,
        dtype: torch.dtype,
        adapters: Sequence[AddedWeights],
    ) -> None:
        """Put an `AbsentBlock` into the place of each block.

        Args:
            blocks: the model's list, on the device `meta`; it is changed.
            tensors: those of each block, by name in the files.
            shell: gives a module in which a block has its name in the whole model.
            load_config: of transformers.
            dtype: of the blocks when they run.
            adapters: merged into each block, in this order.
        """
        self._list = blocks
        self._bare = list(blocks)
        self._tensors = tensors
        self._shell = shell
        self._load_config = load_config
        self._dtype = dtype
        self._adapters = adapters
        self._held: dict[int, nn.Module] = {}
        self._results = 0  # how many things a block returns; 0: its states alone
        self._lock = threading.Lock()
        self.fused = False
        """Whether layers of each block are replaced when it is read; see `fused`."""
        self.bytes_read = 0
        self.state_dtype = dtype
        """Of the states between blocks."""
        for i_block in range(len(blocks)):
            self.remove(i_block)

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._bare)

    def n_bytes(self, n_blocks: int | None = None) -> int:
        """Size in the files, of the first blocks or of all."""
        return sum(t.nbytes for tensors in self._tensors[:n_blocks] for t in tensors.values())

    def take(self, i_block: int) -> nn.Module:
        """Read a block, unless one is held.

        Raises:
            ModelError: its weights cannot be read.
        """
        if (held := self._held.pop(i_block, None)) is not None:
            return held
        block = self._read(i_block)
        if self.fused:
            fuse(block)
        return block

    def place(self, i_block: int, block: nn.Module) -> None:
        """Let a block run in its place."""
        self._list[i_block] = block

    def remove(self, i_block: int, *, hold: bool = False) -> None:
        """Let no block run in a place; `hold`: the next `take` returns it."""
        if hold and not isinstance(self._list[i_block], AbsentBlock):
            self._held[i_block] = self._list[i_block]
        self._list[i_block] = AbsentBlock(self._bare[i_block], self._as_result)

    def place_samples(self) -> list[int]:
        """Place one block of each kind, and the second block; returns their numbers."""
        first: dict[Any, int] = {}
        for i_block, block in enumerate(self._bare):
            first.setdefault(_kind(block), i_block)
        chosen = sorted({*first.values(), min(1, len(self) - 1)})
        for i_block in chosen:
            self.place(i_block, self.take(i_block))
        return chosen

    def try_alone(self, backbone: Any, chosen: Sequence[int], name: str) -> None:
        """Run placed blocks together, then each alone.

        Raises:
            ModelError: a block fails alone, or gives other states.
        """
        blocks = {i: self._list[i] for i in chosen}
        ids = torch.tensor(_TOKENS, device=next(backbone.parameters()).device)
        before: dict[int, Tensor] = {}
        after: dict[int, Tensor] = {}
        with torch.inference_mode(), _recording(blocks, before, after):
            backbone(input_ids=ids, use_cache=False)
        expected = dict(after)
        self.state_dtype = before[0].dtype
        for i_block in chosen:
            self.remove(i_block)
        for i_block, block in blocks.items():
            self.place(i_block, block)
            reason = None
            try:
                with (
                    torch.inference_mode(),
                    starting_with(block, before[i_block]),
                    _recording({i_block: block}, {}, after),
                ):
                    backbone(input_ids=ids, use_cache=False)
            except Exception as error:  # a model's own code may raise anything
                reason = f"alone it fails ({type(error).__name__}: {first_line(error)})"
            if reason is None and not torch.equal(after[i_block], expected[i_block]):
                reason = "alone it gives other states"
            self.remove(i_block)
            if reason is not None:
                raise ModelError(
                    f"{name}: the blocks of {type(backbone).__name__} read more than the states of "
                    f"the block before: block.{i_block}: {reason}; its weights cannot be streamed: "
                    "use --weights load"
                )
        for i_block, block in blocks.items():
            self.place(i_block, block)

    def _remember(self, _block: nn.Module, _args: Any, result: Any) -> None:
        self._results = len(result) if isinstance(result, tuple) else 0

    def _as_result(self, states: Tensor) -> Any:
        return (states, *[None] * (self._results - 1)) if self._results else states

    def _read(self, i_block: int) -> nn.Module:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model

        bare = self._bare[i_block]
        configs = {
            id(value): value
            for module in bare.modules()
            for value in vars(module).values()
            if hasattr(value, "to_diff_dict")  # a configuration, which all blocks share
        }
        block: nn.Module = copy.deepcopy(bare, configs)
        tensors = self._tensors[i_block]
        shell = self._shell(i_block, block)
        with self._lock:
            self.bytes_read += sum(tensor.nbytes for tensor in tensors.values())
        info, _ = convert_and_load_state_dict_in_model(shell, dict(tensors), self._load_config)
        left = [name for name, tensor in block.named_parameters() if tensor.is_meta]
        if left:
            why = "; ".join(info.conversion_errors.values()) or "it is not in the files"
            raise ModelError(f"block.{i_block}: {left[0]} cannot be read: {' '.join(why.split())}")
        for adapter in self._adapters:
            adapter.merge(i_block, block)
        block.to(dtype=self._dtype).eval().requires_grad_(False)
        block.register_forward_hook(self._remember)
        return block


@contextmanager
def starting_with(block: nn.Module, states: Tensor) -> Iterator[None]:
    """Let a block read these states instead of those that it is given."""

    def replaced(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (states, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": states}

    handle = block.register_forward_pre_hook(replaced, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _recording(
    blocks: Mapping[int, nn.Module],
    before: dict[int, Tensor],
    after: dict[int, Tensor],
) -> Iterator[None]:
    """Keep what blocks read and return."""

    def hook(i_block: int) -> Callable[..., None]:
        def record(_module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            before[i_block] = block_input(args, kwargs)
            after[i_block] = block_output(result)

        return record

    handles = [
        block.register_forward_hook(hook(i_block), with_kwargs=True)
        for i_block, block in blocks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(block: nn.Module) -> Any:
    """What blocks of one kind have in common: classes, sizes, and settings of their attention."""
    sizes = tuple((name, tuple(tensor.shape)) for name, tensor in block.named_parameters())
    classes = tuple(type(module).__qualname__ for module in block.modules())
    settings = tuple(
        (key, value)
        for module in block.modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, bool | str)
        or (isinstance(value, int | None) and ("window" in key or "chunk" in key))
    )
    return sizes, classes, settings


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
    tensors = stored_tensors(source)
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
    check_report(source, model, info.to_dict(), False, note)

    blocks, path = _blocks(model, backbone, source.asked)
    of_blocks: list[dict[str, StoredTensor]] = [{} for _ in blocks]
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


def _names_in_model(
    model: Any, names: Iterator[str] | Mapping[str, Any], mapping: Sequence[Any]
) -> dict[str, str]:
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
    found = {}
    for name in names:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, places)
        if renamed not in places and name in places:
            renamed, _ = rename_source_key(name, [], [], prefix, places)
        found[name] = renamed
    return found


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
    return shell  # type: ignore[no-any-return]
