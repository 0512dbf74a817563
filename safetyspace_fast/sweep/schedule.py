"""A simulated cluster: workers that fail, are preempted and come back, sharing a file system."""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from ..errors import ConfigError

_NO_MODEL = -1
_IN_VAIN = 100
"""Failures for each unit and worker after which a sweep is held to have no end."""


@dataclass(frozen=True)
class Unit:
    """What a worker does in one go: a part of one model's texts.

    model: number of the model.
    seconds: of its batches.
    store_bytes: that it writes at its end.
    """

    model: int
    seconds: float
    store_bytes: float


@dataclass(frozen=True)
class Conditions:
    """Of a simulated cluster.

    workers: one a device.
    load_bytes: weights of each model, which a worker reads when it changes to the model.
    read_bytes_per_s, worker_read_bytes_per_s: of the file system for all, and at most for one.
    store_bytes_per_s: of the store, for all.
    start_s: to make a model ready, beside reading its weights.
    hours_to_failure: mean time of one worker until it fails or is preempted.
    away_s: mean time until it is back.
    batch_s: seconds of a batch. Batches are kept, so a worker that dies loses the one in hand;
        infinite: it loses all of its unit.
    """

    workers: int
    load_bytes: Sequence[float]
    read_bytes_per_s: float = 5e9
    worker_read_bytes_per_s: float = 2e9
    store_bytes_per_s: float = 1e9
    start_s: float = 0.0
    hours_to_failure: float = 24.0
    away_s: float = 300.0
    batch_s: float = 2.0


@dataclass(frozen=True)
class Schedule:
    """What a simulated sweep took.

    seconds: until its end.
    useful, loading, writing, lost, away, idle: shares of all workers' time until then: batches that
        were kept, waiting for weights, waiting for the store, work done in vain, workers that were
        gone, and workers without a unit.
    tail_s: seconds at the end in which some worker found no unit.
    failures: of workers.
    """

    seconds: float
    useful: float
    loading: float
    writing: float
    lost: float
    away: float
    idle: float
    tail_s: float
    failures: int

    @property
    def limit(self) -> str:
        """What takes the largest share beside useful work."""
        shares = {
            "loading models": self.loading,
            "writing the store": self.writing,
            "failures": self.lost + self.away,
            "the tail": self.idle,
        }
        return max(shares, key=shares.__getitem__)


def is_worth_loading(holders: int, ready_s: float, left_s: float) -> bool:
    """Whether a worker should load a model: it is ready before those that hold it are through.

    Args:
        holders: workers that hold the model.
        ready_s: until it is loaded.
        left_s: of its units that wait, one after the other.
    """
    return holders == 0 or ready_s < left_s / holders


def simulate(units: Sequence[Unit], conditions: Conditions, seed: int = 0) -> Schedule:
    """Let workers take units in order until all are done; each prefers the model that it holds.

    Args:
        units: in order.
        conditions: of the cluster.
        seed: of failures.

    Raises:
        ConfigError: there are no workers or no units; or workers fail before they do anything.
    """
    if conditions.workers < 1 or not units:
        raise ConfigError("schedule: expected at least one worker and one unit")
    return _Simulation(units, conditions, seed).run()


class _Pipe:
    """A file system that all share: it serves one request after the other at its full rate."""

    def __init__(self, bytes_per_s: float, at_most: float) -> None:
        self._rate, self._at_most, self._free_at = bytes_per_s, at_most, 0.0

    def ready_in(self, now: float, n_bytes: float) -> float:
        """Seconds until a request that came now would be answered."""
        waits = max(self._free_at - now, 0.0)
        return max(waits + n_bytes / self._rate, n_bytes / self._at_most)

    def end_of(self, now: float, n_bytes: float) -> float:
        """When a request that comes now is answered."""
        end = now + self.ready_in(now, n_bytes)
        self._free_at = max(self._free_at, now) + n_bytes / self._rate
        return end


class _Simulation:
    """Events in order of time; each may make later ones."""

    def __init__(self, units: Sequence[Unit], conditions: Conditions, seed: int) -> None:
        self._conditions, self._rng = conditions, np.random.default_rng(seed)
        self._waiting: dict[int, list[Unit]] = {}
        self._left_s: dict[int, float] = {}  # of the units that wait, by model
        self._holders: Counter[int] = Counter()  # workers, by the model that they hold
        for unit in reversed(units):
            self._put(unit)
        self._left = len(units)
        self._most_failures = _IN_VAIN * (len(units) + conditions.workers)
        self._reads = _Pipe(conditions.read_bytes_per_s, conditions.worker_read_bytes_per_s)
        self._writes = _Pipe(conditions.store_bytes_per_s, conditions.store_bytes_per_s)
        self._spent = dict.fromkeys(("useful", "loading", "writing", "lost", "away"), 0.0)
        self._fails_at = self._drawn(conditions.hours_to_failure * 3600, conditions.workers)
        self._idle: list[int] = []
        self._idle_from = self._end = 0.0
        self._failures = 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = count()

    def run(self) -> Schedule:
        """Let all workers begin, and handle events until no unit is left."""
        for worker in range(self._conditions.workers):
            self._at(0.0, self._take, worker, _NO_MODEL)
        while self._left:
            now, _, handle, arguments = heapq.heappop(self._events)
            handle(now, *arguments)
        total = self._end * self._conditions.workers
        shares = {name: spent / total for name, spent in self._spent.items()}
        return Schedule(
            self._end,
            **shares,
            idle=max(0.0, 1 - sum(shares.values())),
            tail_s=self._end - self._idle_from if self._idle else 0.0,
            failures=self._failures,
        )

    def _take(self, now: float, worker: int, model: int) -> None:
        """A worker is free, and holds a model."""
        unit = self._next(model, now)
        if unit is None:
            self._idle_from = self._idle_from if self._idle else now
            self._idle.append(worker)
            return
        if self._fails_at[worker] < now:  # while it was idle, which costs nothing
            self._fails_at[worker] = now + self._lifetime()
        loaded = now
        if model != unit.model:
            loaded = self._reads.end_of(now, self._conditions.load_bytes[unit.model])
            loaded += self._conditions.start_s
        ran = loaded + unit.seconds
        if ran < self._fails_at[worker]:
            self._at(ran, self._write, worker, unit, now, loaded)
        else:
            self._fail(worker, unit, now, min(loaded, self._fails_at[worker]))

    def _write(self, now: float, worker: int, unit: Unit, began: float, loaded: float) -> None:
        """A worker has run its unit."""
        stop = self._writes.end_of(now, unit.store_bytes)
        if stop < self._fails_at[worker]:
            self._at(stop, self._complete, worker, unit, began, loaded, now)
        else:
            self._fail(worker, unit, began, loaded)

    def _complete(
        self, now: float, worker: int, unit: Unit, began: float, loaded: float, ran: float
    ) -> None:
        self._spent["loading"] += loaded - began
        self._spent["useful"] += unit.seconds
        self._spent["writing"] += now - ran
        self._left -= 1
        self._end = now
        self._take(now, worker, unit.model)

    def _fail(self, worker: int, unit: Unit, began: float, loaded: float) -> None:
        """A worker will die in the middle of a unit; batches that it has run are kept."""
        fails_at, batch_s = self._fails_at[worker], self._conditions.batch_s
        ran = min(fails_at - loaded, unit.seconds)
        kept = ran // batch_s * batch_s if np.isfinite(batch_s) else 0.0
        self._failures += 1
        if self._failures > self._most_failures:
            hours = self._conditions.hours_to_failure
            raise ConfigError(
                f"failure: got {hours:g}h, and so workers fail before they have loaded a model or "
                "run a batch, over and over; expected a longer time"
            )
        self._holders[unit.model] -= 1
        self._spent["useful"] += kept
        self._spent["lost"] += fails_at - began - kept
        self._at(fails_at, self._requeue, replace(unit, seconds=unit.seconds - kept))
        back = fails_at + self._drawn(self._conditions.away_s, 1)[0]
        self._fails_at[worker] = back + self._lifetime()
        self._at(back, self._return, worker, fails_at)

    def _return(self, now: float, worker: int, failed_at: float) -> None:
        self._spent["away"] += now - failed_at
        self._take(now, worker, _NO_MODEL)

    def _requeue(self, now: float, unit: Unit) -> None:
        """A unit waits again, and so does somebody for one."""
        self._put(unit)
        if self._idle:
            self._take(now, self._idle.pop(), _NO_MODEL)

    def _next(self, model: int, now: float) -> Unit | None:
        """A unit of the model that a worker holds; or of the one with most work for each holder.

        If all began with the first model, each would read every model for a few units of it. So a
        worker takes another model only if it can be ready before the work of that model is done.
        """
        if model not in self._waiting:
            self._holders[model] -= 1
            worth = [other for other in self._waiting if self._is_ready_in_time(other, now)]
            if not worth:
                return None
            model = max(worth, key=lambda m: self._left_s[m] / (1 + self._holders[m]))
            self._holders[model] += 1
        units = self._waiting[model]
        unit = units.pop()
        self._left_s[model] -= unit.seconds
        if not units:
            del self._waiting[model], self._left_s[model]
        return unit

    def _is_ready_in_time(self, model: int, now: float) -> bool:
        holders, n_bytes = self._holders[model], self._conditions.load_bytes[model]
        ready_s = self._conditions.start_s + self._reads.ready_in(now, n_bytes)
        return is_worth_loading(holders, ready_s, self._left_s[model])

    def _put(self, unit: Unit) -> None:
        self._waiting.setdefault(unit.model, []).append(unit)
        self._left_s[unit.model] = self._left_s.get(unit.model, 0.0) + unit.seconds

    def _at(self, time: float, handle: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (time, next(self._number), handle, arguments))

    def _lifetime(self) -> float:
        return self._drawn(self._conditions.hours_to_failure * 3600, 1)[0]

    def _drawn(self, mean: float, number: int) -> list[float]:
        """Times until something that happens at a constant rate."""
        if not np.isfinite(mean):
            return [np.inf] * number
        return [float(time) for time in self._rng.exponential(mean, number)]
