"""Languages that workers have computed become a complete model of the store."""

from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import StoreError
from ..extract import Event, ModelDone, Note
from ..extract.loop import what_is_lost, write_rest
from ..runner.steps import now
from ..store import Claim, Leases, Place, Run, Session, Shared, alone, consolidate
from ..store.layout import Attributes
from ..store.leases import WORKERS


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
    Run(str(place))  # says what is wrong with it
    if not plans:
        yield Note("", f"{place}: nothing to merge")
        return
    with Leases(place.work) as leases:
        for name, plan in plans.items():
            with Claim(place.work / name, f"{place}: model {name!r}", shared=True):
                lease = f"{WORKERS}/merge-{name}"
                if not leases.claim(lease):
                    yield Note(name, "another process merges it")
                    continue
                shared = Shared(place, name)
                try:
                    if shared.plan() is None:
                        yield Note(name, "another process has merged it")
                    elif missing := languages_missing(shared, plan):
                        yield Note(
                            name,
                            f"{missing} of {len(plan['languages'])} languages are not computed "
                            "yet; repeat the run with --resume to finish them",
                        )
                    else:
                        yield from merge_model(place, name, plan, partial(leases.holds, lease))
                finally:
                    leases.release(lease)


def merge_model(
    place: Place, name: str, plan: Attributes, may_write: Callable[[], bool]
) -> Iterator[Event]:
    """Write the languages of a model into the store in their order, and mark it complete.

    After a crash it is merged again, from where it stopped.

    Args:
        place: of the store.
        name: of the model.
        plan: of the model, whose languages are all computed.
        may_write: whether the caller has the lease for it, asked before each step; if it has not,
            because it slept, another worker merges the model.

    Raises:
        StoreError: the arrays of a language are damaged, and will be computed again; or the store
            cannot be written.
    """
    try:
        yield from _merge(place, name, plan, may_write)
    except _TakenOverError:
        yield Note(name, "this process slept for long; another one merges the model")


class _TakenOverError(Exception):
    """Another worker merges the model by now."""


def _merge(
    place: Place, name: str, plan: Attributes, may_write: Callable[[], bool]
) -> Iterator[Event]:
    def go_on() -> None:
        if not may_write():
            raise _TakenOverError

    shared = Shared(place, name)
    attributes = plan["attributes"]
    go_on()
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
            go_on()
            shared.forget(i_lang, plan["parts"][i_lang])
            raise
        go_on()
        session.write_language(i_lang, arrays)
    go_on()
    lost = write_rest(session.arrays, plan["pooled"])
    spent = _spent(shared, plan)
    how = {key: plan[key] for key in ("versions", "device", "impl")}
    session.finish({**how, "ended": now(), **spent})
    with alone(place.work):
        consolidate(str(place))
    if lost.any():
        yield Note(
            name, what_is_lost(lost, attributes["hookpoints"], getattr(torch, plan["dtype"]))
        )
    yield ModelDone(name, texts=plan["sizes"]["sample"], peak_device_bytes=None, **spent)


def languages_missing(shared: Shared, plan: Attributes) -> int:
    """How many languages of a model are not computed yet."""
    return sum(
        not written and not shared.is_computed(i_lang)
        for i_lang, written in enumerate(plan["written"])
    )


def _spent(shared: Shared, plan: Attributes) -> dict[str, Any]:
    """Seconds and tokens of all workers together."""
    parts = [shared.done(shared.part(n)) or {} for numbers in plan["parts"] for n in numbers]
    languages = [shared.done(shared.language(i)) or {} for i in range(len(plan["languages"]))]
    return {
        "forward_seconds": sum(done.get("seconds", 0.0) for done in parts),
        "finish_seconds": sum(done.get("seconds", 0.0) for done in languages),
        "tokens": sum(int(done.get("tokens", 0)) for done in parts),
    }
