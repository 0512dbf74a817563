"""Workers that share models give the bytes of one process, whoever dies when."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sharing import STAGES, TEXTS, Team, contents, make_team, one_thread

from safetyspace_fast import api
from safetyspace_fast.cli import main
from safetyspace_fast.errors import ConfigError, StoreError
from safetyspace_fast.extract import Note
from safetyspace_fast.store import Place, Run, Shared, clear
from safetyspace_fast.sweep.events import RunEnded, raising
from safetyspace_fast.sweep.merge import merge
from safetyspace_fast.sweep.units import work

SLOW = pytest.mark.slow
KEPT = {("beginning", 0), ("in a batch", 5), ("merging", 0), ("clearing", 0)}
"""Stages in which a worker is killed also when slow tests are left out."""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with one_thread():
        yield make_team(tmp_path_factory.mktemp("team"))


@pytest.mark.parametrize("number", [pytest.param(1, marks=SLOW), 2, pytest.param(3, marks=SLOW)])
def test_any_number_of_workers_gives_the_same_bytes(
    team: Team, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "run.zarr"
    started = [team.start(out, (rank, number)) for rank in range(number)]
    ended = [worker.end() for worker in started]
    assert [error for _, error in ended] == [None] * number
    assert sum(texts or 0 for texts, _ in ended) == 2 * sum(TEXTS.values())  # each text once
    assert team.is_done(out)
    assert Run(str(out)).model("b").attrs["bases"] == ["a"]


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        pytest.param(stage, at, marks=() if (stage, at) in KEPT else SLOW)
        for stage in STAGES
        for at in ((0,) if stage != "in a batch" else (0, 5))
    ],
)
def test_a_killed_worker_loses_at_most_the_batch_in_hand(
    team: Team, tmp_path: Path, stage: str, at: int
) -> None:
    out = tmp_path / "run.zarr"
    assert team.start(out, (0, 2), (stage, at)).end() == (None, "killed")
    known = sum(
        len(record.rows)
        for part in range(3)
        for record in Shared(Place(out), "a").segments((1, 1, 32 + 64)).records(part)
    )
    if stage == "in a batch":
        assert (known > 0) == (at > 0)
    texts, error = team.start(out, (1, 2)).end()
    assert error is None
    assert team.is_done(out)
    both = 2 * sum(TEXTS.values())
    if stage in ("preparing", "beginning", "in a batch"):
        assert texts == both - known
    else:  # of the first model, all or a language and its arrays were computed
        assert texts is not None
        assert texts < both


@pytest.mark.parametrize(
    "stage",
    ["in a batch", *(pytest.param(s, marks=SLOW) for s in ("finishing a language", "merging"))],
)
def test_workers_that_live_take_over_from_one_that_dies(
    team: Team, tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "run.zarr"
    workers = [team.start(out, (0, 2), (stage, 1)), team.start(out, (1, 2))]
    ended = [worker.end() for worker in workers]
    assert ended[1][1] is None
    assert team.is_done(out)


def test_a_run_in_one_process_goes_on_from_what_workers_left(team: Team, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    team.start(out, (0, 1), ("finishing a language", 1)).end()
    assert list(Place(out).work.rglob("*.npz"))
    ran = 0
    for config in team.at(out, resume=True):
        for event in api.iter_run(config):
            ran += event.texts if isinstance(event, api.Progressed) else 0
    assert ran < 2 * sum(TEXTS.values())
    assert contents(out) == team.reference


def test_a_run_in_one_process_is_refused_while_workers_write_the_model(
    team: Team, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    running = work(team.at(out))
    next(running)
    with pytest.raises(StoreError, match="model 'a': being written by process"):
        api.run(team.at(out, resume=True)[0])
    running.close()
    api.run(team.at(out, resume=True)[0])


def test_a_closed_worker_keeps_what_it_ran_and_leaves_no_lease(team: Team, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    running = work(team.at(out))
    for event in running:
        if isinstance(event, api.Progressed):
            break
    running.close()
    assert list(Place(out).work.rglob("*.seg"))
    assert not list(Place(out).work.rglob("*.lease"))
    assert sum(e.texts for e in work(team.at(out)) if isinstance(e, api.Progressed)) < 600
    assert team.is_done(out)


def test_merge_may_run_twice_and_says_what_is_missing(
    team: Team, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.zarr"
    team.start(out, (0, 1), ("finishing a language", 1)).end()
    (note,) = merge(out)
    assert isinstance(note, Note)
    assert note.message.startswith("2 of 3 languages are not computed yet")
    list(merge(out))
    assert not Run(str(out)).models

    team.start(out, (0, 1), ("merging", 1)).end()
    capfd.readouterr()
    assert main(["merge", str(out), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert [(done["model"], done["out"]) for done in said["models"]] == [("a", said["out"])]
    assert said["models"][0]["tokens"] > 0
    assert said["out"] == str(out)
    assert Run(str(out)).models == ("a",)
    assert [event.model for event in merge(out)] == [""]
    list(work(team.at(out)))
    assert team.is_done(out)


def test_merge_of_no_store_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such store"):
        list(merge(tmp_path / "none.zarr"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    for path in (tmp_path / "model", tmp_path / "model" / "config.json"):
        with pytest.raises(StoreError, match="not a safetyspace-fast store"):
            list(merge(path))


@pytest.mark.parametrize("damage", ["arrays", "states"])
def test_a_language_that_is_damaged_is_computed_again(
    team: Team, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "run.zarr"
    stage = "merging" if damage == "arrays" else "finishing a language"
    team.start(out, (0, 1), (stage, 0)).end()
    path = next(iter(sorted(Place(out).work.rglob("*.npz" if damage == "arrays" else "*.seg"))))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert team.start(out).end()[1] is None
    assert team.is_done(out)


def test_a_full_disk_ends_one_worker_in_one_line_and_the_others_finish(
    team: Team, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    _, error = team.start(out, (0, 2), ("full disk", 40)).end()
    assert error is not None
    assert "cannot be written" in error
    assert "\n" not in error
    assert team.start(out, (1, 2)).end()[1] is None
    assert team.is_done(out)


def test_a_model_that_fails_on_one_worker_only_is_run_by_the_others(
    team: Team, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    workers = [team.start(out, (0, 2), ("no model", 0)), team.start(out, (1, 2))]
    ended = [worker.end() for worker in workers]
    assert ended[1] == (2 * sum(TEXTS.values()), None)
    # The other may have finished "a" before this one comes to it.
    assert ended[0][1] in (None, *(f"{name}: cannot be loaded on this machine" for name in "ab"))
    assert team.is_done(out)


@pytest.mark.parametrize("missing", ["./nothing", "no/nothing"])  # no folder; not on the hub
def test_a_model_that_fails_stops_no_other(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    out = tmp_path / "run.zarr"
    first, second = team.at(out)
    events = work([replace(first, models=f"a={missing}"), second])
    with pytest.raises(api.SafetySpaceError, match="nothing"):
        list(raising(events))
    assert Run(str(out)).models == ("b",)


def test_a_half_downloaded_model_is_named_and_finished_when_it_is_whole(
    team: Team, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    first, second = team.at(out)
    whole = Path(second.models[0].removeprefix("b="))
    half = shutil.copytree(whole, tmp_path / "half")
    os.truncate(half / "model.safetensors", 3000)
    configs = [first, replace(second, models=f"b={half}")]
    ended = {event.model: event.error for event in work(configs) if isinstance(event, RunEnded)}
    assert ended["a"] is None
    assert "not a complete safetensors file" in str(ended["b"])
    assert Run(str(out)).models == ("a",)
    shutil.copy(whole / "model.safetensors", half)
    list(raising(work(configs)))
    assert team.is_done(out)


def test_a_model_whose_basis_is_not_run_any_more_says_so(team: Team, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    team.start(out, (0, 1), ("finishing a language", 0)).end()
    running = work(team.at(out))
    for event in running:
        if isinstance(event, api.Planned) and event.model == "b":
            break
    running.close()
    assert Shared(Place(out), "b").plan() is not None
    (Place(out).folder / "models" / "a" / "zarr.json").unlink()
    with pytest.raises(api.SafetySpaceError, match="wait for those of model 'a'"):
        list(raising(work(team.at(out)[1:])))


def test_two_sweeps_with_other_models_share_a_store(team: Team, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    first, second = team.at(out)
    running = work([first])
    while not isinstance(next(running), api.Planned):
        pass
    assert all(e.error is None for e in work([second]) if isinstance(e, RunEnded))
    assert all(e.error is None for e in running if isinstance(e, RunEnded))
    assert Run(str(out)).models == ("a", "b")
    assert not Place(out).work.exists()


def test_ranks_that_disagree_are_refused_before_a_model_is_loaded(
    team: Team, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    running = work(team.at(out, max_tokens=9), 0, 2)
    next(running)
    match = (
        r"runs model 'a' with other settings: data is '.*texts\.jsonl' there and "
        r"'ddd+\.\.\.d+\.jsonl' here; max_tokens is '9' there and the default here; "
        r"seed is the default there and '1' here; give all ranks the same command"
    )
    with pytest.raises(ConfigError, match=match) as caught:
        next(work(team.at(out, seed=1, data=("d" * 100 + ".jsonl",)), 1, 2))
    assert "\n" not in str(caught.value)
    running.close()


def test_fewer_ranks_than_before_take_over_while_the_earlier_ones_end(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started in another folder too: the names of the store differ, the store does not."""
    out = tmp_path / "run.zarr"
    earlier = work(team.at(out), 5, 6)
    next(earlier)
    monkeypatch.chdir(tmp_path)
    assert all(e.error is None for e in work(team.at(Path(out.name))) if isinstance(e, RunEnded))
    earlier.close()
    assert team.is_done(out)


def test_two_workers_clear_a_model_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, iterdir = tmp_path / "units", Path.iterdir
    units.mkdir()

    def late(self: Path) -> Iterator[Path]:
        if self == units:
            units.rmdir()
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", late)
    clear(tmp_path)
    assert not units.exists()


def test_workers_do_not_make_a_store_grow(team: Team, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    list(work(team.at(out)[:1]))
    data = tmp_path / "more.jsonl"
    data.write_text(Path(str(team.configs[0].data[0])).read_text() * 2)
    with pytest.raises(StoreError, match="a store grows in one process"):
        list(work([replace(config, data=(str(data),)) for config in team.at(out)]))
