"""Workers that slept for so long that others took their work over, played by hand."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sharing import Team, make_team, one_thread

from safetyspace_fast import api
from safetyspace_fast.extract import Note
from safetyspace_fast.runner import OneModel
from safetyspace_fast.store import Place, Run, Session, Shared, files
from safetyspace_fast.store.leases import WORKERS
from safetyspace_fast.sweep.events import RunEnded
from safetyspace_fast.sweep.job import _Output
from safetyspace_fast.sweep.merge import merge
from safetyspace_fast.sweep.units import work


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with one_thread():
        yield make_team(tmp_path_factory.mktemp("team"))


def leave_alone_for_long(lease: Path) -> None:
    os.utime(lease, (0, 0))


def refuse_links(patch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "no links here")

    patch.setattr(files.os, "link", link)


@pytest.mark.parametrize("links", [True, False])
def test_the_plan_of_a_model_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        refuse_links(monkeypatch)
    shared = Shared(Place(tmp_path / "run.zarr"), "a")
    assert shared.begin({"load_s": 1.0})
    assert not shared.begin({"load_s": 2.0})
    assert shared.plan() == {"load_s": 1.0}
    assert [path.name for path in (tmp_path / "run.zarr.work/a/units").iterdir()] == ["plan.json"]


def test_a_worker_that_slept_while_it_measured_leaves_the_beginning_to_others(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    prepare, begin = OneModel.prepare, OneModel.begin
    others, begun = [], []

    def prepare_slowly(self: OneModel, *arguments: Any) -> Any:
        prepared = prepare(self, *arguments)
        if not others:
            leave_alone_for_long(Place(out).work / WORKERS / "begin-a.lease")
            others.append(work(team.at(out)))
            while not isinstance(next(others[0]), api.Planned):
                pass
        return prepared

    def count(self: OneModel, *arguments: Any) -> Any:
        begun.append(self.name)
        return begin(self, *arguments)

    monkeypatch.setattr(OneModel, "prepare", prepare_slowly)
    monkeypatch.setattr(OneModel, "begin", count)
    assert all(event.error is None for event in work(team.at(out)) if isinstance(event, RunEnded))
    list(others[0])
    assert begun == ["a", "b"]
    assert team.is_done(out)


def test_a_worker_whose_plan_comes_second_works_by_the_first(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    begin, prepare, worked_by = Shared.begin, OneModel.prepare, []

    def begin_second(self: Shared, plan: dict[str, Any]) -> bool:
        assert begin(self, plan | {"load_s": 77.0})
        return begin(self, plan)

    def prepare_by(self: OneModel, model: Any, plan: Any, on_note: Any) -> Any:
        worked_by.append(plan and plan["load_s"])
        return prepare(self, model, plan, on_note)

    monkeypatch.setattr(Shared, "begin", begin_second)
    monkeypatch.setattr(OneModel, "prepare", prepare_by)
    list(work(team.at(out)))
    assert worked_by == 2 * [None, 77.0]
    assert team.is_done(out)


def test_a_plan_that_comes_when_the_model_is_complete_is_not_worked_by(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    begin, begun = Shared.begin, []

    def begin_late(self: Shared, plan: dict[str, Any]) -> bool:
        begun.append(plan)
        if len(begun) == 1:
            leave_alone_for_long(Place(out).work / WORKERS / "begin-a.lease")
            list(work(team.at(out)))
            assert Run(str(out)).models == ("a", "b")
        return begin(self, plan)

    monkeypatch.setattr(Shared, "begin", begin_late)
    events = list(work(team.at(out)))
    assert not any(isinstance(event, api.Progressed) for event in events)
    assert all(event.error is None for event in events if isinstance(event, RunEnded))
    assert team.is_done(out)


@pytest.mark.parametrize("slow", ["a worker", "merge"])
def test_a_model_that_another_merges_meanwhile_stays_complete(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    out = tmp_path / "run.zarr"
    if slow == "merge":
        team.start(out, (0, 1), ("merging", 0)).end()
    write, written = Session.write_language, []

    def write_slowly(self: Session, i_lang: int, arrays: Any) -> None:
        written.append(i_lang)
        if len(written) == 3:  # the last language, after which a shard is entered in the journal
            leave_alone_for_long(Place(out).work / WORKERS / "merge-a.lease")
            list(work(team.at(out)))
            assert Run(str(out)).models == ("a", "b")
        write(self, i_lang, arrays)

    monkeypatch.setattr(Session, "write_language", write_slowly)
    events = list(merge(out) if slow == "merge" else work(team.at(out)))
    (said,) = (e for e in events if isinstance(e, Note) and "slept" in e.message)
    assert said.model == "a"
    assert all(event.error is None for event in events if isinstance(event, RunEnded))
    assert Run(str(out)).models == ("a", "b")
    list(work(team.at(out)))
    assert team.is_done(out)


def test_arrays_that_another_worker_computes_by_now_are_not_written(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    write, computed = _Output.write_language, []
    taken: list[str] = []

    def write_late(self: _Output, i_lang: int, arrays: Any) -> None:
        shared = Shared(Place(out), "a")
        lease = Place(out).work / f"{shared.language(i_lang)}.lease"
        taken_over = not computed
        if taken_over:
            lease.write_text(json.dumps({"worker": "another"}))
        write(self, i_lang, arrays)
        computed.append(shared.is_computed(i_lang))
        if taken_over:
            lease.unlink()
            # The thread that runs batches looks for units at any time, also now.
            unit = shared.language(i_lang)
            if self._claims._take(unit):
                taken.append(unit)
                self._claims.give_back(unit)

    monkeypatch.setattr(_Output, "write_language", write_late)
    list(work(team.at(out)[:1]))
    assert computed == [False, True, True, True]
    assert not taken
    monkeypatch.undo()
    list(work(team.at(out)))
    assert team.is_done(out)
