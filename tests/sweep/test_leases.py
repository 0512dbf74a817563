"""Leases: one worker has each, and loses it when it has gone, whatever the clocks say."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safetyspace_fast.errors import StoreError
from safetyspace_fast.store import Leases, leases
from safetyspace_fast.store.leases import STALE_SECONDS, WORKERS

NAME = "m/units/part-000001"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work" / "m" / "units").mkdir(parents=True)
    return tmp_path / "work"


def leave(work: Path, age: float = 0.0, **changes: Any) -> Path:
    """Put there the lease of a worker on another machine, touched some seconds ago."""
    owner = {"pid": 1, "host": "elsewhere", "processes": "", "worker": "other", **changes}
    path = work / f"{NAME}.lease"
    path.write_text(json.dumps(owner))
    touched = path.stat().st_mtime - age
    os.utime(path, (touched, touched))
    return path


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def then(
    look: Callable[[Path], bool], do: Callable[[], bool], looks: int = 1
) -> Callable[[Path], bool]:
    """A look after which, when it finds something for the n-th time, another worker is faster."""
    finds = iter(range(1, 100))

    def looked(path: Path) -> bool:
        found = look(path)
        assert not found or next(finds) != looks or do()
        return found

    return looked


def at_first_change(patch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Do something once, after a file was renamed or deleted."""
    for owner, name in ((os, "rename"), (Path, "unlink")):
        change = getattr(owner, name)

        def changed(*arguments: Any, change: Any = change, **options: Any) -> None:
            change(*arguments, **options)
            patch.undo()
            do()

        patch.setattr(owner, name, changed)


def test_only_one_of_many_workers_gets_a_lease(work: Path) -> None:
    workers = [Leases(work) for _ in range(8)]
    got: list[bool] = []
    threads = [threading.Thread(target=lambda w=w: got.append(w.claim(NAME))) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 1
    (owner,) = [worker for worker in workers if worker.holds(NAME)]
    owner.release(NAME)
    assert workers[0].claim(NAME)
    for worker in workers:
        worker.__exit__()
    assert sorted(path.name for path in work.iterdir()) == ["m"]


def test_a_lease_that_another_takes_while_one_looks_stays_where_it_is(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = work / f"{NAME}.lease"
    with Leases(work) as fast, Leases(work) as slow:
        read = leases._read

        def nothing_yet(looked_at: Path) -> tuple[dict[str, object], float] | None:
            found = read(looked_at)
            if looked_at == path and found is None:
                monkeypatch.setattr(leases, "_read", read)
                assert fast.claim(NAME)
            return found

        monkeypatch.setattr(leases, "_read", nothing_yet)
        assert not slow.claim(NAME)
        assert fast.holds(NAME)


@pytest.mark.parametrize(("looks", "links"), [(1, True), (1, False), (2, True)])
def test_two_that_take_a_stale_lease_over_do_not_take_it_from_each_other(
    work: Path, monkeypatch: pytest.MonkeyPatch, looks: int, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = leave(work, 600)
    with Leases(work) as fast, Leases(work) as slow, Leases(work) as third:
        got: list[bool] = []
        with monkeypatch.context() as patch:

            def is_faster() -> bool:
                claimed = fast.claim(NAME)
                at_first_change(patch, lambda: got.append(third.claim(NAME)))
                return claimed

            patch.setattr(slow, "_is_left", then(slow._is_left, is_faster, looks))
            assert not slow.claim(NAME)
        assert not any(got)
        assert fast.holds(NAME)
        assert list(path.parent.iterdir()) == [path]


def test_a_lease_that_another_takes_over_is_not_given_back_for_it(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Leases(work) as slow, Leases(work) as fast:
        assert slow.claim(NAME)
        os.utime(work / f"{NAME}.lease", (0, 0))
        monkeypatch.setattr(slow, "_is_mine", then(slow._is_mine, lambda: fast.claim(NAME)))
        slow.release(NAME)
        assert fast.holds(NAME)


def test_a_guard_that_a_killed_worker_left_is_removed(work: Path) -> None:
    path = leave(work, 600)
    guard = path.with_name(path.name + ".guard")
    guard.touch()
    with Leases(work) as mine:
        assert not mine.claim(NAME)  # somebody may be about it
        os.utime(guard, (0, 0))
        assert mine.claim(NAME)
    assert list(path.parent.iterdir()) == []


def test_a_lease_of_a_process_of_this_machine_that_has_ended_is_taken_at_once(work: Path) -> None:
    script = (
        "import sys, os; from pathlib import Path; from safetyspace_fast.store import Leases\n"
        f"assert Leases(Path(sys.argv[1])).claim({NAME!r}); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(work)], check=True, timeout=120)
    with Leases(work) as mine:
        assert mine.is_free(NAME)
        assert list(mine.others()) == []
        assert mine.claim(NAME)


@pytest.mark.parametrize(("age", "taken"), [(0, False), (60, False), (600, True)])
def test_a_lease_of_another_machine_is_taken_when_it_is_old(
    work: Path, age: float, taken: bool
) -> None:
    leave(work, age)
    with Leases(work) as mine:
        assert mine.claim(NAME) == taken


def test_a_lease_from_the_future_is_taken_when_nobody_touches_it(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = leave(work, -86_400), SimpleNamespace(now=0.0)
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with Leases(work) as mine:
        assert not mine.claim(NAME)
        clock.now = STALE_SECONDS - 1
        assert not mine.claim(NAME)
        os.utime(path, (2e10, 2e10))  # its worker lives, on a machine of another time
        clock.now = STALE_SECONDS + 1
        assert not mine.claim(NAME)
        clock.now = 2 * STALE_SECONDS
        assert not mine.is_free(NAME)
        clock.now = 2 * STALE_SECONDS + 2
        assert mine.is_free(NAME)
        assert mine.claim(NAME)


@pytest.mark.parametrize(("age", "taken"), [(0, False), (600, True)])
def test_a_lease_that_cannot_be_read_is_taken_when_it_is_old(
    work: Path, age: float, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = leave(work, age), Path.open

    def open_own(asked: Path, mode: str) -> Any:
        if asked == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(asked, mode)

    monkeypatch.setattr(Path, "open", open_own)
    with Leases(work) as mine:
        assert mine.is_free(NAME) == taken
        assert mine.claim(NAME) == taken


def test_a_lease_that_cannot_be_removed_is_said(work: Path) -> None:
    path = work / f"{NAME}.lease"
    path.mkdir()
    os.utime(path, (0, 0))
    with Leases(work) as mine, pytest.raises(StoreError, match=r"part-000001.lease: cannot be"):
        mine.claim(NAME)


def test_what_killed_workers_left_is_deleted_when_it_is_old(work: Path) -> None:
    with Leases(work):
        for name in ("a.now", "a.lease.b.tmp", "a.lease.guard", "a.lease", "fresh.lease"):
            (work / WORKERS / name).touch()
            if name[0] == "a":
                os.utime(work / WORKERS / name, (0, 0))
    assert [path.name for path in (work / WORKERS).iterdir()] == ["fresh.lease"]


@pytest.mark.parametrize("skew", [-86_400.0, 86_400.0])
def test_clocks_of_machines_do_not_matter(
    work: Path, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + skew)
    leave(work)
    with Leases(work) as mine:
        assert not mine.claim(NAME)
        leave(work, 600)
        assert mine.claim(NAME)


def test_a_process_with_the_number_of_another_container_is_not_taken_for_it(work: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    same = {"pid": ended.pid, "host": socket.gethostname()}
    leave(work, **same, processes="pid:[another]")
    with Leases(work) as mine:
        assert not mine.claim(NAME)
        leave(work, **same, processes=leases._process_namespace())
        assert mine.claim(NAME)


def test_a_worker_that_slept_for_long_sees_that_it_has_lost_its_lease(work: Path) -> None:
    with Leases(work) as slow, Leases(work) as fast:
        assert slow.claim(NAME)
        path = work / f"{NAME}.lease"
        touched = path.stat().st_mtime - 600
        os.utime(path, (touched, touched))
        assert fast.claim(NAME)
        assert not slow.holds(NAME)
        slow.release(NAME)
        assert fast.holds(NAME)


def test_a_worker_that_slept_for_long_is_there_again_when_it_wakes(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 3600.0)  # the heart beats by hand here
    with Leases(work) as slow:
        holding = f"{WORKERS}/holding-m-{slow.worker.rpartition('/')[2]}"
        assert slow.claim(holding)
        assert slow.claim(NAME)
        for name in (slow.worker, holding, NAME):
            os.utime(work / f"{name}.lease", (0, 0))
        with Leases(work) as fast:
            assert fast.claim(NAME)
            fast.release(NAME)
        assert not (work / WORKERS).exists()
        slow._keep_fresh()
        with Leases(work) as other:
            assert [found["worker"] for found in other.others()] == [slow._owner["worker"]]
            assert other.owners("holding-m") == 1
        assert not slow.holds(NAME)  # another may have had it
        assert slow.claim(NAME)
        slow.release(holding)
        slow._keep_fresh()
        assert not slow.holds(holding)
    assert sorted(path.name for path in work.rglob("*")) == ["m", "units"]


def test_a_lease_is_kept_fresh_for_as_long_as_it_is_held(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    with Leases(work) as mine:
        assert mine.claim(NAME)
        path = work / f"{NAME}.lease"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime < 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lease_that_a_crash_left_empty_is_taken_when_it_is_old(work: Path) -> None:
    path = leave(work)
    path.write_bytes(b"")
    with Leases(work) as mine:
        assert not mine.claim(NAME)
        os.utime(path, (0, 0))
        assert mine.claim(NAME)


def test_a_folder_that_is_not_there_or_not_writable_is_said(work: Path) -> None:
    with Leases(work) as mine:
        assert not mine.claim("other/units/part-000001")
    with pytest.raises(StoreError, match="cannot be made"):
        Leases(Path("/proc/run.zarr.work"))
