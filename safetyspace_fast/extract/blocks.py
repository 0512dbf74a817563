"""The loop over the blocks of a model that is streamed from disk.

Block after block is read and applied to all batches. Between two blocks a batch's states lie in a
scratch file (`store.scratch`), with the averages of the layers so far. Behind the last block these
are projected together and go to the segments, so all that follows is as for a model in memory. If
the batches do not fit into the scratch file, as many as fit run first: a *pass* over the weights.
"""

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..models import (
    DeepestLayerReached,
    LoadedModel,
    StreamedBlocks,
    block_output,
    memory_errors,
    quiet_transformers,
    starting_with,
    to_device,
)
from ..models.tokens import Tokenized
from ..ops import project_averages
from ..store import Session
from ..store.scratch import SUFFIX, Scratch, left_slots, slot_bytes
from .capture import Capture
from .events import Event, Note, Progressed
from .loop import Extraction, Unit
from .plan import Batch, Part
from .prepare import Prepared
from .read_ahead import ahead
from .transfer import HostCopy, HostResult, OrderedThread


class BlockCapture(Capture):
    """Runs batches through one block, which stands in its place; a part of `Capture`."""

    def __init__(self, i_block: int, *arguments: Any, **options: Any) -> None:
        """Give the number of the block, then what `Capture` takes."""
        super().__init__(*arguments, **options)
        self._block = self._model.blocks[i_block]
        self._stops = "final_norm" not in self._hookpoints
        self._after: Tensor | None = None

    def _ends_at(self, _name: str) -> bool:
        return False  # the states behind the block are wanted even if no layer is

    def __enter__(self) -> "BlockCapture":
        """Attach the hooks."""
        super().__enter__()
        # Attached last: the layers of this block have been pooled when it ends the forward pass.
        self._open.callback(self._block.register_forward_hook(self._keep).remove)
        return self

    def _keep(self, _block: nn.Module, _args: Any, output: Any) -> None:
        if self._pool is not None:
            self._after = block_output(output)
            if self._stops:
                raise DeepestLayerReached

    @memory_errors()
    @torch.inference_mode()
    def advance(
        self, tokens: Tokenized, batch: Batch, states: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run one batch through the block.

        Args:
            tokens, batch: as in `Capture.run`.
            states: before the block; None: those of the embedding.

        Returns:
            The states behind it, and the averages of its layers `[l, S, B, D] float32`.
        """
        started: AbstractContextManager[None] = nullcontext()
        if states is not None:
            started = starting_with(self._block, states)
        with started:
            averages = self._pooled(tokens, batch).averages()
        after, self._after = self._after, None
        assert after is not None
        return after, averages


class StreamedExtraction(Extraction):
    """An `Extraction` of a model whose blocks stay on disk."""

    def __init__(self, *arguments: Any, scratch: int | None = None, **options: Any) -> None:
        """Give what `Extraction` takes.

        Args:
            arguments, options: of `Extraction`.
            scratch: bytes that the scratch file may have; None: half of the disk's free space.

        The caller has checked that the largest batch fits: `refuse_small_scratch`.
        """
        super().__init__(*arguments, **options)
        assert self._model.streamed is not None
        assert isinstance(self._session, Session)
        self._streamed: StreamedBlocks = self._model.streamed
        self._num_blocks = self._needed()
        self._path = self._session.folder / f"states{SUFFIX}"
        self._budget = _budget(self._session.folder, scratch)
        self._key = self._what_decides_states()
        self._waiting = deque(self._batches_left())
        sizes = [_sizes(self._streamed, self._work, batch) for _, batch in self._waiting]
        largest = [max(kind) for kind in zip(*sizes, strict=True)] or [0, 0]
        self._states_to_host, self._averages_to_host = (
            HostCopy(self._model.device, n) for n in largest
        )
        self._prefix_states: Tensor | None = None
        self._prefix_blocks = 0
        """Blocks through which the shared prefix has gone."""

    @contextmanager
    def _forward(
        self, writer: OrderedThread, budget: int
    ) -> Iterator[Callable[[Unit, Part], Iterator[Event]]]:
        for i_block in range(len(self._streamed)):  # the samples of `load_model`
            self._streamed.remove(i_block, hold=i_block < self._num_blocks)
        with quiet_transformers():
            yield partial(self._until, writer)

    def _until(self, writer: OrderedThread, _unit: Unit, part: Part) -> Iterator[Event]:
        """Run passes until one has ended that holds the last batch of a part."""
        if self._waiting and self.tokens == 0:
            yield Note(self._name, self._what_is_read())
        while any(number == part.number for number, _ in self._waiting):
            batches = self._next_pass(self._waiting)
            yield from self._pass(batches, writer)
            done = {int(batch.rows[0]) for _, batch in batches}
            self._waiting = deque(b for b in self._waiting if int(b[1].rows[0]) not in done)

    def _pass(self, batches: Sequence[tuple[int, Batch]], writer: OrderedThread) -> Iterator[Event]:
        """Read all blocks once, and run these batches through them."""
        sizes = {
            int(batch.rows[0]): _sizes(self._streamed, self._work, batch) for _, batch in batches
        }
        scratch = Scratch(self._path, self._key, sizes)
        first = min(scratch.level(name) for name in sizes)
        if self._work.prefix_tokens and first < self._num_blocks:
            first = min(first, self._prefix_blocks)

        def take(i_block: int) -> tuple[int, nn.Module]:
            return i_block, self._streamed.take(i_block)

        numbers = range(first, self._num_blocks)
        for i_block, block in ahead(take, numbers, self._model.device, _tensors_of):
            started = time.perf_counter()
            self._streamed.place(i_block, block)
            try:
                self._extend_prefix(i_block, block)
                left = [b for _, b in batches if scratch.level(int(b.rows[0])) == i_block]
                yield from self._block(i_block, left, scratch, writer)
                writer.flush()
            finally:
                self._streamed.remove(i_block)
                del block  # its memory is for the next but one
            self.forward_seconds += time.perf_counter() - started
        for number, batch in batches:
            writer.put(partial(self._append_averages, number, batch, scratch))
            self.tokens += int(self._work.tokens.lengths[batch.unique].sum())
        for number in sorted({number for number, _ in batches}):
            writer.put(partial(self._session.segments.sync, number))
        writer.flush()
        scratch.remove()

    def _block(
        self, i_block: int, batches: Sequence[Batch], scratch: Scratch, writer: OrderedThread
    ) -> Iterator[Event]:
        """Run batches through one block."""
        work = self._work

        def states(batch: Batch) -> tuple[Batch, Tensor | None]:
            if i_block == 0:
                return batch, None
            stored = torch.from_numpy(scratch.states(int(batch.rows[0])))
            shape = _state_shape(work, batch)
            before = stored.view(self._streamed.state_dtype).view(shape)
            return batch, to_device(before, self._model.device)

        capture = BlockCapture(
            i_block,
            self._model,
            self._hookpoints_at(i_block),
            work.projection,
            self._impl,
            work.cache,
            packed=work.packed,
        )
        with capture:
            for batch, before in ahead(states, batches, self._model.device, _states_of):
                try:
                    after, averages = capture.advance(work.tokens, batch, before)
                except torch.OutOfMemoryError as error:
                    raise ModelError(
                        f"{self._name}: a batch of {batch.padded_tokens} tokens does not fit into "
                        "the device's memory; lower --token-budget or --max-tokens"
                    ) from error
                if after.dtype != self._streamed.state_dtype:
                    raise ModelError(
                        f"{self._name}: block.{i_block} returns {after.dtype}, but the blocks that "
                        f"were tried {self._streamed.state_dtype}; use --weights load"
                    )
                results = (
                    self._states_to_host.start(after.contiguous()),
                    self._averages_to_host.start(averages.contiguous()),
                )
                save = partial(_save, scratch, int(batch.rows[0]), i_block + 1, results)
                writer.put(save, partial(_free, results))
                tokens = int(work.tokens.lengths[batch.unique].sum())
                share = partial(_share, i_block, self._num_blocks)
                yield Progressed(self._name, share(len(batch.rows)), share(tokens))

    @torch.inference_mode()
    def _extend_prefix(self, i_block: int, block: nn.Module) -> None:
        """Run the tokens that all prompts share through a block; keep its keys and values."""
        work, cache = self._work, self._work.cache
        if not work.prefix_tokens or self._prefix_blocks > i_block:
            return
        ids = work.prompts.prompt(0)[: work.prefix_tokens].astype(np.int64)
        after: list[Tensor] = []
        handle = block.register_forward_hook(lambda _b, _a, out: after.append(block_output(out)))
        started: AbstractContextManager[None] = nullcontext()
        if self._prefix_states is not None:
            started = starting_with(block, self._prefix_states)
        try:
            with started:
                result = self._model.backbone(
                    input_ids=torch.from_numpy(ids)[None].to(self._model.device), use_cache=True
                )
        finally:
            handle.remove()
        kept = result.past_key_values.layers[i_block]
        cache.set_layer(i_block, kept)  # type: ignore[union-attr]  # there is a prefix
        (self._prefix_states,) = after
        self._prefix_blocks = i_block + 1

    def _append_averages(self, number: int, batch: Batch, scratch: Scratch) -> None:
        """Project the averages of all layers, and write a batch to its segment."""
        projection = self._work.projection
        hidden_size, proj_dim = projection.shape
        shape = (len(self._work.hookpoints), len(self._work.tokens.poolings), len(batch.unique))
        averages = torch.from_numpy(scratch.averages(int(batch.rows[0])))
        out = torch.empty((*shape, hidden_size + proj_dim), device=projection.device)
        out[..., :hidden_size] = averages.view(*shape, hidden_size)
        values = project_averages(out, projection).cpu().numpy()
        self._session.segments.append(number, batch.rows, batch.for_rows(values))

    def _batches_left(self) -> Iterator[tuple[int, Batch]]:
        """Batches that no segment has, with the number of their part."""
        for i_lang, parts in enumerate(self._work.plan.languages):
            if self._is_finished(i_lang):
                continue
            for part in parts:
                done = self._session.segments.rows_done(part.number)
                for batch in part.batches:
                    if not done.issuperset(batch.rows.tolist()):
                        yield part.number, batch

    def _next_pass(self, waiting: Iterable[tuple[int, Batch]]) -> list[tuple[int, Batch]]:
        """The batches that an interrupted run had begun; or the next ones, as many as fit."""
        begun = left_slots(self._path, self._key)
        if batches := [b for b in waiting if int(b[1].rows[0]) in begun]:
            return batches
        batches, left = [], self._budget
        for number, batch in waiting:
            left -= self._slot_bytes(batch)
            if left < 0 and batches:  # one always: others may have filled the disk meanwhile
                break
            batches.append((number, batch))
        return batches

    def _what_is_read(self) -> str:
        passes, waiting = 0, list(self._waiting)
        while waiting:
            waiting = waiting[len(self._next_pass(waiting)) :]
            passes += 1
        n_bytes = self._streamed.n_bytes(self._num_blocks)
        kept = sum(self._slot_bytes(batch) for _, batch in self._waiting)
        return (
            f"weights streamed from disk: {n_bytes / 1e9:.3g} GB read {passes} "
            f"time{'s' * (passes > 1)}; states between blocks: {kept / 1e9:.3g} GB in a scratch "
            f"file of at most {self._budget / 1e9:.3g} GB"
        )

    def _needed(self) -> int:
        """Blocks that run: up to the deepest wanted layer."""
        deepest = self._work.hookpoints[-1]
        if deepest == "final_norm":
            return len(self._streamed)
        return 1 if deepest == "embed" else 1 + int(deepest.removeprefix("block."))

    def _hookpoints_at(self, i_block: int) -> tuple[str, ...]:
        """The wanted hookpoints at a block, in order of depth."""
        here = {f"block.{i_block}"}
        if i_block == 0:
            here.add("embed")
        if i_block == len(self._streamed) - 1:
            here.add("final_norm")
        return tuple(name for name in self._work.hookpoints if name in here)

    def _slot_bytes(self, batch: Batch) -> int:
        return slot_bytes(*_sizes(self._streamed, self._work, batch))

    def _what_decides_states(self) -> str:
        work = self._work
        facts = [
            self._model.identity["weights_sha256"],
            str(self._model.dtype),
            work.hookpoints,
            work.tokens.poolings,
            work.plan.sha256,
            work.tokens.template.sha256,
            work.prefix_tokens,
            work.packed,
        ]
        return json.dumps(facts)


def refuse_small_scratch(
    model: LoadedModel, work: Prepared, folder: Path, scratch: int | None
) -> None:
    """Refuse a scratch file that cannot hold a single batch, before a store is begun.

    Args:
        model: streamed.
        work: prepared for it.
        folder: on the disk of the scratch file.
        scratch: bytes that the file may have; None: half of the disk's free space.

    Raises:
        ConfigError: the largest batch does not fit.
    """
    assert model.streamed is not None
    streamed, budget = model.streamed, _budget(folder, scratch)
    largest = max((slot_bytes(*_sizes(streamed, work, batch)) for batch in work.plan), default=0)
    if largest > budget:
        raise ConfigError(
            f"scratch: {budget:,} bytes, but the largest batch of {model.name} keeps {largest:,} "
            "between two blocks; give more and --resume, or a smaller --token-budget and "
            "--overwrite"
        )


def least_scratch(cells: int, hidden_size: int, dtype: torch.dtype) -> int:
    """Bytes that a batch of a single token keeps between two blocks: no other keeps fewer.

    Args:
        cells: layers times poolings that are read.
        hidden_size, dtype: of the states.
    """
    return slot_bytes(hidden_size * dtype.itemsize, 4 * cells * hidden_size)


def _budget(folder: Path, scratch: int | None) -> int:
    return shutil.disk_usage(folder).free // 2 if scratch is None else scratch


def _state_shape(work: Prepared, batch: Batch) -> tuple[int, int, int]:
    width = len(work.projection)
    if work.packed:
        return 1, int(work.tokens.lengths[batch.unique].sum()), width
    return len(batch.unique), batch.length, width


def _sizes(streamed: StreamedBlocks, work: Prepared, batch: Batch) -> tuple[int, int]:
    """Bytes of a batch's states, and of the averages of all layers."""
    layers, poolings = len(work.hookpoints), len(work.tokens.poolings)
    rows, tokens, width = _state_shape(work, batch)
    states = rows * tokens * width * streamed.state_dtype.itemsize
    return states, 4 * layers * poolings * len(batch.unique) * width


def _tensors_of(taken: tuple[int, nn.Module]) -> Iterable[Tensor]:
    return chain(taken[1].parameters(), taken[1].buffers())


def _states_of(taken: tuple[Batch, Tensor | None]) -> Iterable[Tensor]:
    return () if taken[1] is None else (taken[1],)


def _save(scratch: Scratch, batch: int, level: int, results: tuple[HostResult, HostResult]) -> None:
    """Keep the states and averages of a batch when they have come to the host."""
    try:
        states, averages = (_bytes_of(result.get()) for result in results)
        scratch.save(batch, level, states, averages)
    finally:
        _free(results)


def _free(results: Iterable[HostResult]) -> None:
    for result in results:
        result.free()


def _share(i_block: int, num_blocks: int, number: int) -> int:
    """What a block adds to a number that is reached behind the last block."""
    return number * (i_block + 1) // num_blocks - number * i_block // num_blocks


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().view(-1).view(torch.uint8).numpy().data
