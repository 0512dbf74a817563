"""`--devices`: one process for each device, watched and stopped by the parent."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sharing import TIMEOUT, Team, make_team, one_thread

from safetyspace_fast import api, terminal
from safetyspace_fast.cli import main
from safetyspace_fast.errors import ConfigError, SafetySpaceError, StoreError
from safetyspace_fast.store import Place
from safetyspace_fast.sweep.devices import STOP_SECONDS, _events, _Job, run_on_devices
from safetyspace_fast.sweep.events import RunEnded, raising


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with one_thread():
        yield make_team(tmp_path_factory.mktemp("team"))


def worker_pids(out: Path) -> list[int]:
    """Processes of the workers on a store."""
    pids = []
    for lease in sorted((Place(out).work / ".workers").glob("*.lease")):
        owner = json.loads(lease.read_text() or "{}")
        if lease.stem == owner.get("worker"):
            pids.append(owner["pid"])
    return pids


def test_units_of_a_device_whose_worker_is_killed_go_to_the_others(
    team: Team, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    events, killed = [], False
    for event in run_on_devices(team.at(out), ("cpu", "cpu")):
        events.append(event)
        if isinstance(event, api.Progressed) and not killed and len(worker_pids(out)) == 2:
            os.kill(worker_pids(out)[0], signal.SIGKILL)
            killed = True
    notes = [event.message for event in events if isinstance(event, api.Note)]
    assert any("(cpu) was killed by SIGKILL; the others take over" in note for note in notes)
    planned = [event.model for event in events if isinstance(event, api.Planned)]
    assert sorted(planned) == ["a", "b"]  # once each, for one display
    assert team.is_done(out)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_stops_all_workers_and_the_run_goes_on_later(
    team: Team, tmp_path: Path, signals: int
) -> None:
    out = tmp_path / "run.zarr"
    config = team.at(out)[0]
    command = [sys.executable, "-m", "safetyspace_fast.cli", "run", "--devices", "cpu:2"]
    command += ["--model", str(config.models[0]), "--data", str(config.data[0]), "--out", str(out)]
    command += ["--template", "none", "--dtype", "float32", "--layers", "block.0"]
    command += ["--poolings", "mean", "--token-budget", "256"]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + TIMEOUT
    while not list(Place(out).work.rglob("*.seg")):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pids = worker_pids(out)
    if signals == 2:  # the workers hang, and are not waited for at the second one
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    parent.send_signal(signal.SIGTERM)
    if signals == 2:
        with pytest.raises(subprocess.TimeoutExpired):
            parent.wait(2)
        parent.send_signal(signal.SIGTERM)
    _, said = parent.communicate(timeout=STOP_SECONDS / 2)
    assert parent.returncode == 130
    assert "interrupted; repeat a run with --resume" in said
    assert "Traceback" not in said
    if signals == 1:
        assert not list(Place(out).work.rglob("*.lease"))
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert team.start(out).end()[1] is None
    assert team.is_done(out)


def test_an_error_of_all_workers_is_one_line(team: Team, tmp_path: Path) -> None:
    config = replace(team.at(tmp_path / "run.zarr")[0], models=f"m={tmp_path / 'nothing'}")
    with pytest.raises(SafetySpaceError, match="nothing") as caught:
        list(raising(run_on_devices([config], ("cpu",))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": "a=gpt2"}, "two have the same name in a, a"),
        ({"models": "A=gpt2"}, "two have the same name in a, A, capitals aside"),
        ({"weights": "stream"}, "weights: one process reads streamed weights"),
        ({"tensor_parallel": 2}, "tensor_parallel: a worker has one device"),
    ],
)
def test_models_that_workers_cannot_share_are_refused_before_one_starts(
    team: Team, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    first, second = team.at(tmp_path / "run.zarr")
    with pytest.raises(ConfigError, match=said):
        next(run_on_devices([first, replace(second, **change)], ["cpu", "cpu"]))
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there_is_said_before_a_worker_starts(
    team: Team, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder,) = team.configs[0].models
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "run.zarr"
    command = ["run", "--model", folder, "--model", f"b={empty}", "--out", str(out)]
    command += ["--data", str(team.configs[0].data[0]), "--devices", "cpu:2"]
    assert main(command) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "model 'b': " in line
    assert "it has no config.json" in line
    assert list(tmp_path.iterdir()) == [empty]


def test_data_that_no_worker_can_read_are_said_once(
    team: Team, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "x", "label": 5}\n')
    command = ["run", "--model", team.configs[0].models[0], "--out", str(tmp_path / "run.zarr")]
    assert main([*command, "--data", str(tmp_path / "bad.jsonl"), "--devices", "cpu:2"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "bad.jsonl:1: no language" in line
    assert not (tmp_path / "run.zarr").exists()


def told(*said: api.Event | Exception) -> Any:
    """A worker that tells these and ends, as `_events` sees it."""
    ours, theirs = Pipe(duplex=False)
    for one in said:
        theirs.send(one)
    theirs.close()
    worker = SimpleNamespace(events=ours, failure=None)
    worker.ended = lambda: worker.failure and f"worker has ended: {worker.failure}"
    return worker


def test_workers_that_fail_for_different_reasons_before_any_begins_are_all_named() -> None:
    reasons = [StoreError("no such disk"), ConfigError("no such GPU")]
    workers, failures = [told(reason) for reason in reasons], []
    notes = {event.message for event in _events(workers, failures) if isinstance(event, api.Note)}
    assert notes == {f"worker has ended: {reason}" for reason in reasons}
    assert sorted(map(str, failures)) == ["no such GPU", "no such disk"]


def test_a_worker_that_failed_early_is_named_when_another_begins() -> None:
    failed, (ours, theirs) = told(ConfigError("no such GPU")), Pipe(duplex=False)
    failed.ended = lambda: theirs.send(api.Note("", "begun")) or theirs.close() or "it has ended"
    events = _events([failed, SimpleNamespace(events=ours, ended=lambda: None)], [])
    assert [event.message for event in events if isinstance(event, api.Note)] == [
        "it has ended; the others take over its units",
        "begun",
    ]


def test_a_thread_that_a_library_left_in_a_worker_keeps_no_run_alive(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "if 'serve()' in sys.orig_argv[-1]:\n"
        f"    threading.Thread(target=time.sleep, args=({2 * TIMEOUT},)).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    started = time.monotonic()
    configs = [replace(config, resume=True) for config in team.configs]
    ended = [e.error for e in run_on_devices(configs, ("cpu",)) if isinstance(e, RunEnded)]
    assert ended == [None, None]
    assert time.monotonic() - started < TIMEOUT


def test_what_a_library_prints_in_a_worker_is_not_lost_when_it_ends() -> None:
    code = """
from safetyspace_fast.sweep import devices
def work(*_):
    print("printed by a library", end="")
    yield from ()
devices.work = work
devices.serve()
"""
    worker = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(_Job([], (0, 1), [])),
        capture_output=True,
        check=True,
    )
    assert worker.stderr.decode() == "printed by a library"
    assert worker.stdout == b""  # which is for events


def test_the_last_worker_says_by_what_it_was_killed(team: Team, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    events = []
    for event in run_on_devices(team.at(out)[:1], ("cpu",)):
        events.append(event)
        if isinstance(event, api.Progressed):
            with suppress(IndexError, ProcessLookupError):
                os.kill(worker_pids(out)[0], signal.SIGKILL)
    assert api.Note("", "worker 0 (cpu) was killed by SIGKILL") in events
    assert "repeat the command with --resume" in str(events[-1].error)


def test_a_batch_that_is_told_after_its_model_was_merged_breaks_no_display() -> None:
    with terminal.RunDisplay() as display:
        display.show(api.ModelDone("a", 4, 40, 1.0, 1.0, None))
        display.show(api.Progressed("a", 4, 40))


def test_a_store_that_exists_is_not_added_to_unasked(team: Team) -> None:
    with pytest.raises(StoreError, match="exists already; continue with --resume"):
        list(run_on_devices(team.configs, ("cpu",)))
