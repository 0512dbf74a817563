"""A run on several devices that share one model: starts a process (rank) a device, and watches it.

The ranks do what `models.sharded` says. Their parent, this process, passes on the events of rank 0,
and ends all ranks as soon as one fails or dies, so that none waits for it.
"""

import _thread
import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from .config import RunConfig
from .errors import ConfigError, ModelError, SafetySpaceError, first_line
from .extract import Event, Note, Planned
from .models import (
    PATIENCE,
    RankOutOfMemoryError,
    check_plan,
    find_sources,
    follow,
    join,
    load_model,
    parse_model,
)
from .models.device import why_no_gpu
from .runner import run_models
from .threads import cores

_RANK = f"from {__name__} import main; main()"
_STOPPING = 60.0
"""Seconds that rank 0 has to write down its work when the run is stopped."""
_BEHIND = 2.0
"""Seconds that a rank waits before it says that others are gone: that which failed comes first."""


@dataclass(frozen=True)
class _Start:
    """What a rank is told first."""

    config: RunConfig
    rank: int
    folder: Path
    most_tokens: float
    patience: timedelta


def run_ranks(config: RunConfig, *, patience: timedelta = PATIENCE) -> Generator[Event, None, None]:
    """Run the models of a config on `config.tensor_parallel` devices each; as `run_models`.

    Args:
        config: with `tensor_parallel` above 1.
        patience: how long a rank waits for another within a forward pass.

    Raises:
        SafetySpaceError: the reason, in one line; finished work is kept.
    """
    _check_devices(config)
    most_tokens = math.inf
    while True:
        begun = False
        try:
            with closing(_Group(config, most_tokens, patience).events()) as events:
                for event in events:
                    begun |= isinstance(event, Planned)
                    yield event
            return
        except RankOutOfMemoryError as error:
            if error.rows == 1:
                raise
            most_tokens = (error.rows + 1) // 2 * error.length  # `Batch.halves`, the larger one
        yield Note("", "out of memory: starting the devices again, with smaller batches")
        if begun:
            config = replace(config, resume=True, overwrite=False)


def _check_devices(config: RunConfig) -> None:
    """Refuse more ranks than GPUs, before a process is started."""
    import torch

    gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    on_gpus = config.device == "cuda" or gpus > 0
    if on_gpus and gpus < config.tensor_parallel:
        if (reason := why_no_gpu()) is not None:
            raise ConfigError(
                f"tensor_parallel: got {config.tensor_parallel}, but no GPU can be used: {reason}; "
                "use --device cpu, or --weights stream instead"
            )
        raise ConfigError(
            f"tensor_parallel: got {config.tensor_parallel}, but torch sees {gpus} GPUs here; "
            "give fewer, or --weights stream instead"
        )


class _Group:
    """The ranks of one run."""

    def __init__(self, config: RunConfig, most_tokens: float, patience: timedelta) -> None:
        self._config = config
        self._most_tokens = most_tokens
        self._patience = patience
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []

    def events(self) -> Generator[Event, None, None]:
        """Start the ranks and yield rank 0's events; ends all ranks."""
        with tempfile.TemporaryDirectory(prefix="safetyspace-ranks-") as folder, ExitStack() as end:
            end.callback(self._end)
            for rank in range(self._config.tensor_parallel):
                self._start(rank, Path(folder))
            open_pipes = list(self._pipes)
            while open_pipes:
                for pipe in wait(open_pipes):
                    assert isinstance(pipe, Connection)
                    try:
                        said = pipe.recv()
                    except EOFError:
                        self._refuse_death(self._pipes.index(pipe), Path(folder))
                        open_pipes.remove(pipe)
                        continue
                    if isinstance(said, SafetySpaceError):
                        raise said
                    if said is None:  # rank 0 has done all
                        return
                    yield said

    def _start(self, rank: int, folder: Path) -> None:
        """Start a rank, in a session of its own: Ctrl-C in a terminal is for the parent."""
        pipe, its_end = Pipe()
        config = self._config
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // config.tensor_parallel)))
        if config.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""  # transformers would take the GPUs
        if sys.platform == "linux":  # a host's own name may have no address
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with its_end, (folder / f"rank-{rank}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", _RANK, str(its_end.fileno())],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[its_end.fileno()],
                    start_new_session=True,
                )
            )
        self._pipes.append(pipe)
        pipe.send(_Start(config, rank, folder, self._most_tokens, self._patience))

    def _refuse_death(self, rank: int, folder: Path) -> None:
        """Raise ModelError if a rank ended other than well."""
        code = self._processes[rank].wait()
        if code == 0:
            return
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        lines = (folder / f"rank-{rank}.log").read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        raise ModelError(
            f"tensor parallel: rank {rank} of {self._config.tensor_parallel} {how}"
            f"{f' ({last})' if last else ''}; finished batches are kept: repeat the command with "
            "--resume to go on"
        )

    def _end(self) -> None:
        """Let rank 0 write down its work, then end all ranks."""
        if self._processes and self._processes[0].poll() is None:
            with contextlib.suppress(EOFError, OSError):
                self._pipes[0].send("stop")
                while self._pipes[0].poll(_STOPPING):  # it may wait for room in the pipe
                    self._pipes[0].recv()
        for process in self._processes:
            process.kill()
        for process, pipe in zip(self._processes, self._pipes, strict=False):
            process.wait()
            pipe.close()


def main() -> None:
    """Be a rank; the only argument is the open file that leads to the parent."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the parent ignores it
    pipe = Connection(int(sys.argv[1]))
    start: _Start = pipe.recv()
    threading.Thread(target=_obey, args=(pipe,), daemon=True).start()
    try:
        _be(start, pipe)
    except KeyboardInterrupt:
        pass
    except SafetySpaceError as error:
        pipe.send(error)
    except RuntimeError as error:  # of torch, when another rank has died or is late
        time.sleep(_BEHIND)
        size = start.config.tensor_parallel
        pipe.send(
            ModelError(
                f"tensor parallel: rank {start.rank} of {size} failed ({first_line(error)}); "
                "finished batches are kept: repeat the command with --resume to go on"
            )
        )
    os._exit(0)  # threads of torch may wait for ranks that are gone


def _obey(pipe: Connection) -> None:
    """Stop when the parent says so; end at once if it is gone."""
    try:
        pipe.recv()
        _thread.interrupt_main()
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)


def _be(start: _Start, pipe: Connection) -> None:
    config = start.config
    if start.rank == 0:
        for text in config.models:
            spec = parse_model(text)
            source, adapters = find_sources(spec, config.allow_pickle, config.trust_remote_code)
            check_plan(
                source,
                config.tensor_parallel,
                alone=not (adapters or spec.random),
                trust_remote_code=config.trust_remote_code,
            )
    ranks = join(
        start.rank,
        config.tensor_parallel,
        start.folder / "ranks",
        on_cpu=config.device == "cpu",
        most_tokens=start.most_tokens,
        patience=start.patience,
    )
    if start.rank > 0:
        follow(ranks, load_model)
    with closing(run_models(config)) as events:
        for event in events:
            pipe.send(event)
    pipe.send(None)
    while True:  # until the parent has read it: the others would take an end for a failure
        time.sleep(0.05)
