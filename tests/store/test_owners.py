"""Several processes at one store: two models at once, one model once, readers at any time."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import zarr
from tiny_models import save_tiny

from safetyspace_fast import api
from safetyspace_fast.errors import StoreError
from safetyspace_fast.store import Claim, Place, session
from safetyspace_fast.store.layout import SHARD_SAMPLES

COMMAND = [sys.executable, "-m", "safetyspace_fast.cli", "run", "--template", "none"]
COMMAND += ["--dtype", "float32"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=1)


def make_config(tiny: Path, out: Path, name: str = "m", **changes: object) -> api.RunConfig:
    options = {"models": (f"{name}={tiny}",), "data": "sample:polite", "out": out}
    return api.RunConfig(**(options | {"template": "none", "languages": ("de", "en")} | changes))


def test_a_model_that_is_being_written_is_refused(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    running = api.iter_run(make_config(tiny, out))
    list(islice(running, 2))
    me = rf"model 'm': being written by process {os.getpid()} on {socket.gethostname()} since 20"
    for changes in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(StoreError, match=me) as caught:
            api.run(make_config(tiny, out, **changes))
        assert "\n" not in str(caught.value)
    other = make_config(tiny, out, "other", overwrite=True)
    with pytest.raises(StoreError, match=me):  # whichever model it would write
        api.run(other)
    (out / "models/m/pca_basis/zarr.json").write_bytes(b"{}")
    with pytest.raises(StoreError, match=me):
        api.check(out, repair=True)
    running.close()
    api.check(out, repair=True)
    assert api.run(make_config(tiny, out, resume=True)).models == ("m",)
    assert not Place(out).work.exists()


def test_a_run_that_its_caller_interrupts_gives_up_its_claim(tiny: Path, tmp_path: Path) -> None:
    def stop(event: api.Event) -> None:
        if isinstance(event, api.Progressed):
            raise KeyboardInterrupt

    out = tmp_path / "run.zarr"
    with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps the last error
        api.run(make_config(tiny, out), on_event=stop)
    assert api.run(make_config(tiny, out, resume=True)).models == ("m",)
    assert kept.traceback


def test_a_run_works_inside_an_event_loop(tiny: Path, tmp_path: Path) -> None:
    async def cell() -> tuple[str, ...]:
        run = api.run(make_config(tiny, tmp_path / "run.zarr"))
        api.separation(run, bootstraps=20, permutations=20)
        return run.models

    assert asyncio.run(cell()) == ("m",)


def test_a_claim_of_a_process_that_is_gone_is_taken_over(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    command = [*COMMAND, "--model", f"m={tiny}", "--data", "sample:polite", "--out", str(out)]
    process = subprocess.Popen([*command, "--languages", "de,en", "--token-budget", "1"])
    while not list(Place(out).work.rglob("*.seg")):
        assert process.poll() is None
        time.sleep(0.01)
    again = make_config(tiny, out, resume=True, token_budget=1)
    with pytest.raises(StoreError, match=f"process {process.pid} on"):
        api.run(again)
    process.send_signal(signal.SIGKILL)
    process.wait()
    events = list(api.iter_run(again))
    notes = [event.message for event in events if isinstance(event, api.Note)]
    assert notes == [
        f"taken over from process {process.pid} on {socket.gethostname()}, which has ended"
    ]
    assert api.open_run(out).models == ("m",)


def test_an_interrupt_after_the_last_write_leaves_nothing_behind(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(session, "clear", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.run(make_config(tiny, out))
    assert list(Place(out).work.rglob("journal.jsonl"))
    assert api.run(make_config(tiny, out, resume=True)).models == ("m",)
    assert not Place(out).work.exists()


def test_a_claim_that_another_host_has_lost_is_taken_over(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    lock = Place(out).work / "m" / "owner.json"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"pid": 1, "host": "pod-a", "started": "yesterday"}))
    events = list(api.iter_run(make_config(tiny, out)))
    notes = [event.message for event in events if isinstance(event, api.Note)]
    assert notes[:1] == ["taken over from process 1 on pod-a, which has ended"]
    assert not Place(out).work.exists()


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs /proc, where Linux lists processes"
)
def test_where_no_folder_can_be_made_nothing_waits() -> None:
    with pytest.raises(StoreError, match="cannot be locked: No such file or directory"):
        Claim(Path("/proc/run.zarr.work/m"), "model 'm'")


@pytest.mark.filterwarnings("ignore:this file system has no file locks")
@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_without_file_locks_the_owner_file_decides(
    reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("fcntl.flock", flock)
    folder = tmp_path / "run.zarr.work" / "m"
    lock = folder / "owner.json"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    def owned_by(pid: int, host: str = socket.gethostname()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lock.write_text(json.dumps({"pid": pid, "host": host, "started": "yesterday"}))

    for pid, host in ((os.getppid(), socket.gethostname()), (ended.pid, "elsewhere")):
        owned_by(pid, host)
        with pytest.raises(StoreError, match=rf"since yesterday.*delete {lock}") as caught:
            Claim(folder, "model 'm'")
        assert "\n" not in str(caught.value)
    owned_by(ended.pid)
    with pytest.warns(UserWarning, match="has no file locks"), Claim(folder, "model 'm'") as claim:
        assert claim.left_by is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:this file system has no file locks")
@pytest.mark.filterwarnings("ignore:this file system cannot sync")
def test_a_run_on_a_file_system_without_locks_and_syncs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse)
        patch.setattr("safetyspace_fast.store.files.os.fsync", refuse)
        api.run(make_config(tiny, tmp_path / "without.zarr"))
    api.run(make_config(tiny, tmp_path / "with.zarr"))
    means = [
        api.open_run(tmp_path / name).model("m").read("projected")
        for name in ("without.zarr", "with.zarr")
    ]
    np.testing.assert_array_equal(*means)


def test_a_failed_sync_of_a_sick_disk_is_an_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("safetyspace_fast.store.files.os.fsync", refuse)
    with pytest.raises(StoreError, match=os.strerror(errno.EIO)):
        api.run(make_config(tiny, tmp_path / "run.zarr"))


def test_two_processes_write_two_models_while_a_third_reads(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    first = api.iter_run(make_config(tiny, out, "a"))
    next(first)
    command = [*COMMAND, "--data", "sample:polite", "--languages", "de,en", "--out", str(out)]
    command += ["--model", f"b={tiny}", "--resume"]
    process = subprocess.Popen(command)
    seen, stop = [0, 0], threading.Event()

    def read() -> None:
        while not stop.is_set():
            run = api.open_run(out)
            assert run.models in ((), ("a",), ("b",), ("a", "b"))
            for name in ("a", "b"):  # what other tools may do at any time
                try:
                    rows = zarr.open_array(out / "models" / name / "projected", mode="r")[...]
                except FileNotFoundError:
                    continue
                for shard in range(0, rows.shape[2], SHARD_SAMPLES):
                    absent = np.isnan(rows[:, :, shard : shard + SHARD_SAMPLES])
                    assert absent.all() or not absent.any()
                    seen[int(not absent.any())] += 1

    failures: list[BaseException] = []

    def watched() -> None:
        try:
            read()
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=watched)
    reader.start()
    for _ in first:
        time.sleep(0.02)
    assert process.wait() == 0
    stop.set()
    reader.join()
    assert failures == []
    assert min(seen) > 0
    run = api.open_run(out)
    assert run.models == ("a", "b")
    for name in ("projected", "pair_sum", "class_mean"):
        left, right = run.model("a").read(name), run.model("b").read(name)
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)
    assert api.check(out).damage == []
    assert not Place(out).work.exists()
