"""Nothing lost: runs are broken off in every way, resumed, and must end with the same bytes."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import warm
from faults import FAULTS, FaultyOS, PowerCutError
from tiny_models import save_tiny

from safetyspace_fast import api, cli
from safetyspace_fast.errors import StoreError
from safetyspace_fast.store import Place, files, half_made
from safetyspace_fast.store.layout import SHARD_SAMPLES

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
KINDS = (*FAULTS, *SIGNALS, "file size", "closed pipe", "full pipe")
TEXTS = {"am": 20, "de": 70, "en": 230}
"""Two shards; `en` lies in both."""
BEFORE = {"de": 70, "en": 200}
"""What a store holds that grows to `TEXTS`: `de` is kept, `en` run again, `am` new."""


def run_in_child(
    arguments: list[str], folder: str, fault: str | None, at: float, seed: int, notes: str
) -> None:
    """One run of the command line, as a process of its own.

    Args:
        arguments: of `safetyspace-fast run`.
        folder: holds the store and its work folder.
        fault: one of KINDS that strikes from within, or None.
        at: which change of the disk it strikes, or the largest size of a file in bytes.
        seed: of what a power cut leaves.
        notes: file for stderr; what happened goes beside it, as JSON.
    """
    if fault not in ("closed pipe", "full pipe"):
        descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(descriptor, 1)
    else:
        reader, writer = os.pipe()
        if fault == "closed pipe":
            os.close(reader)
        else:
            os.set_blocking(writer, False)
            try:
                while os.write(writer, bytes(4096)):
                    pass
            except BlockingIOError:
                os.set_blocking(writer, True)
        os.dup2(writer, 2)
    if fault == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(at), int(at)))
    system = FaultyOS(Path(folder), fault if fault in FAULTS else None, int(at))
    files.os = system
    Path(notes).with_suffix(".begun").touch()
    try:
        status: int | str = cli.main(["run", *arguments])
    except PowerCutError:
        status = "power"
        system.leave(random.Random(seed))
    report = {"status": status, "changes": system.changes, "struck": system.struck}
    if fault != "file size":
        Path(notes).with_suffix(".json").write_text(json.dumps(report))
    os._exit(0)


@dataclass
class Machine:
    """Runs one small model over and over, in warm processes."""

    arguments: list[str]
    before: Path
    """Holds a finished store of the data before it grew."""
    reference: dict[str, bytes]
    changes: dict[bool, int]
    """Of the disk, in a run that is not broken off: a new one and, at True, a growing one."""
    seconds: float = 60.0

    def run(
        self, folder: Path, kind: str | None, at: float = 0, seed: int = 0, wait: float = 0
    ) -> dict[str, Any]:
        """Run, resuming what is there, with a fault; return what is known of it."""
        notes = folder / "notes"
        arguments = [*self.arguments, "--out", str(folder / "disk" / "run.zarr"), "--resume"]
        given = (arguments, str(folder / "disk"), kind, at, seed, str(notes))
        process = warm.start(run_in_child, *given)
        begun = notes.with_suffix(".begun")
        if kind in SIGNALS or kind == "full pipe":
            while process.is_alive() and not begun.exists():  # what comes before is no command yet
                process.join(0.01)
            process.join(wait)
            name = kind if kind in SIGNALS else "SIGTERM"
            if process.is_alive():
                os.kill(process.pid, getattr(signal, name))
        # Long: whoever times something may stop all that runs at a low priority.
        process.join(2 if kind == "full pipe" else 1800)
        if process.is_alive():  # cannot even say that it was interrupted
            process.kill()
            process.join()
        begun.unlink(missing_ok=True)
        report = notes.with_suffix(".json")
        known: dict[str, Any] = {"status": None, "struck": "", "notes": ""}
        if report.exists():
            known |= json.loads(report.read_text())
            report.unlink()
        if notes.exists():
            known["notes"] = notes.read_text(errors="replace")
        return known

    def new_disk(self, folder: Path, growing: bool) -> Path:
        """A disk with nothing on it, or with the store that is to grow."""
        disk = folder / "disk"
        if growing:
            shutil.copytree(self.before, disk)
        else:
            disk.mkdir(parents=True)
        return disk

    def trial(self, seed: int, folder: Path) -> tuple[Counter[str], int]:
        """Break a run off, once or more, and finish it: the faults, and 1 if anything was lost."""
        draw = random.Random(seed)
        growing = seed // len(KINDS) % 2 == 1
        disk = self.new_disk(folder, growing)
        struck: Counter[str] = Counter()
        while not struck or draw.random() < 0.3:
            kind = KINDS[seed % len(KINDS)] if not struck else draw.choice(KINDS)
            at: float = draw.randrange(self.changes[growing])
            if kind == "file size":
                at = 2 ** draw.uniform(9, 16)
            wait = draw.uniform(0.1, self.seconds)
            known = self.run(disk.parent, kind, at, seed, wait)
            struck[f"{kind}: {known['struck'].split(' ')[0]}" if known["struck"] else kind] += 1
            assert "Traceback" not in known["notes"], known["notes"]
            lost = self.lost(disk / "run.zarr", growing)
            if lost:
                print(f"seed {seed}, {growing=}, {kind} at {at}: {lost}", file=sys.stderr)
                return struck, 1
        known = self.run(disk.parent, None)
        assert known["status"] == 0, (seed, known)
        got = contents(disk)
        if got != self.reference:
            keys = {key for key in got | self.reference if got.get(key) != self.reference.get(key)}
            what = f"seed {seed}, {growing=}, {dict(struck)}"
            print(f"{what}: differing: {sorted(keys)}", file=sys.stderr)
            return struck, 1
        shutil.rmtree(folder)
        return struck, 0

    def lost(self, store: Path, growing: bool) -> str:
        """What a broken-off run said it had written, and is not there whole."""
        if not store.exists() or half_made(Place(store)):
            return ""
        if growing:
            whole = (contents(self.before), self.reference)
            there = {k: v for k, v in contents(store.parent).items() if k.startswith("run.zarr/")}
            if there not in whole:
                return "neither the store as it was nor as it becomes"
        try:
            api.open_run(store)
            return "; ".join(damage.file for damage in api.check(store).damage)
        except StoreError as error:
            return str(error)


def contents(disk: Path) -> dict[str, bytes]:
    """All files but zarr.json, which hold times; so a forgotten temporary or work file shows."""
    return {
        str(path.relative_to(disk)): path.read_bytes()
        for path in sorted(disk.rglob("*"))
        if path.is_file() and path.name != "zarr.json"
    }


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("faults")
    for name, counts in (("all", TEXTS), ("before", BEFORE)):
        assert sum(counts.values()) > SHARD_SAMPLES
        rows = [
            {"text": f"text {i} of {lang} {'x' * (i % 7)}", "label": i % 2, "lang": lang}
            for lang, count in counts.items()
            for i in range(count)
        ]
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    model = save_tiny("llama", folder / "llama", num_hidden_layers=1)
    arguments = ["--model", f"m={model}", "--template", "none"]
    arguments += ["--layers", "block.0", "--poolings", "mean", "--data"]
    before = folder / "before" / "disk"
    before.mkdir(parents=True)
    made = Machine([*arguments, str(folder / "before.jsonl")], before, {}, {})
    assert made.run(before.parent, None)["status"] == 0
    made.arguments[-1] = str(folder / "all.jsonl")
    for growing in (False, True):
        started = time.perf_counter()
        known = made.run(made.new_disk(folder / str(growing), growing).parent, None)
        made.seconds = min(made.seconds, time.perf_counter() - started)
        assert known["status"] == 0, known
        made.changes[growing] = known["changes"]
    made.reference = contents(folder / "False" / "disk")
    assert contents(folder / "True" / "disk") == made.reference
    return made


def trials(machine: Machine, seeds: range, folder: Path) -> None:
    struck: Counter[str] = Counter()
    losses = 0
    for seed in seeds:
        faults, lost = machine.trial(seed, folder / str(seed))
        struck += faults
        losses += lost
    print(f"\n{len(seeds)} trials, {struck.total()} faults, {losses} losses")
    for kind, count in sorted(struck.items()):
        print(f"  {kind}: {count}")
    assert losses == 0


def test_nothing_is_lost(machine: Machine, tmp_path: Path) -> None:
    trials(machine, range(2 * len(KINDS)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1220, 55))
def test_nothing_is_lost_in_many_trials(machine: Machine, tmp_path: Path, first: int) -> None:
    trials(machine, range(first, first + 55), tmp_path)


def test_a_full_disk_is_one_clear_line(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    known = machine.run(tmp_path, "enospc", machine.changes[False] // 2)
    (line,) = [x for x in known["notes"].splitlines() if x.startswith("safetyspace-fast: ")]
    assert known["status"] == 1
    assert "cannot be written" in line
    assert "--resume" in line
