"""The workers of a run on a Ray cluster: actors, one a device.

`ray_cluster` starts them. What a worker does is said in `units`.
"""

import os
import pickle
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ..config import RunConfig
from ..errors import ConfigError, SafetySpaceError, StoreError
from ..info import package_versions
from .events import RunEnded
from .units import work

BEAT = 5.0
"""A worker says so often, in seconds, that it lives."""
POLL = 0.2
"""Seconds until the board is asked again."""


class Worker:
    """An actor on one device."""

    def __init__(self, number: int, board: str, threads: int | None) -> None:
        """`board`: the name of the `Board`; `threads`: of torch, on a CPU."""
        import ray

        self._number = number
        self._board = ray.get_actor(board)  # a handle would not outlive a restart
        self._threads = threads
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def work(
        self,
        configs: Sequence[RunConfig],
        workers: int,
        folder: str,
        probes: Sequence[str],
        versions: Mapping[str, str | None],
    ) -> Exception | None:
        """Work until nothing is left to do.

        Args:
            configs: what to run.
            workers: how many there are.
            folder: the driver's current one; relative paths begin there.
            probes: files that the driver has written beside the stores.
            versions: of this package and others, at the driver.

        Returns:
            Why a model failed here, or all of them; None: all is complete, or it was stopped.
        """
        import ray
        import torch

        failed: Exception | None = None
        try:
            self._refuse_other_place(folder, probes, versions)
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            with closing(work(configs, self._number, workers, loading=self._loading)) as events:
                for event in events:
                    if isinstance(event, RunEnded) and event.error is not None:
                        event = replace(event, error=_named(event.error))
                        failed = failed or event.error
                    self._board.tell.remote(self._number, pickle.dumps(event))
                    if self._stopped.is_set():
                        break
            ray.get(self._board.tell.remote(self._number))  # behind the last event
        except SafetySpaceError as error:
            return _named(error)
        return failed

    def stop(self) -> None:
        """Stop behind the batch in hand; its work is kept."""
        self._stopped.set()

    def _refuse_other_place(
        self, folder: str, probes: Sequence[str], versions: Mapping[str, str | None]
    ) -> None:
        """Raise an error if this node does not see what the driver sees."""
        for package, own in package_versions().items():
            if own != versions[package]:
                raise ConfigError(
                    f"has {package} {own}, but the driver {versions[package]}; install the same "
                    "versions on all nodes"
                )
        with suppress(OSError):  # the probes tell
            os.chdir(folder)
        for probe in probes:
            if not Path(probe).is_file():
                raise StoreError(
                    f"cannot see {Path(probe).parent}; use a path on a file system that all nodes "
                    "share"
                )

    def _beat(self) -> None:
        while True:
            self._board.tell.remote(self._number)
            time.sleep(BEAT)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """While this lasts, no other worker of this node loads a model.

        Otherwise Ray's memory monitor may see the peaks of several, and kill one.
        """
        import ray

        while not ray.get(self._board.may_load.remote(self._number, here())):
            time.sleep(POLL)
        try:
            yield
        finally:
            self._board.loaded.remote(self._number)


def here() -> str:
    """The node of this actor, for messages."""
    import ray

    return f"node {ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"


def _named(error: Exception) -> Exception:
    """An error that says on which node it was."""
    known = isinstance(error, SafetySpaceError)
    return type(error)(f"{here()}: {error}") if known else error
