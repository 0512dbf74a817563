"""Leases: one worker has each, and loses it when it has gone, whatever the clocks say."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from safetyspace_fast.errors import StoreError
from safetyspace_fast.store import Leases, leases

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
        monkeypatch.setattr(slow, "_bury", lambda _: pytest.fail("a fresh lease was moved"))
        assert not slow.claim(NAME)
        assert fast.holds(NAME)


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
