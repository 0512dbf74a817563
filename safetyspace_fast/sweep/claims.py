"""The units of one model, as one worker sees them: which wait, which it has taken."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..store import Leases, Shared
from ..store.layout import Attributes
from ..store.leases import WORKERS

Claimed = tuple[int, int | None]
"""A language, and the number of its part; None: the arrays of the language."""


@dataclass(frozen=True)
class Left:
    """What is left of a model in one store.

    waiting: units that nobody has taken.
    done_s: seconds of each unit that is done.
    load_s: seconds in which its first worker loaded it; 0: it is not begun.
    """

    waiting: int
    done_s: tuple[float, ...] = ()
    load_s: float = 0.0


class Claims:
    """Takes units of a model for a worker, and gives back those that it does not end."""

    def __init__(
        self, name: str, leases: Leases, shared: Shared, rank: int, world_size: int, units: int
    ) -> None:
        """Take nothing yet.

        Args:
            name: of the model.
            leases: of the worker on the model's store.
            shared: the model's files.
            rank, world_size: the worker's number, and how many there are; they begin at different
                languages.
            units: how many there are, as long as the model is not begun.
        """
        self._leases = leases
        self._units = units
        self._holders = f"holding-{name}"
        self._holds = f"{WORKERS}/{self._holders}-{leases.worker.rpartition('/')[2]}"
        self._shared = shared
        self._rank, self._world_size = rank, world_size
        self._pending: set[str] = set()
        """Units that this worker has begun, and whose states may not be durable yet."""

    def next(self, plan: Attributes, *, with_arrays: bool) -> Claimed | None:
        """Take the lease of the next unit; None: there is none to take.

        Arrays come first, so that the states of few languages wait on the disk.

        Args:
            plan: of the model.
            with_arrays: arrays can be computed now.
        """
        todo = list(self._languages(plan))
        if with_arrays:
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

    def _languages(self, plan: Attributes) -> Iterator[int]:
        """Languages whose arrays are missing, in this worker's order."""
        n_languages = len(plan["languages"])
        first = self._rank * n_languages // self._world_size
        for i_lang in (*range(first, n_languages), *range(first)):
            if not plan["written"][i_lang] and not self._shared.is_computed(i_lang):
                yield i_lang

    def _take(self, unit: str) -> bool:
        """Take the lease of a unit, unless it was done meanwhile.

        Nor if this worker is about it, though its lease was lost and is free again: it would mark
        the unit as done when it ends, with the new lease, but it has not written its arrays.
        """
        if unit in self._pending or not self._leases.claim(unit):
            return False
        if self._shared.done(unit) is not None:
            self._leases.release(unit)
            return False
        self._pending.add(unit)
        return True

    def keeps(self, unit: str) -> bool:
        """Whether the worker still has a unit that it took; not if it slept for long."""
        return self._leases.holds(unit)

    def keeps_all(self) -> bool:
        """Whether the worker still has all that it took."""
        return all(map(self.keeps, self._pending))

    def done(self, unit: str, seconds: float, tokens: int) -> None:
        """Mark a unit as done; not if another worker has its lease by now."""
        if self.keeps(unit):
            self._shared.set_done(unit, seconds=seconds, tokens=tokens)
        self.give_back(unit)

    def give_back(self, *units: str) -> None:
        """Give units back, done or not."""
        for unit in units:
            self._pending.discard(unit)
            self._leases.release(unit)

    def give_all_back(self) -> None:
        """Give back whatever is left."""
        self.give_back(*self._pending)

    def hold(self) -> None:
        """Tell the other workers that this one has the model in memory, or loads it."""
        self._leases.claim(self._holds)

    def let_go(self) -> None:
        """Tell them that it has not, or no longer."""
        self._leases.release(self._holds)

    def holders(self) -> int:
        """How many workers have the model in memory."""
        return self._leases.owners(self._holders)

    def left(self) -> Left:
        """What is left to do for all workers together."""
        plan = self._shared.plan()
        if plan is None:
            return Left(self._units)
        waiting, done_s = 0, []
        for i_lang, parts in enumerate(plan["parts"]):
            if plan["written"][i_lang]:
                continue
            for unit in (*map(self._shared.part, parts), self._shared.language(i_lang)):
                if (done := self._shared.done(unit)) is not None:
                    done_s.append(done["seconds"])
                else:
                    waiting += self._leases.is_free(unit)
        return Left(waiting, tuple(done_s), plan["load_s"])

    def texts_done(self, plan: Attributes) -> int:
        """Texts of finished languages and parts."""
        done = 0
        for i_lang, (start, stop) in enumerate(plan["languages"]):
            parts = plan["parts"][i_lang]
            if plan["written"][i_lang] or self._shared.is_computed(i_lang):
                done += stop - start
            elif parts:
                whole = sum(self._shared.done(self._shared.part(n)) is not None for n in parts)
                done += (stop - start) * whole // len(parts)
        return int(done)
