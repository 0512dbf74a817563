"""Ranks: where they come from, and what is refused before anything runs."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from safetyspace_fast import cli
from safetyspace_fast.config import RunConfig
from safetyspace_fast.errors import ConfigError
from safetyspace_fast.sweep.devices import devices_of
from safetyspace_fast.sweep.ranks import rank_of, run_as_rank


def array(task: int, first: int, last: int, step: int, **others: str) -> dict[str, str]:
    """What Slurm 22.05 says to a task of a job array."""
    numbers = {"ID": task, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(n) for name, n in numbers.items()} | others


def srun(task: int, tasks: int) -> dict[str, str]:
    """What srun says to each task of a job."""
    return {"SLURM_PROCID": str(task), "SLURM_NTASKS": str(tasks)}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        (srun(1, 2), (1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "8"} | srun(1, 2), (3, 8)),
        (array(7, 6, 9, 1), (1, 4)),
        (array(7, 1, 7, 2), (3, 4)),
        (array(7, 6, 9, 1) | srun(0, 1), (1, 4)),
        (array(7, 6, 9, 1, SLURM_PROCID="0"), (1, 4)),  # a batch script without srun
        (array(5, 5, 5, 1) | srun(0, 1), (0, 1)),
    ],
)
def test_a_launcher_says_the_rank(environment: dict[str, str], rank: tuple[int, int]) -> None:
    assert rank_of(None, None, environment) == rank
    assert rank_of(5, 6, environment) == (5, 6)  # what is typed counts


@pytest.mark.parametrize(
    ("tasks", "first", "last", "step"), [((0, 1, 2), 0, 2, 1), ((2, 5, 8), 2, 8, 3)]
)
@pytest.mark.parametrize("launcher", ["srun", "torchrun", "torchrun under srun"])
def test_ranks_of_a_job_array_with_several_processes_a_task_cover_all(
    tasks: tuple[int, ...], first: int, last: int, step: int, launcher: str
) -> None:
    of_process = {
        "srun": lambda process: srun(process, 2),
        "torchrun": lambda process: {"RANK": str(process), "WORLD_SIZE": "2"},
        "torchrun under srun": lambda process: (
            srun(process // 2, 2) | {"RANK": str(process), "WORLD_SIZE": "4"}
        ),
    }[launcher]
    processes = 4 if launcher == "torchrun under srun" else 2
    ranks = [
        rank_of(None, None, array(task, first, last, step) | of_process(process))
        for task in tasks
        for process in range(processes)
    ]
    assert ranks == [(rank, 3 * processes) for rank in range(3 * processes)]


def test_an_array_with_gaps_has_a_rank_for_each_task() -> None:
    ranks = [
        rank_of(None, None, array(task, 0, 7, 1, SLURM_ARRAY_TASK_COUNT="3")) for task in (0, 3, 7)
    ]
    assert ranks == [(0, 8), (3, 8), (7, 8)]


@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_job_array_of_the_readme_requeues_its_own_task_when_it_was_interrupted(
    code: int, tmp_path: Path
) -> None:
    page = (Path(cli.__file__).parents[1] / "sweep" / "README.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    said = tmp_path / "said"
    for name, line in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" >> "{said}"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    # The last task of an array has the array's id: to requeue that would requeue all tasks.
    ids = {"SLURM_JOB_ID": "16", "SLURM_ARRAY_JOB_ID": "16"} | array(1, 0, 1, 1)
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run(["bash", "-c", script], env=ids | path, check=False)
    assert ended.returncode == code
    assert said.exists() == (code == 130)
    if code == 130:
        assert said.read_text() == "requeue 16_1\n"


@pytest.mark.parametrize(
    ("rank", "world_size", "environment", "said"),
    [
        (0, 0, {}, "world-size: got 0, expected at least 1"),
        (2, 2, {}, "rank: got 2, expected 0 to 1 for a world-size of 2"),
        (-1, 2, {}, "rank: got -1"),
        (1, None, {}, "--world-size is missing"),
        (None, 4, {}, "--rank is missing"),
        (None, None, {"RANK": "x", "WORLD_SIZE": "2"}, "RANK: got 'x' from the launcher"),
    ],
)
def test_a_wrong_rank_is_one_clear_line(
    rank: int | None, world_size: int | None, environment: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        rank_of(rank, world_size, environment)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_a_machine_does_not_see_is_refused(tmp_path: Path) -> None:
    config = RunConfig(models="gpt2", data="sample:polite", out=tmp_path / "unmounted" / "run.zarr")
    with pytest.raises(ConfigError, match=r"this machine has no folder .*unmounted"):
        next(run_as_rank([config], 1, 2))
    assert list(tmp_path.iterdir()) == []


def test_ranks_do_not_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    config = RunConfig(models="gpt2", data="sample:polite", out=out, overwrite=True)
    with pytest.raises(ConfigError, match="ranks cannot overwrite"):
        next(run_as_rank([config], 0, 2))


@pytest.mark.parametrize("text", ["", "cpu", "cpu:0", "2-1", "0,0", "a", "0-9999", "cuda:0", "1;2"])
def test_wrong_devices_are_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^devices: ") as caught:
        devices_of(text)
    assert "\n" not in str(caught.value)


def test_devices_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert devices_of("all") == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert devices_of("0-1, 3") == ("cuda:0", "cuda:1", "cuda:3")
    assert devices_of("cpu:2") == ("cpu", "cpu")
    with pytest.raises(ConfigError, match="this machine has 4 GPUs"):
        devices_of("0-4")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rank", "0", "--world-size", "0"], "world-size: got 0"),
        (["--devices", "cpu:0"], "devices: got 'cpu:0'"),
        (["--devices", "cpu:2", "--device", "cpu"], "exclude each other"),
    ],
)
def test_the_command_line_refuses_before_a_model_is_loaded(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.zarr"
    command = ["run", "--model", "no/such", "--data", "no.jsonl", "--out", str(out), *options]
    assert cli.main(command) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
