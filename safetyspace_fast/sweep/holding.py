"""The model that a worker has in memory, and whether another one is worth loading."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import fmean

from ..models import LoadedModel
from ..runner import OneModel
from .claims import Claims
from .schedule import is_worth_loading
from .shared import SharedWork


class Holding:
    """At most one model in memory, for all stores that it fills; other workers see which."""

    def __init__(
        self, shared: SharedWork, loading: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Hold nothing yet.

        Args:
            shared: keeps the model.
            loading: lasts as long as a model is loaded.
        """
        self.name: str | None = None
        """Of the model that is held."""
        self.load_s = 0.0
        """What loading it took."""
        self._shared = shared
        self._loading = loading
        self._claims: dict[str, list[Claims]] = {}

    def add(self, name: str, claims: Claims) -> None:
        """A model is to fill a store."""
        self._claims.setdefault(name, []).append(claims)

    def remove(self, name: str, claims: Claims) -> None:
        """It has, or cannot."""
        self._claims[name].remove(claims)
        claims.let_go()

    def load(self, one: OneModel, on_note: Callable[[str], None]) -> LoadedModel:
        """Load a model in place of the one that is held, or give that."""
        if one.name == self.name:
            return one.load(on_note)
        self.forget()
        self.name = one.name
        for claims in self._claims[one.name]:
            claims.hold()
        with self._loading():
            started = time.monotonic()
            model = one.load(on_note)
            self.load_s = time.monotonic() - started
        return model

    def forget(self) -> None:
        """Free the model."""
        for claims in self._claims.get(self.name or "", ()):
            claims.let_go()
        self.name = None
        self._shared.forget_model()

    def wants(self, name: str) -> bool:
        """Whether to take units of a model: it is held, or is ready in time if it is loaded now.

        Nobody knows the seconds before the first unit is done. Until then a worker joins those
        that hold the model if there are more units than workers.
        """
        if name == self.name:
            return True
        holders = max(claims.holders() for claims in self._claims[name])
        if not holders:
            return True
        left = [claims.left() for claims in self._claims[name]]
        waiting = sum(one.waiting for one in left)
        done_s = [seconds for one in left for seconds in one.done_s]
        if not done_s:
            return waiting > holders
        load_s = max(one.load_s for one in left)
        return is_worth_loading(holders, load_s, waiting * fmean(done_s))
