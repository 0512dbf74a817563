"""One model as one worker sees it: begin it, take its units, run them, merge it."""

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import ModelError, StoreError
from ..extract import Batching, Event, Extraction, Note, Unit
from ..extract.plan import Part
from ..extract.prepare import Prepared
from ..models import LoadedModel, device_errors
from ..runner import OneModel
from ..store import Leases, Run, Shared, clear
from ..store.layout import Array, Attributes
from ..store.leases import WORKERS
from .claims import Claimed, Claims
from .events import RunBegun
from .holding import Holding
from .merge import languages_missing, merge_model

POLL_SECONDS = 0.5
"""A worker that finds nothing to do looks again so often."""


class Job:
    """One model, as one worker sees it."""

    def __init__(
        self,
        one: OneModel,
        leases: Leases,
        rank: tuple[int, int],
        earlier: Sequence["Job"],
        holding: Holding,
    ) -> None:
        """Do nothing yet.

        Args:
            one: the model.
            leases: of the worker on the model's store.
            rank: the worker's rank, and how many there are.
            earlier: the models before it in the same store, which may become its bases.
            holding: of the worker.
        """
        self.one = one
        self.name = one.name
        self.out = one.out
        self.is_complete = False
        self._leases = leases
        self._rank = rank[0]
        self._earlier = earlier
        self._holding = holding
        self._shared = Shared(one.place, one.name)
        texts = (samples.stop - samples.start for samples in one.samples.lang_ranges)
        parts = sum(math.ceil(number / Batching.part_samples) for number in texts)
        self._claims = Claims(one.name, leases, self._shared, *rank, units=parts)
        holding.add(one.name, self._claims)

    def work(self) -> Generator[Event, None, bool]:
        """Do all that can be done now; returns whether there was anything."""
        if self.one.is_complete():
            self.is_complete = True
            return False
        plan = self._shared.plan()
        claimed = None
        if plan is None:
            if not self._may_begin() or not self._holding.wants(self.name):
                return False
        else:
            if (yield from self._merge(plan)):
                return True
            if self._holding.wants(self.name):
                claimed = self._claim(plan)
            if claimed is None:
                self._refuse_lost_bases(plan)
                return False
        try:
            plan = yield from self._run(plan, claimed)
        finally:
            self._claims.give_all_back()
        if plan is not None:
            yield from self._merge(plan)
        return True

    def fail(self) -> None:
        """Tell the other workers that the model does not run here."""
        self._leases.claim(self._failed(self._leases.worker))

    def leave(self) -> None:
        """The model is complete here, or has failed: it needs no memory for this store."""
        self._holding.remove(self.name, self._claims)
        if self.is_complete:  # workers that were killed or slept then have left something
            clear(self.one.place.work / self.name)

    def close(self) -> None:
        """Delete the folder of units if it is empty."""
        self._shared.remove_folder()

    def _failed(self, worker: object) -> str:
        return f"{WORKERS}/failed-{self.name}-{str(worker).rpartition('/')[2]}"

    def _failed_everywhere(self) -> bool:
        """Whether no worker that is alive can run the model."""
        workers = [self._leases.worker]
        for other in self._leases.others():
            models: Any = other.get("models", ())
            if self.name in models:
                workers.append(str(other["worker"]))
        return all(not self._leases.is_free(self._failed(worker)) for worker in workers)

    def _refuse_lost_bases(self, plan: Attributes) -> None:
        """Raise ModelError if the model waits for another one that nobody completes."""
        running = {job.name for job in self._earlier if not job._failed_everywhere()}
        for other in self._leases.others():
            theirs: Any = other.get("models", ())
            running.update(theirs)
        bases = {name for name in plan["attributes"]["bases"] if "@" not in name}
        for lost in sorted(bases - running - set(Run(str(self.one.place)).models)):
            raise ModelError(
                f"{self.name}: its arrays wait for those of model {lost!r}, which has failed or "
                "is not run; finished batches are kept: run both models with --resume"
            )

    def _may_begin(self) -> bool:
        """Whether it is known which models before this one are its bases."""
        return all(
            job.one.is_complete() or job._shared.plan() is not None or job._failed_everywhere()
            for job in self._earlier
        )

    def _run(
        self, plan: Attributes | None, claimed: Claimed | None
    ) -> Generator[Event, None, Attributes | None]:
        """Load the model and run units until none is left; returns the plan."""
        notes: list[str] = []
        yield RunBegun(self.name)
        if plan is None:
            yield from self.one.verify()
        model = self._holding.load(self.one, notes.append)
        begun = self._begin(model, notes) if plan is None else None
        if plan is None:
            if begun is None:
                return None
            plan, work = begun
        else:
            work, _ = self.one.prepare(model, plan, notes.append)
        if self._rank == 0:
            for note in notes:
                yield Note(self.name, note)
        output = _Output(self._shared, plan, self._claims)
        bases: list[str] = plan["attributes"]["bases"]
        extraction = self.one.extraction(model, work, output, bases)
        yield self.one.planned(work, extraction, self._claims.texts_done(plan))
        with device_errors(self.name, "finished batches are kept, and other workers go on"):
            claimed = claimed or self._claim(plan)
            while claimed is not None:
                yield from self._run_units(extraction, plan, work, output, claimed)
                claimed = self._claim(plan)
        return plan

    def _run_units(
        self,
        extraction: Extraction,
        plan: Attributes,
        work: Prepared,
        output: "_Output",
        claimed: Claimed,
    ) -> Iterator[Event]:
        try:
            yield from extraction.run(self._units(plan, work, output, claimed))
        except StoreError:
            if self._claims.keeps_all():
                raise
            self._claims.give_all_back()
            yield Note(self.name, "this worker slept for long; others have taken its units over")

    def _begin(self, model: LoadedModel, notes: list[str]) -> tuple[Attributes, Prepared] | None:
        """Begin the model, or wait for the worker that does; None: it is complete meanwhile."""
        lease = f"{WORKERS}/begin-{self.name}"
        self._shared.make_folder()
        while True:
            plan = self._shared.plan()
            if self.one.is_complete():
                return None
            if plan is not None:
                return plan, self.one.prepare(model, plan, notes.append)[0]
            if not self._leases.claim(lease):
                time.sleep(POLL_SECONDS / 10)
                continue
            try:
                begun = self._begin_alone(model, notes, lease)
            finally:
                self._leases.release(lease)
            if begun is not None:
                return begun

    def _begin_alone(
        self, model: LoadedModel, notes: list[str], lease: str
    ) -> tuple[Attributes, Prepared] | None:
        """Begin the model; None: another worker has, before the lease was taken or since."""
        if self._shared.plan() is not None or self.one.is_complete():
            return None
        told: list[str] = []
        work, manifest = self.one.prepare(model, None, told.append)
        if not self._leases.holds(lease):  # it slept meanwhile
            return None
        begun = {job.name: job._shared.plan() for job in self._earlier}
        known = {name: plan for name, plan in begun.items() if plan is not None}
        plan = self.one.begin(model, work, manifest, known) | {"load_s": self._holding.load_s}
        if not self._shared.begin(plan) or self.one.is_complete():
            return None
        notes += told
        return plan, work

    def _claim(self, plan: Attributes) -> Claimed | None:
        return self._claims.next(plan, with_arrays=self._bases_are_complete(plan))

    def _bases_are_complete(self, plan: Attributes) -> bool:
        own = {name for name in plan["attributes"]["bases"] if "@" not in name}
        return not own or own <= set(Run(str(self.one.place)).models)

    def _units(
        self,
        plan: Attributes,
        work: Prepared,
        output: "_Output",
        claimed: Claimed | None,
    ) -> Iterator[Unit]:
        parts = {part.number: part for parts in work.plan.languages for part in parts}
        while claimed is not None:
            i_lang, number = claimed
            if number is not None:
                done = partial(self._claims.done, self._shared.part(number))
                yield Unit(i_lang, parts[number], done)
            else:
                unit = self._shared.language(i_lang)
                if output.is_whole(work.plan.languages[i_lang]):
                    yield Unit(i_lang, done=partial(self._claims.done, unit))
                else:
                    self._shared.forget(i_lang, plan["parts"][i_lang])
                    self._claims.give_back(unit)
            claimed = self._claim(plan)

    def _merge(self, plan: Attributes) -> Generator[Event, None, bool]:
        """Merge the model, if all its languages are computed and nobody else does."""
        if languages_missing(self._shared, plan):
            return False
        lease = f"{WORKERS}/merge-{self.name}"
        if not self._leases.claim(lease):
            return False
        may_write = partial(self._leases.holds, lease)
        try:
            if not self.one.is_complete():
                yield from merge_model(self.one.place, self.name, plan, may_write)
        except StoreError as error:
            if not languages_missing(self._shared, plan):
                raise
            yield Note(self.name, f"computed again: {error}")
            return False
        finally:
            self._leases.release(lease)
        self.is_complete = self.one.is_complete()  # not if another worker has taken it over
        return self.is_complete


class _Output:
    """Where a worker writes; stands in for a `Session`."""

    def __init__(self, shared: Shared, plan: Attributes, claims: Claims) -> None:
        """Give the model, its plan, and what the worker has taken of it."""
        sizes = plan["sizes"]
        row_shape = (sizes["layer"], sizes["pooling"], sizes["hidden"] + sizes["proj"])
        self.segments = shared.segments(row_shape)
        self._shared, self._plan, self._claims = shared, plan, claims

    def is_written(self, i_lang: int) -> bool:
        """Whether the arrays of a language are computed."""
        return self._plan["written"][i_lang] or self._shared.is_computed(i_lang)

    def is_whole(self, parts: Sequence[Part]) -> bool:
        """Whether all states of these parts are in segments, undamaged."""
        return all(
            self.segments.rows_done(part.number).issuperset(range(part.rows.start, part.rows.stop))
            for part in parts
        )

    def write_language(self, i_lang: int, arrays: Mapping[str, Array]) -> None:
        """Keep the arrays of a language, and delete its states; not if others have taken it over.

        Two that write one file at the same time would take it away from each other.
        """
        if not self._claims.keeps(self._shared.language(i_lang)):
            return
        self._shared.write_language(i_lang, arrays)
        for number in self._plan["parts"][i_lang]:
            self.segments.drop(number)
