"""One model over all samples: forward passes, language statistics, the store, resume."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from ..data import NUM_FOLDS, Samples
from ..errors import ModelError
from ..models import LoadedModel, Tokenized
from ..parallel import in_parallel
from ..store import Done, ModelWriter, Progress
from ..store.layout import ROW_ARRAYS, SHARD_SAMPLES, shards_of
from .capture import Capture
from .events import Event, LanguageDone, Note, Progressed
from .finish import COMPONENTS, finish_cell, merge_bases
from .plan import Batch, Plan
from .transfer import HostCopy, WriterThread

Array = np.ndarray[Any, np.dtype[Any]]
LANGUAGE_ROWS = tuple(name for name in ROW_ARRAYS if name != "projected")


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
        impl: str | None = None,
        prefix: Any = None,
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
            impl: a forced kernel implementation.
            prefix: keys and values of what every prompt begins with, of `share_prefix`.
        """
        self._model = model
        self._name = model.name
        self._samples = samples
        self._tokens = tokens
        self._ranges = [samples.lang_range(lang) for lang in samples.languages]
        self._plan = plan
        self._hookpoints = hookpoints
        self._projection = projection.to(model.device)
        self._writer = writer
        self._progress = progress
        self._impl = impl
        self._prefix = prefix
        self._rows_per_pass: int | None = None
        self.tokens = 0
        self.forward_seconds = 0.0
        self.finish_seconds = 0.0

        done = Done.of(progress.events())
        self._extracted, self._written, self._basis_kept = done.extracted, done.written, done.basis
        for i_lang, there in enumerate(self._ranges):
            if not self._basis_kept and progress.load(f"basis-{i_lang}") is None:
                self._written.difference_update(shards_of(there))
        needed = set(range(len(plan.shards))) - self._extracted
        for there in self._ranges:  # a language is finished from the segments of all its shards
            if not self._written.issuperset(shards_of(there)):
                needed.update(shards_of(there))
        writer.skip_shards(LANGUAGE_ROWS, self._written)
        self._partly: dict[int, set[int]] = {}
        for shard in sorted(needed):
            rows = progress.rows_done(shard)
            if shard not in self._extracted or not rows.issuperset(
                range(*writer.shard_range(shard))
            ):
                self._extracted.discard(shard)
                self._partly[shard] = rows

    @property
    def texts_done(self) -> int:
        """Samples that an earlier run left behind, finished or in a segment."""
        shards = (self._writer.shard_range(shard) for shard in self._extracted)
        partly = sum(len(rows) for rows in self._partly.values())
        return sum(high - low for low, high in shards) + partly

    @property
    def segment_bytes(self) -> int:
        """Largest size of the pooled states that lie on disk at a time."""
        longest: int = max(samples.stop - samples.start for samples in self._ranges)
        rows = min(longest + 2 * SHARD_SAMPLES, len(self._samples))
        values = len(self._hookpoints) * len(self._tokens.poolings)
        return 4 * rows * values * sum(self._projection.shape)

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
                for shard, batches in enumerate(self._plan.shards):
                    if shard not in self._extracted:
                        yield from self._extract(shard, batches, capture, copy, thread)
                    yield from self._finish_languages(shard)
            self._write_rest()
        finally:
            thread.close()

    def _extract(
        self,
        shard: int,
        batches: tuple[Batch, ...],
        capture: Capture,
        copy: HostCopy,
        thread: WriterThread,
    ) -> Iterator[Event]:
        done = self._partly.pop(shard)
        waiting = [batch for batch in reversed(batches) if not done.issuperset(batch.rows.tolist())]
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
            thread.put(partial(host, partial(self._append, shard, batch)))
            self.forward_seconds += time.perf_counter() - started
            tokens = int(self._tokens.lengths[batch.unique].sum())
            self.tokens += tokens
            yield Progressed(self._name, len(batch.rows), tokens)
        thread.flush()
        self._close_shard(shard)

    def _append(self, shard: int, batch: Batch, out: torch.Tensor) -> None:
        self._progress.append(shard, batch.rows, out.numpy()[:, :, batch.source])

    def _close_shard(self, shard: int) -> None:
        """Write what needs no other shard, then say in the journal that the shard is extracted."""
        low, high = self._writer.shard_range(shard)
        width, proj = self._projection.shape
        n_layers, n_poolings = len(self._hookpoints), self._tokens.spans.shape[1]
        projected = np.empty((n_layers, n_poolings, high - low, proj), np.float32)
        for record in self._progress.records(shard):
            for i_layer, i_pooling in np.ndindex(n_layers, n_poolings):
                values = record.read(i_layer, i_pooling)
                projected[i_layer, i_pooling, record.rows - low] = values[:, width:]
        self._progress.sync(shard)
        self._writer.write_rows("projected", low, projected)
        self._progress.record(extracted=shard)
        self._extracted.add(shard)

    def _finish_languages(self, shard: int) -> Iterator[Event]:
        """Finish every language whose last sample lies in this shard."""
        low, high = self._writer.shard_range(shard)
        for i_lang, samples in enumerate(self._ranges):
            shards = shards_of(samples)
            if not low < samples.stop <= high or self._written.issuperset(shards):
                continue
            started = time.perf_counter()
            self._finish_language(i_lang, samples, shards)
            seconds = time.perf_counter() - started
            self.finish_seconds += seconds
            yield LanguageDone(self._name, self._samples.languages[i_lang], seconds)

    def _finish_language(self, i_lang: int, samples: slice, shards: range) -> None:
        n_layers, n_poolings = len(self._hookpoints), self._tokens.spans.shape[1]
        width, proj = self._projection.shape
        device = self._model.device
        labels = torch.from_numpy(self._samples.labels[samples].astype(np.int64)).to(device)
        folds = torch.from_numpy(self._samples.fold[samples].astype(np.int64)).to(device)
        records = [record for shard in shards for record in self._progress.records(shard)]
        inside = [(r.rows >= samples.start) & (r.rows < samples.stop) for r in records]
        cell_of = (self._samples.labels[samples] * NUM_FOLDS + self._samples.fold[samples]).astype(
            int
        )
        cells: dict[tuple[int, int], dict[str, Array]] = {}

        def finish(i_layer: int, i_pooling: int) -> None:
            state = np.empty((samples.stop - samples.start, width + proj), np.float32)
            for record, here in zip(records, inside, strict=True):
                if here.any():
                    values = record.read(i_layer, i_pooling)
                    state[record.rows[here] - samples.start] = values[here]
            pooled = torch.from_numpy(state[:, :width]).to(device)
            cell = finish_cell(pooled, labels, folds, self._impl)
            arrays = {name: tensor.cpu().numpy() for name, tensor in cell.items()}
            cells[i_layer, i_pooling] = arrays | _fold_means(state[:, width:], cell_of)

        places = list(np.ndindex(n_layers, n_poolings))
        in_parallel(finish, places)
        grids = {
            name: np.stack([cells[place][name] for place in places]).reshape(
                n_layers, n_poolings, *array.shape
            )
            for name, array in cells[places[0]].items()
        }
        self._progress.save(
            f"basis-{i_lang}",
            centre=grids.pop("centre"),
            components=grids.pop("components"),
            variance=grids["pca_explained"],
        )
        for name in LANGUAGE_ROWS:
            done = self._writer.write_rows(name, samples.start, grids.pop(name))
        for name, grid in grids.items():
            self._writer.write_language(name, i_lang, grid)
        for shard in done:
            self._written.add(shard)
            self._progress.record(written=shard)
        self._drop_segments()

    def _drop_segments(self) -> None:
        """Delete the segments of shards all of whose languages are in the store."""
        for shard in self._written:
            low, high = self._writer.shard_range(shard)
            touching = [s for s in self._ranges if s.start < high and s.stop > low]
            if all(self._written.issuperset(shards_of(samples)) for samples in touching):
                self._progress.drop(shard)

    def _write_rest(self) -> None:
        n_layers = len(self._hookpoints)
        if not self._basis_kept:
            self._writer.write("pca_basis", self._merged_basis())
        there = (self._tokens.spans[..., 0] < self._tokens.spans[..., 1]).sum()
        counted = self._writer.read("count").reshape(n_layers, -1).sum(1)
        self._writer.write("nonfinite", there - counted)

    def _merged_basis(self) -> Array:
        bases = [self._progress.load(f"basis-{i}") for i in range(len(self._ranges))]
        kept = [basis for basis in bases if basis is not None]
        assert len(kept) == len(bases)  # `save` is durable, and `__init__` has looked
        counts = [samples.stop - samples.start for samples in self._ranges]
        width = self._projection.shape[0]
        n_layers, n_poolings = len(self._hookpoints), self._tokens.spans.shape[1]
        basis = np.empty((n_layers, n_poolings, width, COMPONENTS), np.float32)
        for index in np.ndindex(n_layers, n_poolings):
            merged = merge_bases(
                counts,
                *(
                    torch.from_numpy(np.stack([one[name][index] for one in kept]))
                    for name in ("centre", "variance", "components")
                ),
            )
            basis[index] = merged.numpy()
        return basis


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
