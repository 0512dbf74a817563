"""What a sweep reports beside the events of its runs, and how workers' events become one stream."""

import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

from ..config import RunConfig
from ..errors import SafetySpaceError, StoreError, first_line
from ..extract import Event, Planned
from ..models import parse_model
from ..store import Place, Run

T = TypeVar("T")


@dataclass(frozen=True)
class RunBegun(Event):
    """The run of one model over one data set begins; `out` is its store."""


@dataclass(frozen=True)
class RunEnded(Event):
    """The run has ended, and the sweep goes on."""

    error: Exception | None
    """Why it failed; None: the model is complete in the store."""


def in_store(events: Generator[Event, None, T], out: str) -> Generator[Event, None, T]:
    """Name the store in the events of a run; returns what they return."""
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as stop:
                returned: T = stop.value
                return returned
            yield replace(event, out=out)


def portable(error: Exception) -> Exception:
    """An error that other processes can read; of one that nobody foresaw with its traceback."""
    if isinstance(error, SafetySpaceError):
        return error.with_traceback(None)
    told = RuntimeError(f"{type(error).__name__}: {first_line(error)}")
    told.add_note(traceback.format_exc())
    return told


def together(
    events: Iterator[Event], configs: Sequence[RunConfig], failures: Sequence[Exception]
) -> Iterator[Event]:
    """The events of several workers as those of one sweep: a run begins, is planned and ends once.

    Args:
        events: of all workers, until they have ended; what is complete is told also after an error.
        configs: each with one model.
        failures: why workers have ended too early; grows meanwhile.

    Raises:
        SafetySpaceError: no worker has begun or found anything, for this reason.
    """
    told: set[tuple[type[Event], str, str]] = set()
    failed: dict[tuple[str, str], RunEnded] = {}
    lost: list[Exception] = []
    try:
        for event in events:
            run = event.model, event.out
            if isinstance(event, RunEnded) and event.error is not None:
                failed.setdefault(run, event)  # others may complete it
            elif not isinstance(event, RunBegun | Planned | RunEnded):
                yield event
            elif (type(event), *run) not in told and (RunEnded, *run) not in told:
                told.add((type(event), *run))
                yield event
    except SafetySpaceError as error:
        lost.append(error)
    lost += failures
    if lost and not told:
        raise lost[0]
    for config in configs:
        model, out = parse_model(*config.models).name, str(config.out)
        if (RunEnded, model, out) in told:
            continue
        if is_complete(model, out):
            yield RunEnded(model, None, out=out)
        elif (model, out) in failed:
            yield failed[model, out]
        else:
            ended = StoreError(
                f"{out}: all workers have ended, and {model} is not complete; finished batches are "
                "kept: repeat the command with --resume"
            )
            yield RunEnded(model, [*lost, ended][0], out=out)


def raising(events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """Pass events on, and raise at the end why the first of the runs that failed did."""
    errors = []
    with closing(events):
        for event in events:
            if isinstance(event, RunEnded) and event.error is not None:
                errors.append(event.error)
            yield event
    if errors:
        raise errors[0]


def is_complete(model: str, out: str) -> bool:
    """Whether a store has a model, complete."""
    place = Place(out)
    return place.exists() and model in Run(str(place)).models
