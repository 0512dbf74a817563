"""Sweeps that several workers share: one load a model, one table, and the bytes of one process."""

import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm
from sharing import Team, count_loads, make_team, one_thread

from safetyspace_fast import api
from safetyspace_fast.cli import main
from safetyspace_fast.errors import ConfigError, ModelError
from safetyspace_fast.runner import OneModel
from safetyspace_fast.sweep import RunBegun, RunEnded, Truths
from safetyspace_fast.sweep.claims import Left
from safetyspace_fast.sweep.events import raising, together
from safetyspace_fast.sweep.holding import Holding
from safetyspace_fast.sweep.units import work

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with one_thread():
        yield make_team(tmp_path_factory.mktemp("team"))


def two_stores(team: Team, folder: Path) -> list[api.RunConfig]:
    """Both models over two data sets, as a sweep file gives them: model after model."""
    one, two = team.at(folder / "one.zarr"), team.at(folder / "two.zarr")
    return list(chain.from_iterable(zip(one, two, strict=True)))


def sweep_file(team: Team, folder: Path, *names: str) -> str:
    """The same as a file, with a model whose download stopped between the two."""
    data = Path(str(team.configs[0].data[0]))
    broken = folder / "broken"
    shutil.copytree(data.parent / "b", broken)
    os.truncate(broken / "model.safetensors", 3000)
    config = team.configs[0]
    content = {
        "out": str(folder),
        "models": [str(data.parent / "a"), str(broken), str(data.parent / "b")],
        "data": [{"data": str(data), "name": name} for name in names],
        **{key: getattr(config, key) for key in ("template", "dtype", "layers", "token_budget")},
        "poolings": list(config.poolings),
    }
    file = folder / "sweep.json"
    file.write_text(json.dumps(content))
    return str(file)


@pytest.mark.parametrize("number", [1, 2, pytest.param(7, marks=SLOW)])
def test_a_worker_loads_a_model_once_for_all_stores(
    team: Team, tmp_path: Path, number: int
) -> None:
    configs = two_stores(team, tmp_path)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(number)]
    workers = [
        warm.start(count_loads, configs, (rank, number), theirs)
        for rank, (_, theirs) in enumerate(pipes)
    ]
    loads = [ours.recv() for ours, _ in pipes]
    for worker in workers:
        worker.join()
    assert team.is_done(tmp_path / "one.zarr")
    assert team.is_done(tmp_path / "two.zarr")
    assert all(len(set(own)) == len(own) for own in loads), loads
    assert set(chain.from_iterable(loads)) == {"a", "b"}


def test_a_rank_shows_what_a_sweep_in_one_process_shows(
    team: Team,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = sweep_file(team, tmp_path, "one", "two")
    assert main(["run", file, "--rank", "0", "--world-size", "2"]) == 1
    said = capfd.readouterr()
    assert re.search(r"^6 runs: about .* in one process and .* of disk$", said.err, re.M)
    states = [line.split(": ")[1] for line in said.err.splitlines() if line.startswith("[3/6]")]
    assert states == ["running", "failed"]
    states = [line.split(": ")[1] for line in said.err.splitlines() if line.startswith("[6/6]")]
    assert states == ["running", "running", "done"]
    assert "4 runs done, 2 failed" in said.out
    # Of another place than the truth, so no share of it is printed.
    assert re.search(r"^time: estimated .* s in one process, took [\d.]+ s$", said.out, re.M)
    assert said.out.count("failed: broken -> ") == 2
    assert said.out.count("not a complete safetensors file") == 2
    assert f"safetyspace-fast run {file} --resume" in said.err.splitlines()[-1]
    assert team.is_done(tmp_path / "one.zarr")
    assert team.is_done(tmp_path / "two.zarr")


def test_json_of_a_sweep_on_devices_has_a_record_for_each_run(
    team: Team,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = sweep_file(team, tmp_path, "one")
    assert main(["run", file, "--devices", "cpu:2", "--json"]) == 1
    runs = json.loads(capfd.readouterr().out)["runs"]
    out = str(tmp_path / "one.zarr")
    assert [(run["model"], run["out"]) for run in runs] == [(n, out) for n in ("a", "broken", "b")]
    assert ["not a complete" in (run["error"] or "") for run in runs] == [False, True, False]
    assert [run["truth"] is not None for run in runs] == [True, False, True]
    assert all(run["truth"]["store_bytes"] > 0 for run in (runs[0], runs[2]))
    assert team.is_done(tmp_path / "one.zarr")


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        (["--devices", "cpu:2"], {"weights": "stream"}, "one process reads streamed weights"),
        (["--devices", "cpu:2"], {"tensor_parallel": 2}, "a worker has one device"),
        (["--devices", "cpu:0"], {}, "expected 1 to 1024 workers"),
        (["--devices", "cpu:0", "--dry-run"], {}, "expected 1 to 1024 workers"),
        (["--workers", "2", "--dry-run"], {}, "--workers is for --ray"),
        (["--rank", "0", "--world-size", "2"], {"weights": "stream"}, "one process reads"),
        (["--ray", "127.0.0.1:1"], {"tensor_parallel": 2}, "a worker has one device"),
        (["--ray", "127.0.0.1:1", "--workers", "0"], {}, "expected at least 1"),
        (["--ray", "127.0.0.1:1", "--devices", "cpu:2"], {}, "exclude each other"),
    ],
)
def test_what_workers_cannot_do_is_said_before_anything_is_read_or_measured(
    team: Team,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    key: dict[str, Any],
    said: str,
) -> None:
    file = Path(sweep_file(team, tmp_path, "one"))
    content = json.loads(file.read_text()) | key
    (data,) = content["data"]
    data["data"] = str(tmp_path / "missing.jsonl")  # reading it would be the next error
    file.write_text(json.dumps(content))
    assert main(["run", str(file), *options]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


def test_what_nobody_foresaw_in_a_worker_stops_no_other_model(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OneModel.prepare

    def broken(self: Any, *arguments: Any) -> Any:
        if self.name == "a":
            raise ZeroDivisionError("of a test")
        return real(self, *arguments)

    monkeypatch.setattr(OneModel, "prepare", broken)
    events = list(work(two_stores(team, tmp_path)))
    ended = {(e.model, Path(e.out).name): e.error for e in events if isinstance(e, RunEnded)}
    assert [str(ended["a", f"{name}.zarr"]) for name in ("one", "two")] == [
        "ZeroDivisionError: of a test"
    ] * 2
    assert [ended["b", f"{name}.zarr"] for name in ("one", "two")] == [None, None]


def claims(holders: int, waiting: int, *done_s: float, load_s: float = 10.0) -> Any:
    return SimpleNamespace(
        holders=lambda: holders,
        left=lambda: Left(waiting, done_s, load_s),
        hold=lambda: None,
        let_go=lambda: None,
    )


@pytest.mark.parametrize(
    ("of_stores", "worth"),
    [
        ([claims(0, 1, 0.1)], True),  # nobody has it
        ([claims(2, 5, 10.0)], True),  # 25 s of work for each of them
        ([claims(2, 1, 10.0)], False),  # 5 s
        ([claims(2, 1, 10.0), claims(2, 4)], True),  # its other store counts too
        ([claims(3, 4)], True),  # not begun, and a unit would be left
        ([claims(3, 3)], False),
    ],
)
def test_a_worker_loads_another_model_only_if_it_is_ready_in_time(
    of_stores: list[Any], worth: bool
) -> None:
    nothing = SimpleNamespace(forget_model=lambda: None)
    holding = Holding(nothing, lambda: None)  # type: ignore[arg-type]  # a stand-in
    for one in of_stores:
        holding.add("m", one)
    assert holding.wants("m") == worth
    holding.name = "m"
    assert holding.wants("m")


def test_a_run_of_several_workers_begins_and_ends_once(team: Team, tmp_path: Path) -> None:
    configs = two_stores(team, tmp_path)
    one, two = str(configs[0].out), str(configs[1].out)
    failed = ModelError("a: no memory in one worker")
    said: list[api.Event] = [
        RunBegun("a", out=one),
        RunBegun("a", out=one),
        RunBegun("a", out=two),
        RunEnded("a", failed, out=two),
        RunEnded("a", failed, out=one),
        RunEnded("a", None, out=one),
        RunBegun("a", out=one),
        RunEnded("a", None, out=one),
    ]
    told = list(together(iter(said), configs, [ModelError("worker 1 was lost")]))
    assert told[:3] == [said[0], said[2], said[5]]
    assert [(e.model, e.out, str(e.error)) for e in told[3:] if isinstance(e, RunEnded)] == [
        ("a", two, str(failed)),
        ("b", one, "worker 1 was lost"),
        ("b", two, "worker 1 was lost"),
    ]
    with pytest.raises(ConfigError, match="other settings"):
        list(together(iter(()), configs, [ConfigError("rank 1 has other settings")]))
    with pytest.raises(ModelError, match="a: no memory in one worker"):
        list(raising(event for event in told))


def test_runs_at_the_same_time_share_the_seconds_that_pass(tmp_path: Path) -> None:
    clock = iter([0.0, 10.0, 30.0, 34.0])
    truths = Truths(lambda: next(clock))
    out = str(tmp_path / "run.zarr")
    for event in (
        RunBegun("a", out=out),
        RunBegun("b", out=out),
        api.Progressed("a", 1, 1, out=out),
        api.Progressed("b", 1, 1, out=out),
        RunEnded("a", None, out=out),
        RunEnded("b", None, out=out),
    ):
        truths.add(event)
    assert {model: truth.seconds for (model, _), truth in truths.of_run.items()} == {
        "a": 20.0,
        "b": 14.0,
    }
