"""Workers that share models: each claims the next unit of work through the store, and runs it.

A *unit* is one part of a language (its batches) or the arrays of one language. Any number of
processes on any machines that see the store's folder call `work` with the same configs. A worker
goes through the models in order. It loads one, takes units that nobody has in all stores that the
model fills, and goes on to the next model that it can load in time (`holding`). Whoever comes first
begins a model: what it measures, such as the size of a batch, is the plan of all. Whoever finds all
languages computed merges them. A worker that dies loses the batch in hand; others take its units
over, and finish what is in its segments.

The bytes of the store are those of `run_models`, whatever the number of workers, if each has as
many threads.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import fields
from reprlib import Repr
from typing import Any

from ..config import RunConfig
from ..errors import ConfigError, SafetySpaceError, StoreError
from ..extract import Event, Note
from ..models import parse_model
from ..runner import OneModel, refuse_existing, specs_of, start_afresh
from ..store import Claim, Leases, Place, alone, settle
from .events import RunEnded, in_store, portable
from .holding import Holding
from .job import POLL_SECONDS, Job
from .shared import SharedWork
from .templates import templates_of

_NOT_COMPARED = ("out", "device", "resume", "overwrite", "verify")
"""Fields that may differ between the workers on one sweep."""


def work(
    configs: Sequence[RunConfig],
    rank: int = 0,
    world_size: int = 1,
    *,
    loading: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[Event, None, None]:
    """Be one worker, until every model is complete or has failed here; `RunEnded` says which.

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
        SafetySpaceError: the data or a store cannot be used.
    """
    refuse_unshared(configs)
    names = list(dict.fromkeys(parse_model(*config.models).name for config in configs))
    compiled = {parse_model(*config.models).name for config in configs if config.compile}
    shared = SharedWork(configs)
    holding = Holding(shared, loading)
    with ExitStack() as stack:
        waiting: list[Job] = []
        for of_store in by_store(configs):
            waiting += yield from _join(of_store, (rank, world_size), shared, holding, stack)
        waiting.sort(key=lambda job: names.index(job.name))  # all stores of a model, then the next
        failures: list[tuple[Job, Exception]] = []
        while waiting:
            busy = False
            for job in sorted(waiting, key=lambda job: job.name != holding.name):
                try:
                    did = yield from in_store(job.work(), job.out)
                except Exception as error:  # also what nobody foresaw: the other models count
                    if _is_of_the_disk(error):  # no model could be written: leave all to others
                        raise
                    job.fail()
                    if job.name == holding.name:
                        holding.forget()
                    failures.append((job, portable(error)))
                    yield Note(job.name, f"failed in worker {rank}: {failures[-1][1]}", out=job.out)
                else:
                    busy |= did
                    if did and job.name in compiled:
                        holding.forget()
                    if not job.is_complete:
                        continue
                    yield RunEnded(job.name, None, out=job.out)
                waiting.remove(job)
                job.leave()
            if not busy and waiting:
                time.sleep(POLL_SECONDS)
        for job, failure in failures:
            by_others = job.one.is_complete()
            yield RunEnded(job.name, None if by_others else failure, out=job.out)


def refuse_unsuitable(configs: Sequence[RunConfig]) -> None:
    """Refuse what no workers can do, once before they start.

    Args:
        configs: each with one model.

    Raises:
        StoreError: a store exists, and is neither to be gone on with nor overwritten.
        ConfigError: a model cannot be shared, or two have the same name.
    """
    refuse_unshared(configs)
    for of_store in by_store(configs):
        refuse_existing(of_store[0])


def begin_stores(configs: Sequence[RunConfig]) -> None:
    """Refuse what is unsuitable, then make those stores empty that are overwritten."""
    refuse_unsuitable(configs)
    for of_store in by_store(configs):
        if of_store[0].overwrite:
            names = [parse_model(*config.models).name for config in of_store]
            start_afresh(of_store[0], names)


def refuse_unshared(configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError if workers cannot share these models."""
    instead = "run this model by itself, without --devices, --rank, --world-size and --ray"
    for config in configs:
        if config.tensor_parallel > 1:
            raise ConfigError(f"tensor_parallel: a worker has one device; {instead}")
        if config.weights == "stream":
            raise ConfigError(
                f"weights: one process reads streamed weights, once for all texts; {instead}, or "
                "choose weights 'load'"
            )
    for of_store in by_store(configs):
        specs_of([model for config in of_store for model in config.models])


def _is_of_the_disk(error: Exception) -> bool:
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
    rank: tuple[int, int],
    shared: SharedWork,
    holding: Holding,
    stack: ExitStack,
) -> Generator[Event, None, list[Job]]:
    """Become a worker on one store: refuse what cannot be done, before any model is loaded."""
    place = Place(configs[0].out)
    names = [parse_model(*config.models).name for config in configs]
    settings = _settings_of(configs)
    about = {"models": names, "settings": settings}
    leases = stack.enter_context(Leases(place.work, about))
    _refuse_disagreement(place, leases, names, settings)
    for name in names:
        claim = Claim(place.work / name, f"{place}: model {name!r}", shared=True)
        stack.enter_context(claim)
    with alone(place.work):
        settle(place, names)
    notes: list[str] = []
    samples = [shared.samples(config, notes.append) for config in configs]
    templates = templates_of(configs, notes.append)
    jobs: list[Job] = []
    for config, data in zip(configs, samples, strict=True):
        one = OneModel(config, data, templates, names, shared.steps)
        jobs.append(Job(one, leases, rank, tuple(jobs), holding))
        stack.callback(jobs[-1].close)
    if rank[0] == 0:
        for note in notes:
            yield Note("", note)
    return jobs


def _settings_of(configs: Sequence[RunConfig]) -> dict[str, str]:
    """What all workers on a store must agree on, by name: the options that have not their defaults.

    Args:
        configs: of one store.
    """

    def told(value: object) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    settings = {}
    for field in fields(RunConfig):
        values = [told(getattr(config, field.name)) for config in configs]
        if field.name not in _NOT_COMPARED and set(values) != {told(field.default)}:
            settings[field.name] = ",".join(values if len(set(values)) > 1 else values[:1])
    return settings


def _refuse_disagreement(
    place: Place, leases: Leases, names: Sequence[str], settings: Mapping[str, str]
) -> None:
    """Raise ConfigError if a living worker has another sweep with one of these models.

    Args:
        place: of the store.
        leases: of this worker.
        names: of its models.
        settings: of its sweep.
    """
    for other in leases.others():
        theirs: Any = other.get("models", ())
        both = [name for name in names if name in theirs]
        there: Any = other.get("settings", {})
        differing = [
            f"{name} is {_brief(there.get(name))} there and {_brief(settings.get(name))} here"
            for name in sorted({*settings, *there})
            if settings.get(name) != there.get(name)
        ]
        if both and differing:
            raise ConfigError(
                f"{place}: process {other['pid']} on {other['host']} runs model {both[0]!r} with "
                f"other settings: {'; '.join(differing)}; give all ranks the same command, or wait "
                "for the other run"
            )


def _brief(value: str | None) -> str:
    """A value in a message: of a long one, such as many paths, its beginning and its end."""
    brief = Repr()
    brief.maxstring = 80
    return "the default" if value is None else brief.repr(value)
