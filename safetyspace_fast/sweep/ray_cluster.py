"""A run on a Ray cluster, seen from the driver: one actor a device, each a worker on the stores.

Ray starts the actors, restarts those that die, places them on nodes that come, and tells what has
gone. Which unit is whose is no business of Ray: workers claim units through the store (`units`), on
a file system that all nodes share, and a unit whose worker has gone is claimed again. So the bytes
of the store do not depend on the number of workers, nor on who died.

The driver (this process) waits for nothing without an end: see the seconds of `Patience`.
"""

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..config import RunConfig
from ..errors import ConfigError, ModelError, StoreError, first_line
from ..extract import Event, Note
from ..info import package_versions
from ..store import Place
from . import ray_board
from .events import together
from .ray_actors import BEAT, POLL, Worker
from .units import begin_stores, refuse_unsuitable

_RESTARTS = 5
"""Of an actor that dies; Ray does not count those of nodes that were preempted."""
_LOCAL_STORE = 80 * 1024**2
"""Bytes of Ray's object store, if Ray is started here: actors get paths and give events."""
_GOODBYE = 10.0
"""Seconds to disconnect from Ray, which takes longer only if its head is lost."""
_ANSWER = 15.0
"""Seconds in which the head takes a connection."""
_AGAIN = "finished units are kept: repeat the command with --resume to go on"


@dataclass(frozen=True)
class Patience:
    """Seconds until the driver gives up."""

    start: float = 900.0
    """No worker is there: devices are busy, or nodes are being added."""
    silence: float = 300.0
    """Workers were there, and nothing has been heard of any: their nodes are lost, and no others
    come. A worker says every few seconds that it lives, also while it loads or computes."""
    head: float = 35.0
    """Ray's head does not answer. After 60 s Ray itself kills this process, and says little."""
    stopping: float = 60.0
    """Workers that were told to stop write down their work."""
    loading: float = 3600.0
    """A worker that loads a model keeps others of its node from it; longer, and they load too."""


def run_on_ray(
    configs: Sequence[RunConfig],
    address: str | None = None,
    *,
    workers: int | None = None,
    patience: Patience = Patience(),
) -> Generator[Event, None, None]:
    """Run configs on a Ray cluster; yields the events of all workers.

    What cannot be done is refused at once; workers start with the first event that is asked for.

    Args:
        configs: each with one model; several may have one store, which all nodes see.
        address: of the cluster, `auto` or `HOST:PORT`; None: what the variable RAY_ADDRESS names,
            or else Ray is started on this machine alone.
        workers: how many; None: one for each GPU that the cluster has now or, without any, one for
            each node. Give it for a cluster that grows. Without GPUs, they share the cores.
        patience: when to give up.

    Raises:
        SafetySpaceError: there is no such cluster, or it cannot be used; or a store exists already.
            Whatever fails later ends the runs that it stops (`RunEnded`).
    """
    _refuse_unplaced(configs, workers)
    refuse_unsuitable(configs)
    ray = _ray()
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _refuse_deaf(address)
    return _run_on_ray(ray, configs, address, workers, patience)


def _run_on_ray(
    ray: Any,
    configs: Sequence[RunConfig],
    address: str | None,
    workers: int | None,
    patience: Patience,
) -> Generator[Event, None, None]:
    started_here = not ray.is_initialized()
    if started_here:
        _connect(ray, address)
    try:
        begin_stores(configs)  # now that there is a cluster: it may overwrite
        cluster = _Cluster(ray, configs, workers, patience)
        with closing(cluster.events()) as events:
            yield from together(events, configs, cluster.failures)
    finally:
        if started_here:
            _within(_GOODBYE, ray.shutdown)


def _refuse_unplaced(configs: Sequence[RunConfig], workers: int | None) -> None:
    """Refuse what no cluster can run, before Ray is started."""
    if workers is not None and workers < 1:
        raise ConfigError(f"ray: got {workers} workers, expected at least 1")
    for config in configs:
        if ":" in config.device:
            raise ConfigError(
                f"ray: got device {config.device!r}, but Ray chooses the device; expected 'auto', "
                "'cpu' or 'cuda'"
            )


def _ray() -> Any:  # Ray's types say little
    """Ray, without its usage reports."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--ray needs Ray; pip install 'safetyspace-fast[ray]' on all nodes"
        ) from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start Ray here.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    how: dict[str, Any] = {"address": address}
    if address is None:
        how = {"include_dashboard": False, "object_store_memory": _LOCAL_STORE}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **how)
    except Exception as error:
        where = f"no cluster at {address}" if address else "Ray cannot be started here"
        raise ConfigError(f"ray: {where}: {first_line(error)}") from error


def _refuse_deaf(address: str) -> None:
    """Refuse an address where nothing listens: Ray would fill the screen for a minute."""
    if "://" in address:
        raise ConfigError(
            f"ray: got {address}, but Ray Client cannot be used; run the command on a node of the "
            "cluster, with --ray auto"
        )
    host, colon, port = address.rpartition(":")
    if not colon:  # `auto` or `local`
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"ray: no cluster at {address}: {first_line(error)}; give HOST:PORT of its head, or "
            "`auto` on a node of it"
        ) from error


@dataclass
class _Running:
    """An actor, and what it was asked."""

    number: int
    actor: Any
    result: Any = field(repr=False)


class _Cluster:
    """The actors of one run, as the driver sees them."""

    def __init__(
        self, ray: Any, configs: Sequence[RunConfig], workers: int | None, patience: Patience
    ) -> None:
        self._ray = ray
        self._configs = [replace(config, resume=True, overwrite=False) for config in configs]
        self._workers = workers
        self._patience = patience
        self._board: Any = None
        self._head = _Head(ray)
        self._running: list[_Running] = []
        self.failures: list[Exception] = []
        """Why workers have ended too early."""

    def events(self) -> Generator[Event, None, None]:
        """Start the actors, and yield their events until all is done."""
        with _probes(self._configs) as probes:
            try:
                self._start(probes)
                yield from self._watch()
            finally:
                self._end()

    def _start(self, probes: Sequence[str]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        name = f"safetyspace-{uuid4().hex[:12]}"
        here = self._ray.get_runtime_context().get_node_id()
        self._ray.cloudpickle.register_pickle_by_value(ray_board)
        board = self._ray.remote(ray_board.Board).options(
            name=name,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        self._board = board.remote(self._patience.loading)  # workers find it before it has started
        workers, resources = _devices(self._ray, self._configs, self._workers)
        threads = None if "num_gpus" in resources else int(resources["num_cpus"])
        actor = self._ray.remote(Worker).options(
            max_restarts=_RESTARTS,
            max_task_retries=-1,
            max_concurrency=4,
            scheduling_strategy="SPREAD",
            **resources,
        )
        for i_worker in range(workers):
            worker = actor.remote(i_worker, name, threads)
            task = worker.work.remote(
                self._configs, workers, str(Path.cwd()), probes, package_versions()
            )
            self._running.append(_Running(i_worker, worker, task))

    def _watch(self) -> Iterator[Event]:
        """Pass on events until a worker has seen that all is complete, or all workers failed."""
        started, heard_any, complete = time.monotonic(), False, False
        while self._running and not complete:
            results = {running.result: running for running in self._running}
            ready, _ = self._ray.wait(list(results), num_returns=1, timeout=POLL)
            events, silence = self._heard()
            yield from events
            heard_any |= silence < float("inf")
            for result in ready:
                complete |= self._ended(results[result])
            if self.failures:
                yield from self._told()
            waited = min(silence, time.monotonic() - started)
            if waited > (self._patience.silence if heard_any else self._patience.start):
                raise ModelError(self._why_silent(waited, heard_any))
        yield from self._heard()[0]

    def _heard(self) -> tuple[list[Event], float]:
        """New events; and how long nothing was heard.

        Raises:
            ModelError: the cluster does not answer.
        """
        asked, answer = time.monotonic(), self._board.take.remote()
        while True:
            self._head.refuse_lost(self._patience.head)
            try:
                events, silence = self._ray.get(answer, timeout=POLL)
            except self._ray.exceptions.GetTimeoutError as error:
                if (waited := time.monotonic() - asked) > self._patience.start:
                    raise ModelError(
                        f"ray: the driver's node has not answered for {waited:.0f} s; {_AGAIN}"
                    ) from error
            except self._ray.exceptions.RayError as error:
                raise ModelError(
                    f"ray: the cluster is lost: {first_line(error)}; {_AGAIN}"
                ) from error
            else:
                return [pickle.loads(event) for event in events], silence

    def _ended(self, running: _Running) -> bool:
        """Take note of a worker that has ended; returns whether it found all complete."""
        self._running.remove(running)
        try:
            error: Exception | None = self._ray.get(running.result)
        except self._ray.exceptions.RayError as failure:
            error = ModelError(
                f"ray: worker {running.number} was lost {_RESTARTS + 1} times or cannot be "
                f"started: {first_line(failure)}; {_AGAIN}"
            )
        self._board.loaded.remote(running.number)
        if error is None:
            return True
        self.failures.append(error)
        return False

    def _told(self) -> Iterator[Event]:
        """Notes on the last failure, if others go on."""
        if self._running:
            yield Note("", f"{self.failures[-1]}; the other workers go on")

    def _why_silent(self, waited: float, heard_any: bool) -> str:
        if heard_any:
            return f"ray: no worker has been heard of for {waited:.0f} s; {_AGAIN}"
        asked = f"{len(self._running)} workers"
        has = {
            name: amount
            for name, amount in self._ray.available_resources().items()
            if name in ("CPU", "GPU")
        }
        free = ", ".join(f"{amount:g} {name}" for name, amount in sorted(has.items())) or "nothing"
        return (
            f"ray: none of {asked} was started in {waited:.0f} s; free in the cluster: {free}; "
            "wait for its other jobs, or add nodes"
        )

    def _end(self) -> None:
        """Let workers write down their work, then end them."""
        if not self._head.is_lost:
            _within(self._patience.stopping + self._patience.head, self._stop)

    def _stop(self) -> None:
        with suppress(Exception):  # whatever it is, the actors end with the driver
            for running in self._running:
                running.actor.stop.remote()
            if left := [running.result for running in self._running]:
                self._ray.wait(left, num_returns=len(left), timeout=self._patience.stopping)
        for actor in (*(running.actor for running in self._running), self._board):
            if actor is not None:
                with suppress(Exception):
                    self._ray.kill(actor)


class _Head:
    """Asks Ray's head every now and then whether it is there, in a thread: calls to it may hang."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._answered = threading.Event()
        self._ask()
        self.is_lost = False

    def _ask(self) -> None:
        self._asked = time.monotonic()
        self._answered.clear()

        def ask() -> None:
            with suppress(Exception):  # also a refusal is no answer
                self._ray.nodes()
                self._answered.set()

        threading.Thread(target=ask, daemon=True).start()

    def refuse_lost(self, patience: float) -> None:
        """Raise ModelError if the head has not answered for `patience` seconds."""
        waited = time.monotonic() - self._asked
        if self._answered.is_set():
            if waited > BEAT:
                self._ask()
        elif waited > patience:
            self.is_lost = True
            raise ModelError(f"ray: the head does not answer; {_AGAIN}")


def _devices(
    ray: Any, configs: Sequence[RunConfig], workers: int | None
) -> tuple[int, dict[str, Any]]:
    """How many workers to start, `workers` if that is given, and what each takes of a node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if any(config.device == "cuda" for config in configs) or (
        gpus and not all(config.device == "cpu" for config in configs)
    ):
        return workers or max(1, gpus), {"num_gpus": 1, "num_cpus": 1}
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    share = min(cpus, default=1)
    if workers is None:
        return max(1, sum(cpus) // share), {"num_cpus": share}
    return workers, {"num_cpus": max(1, min(share, sum(cpus) // workers))}


@contextmanager
def _probes(configs: Sequence[RunConfig]) -> Iterator[list[str]]:
    """Files beside the stores, by which a node knows that it sees the driver's file system."""
    folders = dict.fromkeys(Path(Place(config.out).work).absolute().parent for config in configs)
    probes = [folder / f".safetyspace-{uuid4().hex[:12]}.probe" for folder in folders]
    try:
        for probe in probes:
            try:
                probe.parent.mkdir(parents=True, exist_ok=True)
                probe.touch()
            except OSError as error:
                raise StoreError(f"{probe.parent}: cannot be written: {error.strerror}") from error
        yield list(map(str, probes))
    finally:
        for probe in probes:
            probe.unlink(missing_ok=True)


def _within(seconds: float, function: Callable[[], object]) -> None:
    """Call a function that may never return, and wait for it for some time."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
