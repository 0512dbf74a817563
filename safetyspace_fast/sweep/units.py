"""Workers that share models: each claims the next unit of work through the store, and runs it.

A *unit* is one part of a language (its batches) or the arrays of one language. Any number of
processes on any machines that see the store's folder call `work` with the same configs. A worker
goes through the models in order. For each it loads the model, takes units that nobody has, and then
goes on to the next model. Whoever comes first begins a model: what it measures, such as the size of
a batch, is the plan of all. Whoever finds all languages computed merges them. A worker that dies
loses the batch in hand; others take its units over, and finish what is in its segments.

The bytes of the store are those of `run_models`, whatever the number of workers, if each has as
many threads.
"""

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import RunConfig, data_fields
from ..data import Samples, read_samples
from ..errors import ConfigError, ModelError, SafetySpaceError, StoreError
from ..extract import Event, Extraction, ModelDone, Note, Planned, Unit
from ..extract.loop import what_is_lost, write_rest
from ..extract.plan import Part
from ..extract.prepare import Prepared
from ..models import LoadedModel, device_errors, parse_model
from ..runner import OneModel, refuse_existing, specs_of, start_afresh
from ..store import Claim, Leases, Place, Run, Session, Shared, alone, consolidate, settle
from ..store.layout import Array, Attributes
from ..store.leases import WORKERS
from .templates import templates_of

POLL_SECONDS = 0.5
"""A worker that finds nothing to do looks again so often."""
_NOT_COMPARED = ("device", "resume", "overwrite", "verify")
"""Fields that may differ between the workers on one sweep."""


def work(
    configs: Sequence[RunConfig],
    rank: int = 0,
    world_size: int = 1,
    *,
    loading: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[Event, None, None]:
    """Be one worker, until every model is complete or has failed here.

    Closing the generator gives all leases back; finished batches are kept. Run it again, with any
    number of workers, to go on.

    Args:
        configs: each with one model; the same in all workers but for `device`. A store that exists
            is added to, as with `resume`.
        rank: the worker's number; workers begin at different languages.
        world_size: the number of workers that are meant to run.
        loading: lasts as long as a model is loaded.

    Raises:
        ConfigError: a worker that is alive has other configs for one of these models; or a model
            cannot be shared, or two have the same name.
        StoreError: the disk cannot be written to; the worker ends at once, others go on.
        SafetySpaceError: why the first of the models that failed here did, when all others are
            done. A failed one that other workers have completed is no error.
    """
    _refuse_unshared(configs)
    with ExitStack() as stack:
        jobs: list[_Job] = []
        for of_store in by_store(configs):
            jobs += yield from _join(of_store, rank, world_size, loading, stack)
        failures: list[tuple[_Job, SafetySpaceError]] = []
        waiting = list(jobs)
        while waiting:
            busy = False
            for job in tuple(waiting):
                try:
                    busy |= yield from job.work()
                except SafetySpaceError as error:
                    if _is_of_the_disk(error):  # no model could be written: leave all to others
                        raise
                    job.fail()
                    failures.append((job, error))
                    waiting.remove(job)
                    yield Note(job.name, f"failed in worker {rank}: {error}")
                else:
                    if job.is_complete:
                        waiting.remove(job)
            if not busy and waiting:
                time.sleep(POLL_SECONDS)
        for job, failure in failures:
            if not job.one.is_complete():
                raise failure


def refuse_unsuitable(configs: Sequence[RunConfig]) -> None:
    """Refuse what no workers can do, once before they start.

    Args:
        configs: each with one model.

    Raises:
        StoreError: a store exists, and is neither to be gone on with nor overwritten.
        ConfigError: a model cannot be shared, or two have the same name.
    """
    _refuse_unshared(configs)
    for of_store in by_store(configs):
        refuse_existing(of_store[0])


def begin_stores(configs: Sequence[RunConfig]) -> None:
    """Refuse what is unsuitable, then make those stores empty that are overwritten."""
    refuse_unsuitable(configs)
    for of_store in by_store(configs):
        if of_store[0].overwrite:
            names = [parse_model(*config.models).name for config in of_store]
            start_afresh(of_store[0], names)


def _refuse_unshared(configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError if workers cannot share these models."""
    alone = "run this model by itself, without --devices, --rank, --world-size and --ray"
    for config in configs:
        if config.tensor_parallel > 1:
            raise ConfigError(f"tensor_parallel: a worker has one device; {alone}")
        if config.weights == "stream":
            raise ConfigError(
                f"weights: one process reads streamed weights, once for all texts; {alone}, or "
                "choose weights 'load'"
            )
    for of_store in by_store(configs):
        specs_of([model for config in of_store for model in config.models])


def once(events: Iterator[Event]) -> Iterator[Event]:
    """Events of several workers without repetitions: each of them plans a model for itself."""
    planned: set[str] = set()
    for event in events:
        if isinstance(event, Planned):
            if event.model in planned:
                continue
            planned.add(event.model)
        elif isinstance(event, ModelDone):
            planned.discard(event.model)
        yield event


def _is_of_the_disk(error: SafetySpaceError) -> bool:
    """Whether the system refused to write, as when a disk is full.

    A ModelError may come from the system too: the hub, or a tokenizer that cannot be read.
    """
    cause = error.__cause__
    is_of_system = isinstance(cause, OSError) and not isinstance(cause, SafetySpaceError)
    return isinstance(error, StoreError) and is_of_system


def by_store(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """The configs of each store, in order."""
    stores: dict[str, list[RunConfig]] = {}
    for config in configs:
        stores.setdefault(str(config.out), []).append(config)
    return list(stores.values())


def _join(
    configs: Sequence[RunConfig],
    rank: int,
    world_size: int,
    loading: Callable[[], AbstractContextManager[None]],
    stack: ExitStack,
) -> Generator[Event, None, list["_Job"]]:
    """Become a worker on one store: refuse what cannot be done, before any model is loaded."""
    place = Place(configs[0].out)
    names = [parse_model(*config.models).name for config in configs]
    settings = [sweep_hash(configs), rank, world_size]
    leases = stack.enter_context(Leases(place.work, {"models": names, "settings": settings}))
    _refuse_disagreement(place, leases, names, settings)
    for name in names:
        claim = Claim(place.work / name, f"{place}: model {name!r}", shared=True)
        stack.enter_context(claim)
    with alone(place.work):
        settle(place, names)
    notes: list[str] = []
    samples: dict[str, Samples] = {}
    for config in configs:
        key = repr((config.data, data_fields(config)))
        if key not in samples:
            samples[key] = read_samples(config.data, on_note=notes.append, **data_fields(config))
    templates = templates_of(configs, notes.append)
    jobs: list[_Job] = []
    for config in configs:
        data = samples[repr((config.data, data_fields(config)))]
        one = OneModel(config, data, templates, names)
        jobs.append(_Job(one, leases, (rank, world_size), tuple(jobs), loading))
        stack.callback(jobs[-1].close)
    if rank == 0:
        for note in notes:
            yield Note("", note)
    return jobs


def sweep_hash(configs: Sequence[RunConfig]) -> str:
    """A hash of what all workers on a store must agree on."""
    told = [
        {key: str(value) for key, value in asdict(config).items() if key not in _NOT_COMPARED}
        for config in configs
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _refuse_disagreement(
    place: Place, leases: Leases, names: Sequence[str], settings: Sequence[object]
) -> None:
    """Raise ConfigError if a living worker has another sweep with one of these models.

    Args:
        place: of the store.
        leases: of this worker.
        names: of its models.
        settings: hash of its sweep, rank and world size.
    """
    for other in leases.others():
        theirs: Any = other.get("models", ())
        settings_there: Any = other.get("settings", (None, None, None))
        sweep, rank, world_size = settings_there
        both = [name for name in names if name in theirs]
        if both and [sweep, world_size] != [settings[0], settings[2]]:
            raise ConfigError(
                f"{place}: rank {settings[1]} of {settings[2]} has other settings than rank {rank} "
                f"of {world_size} (process {other['pid']} on {other['host']}), and both run model "
                f"{both[0]!r}; give all ranks the same command, or wait for the other run"
            )


class _Job:
    """One model, as one worker sees it."""

    def __init__(
        self,
        one: OneModel,
        leases: Leases,
        rank: tuple[int, int],
        earlier: Sequence["_Job"],
        loading: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Do nothing yet.

        Args:
            one: the model.
            leases: of the worker on the model's store.
            rank: the worker's rank, and how many there are.
            earlier: the models before it in the same store, which may become its bases.
            loading: of `work`.
        """
        self.one = one
        self.name = one.name
        self.is_complete = False
        self._leases = leases
        self._rank, self._world_size = rank
        self._earlier = earlier
        self._loading = loading
        self._shared = Shared(one.place, one.name)
        self._pending: set[str] = set()
        """Units that this worker has begun, and whose states may not be durable yet."""

    def work(self) -> Generator[Event, None, bool]:
        """Do all that can be done now; returns whether there was anything."""
        if self.one.is_complete():
            self.is_complete = True
            return False
        plan = self._shared.plan()
        claimed = None
        if plan is None:
            if not self._may_begin():
                return False
        else:
            if (yield from self._merge(plan)):
                return True
            claimed = self._claim(plan)
            if claimed is None:
                self._refuse_lost_bases(plan)
                return False
        try:
            plan = yield from self._run(plan, claimed)
        finally:
            self._give_back()
        if plan is not None:
            yield from self._merge(plan)
        return True

    def fail(self) -> None:
        """Tell the other workers that the model does not run here."""
        self._leases.claim(self._failed(self._leases.worker))

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
        self, plan: Attributes | None, claimed: tuple[int, int | None] | None
    ) -> Generator[Event, None, Attributes | None]:
        """Load the model and run units until none is left; returns the plan."""
        notes: list[str] = []
        if plan is None:
            yield from self.one.verify()
        with self._loading():
            model = self.one.load(notes.append)
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
        output = _Output(self._shared, plan)
        bases: list[str] = plan["attributes"]["bases"]
        extraction = self.one.extraction(model, work, output, bases)
        yield self.one.planned(work, extraction, self._texts_done(plan))
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
        claimed: tuple[int, int | None],
    ) -> Iterator[Event]:
        try:
            yield from extraction.run(self._units(plan, work, output, claimed))
        except StoreError:
            if all(map(self._leases.holds, self._pending)):
                raise
            self._give_back()
            yield Note(self.name, "this worker slept for long; others have taken its units over")

    def _begin(self, model: LoadedModel, notes: list[str]) -> tuple[Attributes, Prepared] | None:
        """Begin the model, or wait for the worker that does; None: it is complete meanwhile."""
        lease = f"{WORKERS}/begin-{self.name}"
        self._shared.make_folder()
        while not self._leases.claim(lease):
            if self._shared.plan() is not None or self.one.is_complete():
                break
            time.sleep(POLL_SECONDS / 10)
        try:
            plan = self._shared.plan()
            if plan is not None:
                return plan, self.one.prepare(model, plan, notes.append)[0]
            if self.one.is_complete():
                return None
            work, manifest = self.one.prepare(model, None, notes.append)
            begun = {job.name: job._shared.plan() for job in self._earlier}
            known = {name: plan for name, plan in begun.items() if plan is not None}
            plan = self.one.begin(model, work, manifest, known)
            self._shared.begin(plan)
            return plan, work
        finally:
            self._leases.release(lease)

    def _claim(self, plan: Attributes) -> tuple[int, int | None] | None:
        """Take the lease of the next unit: a language and its part, or None for its arrays.

        Arrays come first, so that the states of few languages wait on the disk.
        """
        n_languages = len(plan["languages"])
        first = self._rank * n_languages // self._world_size
        order = [*range(first, n_languages), *range(first)]
        todo = [i for i in order if not plan["written"][i] and not self._shared.is_computed(i)]
        if todo and self._bases_are_complete(plan):
            for i_lang in todo:
                parts = [self._shared.part(number) for number in plan["parts"][i_lang]]
                if all(map(self._shared.done, parts)) and self._take(self._shared.language(i_lang)):
                    return i_lang, None
        for i_lang in todo:
            for number in plan["parts"][i_lang]:
                unit = self._shared.part(number)
                if self._shared.done(unit) is None and self._take(unit):
                    return i_lang, number
        return None

    def _take(self, unit: str) -> bool:
        """Take the lease of a unit, unless it was done meanwhile."""
        if not self._leases.claim(unit):
            return False
        if self._shared.done(unit) is not None:
            self._leases.release(unit)
            return False
        self._pending.add(unit)
        return True

    def _bases_are_complete(self, plan: Attributes) -> bool:
        own = {name for name in plan["attributes"]["bases"] if "@" not in name}
        return not own or own <= set(Run(str(self.one.place)).models)

    def _units(
        self,
        plan: Attributes,
        work: Prepared,
        output: "_Output",
        claimed: tuple[int, int | None] | None,
    ) -> Iterator[Unit]:
        parts = {part.number: part for parts in work.plan.languages for part in parts}
        while claimed is not None:
            i_lang, number = claimed
            if number is not None:
                done = partial(self._done, self._shared.part(number))
                yield Unit(i_lang, parts[number], done)
            else:
                unit = self._shared.language(i_lang)
                if output.is_whole(work.plan.languages[i_lang]):
                    yield Unit(i_lang, done=partial(self._done, unit))
                else:
                    self._shared.forget(i_lang, plan["parts"][i_lang])
                    self._pending.discard(unit)
                    self._leases.release(unit)
            claimed = self._claim(plan)

    def _done(self, unit: str, seconds: float, tokens: int) -> None:
        """Mark a unit as done; not if another worker has its lease by now."""
        if self._leases.holds(unit):
            self._shared.set_done(unit, seconds=seconds, tokens=tokens)
        self._pending.discard(unit)
        self._leases.release(unit)

    def _give_back(self) -> None:
        for unit in tuple(self._pending):
            self._pending.discard(unit)
            self._leases.release(unit)

    def _texts_done(self, plan: Attributes) -> int:
        done = 0
        for i_lang, (start, stop) in enumerate(plan["languages"]):
            parts = plan["parts"][i_lang]
            if plan["written"][i_lang] or self._shared.is_computed(i_lang):
                done += stop - start
            elif parts:
                whole = sum(self._shared.done(self._shared.part(n)) is not None for n in parts)
                done += (stop - start) * whole // len(parts)
        return int(done)

    def _merge(self, plan: Attributes) -> Generator[Event, None, bool]:
        """Merge the model, if all its languages are computed and nobody else does."""
        if languages_missing(self._shared, plan):
            return False
        lease = f"{WORKERS}/merge-{self.name}"
        if not self._leases.claim(lease):
            return False
        try:
            if not self.one.is_complete():
                yield from merge_model(self.one.place, self.name, plan)
        except StoreError as error:
            if not languages_missing(self._shared, plan):
                raise
            yield Note(self.name, f"computed again: {error}")
            return False
        finally:
            self._leases.release(lease)
        self.is_complete = True
        return True


class _Output:
    """Where a worker writes; stands in for a `Session`."""

    def __init__(self, shared: Shared, plan: Attributes) -> None:
        """Give the model and its plan."""
        sizes = plan["sizes"]
        row_shape = (sizes["layer"], sizes["pooling"], sizes["hidden"] + sizes["proj"])
        self.segments = shared.segments(row_shape)
        self._shared, self._plan = shared, plan

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
        """Keep the arrays of a language, and delete its states."""
        self._shared.write_language(i_lang, arrays)
        for number in self._plan["parts"][i_lang]:
            self.segments.drop(number)


def languages_missing(shared: Shared, plan: Attributes) -> int:
    """How many languages of a model are not computed yet."""
    return sum(
        not written and not shared.is_computed(i_lang)
        for i_lang, written in enumerate(plan["written"])
    )


def merge_model(place: Place, name: str, plan: Attributes) -> Iterator[Event]:
    """Write the languages of a model into the store in their order, and mark it complete.

    After a crash it is merged again, from where it stopped. The caller has the lease for it.

    Args:
        place: of the store.
        name: of the model.
        plan: of the model, whose languages are all computed.

    Raises:
        StoreError: the arrays of a language are damaged, and will be computed again; or the store
            cannot be written.
    """
    shared = Shared(place, name)
    attributes = plan["attributes"]
    session = Session(
        place,
        place.group(read_only=False),
        name,
        plan["sizes"],
        languages=[slice(*samples) for samples in plan["languages"]],
        parts=plan["parts"],
        attributes=attributes,
        earlier=attributes["manifest"],
    )
    for i_lang in range(len(plan["languages"])):
        if session.is_written(i_lang):
            continue
        try:
            arrays = shared.read_language(i_lang)
        except StoreError:
            shared.forget(i_lang, plan["parts"][i_lang])
            raise
        session.write_language(i_lang, arrays)
    lost = write_rest(session.arrays, plan["pooled"])
    spent = _spent(shared, plan)
    how = {key: plan[key] for key in ("versions", "device", "impl")}
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    session.finish({**how, "ended": ended, **spent})
    with alone(place.work):
        consolidate(str(place))
    if lost.any():
        yield Note(
            name, what_is_lost(lost, attributes["hookpoints"], getattr(torch, plan["dtype"]))
        )
    yield ModelDone(name, texts=plan["sizes"]["sample"], peak_device_bytes=None, **spent)


def _spent(shared: Shared, plan: Attributes) -> dict[str, Any]:
    """Seconds and tokens of all workers together."""
    parts = [shared.done(shared.part(n)) or {} for numbers in plan["parts"] for n in numbers]
    languages = [shared.done(shared.language(i)) or {} for i in range(len(plan["languages"]))]
    return {
        "forward_seconds": sum(done.get("seconds", 0.0) for done in parts),
        "finish_seconds": sum(done.get("seconds", 0.0) for done in languages),
        "tokens": sum(int(done.get("tokens", 0)) for done in parts),
    }


def merge(location: str | Path) -> Generator[Event, None, None]:
    """Merge every model of a store whose languages are all computed; twice does no harm.

    Workers do this by themselves. It helps if the last of them died just before.

    Args:
        location: path or URL of the store.

    Raises:
        StoreError: there is nothing to merge, or a store cannot be written.
    """
    place = Place(location)
    plans = {
        folder.name: plan
        for folder in (sorted(place.work.iterdir()) if place.work.is_dir() else ())
        if folder.name[0] != "." and (plan := Shared(place, folder.name).plan()) is not None
    }
    if not place.exists():
        raise StoreError(f"{place}: no such store")
    if not plans:
        yield Note("", f"{place}: nothing to merge")
        return
    with Leases(place.work) as leases:
        for name, plan in plans.items():
            with Claim(place.work / name, f"{place}: model {name!r}", shared=True):
                lease = f"{WORKERS}/merge-{name}"
                if missing := languages_missing(Shared(place, name), plan):
                    yield Note(
                        name,
                        f"{missing} of {len(plan['languages'])} languages are not computed yet; "
                        "repeat the run with --resume to finish them",
                    )
                elif not leases.claim(lease):
                    yield Note(name, "another process merges it")
                else:
                    try:
                        yield from merge_model(place, name, plan)
                    finally:
                        leases.release(lease)
