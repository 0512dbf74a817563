"""Runs on a real Ray cluster of several nodes on this machine, whose parts are killed.

All nodes see one file system and one clock. An odd node has stand-ins that Python reads when it
starts, see `blind`. Other clusters may run on this machine: tests see the processes of their own.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tiny_models import save_tiny

from safetyspace_fast import RunConfig, run
from safetyspace_fast.api import Event, ModelDone, Note, Progressed, open_run
from safetyspace_fast.errors import ConfigError, ModelError, StoreError
from safetyspace_fast.sweep.events import RunEnded, raising
from safetyspace_fast.sweep.ray_cluster import Patience, run_on_ray
from safetyspace_fast.sweep.units import work

ray = pytest.importorskip("ray", reason="needs Ray, which has no package for every Python")

OWN = f"safetyspace-test-{uuid4().hex}"
"""In the environment of all processes that this module starts, and of no others."""
NODE: dict[str, Any] = {"object_store_memory": 80 * 1024**2}
PATIENCE = Patience(start=90, silence=60, head=20, stopping=20)


ODD = """
import errno, os, pathlib, time
hidden, is_file, write, clock = pathlib.Path(HIDDEN), pathlib.Path.is_file, os.write, time.time
def sees(path):
    return is_file(path) and not (is_file(hidden) and hidden.read_text() in str(path))
def fails(descriptor, content):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".seg"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(descriptor, content)
if os.environ.get("ODD_NODE") == "short-sighted":
    pathlib.Path.is_file = sees
elif os.environ.get("ODD_NODE") == "full":
    os.write = fails
elif os.environ.get("ODD_NODE") == "late":
    time.time = lambda: clock() - 7200
"""
"""Stand-ins of an odd node: it does not see some files, its disk is full, its clock is wrong."""


class Nodes:
    """A cluster on this machine: a head without work, and nodes of one core."""

    def __init__(self, blind: Path, *, connect: bool = True) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster()
        self._blind = blind
        # The driver and the board are on the head.
        self.cluster.add_node(num_cpus=0, include_dashboard=False, **NODE)
        self.address = self.cluster.address
        if connect:
            ray.init(self.address, log_to_driver=False, logging_level="ERROR")
        self.first = self.add()

    def add(self, odd: str = "") -> Any:
        """Add a node, odd in a way that `blind` knows."""
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()]))
        if odd:
            path = f"{self._blind.parent}{os.pathsep}{path}"
        env = {"PYTHONPATH": path, "ODD_NODE": odd}
        node = self.cluster.add_node(num_cpus=1, env_vars=env, **NODE)
        self.cluster.wait_for_nodes()
        return node


def worker_processes() -> list[int]:
    """Processes of the workers of this module's clusters, whatever they do."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            named = (entry / "cmdline").read_bytes().startswith(b"ray::Worker")
            if named and OWN.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def workers_end(seconds: float) -> bool:
    """Whether all workers end by themselves in so many seconds."""
    deadline = time.monotonic() + seconds
    while worker_processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    return worker_processes() == []


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says what a short-sighted node does not see; beside it lie the stand-ins."""
    folder = tmp_path_factory.mktemp("python")
    hidden = folder / "hidden"
    (folder / "sitecustomize.py").write_text(f"HIDDEN = {str(hidden)!r}\n{ODD}")
    return hidden


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OWNER", OWN)
        yield


@pytest.fixture(scope="module")
def nodes(blind: Path) -> Iterator[Nodes]:
    nodes = Nodes(blind)
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()
    assert workers_end(20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run in this process, in a few dozen batches."""
    config = RunConfig(
        models=[str(model)],
        data="sample:polite",
        languages=("en", "de", "es"),
        limit=12,
        dtype="float32",  # `auto` is the machine's, and differs in the processes of workers
        layers="embed,block.1",
        token_budget=128,
        device="cpu",
        out=tmp_path_factory.mktemp("alone") / "run.zarr",
    )
    run(config)
    return config


@pytest.fixture
def config(alone: RunConfig, tmp_path: Path) -> RunConfig:
    return replace(alone, out=tmp_path / "shared" / "run.zarr")


def contents(config: RunConfig) -> dict[str, bytes]:
    """Every chunk of a store; metadata hold times."""
    store = Path(config.out)
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "zarr.json"
    }


def on_ray(
    configs: Sequence[RunConfig],
    do: Callable[[], None] = lambda: None,
    at: Callable[[Event], bool] = lambda event: isinstance(event, Progressed),
    **options: Any,
) -> list[Event]:
    """Run on the cluster that this process uses; do something at the first such event."""
    events: list[Event] = []
    with closing(raising(run_on_ray(configs, **{"patience": PATIENCE} | options))) as running:
        for event in running:
            if at(event) and not any(map(at, events)):
                do()
            events.append(event)
    return events


def test_one_worker_gives_the_bytes_of_a_run_without_ray(
    nodes: Nodes, config: RunConfig, alone: RunConfig
) -> None:
    events = on_ray([config], workers=1)
    assert contents(config) == contents(alone)
    assert [event.model for event in events if isinstance(event, ModelDone)] == ["llama"]
    assert not list(Path(config.out).parent.glob("*.probe"))


def test_a_killed_actor_is_started_again_and_the_bytes_are_the_same(
    nodes: Nodes, config: RunConfig, alone: RunConfig
) -> None:
    killed: list[int] = []

    def kill() -> None:
        for pid in worker_processes()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    on_ray([config], kill, workers=1)
    assert killed
    assert contents(config) == contents(alone)


def test_a_node_that_does_not_see_the_store_or_the_model_is_named_and_the_others_go_on(
    nodes: Nodes, config: RunConfig, alone: RunConfig, blind: Path
) -> None:
    odd = nodes.add("short-sighted")
    try:
        blind.write_text(".probe")
        events = on_ray([config], workers=2)
        assert contents(config) == contents(alone)
        notes = [event.message for event in events if isinstance(event, Note)]
        assert [n for n in notes if "file system that all nodes share" in n and "node " in n], notes
        nodes.cluster.remove_node(nodes.first)
        other = replace(config, out=Path(config.out).with_name("other.zarr"))
        blind.write_text("model.safetensors")
        with pytest.raises(ModelError, match=r"node \d.*llama"):
            on_ray([other], workers=1)
    finally:
        blind.unlink(missing_ok=True)
        nodes.cluster.remove_node(odd)
        nodes.first = nodes.add()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 7])
def test_the_number_of_workers_changes_no_byte(
    nodes: Nodes, config: RunConfig, alone: RunConfig, workers: int
) -> None:
    added = [nodes.add() for _ in range(workers - 1)]
    try:
        on_ray([config], workers=workers)
    finally:
        for node in added:
            nodes.cluster.remove_node(node)
    assert contents(config) == contents(alone)


@pytest.mark.slow
def test_a_node_that_is_removed_leaves_its_units_to_the_others(
    nodes: Nodes, config: RunConfig, alone: RunConfig
) -> None:
    added = nodes.add()
    on_ray([config], lambda: nodes.cluster.remove_node(added, allow_graceful=False), workers=2)
    assert contents(config) == contents(alone)


@pytest.mark.slow
def test_when_all_nodes_are_lost_the_run_ends_and_resume_finishes_it(
    nodes: Nodes, config: RunConfig, alone: RunConfig
) -> None:
    impatient = replace(PATIENCE, silence=8.0)

    def lose_it() -> None:
        nodes.cluster.remove_node(nodes.first, allow_graceful=False)

    with pytest.raises(ModelError, match="no worker has been heard of"):
        on_ray([config], lose_it, workers=1, patience=impatient)
    nodes.first = nodes.add()
    on_ray([replace(config, resume=True)], workers=1)
    assert contents(config) == contents(alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("odd", "unseen", "said"),
    [
        ("full", "", "node .*No space left on device.*; the other workers go on"),
        ("short-sighted", "model.safetensors", "failed in worker .*llama"),
    ],
)
def test_what_fails_on_one_node_only_is_named_and_another_node_finishes(
    nodes: Nodes, config: RunConfig, alone: RunConfig, blind: Path, odd: str, unseen: str, said: str
) -> None:
    node = nodes.add(odd)
    nodes.cluster.remove_node(nodes.first)
    if unseen:
        blind.write_text(unseen)

    def fails(event: Event) -> bool:
        return isinstance(event, Note) and re.search(said, event.message) is not None

    def add() -> None:
        nodes.first = nodes.add()

    try:
        events = on_ray([config], add, fails, workers=2)
    finally:
        blind.unlink(missing_ok=True)
        nodes.cluster.remove_node(node)
    assert any(map(fails, events))
    assert contents(config) == contents(alone)


@pytest.mark.slow
def test_a_preempted_node_that_comes_back_goes_on(
    nodes: Nodes, config: RunConfig, alone: RunConfig
) -> None:
    def preempt() -> None:
        nodes.cluster.remove_node(nodes.first, allow_graceful=False)
        nodes.first = nodes.add()

    on_ray([config], preempt, workers=1)
    assert contents(config) == contents(alone)


@pytest.mark.slow
def test_a_clock_that_is_wrong_on_one_node_changes_nothing(
    nodes: Nodes, config: RunConfig, alone: RunConfig
) -> None:
    late = nodes.add("late")

    def kill() -> None:
        for pid in worker_processes()[:1]:
            os.kill(pid, signal.SIGKILL)

    try:
        on_ray([config], kill, workers=2)
    finally:
        nodes.cluster.remove_node(late)
    assert contents(config) == contents(alone)


@pytest.mark.slow
def test_two_sweeps_on_one_store_share_it_or_the_second_is_told(
    nodes: Nodes, config: RunConfig, alone: RunConfig, model: Path
) -> None:
    first = work([replace(config, models=f"first={model}")])
    while not isinstance(next(first), Progressed):
        pass
    on_ray([replace(config, resume=True)], workers=1)
    own = [name for name in contents(alone) if name.startswith("models/llama/")]
    assert [contents(config)[name] for name in own] == [contents(alone)[name] for name in own]
    other = replace(config, models=f"first={model}", seed=1, resume=True)
    with pytest.raises(ConfigError, match="with other settings: seed is the default there and"):
        on_ray([other], workers=1)
    assert [event.error for event in first if isinstance(event, RunEnded)] == [None]
    assert open_run(config.out).models == ("first", "llama")


def test_what_no_cluster_can_run_is_refused_before_ray_starts(
    config: RunConfig, alone: RunConfig
) -> None:
    for wrong, options, reason in (
        (replace(config, device="cuda:1"), {}, "Ray chooses the device"),
        (
            replace(config, tensor_parallel=2),
            {},
            "a worker has one device; run this model by itself",
        ),
        (config, {"workers": 0}, "got 0 workers, expected at least 1"),
        (config, {}, "no cluster at 127.0.0.1:1: .*give HOST:PORT"),
    ):
        with pytest.raises(ConfigError, match=reason):
            next(run_on_ray([wrong], "127.0.0.1:1", **options))
    with pytest.raises(ConfigError, match=r"Ray Client.*--ray auto"):
        next(run_on_ray([config], "ray://127.0.0.1:1"))
    with pytest.raises(StoreError, match="exists already"):
        next(run_on_ray([alone], "127.0.0.1:1"))
    before = contents(alone)
    with pytest.raises(ConfigError, match="no cluster"):
        next(run_on_ray([replace(alone, overwrite=True)], "127.0.0.1:1"))
    assert contents(alone) == before


def test_without_ray_one_line_says_how_to_install_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'safetyspace-fast\[ray\]'"):
        next(run_on_ray([config]))


@pytest.mark.slow
def test_closing_the_iterator_stops_the_workers_and_resume_finishes(
    nodes: Nodes, config: RunConfig, alone: RunConfig
) -> None:
    with closing(run_on_ray([config], workers=1, patience=PATIENCE)) as events:
        next(event for event in events if isinstance(event, Progressed))
    assert workers_end(10)
    on_ray([replace(config, resume=True)], workers=1)
    assert contents(config) == contents(alone)


DRIVER = """
import dataclasses, pickle, sys
from pathlib import Path
from safetyspace_fast.errors import SafetySpaceError
from safetyspace_fast.sweep.events import raising
from safetyspace_fast.sweep.ray_cluster import run_on_ray
config, patience = pickle.loads(Path(sys.argv[2]).read_bytes())
try:
    for event in raising(run_on_ray([config], sys.argv[1], workers=1, patience=patience)):
        print(type(event).__name__, flush=True)
except SafetySpaceError as error:
    print(error, flush=True)
    sys.exit(1)
"""


@pytest.mark.slow
def test_when_the_head_is_lost_the_run_and_its_workers_end_and_resume_finishes_it(
    config: RunConfig, alone: RunConfig, tmp_path: Path, blind: Path
) -> None:
    nodes = Nodes(blind, connect=False)
    (tmp_path / "config").write_bytes(pickle.dumps((config, Patience())))  # ends before Ray does
    command = [sys.executable, "-c", DRIVER, nodes.address, str(tmp_path / "config")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            while driver.stdout.readline().strip() != "Progressed":
                assert driver.poll() is None
            held = worker_processes()
            for pid in held:  # else it may finish without the head
                os.kill(pid, signal.SIGSTOP)
            nodes.cluster.head_node.kill_gcs_server()
            said, _ = driver.communicate(timeout=120)
            for pid in held:
                os.kill(pid, signal.SIGCONT)
            assert held
            assert workers_end(90)
        finally:
            driver.kill()
            for pid in worker_processes():
                os.kill(pid, signal.SIGKILL)
            nodes.cluster.shutdown()
    assert driver.returncode == 1
    assert said.splitlines()[-1].startswith("ray: the head does not answer"), said
    run(replace(config, resume=True))
    assert contents(config) == contents(alone)
