"""The loop over all batches of one model: language by language, or the units that are claimed."""

import math
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import Samples
from ..errors import ModelError, StoreError
from ..models import LoadedModel
from ..models.device import available_bytes
from ..store import ModelWriter, Session
from ..store.layout import Array, shards_of
from ..store.segments import Record, Segments
from ..threads import cores
from .capture import Capture
from .chance import Chance
from .events import Event, LanguageDone, Note, Progressed
from .finish import Basis, finish_language, merge_bases
from .plan import Batch, Part
from .prepare import Prepared
from .transfer import HostCopy, HostResult, OrderedThread

QUEUED = 1
"""Languages that may wait while another one's arrays are computed beside the forward pass."""


@dataclass(frozen=True)
class _InMemory:
    """One batch in memory; like `store.segments.Record`."""

    batch: Batch
    values: NDArray[np.float32]
    """`[L, S, B, D + P]`, by row of input."""
    free: Callable[[], None]

    @property
    def rows(self) -> NDArray[np.int64]:
        return self.batch.rows

    def read(self, layer: int, pooling: int) -> NDArray[np.float32]:
        """Read one layer and pooling: `[n, D + P]`."""
        values: NDArray[np.float32] = self.values[layer, pooling, self.batch.source]
        return values


@dataclass(frozen=True)
class Unit:
    """One thing to do for a model: extract a part, or compute the arrays of a language."""

    i_lang: int
    part: Part | None = None
    """None: compute the arrays of the language, whose states are all in segments."""
    done: Callable[[float, int], None] = lambda _seconds, _tokens: None
    """Called when all of it is durable, perhaps on another thread: seconds and tokens."""


class Output(Protocol):
    """Where an extraction writes: a `Session`, or what workers share."""

    segments: Segments

    def is_written(self, i_lang: int) -> bool:
        """Whether the arrays of a language are there."""

    def write_language(self, i_lang: int, arrays: Mapping[str, Array]) -> None:
        """Write all arrays of a language."""


def finishes_beside(device: torch.device) -> bool:
    """Whether something is idle during forward passes: a GPU's host, or all cores but one."""
    return device.type == "cuda" or torch.get_num_threads() == 1 < cores()


def kept_budget() -> int:
    """Bytes of pooled states that may stay in pinned memory: an eighth of what is free.

    Limits of a job or a container count: pinned memory beyond them would end the process.
    """
    return available_bytes() // 8


class Extraction:
    """All forward passes of one model, and the arrays of its languages.

    Iterating runs it and yields events. When the iterator is closed or fails, all finished batches
    are kept, and a new `Extraction` on the same store continues from there.
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Samples,
        work: Prepared,
        session: Output,
        *,
        kept: Mapping[str, Callable[[], dict[str, Array]]] | None = None,
        impl: str | None = None,
        bases: Sequence[Callable[[str], Basis]] = (),
    ) -> None:
        """Read what an earlier run has done.

        Args:
            model: the loaded model.
            samples: labels, folds and languages.
            work: prepared for these samples.
            session: where the results are written.
            kept: languages that are copied from another store, by functions that read their arrays.
            impl: implementation of the kernels; None: the fastest that works here.
            bases: give what a language is in finished models, in whose components states are
                expressed too.
        """
        self._model = model
        self._name = model.name
        self._samples = samples
        self._work = work
        self._ranges = samples.lang_ranges
        self._session = session
        names = samples.languages
        self._kept = {names.index(lang): arrays for lang, arrays in (kept or {}).items()}
        self._impl = impl
        self._bases = bases
        self._most_tokens = model.most_tokens
        """In a batch, padding included, once the device's memory was too small for more."""
        self._beside = finishes_beside(model.device)
        self._in_memory: dict[int, list[_InMemory]] = {}
        """By part, the batches whose states stay in memory until their language is finished."""
        self._closing = False
        self._done: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.tokens = 0
        """Tokens that have run, without padding."""
        self.forward_seconds = 0.0
        self.finish_seconds = 0.0
        self._rows_done: dict[int, set[int]] = {}
        """By part, samples whose states an earlier run has written; filled by `texts_done`."""

    @property
    def texts_done(self) -> int:
        """Samples that an earlier run has done: in the store, in segments, or to be copied.

        Nobody else may write to the segments.
        """
        self._rows_done = {
            part.number: self._session.segments.rows_done(part.number)
            for i_lang, parts in enumerate(self._work.plan.languages)
            for part in parts
            if not self._is_finished(i_lang)
        }
        finished = (
            samples.stop - samples.start
            for i_lang, samples in enumerate(self._ranges)
            if self._is_finished(i_lang)
        )
        return int(sum(finished)) + sum(map(len, self._rows_done.values()))

    @property
    def segment_bytes(self) -> int:
        """Largest size on disk of all segments together."""
        behind = QUEUED + 1 if self._beside else 0  # languages that wait for their arrays
        rows = 0
        for i_lang, samples in enumerate(self._ranges):
            oldest = self._ranges[max(0, i_lang - behind)]
            # Languages before it stay while they share a shard with it.
            waiting = [s for s in self._ranges if shards_of(s)[-1] >= shards_of(oldest)[0]]
            rows = max(rows, samples.stop - waiting[0].start)
        return rows * self._state_bytes

    @property
    def _state_bytes(self) -> int:
        """Of one text's pooled and projected states."""
        cells = len(self._work.hookpoints) * len(self._work.tokens.poolings)
        return 4 * cells * sum(self._work.projection.shape)

    @property
    def peak_device_bytes(self) -> int | None:
        """Peak memory that torch has allocated on the GPU; None on a CPU."""
        device = self._model.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[Event]:
        """Run all that is not done yet, in order; the output is a `Session`."""
        session = self._session
        assert isinstance(session, Session)
        yield from self.run(self._all_units(), kept_budget())
        lost = write_rest(session.arrays, self.pooled)
        if lost.any():
            yield Note(self._name, what_is_lost(lost, self._work.hookpoints, self._model.dtype))

    def run(self, units: Iterable[Unit], budget: int = 0) -> Iterator[Event]:
        """Run units in their order.

        The arrays of a language are computed beside the forward passes of the next parts, if
        something would be idle otherwise, and in between if not.

        Args:
            units: the next one is asked for when the one before has been started, not when it is
                done.
            budget: bytes of pooled states that may stay in pinned memory until the arrays of their
                language are computed, which must be one of the units then.
        """
        self._closing = False
        writer = OrderedThread("safetyspace-writer")
        finisher = OrderedThread("safetyspace-finisher", QUEUED)
        try:
            with self._forward(writer, budget) as extract:
                for unit in units:
                    if unit.part is not None:
                        yield from extract(unit, unit.part)
                        continue
                    finish = partial(self._finish, unit)
                    if self._beside:  # behind the language's last write
                        writer.put(partial(finisher.put, finish))
                    else:
                        writer.flush()
                        finish()
                    yield from self._languages_done()
            writer.flush()
            finisher.flush()
            yield from self._languages_done()
        finally:
            self._closing = True
            finisher.stop()  # a resumed run finds the states of its languages
            writer.close()
            finisher.close()

    @contextmanager
    def _forward(
        self, writer: OrderedThread, budget: int
    ) -> Iterator[Callable[[Unit, Part], Iterator[Event]]]:
        """Get ready to run batches; gives a function that runs those of a unit."""
        work = self._work
        with Capture(
            self._model,
            work.hookpoints,
            work.projection,
            self._impl,
            work.cache,
            packed=work.packed,
        ) as capture:
            largest = self._state_bytes * max((len(batch.unique) for batch in work.plan), default=0)
            copy = HostCopy(self._model.device, largest, self.segment_bytes, budget)
            yield partial(self._extract, writer, capture, copy)

    def _all_units(self) -> Iterator[Unit]:
        for i_lang, parts in enumerate(self._work.plan.languages):
            if self._session.is_written(i_lang):
                continue
            if i_lang not in self._kept:
                for part in parts:
                    yield Unit(i_lang, part)
            yield Unit(i_lang)

    @property
    def pooled(self) -> int:
        """Pooled states of each hookpoint, finite or not."""
        spans = self._work.tokens.spans
        return int((spans[..., 0] < spans[..., 1]).sum())

    def _languages_done(self) -> Iterator[Event]:
        while not self._done.empty():
            yield self._done.get()

    def _is_finished(self, i_lang: int) -> bool:
        return i_lang in self._kept or self._session.is_written(i_lang)

    def _extract(
        self, writer: OrderedThread, capture: Capture, copy: HostCopy, unit: Unit, part: Part
    ) -> Iterator[Event]:
        done = self._rows_done.pop(part.number, None)
        if done is None:
            done = self._session.segments.rows_done(part.number)
        seconds, tokens_before = self.forward_seconds, self.tokens
        waiting = [b for b in reversed(part.batches) if not done.issuperset(b.rows.tolist())]
        while waiting:
            batch = waiting.pop()
            if batch.padded_tokens > self._most_tokens and len(batch.unique) > 1:
                waiting.extend(reversed(batch.halves()))
                continue
            started = time.perf_counter()
            try:
                out = capture.run(self._work.tokens, batch)
            except torch.OutOfMemoryError as error:
                if len(batch.unique) == 1:
                    raise ModelError(
                        f"{self._name}: a single text of {batch.length} tokens does not fit into "
                        "the device's memory; lower --max-tokens or use a smaller --dtype"
                    ) from error
                first = math.isinf(self._most_tokens)
                self._most_tokens = batch.halves()[1].padded_tokens  # the larger half
                waiting.append(batch)
                if first:
                    yield Note(self._name, "out of memory: continuing with smaller batches")
                continue
            result = copy.start(out)
            del out  # its memory is for the next batch
            writer.put(partial(self._append, part.number, batch, result), result.free)
            self.forward_seconds += time.perf_counter() - started
            tokens = int(self._work.tokens.lengths[batch.unique].sum())
            self.tokens += tokens
            yield Progressed(self._name, len(batch.rows), tokens)
            yield from self._languages_done()
        writer.put(partial(self._session.segments.sync, part.number))
        writer.put(partial(unit.done, self.forward_seconds - seconds, self.tokens - tokens_before))

    def _append(self, number: int, batch: Batch, result: HostResult) -> None:
        """Write a batch to its segment; keep it in memory too, if there is room."""
        try:
            values = result.get().numpy()
            self._session.segments.append(number, batch.rows, batch.for_rows(values))
            if result.kept:
                self._in_memory.setdefault(number, []).append(_InMemory(batch, values, result.free))
        finally:
            if not result.kept:
                result.free()

    def _finish(self, unit: Unit) -> None:
        """Compute and write the arrays of a language whose states are all in segments."""
        started, i_lang = time.perf_counter(), unit.i_lang
        arrays = self._kept.get(i_lang, partial(self._finished, i_lang))
        self._session.write_language(i_lang, arrays())
        seconds = time.perf_counter() - started
        self.finish_seconds += seconds
        unit.done(seconds, 0)
        self._done.put(LanguageDone(self._name, self._samples.languages[i_lang], seconds))

    def _finished(self, i_lang: int) -> dict[str, Array]:
        """All arrays of a language, from the segments of its parts."""
        samples = self._ranges[i_lang]
        hidden_size, proj_dim = self._work.projection.shape
        parts = self._work.plan.languages[i_lang]
        spans = self._work.tokens.spans[samples].transpose(1, 0, 2)
        in_memory = [kept for part in parts for kept in self._in_memory.pop(part.number, ())]
        known = {int(kept.rows[0]) for kept in in_memory}
        on_disk = [r for part in parts for r in self._session.segments.records(part.number)]
        records: list[_InMemory | Record] = [
            *in_memory,
            *(r for r in on_disk if int(r.rows[0]) not in known),
        ]
        rows_known = sum(len(record.rows) for record in records)
        if rows_known < samples.stop - samples.start:
            raise StoreError(
                f"{self._name}: states of {self._samples.languages[i_lang]!r} are missing in the "
                "work folder; run again with --resume"
            )
        pinned = self._model.device.type == "cuda"

        def states(i_layer: int, i_pooling: int) -> torch.Tensor:
            if self._closing:
                raise InterruptedError("the run is ending")
            shape = (samples.stop - samples.start, hidden_size + proj_dim)
            rows = torch.empty(shape, pin_memory=pinned)
            for record in records:
                rows.numpy()[record.rows - samples.start] = record.read(i_layer, i_pooling)
            return rows

        try:
            return finish_language(
                states,
                Chance(self._samples, self._samples.languages[i_lang]),
                (len(self._work.hookpoints), len(self._work.tokens.poolings)),
                self._samples.labels[samples],
                self._samples.fold[samples],
                self._work.tokens.n_text_tokens[samples],
                hidden_size,
                [next(i for i, one in enumerate(spans) if (one == other).all()) for other in spans],
                self._model.device,
                self._impl,
                [basis(self._samples.languages[i_lang]) for basis in self._bases],
            )
        except torch.OutOfMemoryError as error:
            lang, texts = self._samples.languages[i_lang], samples.stop - samples.start
            raise ModelError(
                f"{self._name}: the arrays of {lang!r} ({texts} texts) do not fit into the "
                "device's memory beside the model; finished batches are kept: repeat the command "
                "with --resume where more memory is free, or on another --device"
            ) from error
        finally:
            for kept in in_memory:
                kept.free()


def write_rest(arrays: ModelWriter, pooled: int) -> NDArray[np.int64]:
    """Write a model's arrays over all languages, from those of each.

    Args:
        arrays: of the model; those of all languages are written.
        pooled: pooled states of each hookpoint, finite or not.

    Returns:
        [L] pooled states of each hookpoint that are not finite.
    """
    counts = arrays.read("count").sum(4)  # [L, S, lang, label]
    lost: NDArray[np.int64] = pooled - counts.sum((1, 2, 3))
    arrays.write("nonfinite", lost)
    others = map(arrays.read, ("class_mean", "pca_explained", "pca_components"))
    arrays.write("pca_basis", merge_bases(counts, *others))
    return lost


def what_is_lost(lost: NDArray[np.int64], hookpoints: Sequence[str], dtype: torch.dtype) -> str:
    """A note on states that are not finite, of which `lost [L]` says how many there are."""
    first = hookpoints[int(np.flatnonzero(lost)[0])]
    return (
        f"up to {lost.max()} pooled states of a layer (first: {first}) are not finite in "
        f"{str(dtype).removeprefix('torch.')} and count in no number; "
        + (
            "dtype bfloat16 or float32 may hold them"
            if dtype == torch.float16
            else "the model's weights may be damaged"
        )
    )
