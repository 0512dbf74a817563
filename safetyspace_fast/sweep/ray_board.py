"""What the workers of a run on a Ray cluster share: a board beside the driver.

Ray sends this module as it stands (`ray_cluster`), so that the board's process starts without the
package. It imports nothing but the standard library.
"""

import time


class Board:
    """An actor beside the driver, where workers leave their events and ask before they load.

    Events are pickled, so that the board needs none of their modules.
    """

    def __init__(self, loading: float) -> None:
        """`loading`: seconds after which a worker that loads keeps no other from it."""
        self._patience = loading
        self._events: list[bytes] = []
        self._heard: dict[int, float] = {}
        self._loading: dict[str, tuple[int, float]] = {}

    def tell(self, worker: int, *events: bytes) -> None:
        """Worker `worker` lives, and has events."""
        self._heard[worker] = time.monotonic()
        self._events += events

    def take(self) -> tuple[list[bytes], float]:
        """All new events, and how long ago a worker was heard; infinite: never."""
        events, self._events = self._events, []
        heard = max(self._heard.values(), default=-float("inf"))
        return events, time.monotonic() - heard

    def may_load(self, worker: int, node: str) -> bool:
        """Whether a worker may load a model: nobody else on its node is loading one."""
        holder, since = self._loading.get(node, (worker, 0.0))
        if holder != worker and time.monotonic() - since < self._patience:
            return False
        self._loading[node] = (worker, time.monotonic())
        return True

    def loaded(self, worker: int) -> None:
        """A worker loads no longer, or has gone."""
        for node, (holder, _) in tuple(self._loading.items()):
            if holder == worker:
                del self._loading[node]
