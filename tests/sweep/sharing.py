"""Worker processes for the tests of `safetyspace_fast.sweep`, which are killed on purpose."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from tiny_models import save_tiny

from safetyspace_fast import api
from safetyspace_fast.config import RunConfig
from safetyspace_fast.errors import ModelError, SafetySpaceError
from safetyspace_fast.extract import Progressed
from safetyspace_fast.runner import OneModel
from safetyspace_fast.store import Session, Shared, files, session
from safetyspace_fast.store.segments import Segments
from safetyspace_fast.sweep import shared
from safetyspace_fast.sweep.events import raising
from safetyspace_fast.sweep.units import work

sys.path.append(str(Path(__file__).parents[1] / "store"))
from faults import FaultyOS

STAGES: dict[str, tuple[Any, str]] = {
    "preparing": (OneModel, "prepare"),
    "beginning": (Shared, "begin"),
    "in a batch": (Segments, "append"),
    "finishing a language": (Shared, "write_language"),
    "merging": (Session, "write_language"),
    "clearing": (session, "clear"),
}
"""What a worker calls in each stage of a model."""
TIMEOUT = 120
TEXTS = {"am": 20, "de": 130, "en": 150}
"""Two shards; `en` lies in both."""


def contents(store: Path) -> dict[str, bytes]:
    """All files but zarr.json, which hold times."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "zarr.json"
    }


def run_worker(
    configs: list[RunConfig], rank: tuple[int, int], fault: tuple[str, int] | None, said: Any
) -> None:
    """Be a worker process.

    Args:
        configs: of the models.
        rank: and world size.
        fault: a stage and the call in it at which the process is killed; `full disk` and the change
            of the disk that fails; or `no model`, so that loading fails.
        said: connection that gets the texts that have run, and the error or None.
    """
    kind, at = fault or ("", 0)
    if kind in STAGES:
        kill_at(*STAGES[kind], at)
    elif kind == "full disk":
        files.os = FaultyOS(Path(configs[0].out).parent, "enospc", at)
    elif kind == "no model":
        OneModel.load = fail_to_load
    texts = 0
    try:
        for event in raising(work(configs, *rank)):
            texts += event.texts if isinstance(event, Progressed) else 0
    except SafetySpaceError as error:
        said.send((texts, str(error)))
    else:
        said.send((texts, None))
    os._exit(0)


def count_loads(configs: list[RunConfig], rank: tuple[int, int], said: Any) -> None:
    """Be a worker process that says which models it has loaded, in order."""
    loads: list[str] = []
    load_model = shared.load_model

    def counted(spec: Any, **options: Any) -> Any:
        loads.append(spec.name)
        return load_model(spec, **options)

    shared.load_model = counted
    for _ in raising(work(configs, *rank)):
        pass
    said.send(loads)
    os._exit(0)


def kill_at(owner: Any, name: str, at: int) -> None:
    """Have this process killed when it calls a method for the `at`-th time, from 0."""
    method, calls = getattr(owner, name), iter(range(at + 1))

    def killed(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *arguments, **options)

    setattr(owner, name, killed)


def fail_to_load(self: OneModel, _: Any) -> None:
    raise ModelError(f"{self.name}: cannot be loaded on this machine")


@dataclass
class Team:
    """Two tiny models, a small data set, and what a run in one process makes of them."""

    configs: list[RunConfig]
    reference: dict[str, bytes]

    def at(self, out: Path, **changes: Any) -> list[RunConfig]:
        """The configs, with another store."""
        return [replace(config, out=out, **changes) for config in self.configs]

    def start(
        self,
        out: Path,
        rank: tuple[int, int] = (0, 1),
        fault: tuple[str, int] | None = None,
        **changes: Any,
    ) -> "Started":
        """Start a worker."""
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = warm.start(run_worker, self.at(out, **changes), rank, fault, theirs)
        theirs.close()
        return Started(process, ours)

    def is_done(self, out: Path) -> bool:
        """Whether a store has the bytes of the reference, and nothing is left beside it."""
        left = list(out.with_name(out.name + ".work").rglob("*"))
        got = contents(out)
        other = {k for k in got | self.reference if got.get(k) != self.reference.get(k)}
        print(f"left: {left}; other bytes: {sorted(other)}")
        return not left and not other


@dataclass
class Started:
    """A worker that was started."""

    process: Any
    said: Any

    def end(self) -> tuple[int | None, str | None]:
        """Wait for it: the texts that it ran and its error; None and "killed" if it was."""
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, "a worker does not end"
        try:
            texts, error = self.said.recv()
        except EOFError:
            return None, "killed"
        return texts, error


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread in all processes, so that bytes are equal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield
    torch.set_num_threads(threads)


def make_team(folder: Path) -> Team:
    """Write data and models, and run them in one process."""
    rows = (
        f'{{"text": "text {i} of {lang} {"x" * (i % 7)}", "label": {i % 2}, "lang": "{lang}"}}\n'
        for lang, count in TEXTS.items()
        for i in range(count)
    )
    (folder / "texts.jsonl").write_text("".join(rows))
    configs = [
        RunConfig(
            models=f"{name}={save_tiny(family, folder / name, num_hidden_layers=1)}",
            data=folder / "texts.jsonl",
            out=folder / "one.zarr",
            template="none",
            dtype="float32",
            layers="block.0",
            poolings=("mean",),
            token_budget=256,
        )
        for name, family in (("a", "llama"), ("b", "qwen2"))
    ]
    team = Team(configs, {})
    for i, config in enumerate(configs):  # in a process like those of the workers
        api.run(replace(config, resume=i > 0))
    team.reference = contents(folder / "one.zarr")
    return team
