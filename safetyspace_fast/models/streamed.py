"""A model whose transformer blocks stay on disk: each is read when it runs, and then forgotten.

The model is built without memory for its weights (torch's device `meta`). Embedding, rotary tables
and norms are read; in the place of each block stands an `AbsentBlock`, which hands on the states
that it gets. So the model's own forward pass makes masks, positions and tables, and whoever puts a
block into its place gets the same bits from it as in the whole model.

Models of transformers have no common type, hence `Any`. transformers takes seconds to import, and
is imported inside functions.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ModelError, first_line
from .adapters import AddedWeights
from .fused import fuse
from .layers import block_input, block_output
from .stored import TensorOnDisk

_TOKENS = [[5, 6, 7, 8], [9, 8, 7, 6]]  # to try blocks with


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
            if "_of" not in self.__dict__ or name.startswith("__"):
                raise
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
        tensors: Sequence[Mapping[str, TensorOnDisk]],
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
        self._watched: dict[int, RemovableHandle] = {}
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
        held = self._held.pop(i_block, None)
        for earlier in [i for i in self._held if i < i_block]:  # a resumed run does not take them
            del self._held[earlier]
        if held is not None:
            return held
        block = self._read(i_block)
        if self.fused:
            fuse(block)
        return block

    def place(self, i_block: int, block: nn.Module) -> None:
        """Let a block run in its place."""
        self._list[i_block] = block
        self._watched[i_block] = block.register_forward_hook(self._remember)

    def remove(self, i_block: int, *, hold: bool = False) -> None:
        """Let no block run in a place; `hold`: the next `take` returns it."""
        if hold and not isinstance(self._list[i_block], AbsentBlock):
            self._held[i_block] = self._list[i_block]
        self._list[i_block] = AbsentBlock(self._bare[i_block], self._as_result)
        if watched := self._watched.pop(i_block, None):
            watched.remove()

    def stay(self) -> None:
        """Read all blocks, one after the other, and leave them in their places.

        Raises:
            ModelError: the weights of one cannot be read.
        """
        for i_block in range(len(self)):
            self._list[i_block] = self._read(i_block)

    def place_samples(self) -> list[int]:
        """Place one block of each kind, and the second block, for what is tried before a run.

        Returns:
            Their numbers.
        """
        first: dict[Any, int] = {}
        for i_block, block in enumerate(self._bare):
            first.setdefault(_kind(block), i_block)
        chosen = sorted({*first.values(), min(1, len(self) - 1)})
        for i_block in chosen:
            if isinstance(self._list[i_block], AbsentBlock):  # else it is there already
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
