"""All devices of a machine: one process for each; `units` says how they share the models.

The parent starts the workers, passes their events on as one stream, and stops them when it is
stopped. Each worker has its own share of the cores, so that they do not get in each other's way.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType

from ..config import RunConfig
from ..errors import ConfigError
from ..extract import Event, Note
from ..threads import cores
from .events import portable, together
from .ranks import refuse_apart
from .units import begin_stores, refuse_unsuitable, work

STOP_SECONDS = 60.0
"""A worker that was asked to stop, and has not by then, is killed."""
_SERVE = "from safetyspace_fast.sweep.devices import serve; serve()"


def devices_of(text: str) -> tuple[str, ...]:
    """The devices that `--devices` names, one for each worker.

    Args:
        text: `all` GPUs; GPUs by number, as in `0-3,6`; or `cpu:2`, two workers on the CPU.

    Raises:
        ConfigError: it is none of these, or there is no such GPU.
    """
    wanted = "expected all, GPUs such as 0-3 or 0,2, or cpu:2"
    if match := re.fullmatch(r"cpu:(\d{1,9})", text):
        if not 1 <= (number := int(match[1])) <= 1024:
            raise ConfigError(f"devices: got {text!r}, expected 1 to 1024 workers")
        return ("cpu",) * number
    import torch

    there = torch.cuda.device_count()
    numbers: list[int] = list(range(there))
    if text != "all":
        numbers = []
        for piece in text.split(","):
            match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", piece.strip())
            if match is None or (last := int(match[2] or match[1])) < int(match[1]):
                raise ConfigError(f"devices: got {text!r}, {wanted}")
            numbers += range(int(match[1]), last + 1)
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"devices: {text!r} names one twice")
    if not numbers or max(numbers) >= there:
        from ..models.device import why_no_gpu

        reason = None if there else why_no_gpu()
        has = f"this machine has {there} GPUs that torch can use"
        raise ConfigError(
            f"devices: got {text!r}, but {f'no GPU can be used: {reason}' if reason else has}; "
            "cpu:2 runs two workers on the CPU"
        )
    return tuple(f"cuda:{number}" for number in numbers)


def run_on_devices(
    configs: Sequence[RunConfig], devices: Sequence[str], rank: int = 0, world_size: int = 1
) -> Generator[Event, None, None]:
    """Run models on several devices at once, one worker process for each.

    What cannot be done is refused at once; workers start with the first event that is asked for.
    Units of a worker that dies go to the others. A model that fails on all of them ends with an
    error (`RunEnded`) and stops no other. Closing the generator stops all workers cleanly.

    Args:
        configs: each with one model.
        devices: as `devices_of` gives them.
        rank, world_size: of this machine among several that see the store, each with as many
            devices; then a store that exists is added to, as with `resume`.

    Raises:
        SafetySpaceError: a store exists already, or these workers cannot share it.
    """
    if world_size == 1:
        refuse_unsuitable(configs)
    else:
        refuse_apart(configs)
    return _run_on_devices(configs, devices, rank, world_size)


def _run_on_devices(
    configs: Sequence[RunConfig], devices: Sequence[str], rank: int, world_size: int
) -> Generator[Event, None, None]:
    if world_size == 1:
        begin_stores(configs)
    configs = [replace(config, resume=True, overwrite=False) for config in configs]
    shares = _shares(len(devices))
    workers: list[_Worker] = []
    try:
        for number, (device, share) in enumerate(zip(devices, shares, strict=True)):
            ranks = (rank * len(devices) + number, world_size * len(devices))
            job = _Job([replace(config, device=device) for config in configs], ranks, share)
            workers.append(_Worker(number, device, job))
        failures: list[Exception] = []
        yield from together(_events(workers, failures), configs, failures)
    finally:
        _stop(workers)


@dataclass(frozen=True)
class _Job:
    """What a worker process is given."""

    configs: list[RunConfig]
    rank: tuple[int, int]
    """Its rank, and how many there are."""
    cores: list[int]
    """The cores that it may use; empty: this system cannot say."""


def _shares(number: int) -> list[list[int]]:
    """Split the cores of this process among workers; with too few cores, some share one."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(number)]
    own = sorted(os.sched_getaffinity(0))
    bounds = [i * len(own) // number for i in range(number + 1)]
    return [own[low : max(high, low + 1)] for low, high in pairwise(bounds)]


class _Worker:
    """One worker process, seen from the parent."""

    def __init__(self, number: int, device: str, job: _Job) -> None:
        """Start it."""
        self.number = number
        self.device = device
        self.failure: Exception | None = None
        threads = len(job.cores) or max(1, cores() // job.rank[1])
        with suppress(KeyError, ValueError):
            threads = min(threads, max(1, int(os.environ["OMP_NUM_THREADS"])))
        package = str(Path(__file__).parents[2])
        paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops the workers
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # it has died; `ended` says so
            pickle.dump(job, self.process.stdin)
            self.process.stdin.close()
        self.events = Connection(os.dup(self.process.stdout.fileno()), writable=False)
        self.process.stdout.close()

    def ended(self) -> str | None:
        """Wait until the process has ended; returns why, if it ended too early."""
        code = self.process.wait()
        if code == 0:
            return None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        if self.failure is not None:
            how = f"has ended: {self.failure}"
        return f"worker {self.number} ({self.device}) {how}"


def _events(workers: Sequence[_Worker], failures: list[Exception]) -> Iterator[Event]:
    """The events of all workers, in the order in which they come; adds what they failed with.

    What makes a worker fail before it has told anything, such as unreadable data, makes most others
    fail too: it waits until another has begun, so that it is not said once for each worker.
    """
    living = {worker.events: worker for worker in workers}
    early: list[str] | None = []
    """Why workers have ended; None: one has told something."""
    while living:
        for events in wait(list(living)):
            assert isinstance(events, Connection)
            worker = living[events]
            try:
                said = events.recv()
            except (EOFError, OSError):
                del living[events]
                events.close()
                why = worker.ended()
                if why is not None and early is not None and worker.failure is not None:
                    early.append(why)
                elif why is not None and living:
                    yield Note("", f"{why}; the others take over its units")
                elif why is not None and worker.failure is None:  # else the error itself is shown
                    yield Note("", why)
                continue
            if isinstance(said, Event):
                for why in early or ():
                    yield Note("", f"{why}; the others take over its units")
                early = None
                yield said
            else:
                worker.failure = said
                failures.append(said)
    if len(set(map(str, failures))) > 1:  # of one reason the error itself is shown
        for why in early or ():
            yield Note("", why)


def _stop(workers: Sequence[_Worker]) -> None:
    """End all workers: they finish the batch in hand and give their leases back.

    If this is interrupted in turn, by a second Ctrl-C, they are killed: finished batches are kept.
    """
    try:
        for worker in workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
            worker.events.close()


def serve() -> None:
    """Be a worker process: read a job from stdin, write events to stdout."""
    job: _Job = pickle.load(sys.stdin.buffer)
    events = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # whatever prints must not get among the events
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 0
    try:
        with closing(work(job.configs, *job.rank)) as running:
            for event in running:
                events.send(event)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the parent has gone
        code = 1
    except Exception as error:
        code = 1
        with suppress(BrokenPipeError):
            events.send(portable(error))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written: wait for no thread of a library, as the parent waits for this


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: it is saving
    raise KeyboardInterrupt
