"""One model over all samples: forward passes, language statistics, the store, resume."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch

from ..data import NUM_FOLDS, Samples
from ..errors import ModelError
from ..models import LoadedModel
from ..parallel import in_parallel
from ..store import Session
from ..store.layout import COMPONENTS, Array, shards_of
from .capture import Capture
from .events import Event, LanguageDone, Note, Progressed
from .finish import finish_cell, merge_bases
from .plan import Batch, Part
from .prepare import Prepared
from .transfer import HostCopy, WriterThread


class Extraction:
    """The work of one model, from its plan to its last array.

    Iterating runs it. Closing the iterator, or an exception in it, stops after the batch at hand
    with everything before it kept; a new `Extraction` on the same store then goes on from there.
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Samples,
        work: Prepared,
        session: Session,
        *,
        kept: Mapping[str, Callable[[], dict[str, Array]]] | None = None,
        impl: str | None = None,
    ) -> None:
        """Gather what the work needs and read how far an earlier run came.

        Args:
            model: the loaded model.
            samples: labels, folds and languages.
            work: what runs, prepared.
            session: where all of it is written.
            kept: languages whose arrays are read elsewhere and not computed.
            impl: a forced kernel implementation.
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
        self._rows_per_pass: int | None = None
        self.tokens = 0
        self.forward_seconds = 0.0
        self.finish_seconds = 0.0

        self._rows_done = {
            part.number: session.segments.rows_done(part.number)
            for i_lang, parts in enumerate(work.plan.languages)
            for part in parts
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
        values = len(self._work.hookpoints) * len(self._work.tokens.poolings)
        return int(4 * rows * values * sum(self._work.projection.shape))

    @property
    def peak_device_bytes(self) -> int | None:
        """Peak memory that torch had allocated on the GPU; None on a CPU."""
        device = self._model.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[Event]:
        """Run everything that is not done yet."""
        thread = WriterThread()
        copy = HostCopy(self._model.device)
        work = self._work
        try:
            with Capture(
                self._model, work.hookpoints, work.projection, self._impl, work.prefix
            ) as capture:
                for i_lang, lang in enumerate(self._samples.languages):
                    if self._session.is_written(i_lang):
                        continue
                    arrays = self._kept.get(i_lang)
                    if arrays is None:
                        for part in work.plan.languages[i_lang]:
                            yield from self._extract(part, capture, copy, thread)
                        thread.flush()
                        arrays = partial(self._finished, i_lang)
                    started = time.perf_counter()
                    self._session.write_language(i_lang, arrays())
                    seconds = time.perf_counter() - started
                    self.finish_seconds += seconds
                    yield LanguageDone(self._name, lang, seconds)
            self._write_rest()
        finally:
            thread.close()

    def _is_there(self, i_lang: int) -> bool:
        return i_lang in self._kept or self._session.is_written(i_lang)

    def _extract(
        self, part: Part, capture: Capture, copy: HostCopy, thread: WriterThread
    ) -> Iterator[Event]:
        done = self._rows_done.pop(part.number)
        waiting = [b for b in reversed(part.batches) if not done.issuperset(b.rows.tolist())]
        while waiting:
            batch = waiting.pop()
            if self._rows_per_pass and len(batch.unique) > self._rows_per_pass:
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
                said, self._rows_per_pass = self._rows_per_pass, len(batch.unique) // 2
                waiting.append(batch)
                if said is None:
                    yield Note(self._name, "out of memory: going on with smaller batches")
                continue
            host = copy.start(out)
            thread.put(partial(host, partial(self._append, part.number, batch)))
            self.forward_seconds += time.perf_counter() - started
            tokens = int(self._work.tokens.lengths[batch.unique].sum())
            self.tokens += tokens
            yield Progressed(self._name, len(batch.rows), tokens)
        thread.put(partial(self._session.segments.sync, part.number))

    def _append(self, number: int, batch: Batch, out: torch.Tensor) -> None:
        self._session.segments.append(number, batch.rows, batch.for_rows(out.numpy()))

    def _finished(self, i_lang: int) -> dict[str, Array]:
        """All arrays of a language, from the segments of its parts; those by language lack it."""
        samples = self._ranges[i_lang]
        n_layers, n_poolings = len(self._work.hookpoints), self._work.tokens.spans.shape[1]
        width, proj = self._work.projection.shape
        device = self._model.device
        labels = torch.from_numpy(self._samples.labels[samples].astype(np.int64)).to(device)
        folds = torch.from_numpy(self._samples.fold[samples].astype(np.int64)).to(device)
        parts = self._work.plan.languages[i_lang]
        records = [r for part in parts for r in self._session.segments.records(part.number)]
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

    def _write_rest(self) -> None:
        """Write what sums up all languages, from the store."""
        arrays = self._session.arrays
        spans = self._work.tokens.spans
        there = (spans[..., 0] < spans[..., 1]).sum()
        of_class = arrays.read("count").sum(4)  # [L, S, lang, label]
        arrays.write("nonfinite", there - of_class.sum((1, 2, 3)))
        # The centre of a language without a finite state counts for nothing.
        total = np.nan_to_num(of_class[..., None] * arrays.read("class_mean")).sum(3)
        counts = of_class.sum(3)
        centre = total / np.maximum(counts, 1)[..., None]
        variance = arrays.read("pca_explained")
        components = arrays.read("pca_components")
        n_layers, n_poolings, _, _, width = components.shape
        basis = np.empty((n_layers, n_poolings, width, COMPONENTS), np.float32)
        for place in np.ndindex(n_layers, n_poolings):
            parts = (torch.from_numpy(x[place]) for x in (centre, variance, components))
            basis[place] = merge_bases(counts[place].tolist(), *parts).numpy()
        arrays.write("pca_basis", basis)


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
