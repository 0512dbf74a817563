"""A simulated cluster: workers that fail, are preempted and come back, sharing a file system."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from ..errors import ConfigError


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


def simulate(units: Sequence[Unit], conditions: Conditions, seed: int = 0) -> Schedule:
    """Let workers take units in order until all are done; each prefers the model that it holds.

    Args:
        units: in order.
        conditions: of the cluster.
        seed: of failures.

    Raises:
        ConfigError: there are no workers or no units.
    """
    if conditions.workers < 1 or not units:
        raise ConfigError("schedule: expected at least one worker and one unit")
    return _Simulation(units, conditions, seed).run()


class _Pipe:
    """A file system that all share: it serves one request after the other at its full rate."""

    def __init__(self, bytes_per_s: float, at_most: float) -> None:
        self._rate, self._at_most, self._free_at = bytes_per_s, at_most, 0.0

    def end_of(self, now: float, n_bytes: float) -> float:
        """When a request that comes now is answered."""
        self._free_at = max(self._free_at, now) + n_bytes / self._rate
        return max(self._free_at, now + n_bytes / self._at_most)


class _Simulation:
    def __init__(self, units: Sequence[Unit], conditions: Conditions, seed: int) -> None:
        self._conditions, self._rng = conditions, np.random.default_rng(seed)
        self._waiting: dict[int, list[Unit]] = {}
        self._left_s: dict[int, float] = {}  # of the units that wait, by model
        self._holders: Counter[int] = Counter()  # workers, by the model that they hold
        for unit in reversed(units):
            self._put(unit)
        self._left = len(units)
        self._reads = _Pipe(conditions.read_bytes_per_s, conditions.worker_read_bytes_per_s)
        self._writes = _Pipe(conditions.store_bytes_per_s, conditions.store_bytes_per_s)
        self._spent = dict.fromkeys(("useful", "loading", "writing", "lost", "away"), 0.0)
        self._events: list[tuple[float, int, int | Unit, int]] = []  # time, .., worker or unit, ..
        self._number = count()

    def run(self) -> Schedule:
        """Handle one event after the other: a worker that is free, or a unit that waits again."""
        conditions = self._conditions
        fails_at = self._drawn(conditions.hours_to_failure * 3600, conditions.workers)
        for worker in range(conditions.workers):
            self._push(0.0, worker)
        idle: list[int] = []
        idle_from, failures, end = 0.0, 0, 0.0
        while self._left:
            now, _, who, model = heapq.heappop(self._events)
            if isinstance(who, Unit):
                self._put(who)
                if not idle:
                    continue
                who, model = idle.pop(), -1
            unit = self._next(model)
            if unit is None:
                idle_from = idle_from if idle else now
                idle.append(who)
                continue
            if fails_at[who] < now:  # while it was idle, which costs nothing
                fails_at[who] = now + self._drawn(conditions.hours_to_failure * 3600, 1)[0]
            stop = self._work(unit, now, model, fails_at[who])
            if stop <= fails_at[who]:
                self._left -= 1
                end = max(end, stop)
                self._push(stop, who, unit.model)
                continue
            failures += 1
            self._holders[unit.model] -= 1
            back = fails_at[who] + self._drawn(conditions.away_s, 1)[0]
            self._spent["away"] += back - fails_at[who]
            self._push(back, who)
            fails_at[who] = back + self._drawn(conditions.hours_to_failure * 3600, 1)[0]
        total = end * conditions.workers
        shares = {name: spent / total for name, spent in self._spent.items()}
        return Schedule(
            end,
            **shares,
            idle=max(0.0, 1 - sum(shares.values())),
            tail_s=max(0.0, end - idle_from) if idle else 0.0,
            failures=failures,
        )

    def _work(self, unit: Unit, now: float, model: int, fails_at: float) -> float:
        """Let a worker do a unit, unless it fails first; returns when it would be done."""
        conditions = self._conditions
        loaded = now
        if model != unit.model:
            loaded = self._reads.end_of(now, conditions.load_bytes[unit.model])
            loaded += conditions.start_s
        ran = loaded + unit.seconds
        if ran <= fails_at:
            stop = self._writes.end_of(ran, unit.store_bytes)
            if stop <= fails_at:
                self._spent["loading"] += loaded - now
                self._spent["useful"] += unit.seconds
                self._spent["writing"] += stop - ran
                return stop
        kept = 0.0
        if np.isfinite(conditions.batch_s):
            batches = max(0.0, min(fails_at, ran) - loaded) // conditions.batch_s
            kept = min(batches * conditions.batch_s, unit.seconds)
        self._spent["useful"] += kept
        self._spent["lost"] += fails_at - now - kept
        self._push(fails_at, replace(unit, seconds=unit.seconds - kept))
        return np.inf

    def _next(self, model: int) -> Unit | None:
        """A unit of the model that a worker holds; or of the one with most work for each holder.

        If all began with the first model, each would read every model for a few units of it.
        """
        if model not in self._waiting:
            self._holders[model] -= 1
            if not self._waiting:
                return None
            model = max(self._waiting, key=lambda m: self._left_s[m] / (1 + self._holders[m]))
            self._holders[model] += 1
        units = self._waiting[model]
        unit = units.pop()
        self._left_s[model] -= unit.seconds
        if not units:
            del self._waiting[model], self._left_s[model]
        return unit

    def _put(self, unit: Unit) -> None:
        self._waiting.setdefault(unit.model, []).append(unit)
        self._left_s[unit.model] = self._left_s.get(unit.model, 0.0) + unit.seconds

    def _push(self, time: float, who: int | Unit, model: int = -1) -> None:
        heapq.heappush(self._events, (time, next(self._number), who, model))

    def _drawn(self, mean: float, number: int) -> list[float]:
        """Times until something that happens at a constant rate."""
        return (
            self._rng.exponential(mean, number).tolist() if np.isfinite(mean) else [np.inf] * number
        )
