"""One model over all samples: forward passes, language statistics, the store, resume."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data import NUM_FOLDS, Samples
from ..errors import ModelError
from ..models import LoadedModel, Tokenized
from ..parallel import in_parallel
from ..store import ModelWriter, Progress
from ..store.layout import ROW_ARRAYS, shards_of
from .capture import Capture
from .events import Event, LanguageDone, Note, Progressed
from .finish import COMPONENTS, finish_cell, merge_bases
from .plan import Batch, Part, Plan
from .transfer import HostCopy, WriterThread

if TYPE_CHECKING:
    from ..models.prefix import SharedPrefix

Array = np.ndarray[Any, np.dtype[Any]]


class Extraction:
    """The work of one model, from its plan to its last array.

    Iterating runs it. Closing the iterator, or an exception in it, stops after the batch at hand
    with everything before it kept; a new `Extraction` on the same store then goes on from there.
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Samples,
        tokens: Tokenized,
        plan: Plan,
        hookpoints: tuple[str, ...],
        projection: torch.Tensor,
        writer: ModelWriter,
        progress: Progress,
        *,
        kept: Mapping[int, Callable[[], dict[str, Array]]] | None = None,
        impl: str | None = None,
        prefix: "SharedPrefix | None" = None,
    ) -> None:
        """Gather what the work needs and read how far an earlier run came.

        Args:
            model: the loaded model.
            samples: labels, folds and languages.
            tokens: prompts and spans of the samples, without the prefix.
            plan: the batches.
            hookpoints: wanted hookpoints, in order of depth.
            projection: `[D, P] float32`.
            writer: the model's arrays.
            progress: segments and journal.
            kept: languages, by index, whose arrays are had elsewhere and not computed.
            impl: a forced kernel implementation.
            prefix: keys and values of what every prompt begins with, of `share_prefix`.
        """
        self._model = model
        self._name = model.name
        self._samples = samples
        self._tokens = tokens
        self._ranges = samples.lang_ranges
        self._plan = plan
        self._hookpoints = hookpoints
        self._projection = projection.to(model.device)
        self._writer = writer
        self._progress = progress
        self._kept = kept or {}
        self._impl = impl
        self._prefix = prefix
        self._rows_per_pass: int | None = None
        self.tokens = 0
        self.forward_seconds = 0.0
        self.finish_seconds = 0.0

        self._written = progress.written()
        writer.skip_shards(self._written)
        numbers = count()
        self._parts = [[(next(numbers), part) for part in parts] for parts in plan.languages]
        self._rows_done = {
            number: progress.rows_done(number)
            for i_lang, parts in enumerate(self._parts)
            for number, _ in parts
            if not self._is_there(i_lang)
        }

    @property
    def texts_done(self) -> int:
        """Samples that an earlier run left behind, finished or in a segment."""
        written = (
            there.stop - there.start
            for i_lang, there in enumerate(self._ranges)
            if self._is_there(i_lang)
        )
        return int(sum(written)) + sum(map(len, self._rows_done.values()))

    @property
    def segment_bytes(self) -> int:
        """Largest size of the pooled states that lie on disk at a time."""
        rows = 0
        for there in self._ranges:  # those before it stay while they wait for a shard they share
            waiting = [s for s in self._ranges if shards_of(s)[-1] >= shards_of(there)[0]]
            rows = max(rows, there.stop - waiting[0].start)
        values = len(self._hookpoints) * len(self._tokens.poolings)
        return int(4 * rows * values * sum(self._projection.shape))

    @property
    def peak_device_bytes(self) -> int | None:
        """Peak memory that torch had allocated on the GPU; None on a CPU."""
        device = self._model.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[Event]:
        """Run everything that is not done yet."""
        thread = WriterThread()
        copy = HostCopy(self._model.device)
        try:
            with Capture(
                self._model, self._hookpoints, self._projection, self._impl, self._prefix
            ) as capture:
                for i_lang, lang in enumerate(self._samples.languages):
                    if self._is_written(i_lang):
                        continue
                    arrays = self._kept.get(i_lang)
                    if arrays is None:
                        for number, part in self._parts[i_lang]:
                            yield from self._extract(number, part, capture, copy, thread)
                        thread.flush()
                        arrays = partial(self._finished, i_lang)
                    started = time.perf_counter()
                    self._write_language(i_lang, arrays())
                    seconds = time.perf_counter() - started
                    self.finish_seconds += seconds
                    yield LanguageDone(self._name, lang, seconds)
            self._write_rest()
        finally:
            thread.close()

    def _is_written(self, i_lang: int) -> bool:
        return self._written.issuperset(shards_of(self._ranges[i_lang]))

    def _is_there(self, i_lang: int) -> bool:
        return i_lang in self._kept or self._is_written(i_lang)

    def _extract(
        self, number: int, part: Part, capture: Capture, copy: HostCopy, thread: WriterThread
    ) -> Iterator[Event]:
        done = self._rows_done.pop(number)
        waiting = [b for b in reversed(part.batches) if not done.issuperset(b.rows.tolist())]
        while waiting:
            batch = waiting.pop()
            if self._rows_per_pass and len(batch.unique) > self._rows_per_pass:
                waiting.extend(reversed(batch.halves()))
                continue
            started = time.perf_counter()
            try:
                out = capture.run(*padded(self._model, self._tokens, batch))
            except torch.OutOfMemoryError as error:
                if len(batch.unique) == 1:
                    raise ModelError(
                        f"{self._name}: a single text of {batch.length} tokens does not fit into "
                        "the device's memory; lower --max-tokens or use a smaller --dtype"
                    ) from error
                said, self._rows_per_pass = self._rows_per_pass, len(batch.unique) // 2
                waiting.append(batch)
                if said is None:
                    yield Note(self._name, "out of memory: going on with smaller batches")
                continue
            host = copy.start(out)
            thread.put(partial(host, partial(self._append, number, batch)))
            self.forward_seconds += time.perf_counter() - started
            tokens = int(self._tokens.lengths[batch.unique].sum())
            self.tokens += tokens
            yield Progressed(self._name, len(batch.rows), tokens)
        thread.put(partial(self._progress.sync, number))

    def _append(self, number: int, batch: Batch, out: torch.Tensor) -> None:
        self._progress.append(number, batch.rows, batch.for_rows(out.numpy()))

    def _finished(self, i_lang: int) -> dict[str, Array]:
        """All arrays of a language, from the segments of its parts; those by language lack it."""
        samples = self._ranges[i_lang]
        n_layers, n_poolings = len(self._hookpoints), self._tokens.spans.shape[1]
        width, proj = self._projection.shape
        device = self._model.device
        labels = torch.from_numpy(self._samples.labels[samples].astype(np.int64)).to(device)
        folds = torch.from_numpy(self._samples.fold[samples].astype(np.int64)).to(device)
        records = [r for number, _ in self._parts[i_lang] for r in self._progress.records(number)]
        cell_of = (self._samples.labels[samples] * NUM_FOLDS + self._samples.fold[samples]).astype(
            int
        )
        grids: dict[str, Array] = {}

        def finish(i_layer: int, i_pooling: int) -> None:
            state = np.empty((samples.stop - samples.start, width + proj), np.float32)
            for record in records:
                state[record.rows - samples.start] = record.read(i_layer, i_pooling)
            pooled = torch.from_numpy(state[:, :width]).to(device)
            cell = finish_cell(pooled, labels, folds, self._impl)
            arrays = {name: tensor.cpu().numpy() for name, tensor in cell.items()}
            arrays["projected"] = state[:, width:].copy()
            for name, array in (arrays | _fold_means(arrays["projected"], cell_of)).items():
                grid = np.empty((n_layers, n_poolings, *array.shape), array.dtype)
                grids.setdefault(name, grid)[i_layer, i_pooling] = array

        in_parallel(finish, list(np.ndindex(n_layers, n_poolings)))
        return grids

    def _write_language(self, i_lang: int, grids: dict[str, Array]) -> None:
        """Write a language's arrays, then say in the journal which shards that completed."""
        done: list[int] = []
        for name, grid in grids.items():
            if name in ROW_ARRAYS:
                done = self._writer.write_rows(name, self._ranges[i_lang].start, grid)
            else:
                self._writer.write_language(name, i_lang, grid)
        for shard in done:
            self._written.add(shard)
            self._progress.record(shard)
        for i_lang, parts in enumerate(self._parts):
            if self._is_written(i_lang):  # the one before may have waited for its last shard
                for number, _ in parts:
                    self._progress.drop(number)

    def _write_rest(self) -> None:
        """Write what sums up all languages, from the store."""
        there = (self._tokens.spans[..., 0] < self._tokens.spans[..., 1]).sum()
        of_class = self._writer.read("count").sum(4)  # [L, S, lang, label]
        self._writer.write("nonfinite", there - of_class.sum((1, 2, 3)))
        # The centre of a language without a finite state counts for nothing.
        total = np.nan_to_num(of_class[..., None] * self._writer.read("class_mean")).sum(3)
        counts = of_class.sum(3)
        centre = total / np.maximum(counts, 1)[..., None]
        variance = self._writer.read("pca_explained")
        components = self._writer.read("pca_components")
        n_layers, n_poolings, _, _, width = components.shape
        basis = np.empty((n_layers, n_poolings, width, COMPONENTS), np.float32)
        for place in np.ndindex(n_layers, n_poolings):
            parts = (torch.from_numpy(x[place]) for x in (centre, variance, components))
            basis[place] = merge_bases(counts[place].tolist(), *parts).numpy()
        self._writer.write("pca_basis", basis)


def padded(
    model: LoadedModel, tokens: Tokenized, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The input of one batch, on the model's device, as `Capture.run` takes it.

    Returns:
        input ids `[B, T] int64`, spans `[B, S, 2] int32`, and the attention mask `[B, T] int64` of
        a model that is not causal, else None.
    """
    ids = torch.full((len(batch.unique), batch.length), model.pad_token_id, dtype=torch.int64)
    mask = None if model.causal else torch.zeros_like(ids)
    for i_row, row in enumerate(batch.unique):
        prompt = tokens.prompt(row)
        ids[i_row, : len(prompt)] = torch.from_numpy(prompt)
        if mask is not None:
            mask[i_row, : len(prompt)] = 1

    def on_device(tensor: torch.Tensor) -> torch.Tensor:
        if model.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(model.device, non_blocking=True)

    spans = on_device(torch.from_numpy(tokens.spans[batch.unique]))
    return on_device(ids), spans, None if mask is None else on_device(mask)


def _fold_means(projected: Array, cell_of: Array) -> dict[str, Array]:
    """Counts `[2, 10]` and means `[2, 10, P]` by label and fold; NaN where a cell is empty."""
    n_cells = 2 * NUM_FOLDS
    keep = np.isfinite(projected).all(1)
    count = np.bincount(cell_of[keep], minlength=n_cells)
    total = np.zeros((n_cells, projected.shape[1]))
    np.add.at(total, cell_of[keep], projected[keep].astype(np.float64))
    with np.errstate(invalid="ignore"):
        mean = total / count[:, None]
    return {"count": count.reshape(2, -1), "mean": mean.reshape(2, NUM_FOLDS, -1)}
