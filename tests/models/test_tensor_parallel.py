"""One model shared out over two CPU processes, by transformers' tensor parallel plan."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CHAT_TEMPLATE, save_tiny

from safetyspace_fast import Run, RunConfig, iter_run, open_run, run
from safetyspace_fast.api import Event, Note, Progressed
from safetyspace_fast.errors import ConfigError, ModelError
from safetyspace_fast.models import check_plan, find_sources, parse_model, sharded
from safetyspace_fast.tensor_parallel import run_ranks

FAMILIES = ("llama", "qwen3", "gemma3_text", "mixtral")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in FAMILIES:
        save_tiny(name, folder / name, chat_template=CHAT_TEMPLATE)
    return folder


def config_of(models: Path, out: Path, *names: str, **fields: object) -> RunConfig:
    usual: dict[str, object] = {
        "data": "sample:polite",
        "languages": ("en", "de"),
        "limit": 4,
        "device": "cpu",
        "dtype": "float32",  # ranks do not know what conftest.py makes of `auto`
        "tensor_parallel": 2,
    }
    given = [str(models / name) for name in names or ("llama",)]
    return RunConfig(models=given, out=out, **usual | fields)


def ranks_here() -> list[int]:
    """The ranks that this process has started, in order."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            command = (entry / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == str(os.getpid()) and b"safetyspace_fast.tensor_parallel" in command:
            found.append(int(entry.name))
    return sorted(found)


def assert_equal_to_rounding(one: Run, other: Run, name: str) -> None:
    mine, theirs = one.model(name), other.model(name)
    assert mine.hookpoints == theirs.hookpoints
    assert np.array_equal(mine.read("n_tokens"), theirs.read("n_tokens"))
    # Projected states are kept with 12 bits of mantissa.
    for array, tolerance in (("class_mean", 2e-6), ("projected", 2**-11), ("pair_sum", 1e-4)):
        a, b = mine.read(array), theirs.read(array)
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), (name, array)


@pytest.mark.parametrize(
    "families",
    [("llama", "gemma3_text"), pytest.param(("qwen3", "mixtral"), marks=pytest.mark.slow)],
)
def test_two_processes_give_the_states_of_one(
    families: tuple[str, ...], models: Path, tmp_path: Path
) -> None:
    """Shared prefixes, sliding windows and experts included; and the store has the same layout."""
    two = config_of(models, tmp_path / "two.zarr", *families)
    run(two)
    run(replace(two, out=tmp_path / "one.zarr", tensor_parallel=1))
    one, two_ranks = open_run(tmp_path / "one.zarr"), open_run(tmp_path / "two.zarr")
    for name in families:
        assert_equal_to_rounding(two_ranks, one, name)
    assert files_of(tmp_path / "one.zarr") == files_of(tmp_path / "two.zarr")
    assert ranks_here() == []


@pytest.mark.slow
def test_a_model_that_keeps_more_than_keys_runs_whole_prompts_on_all_ranks(tmp_path: Path) -> None:
    save_tiny("qwen3_next", tmp_path / "qwen3_next", chat_template=CHAT_TEMPLATE)
    two = config_of(tmp_path, tmp_path / "run.zarr", "qwen3_next", languages=("en",))
    notes = [event.message for event in iter_run(two) if isinstance(event, Note)]
    assert any("keeps more than their keys and values" in note for note in notes), notes
    assert open_run(two.out).model("qwen3_next").complete


def files_of(store: Path) -> set[str]:
    return {str(file.relative_to(store)) for file in store.rglob("*") if file.is_file()}


@pytest.fixture
def batches(models: Path, tmp_path: Path) -> RunConfig:
    """A run of a few dozen batches, whose forward passes end behind the second block."""
    return config_of(
        models,
        tmp_path / "run.zarr",
        limit=12,
        layers="embed,block.1",
        token_budget=128,
        template="none",
    )


def strike(events: Iterator[Event], number: int) -> None:
    """Send a signal to all ranks but the first when the first batch has run; read on to the end."""
    for event in events:
        if isinstance(event, Progressed):
            for pid in ranks_here()[1:]:
                os.kill(pid, number)


def test_a_dead_rank_ends_the_others_and_resume_finishes(
    batches: RunConfig, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"rank . of 2 (was ended by signal 9|failed).*--resume"):
        strike(iter_run(batches), signal.SIGKILL)
    assert ranks_here() == []
    run(replace(batches, resume=True))
    run(replace(batches, out=tmp_path / "one.zarr", tensor_parallel=1))
    assert_equal_to_rounding(open_run(batches.out), open_run(tmp_path / "one.zarr"), "llama")


@pytest.mark.slow
def test_a_rank_that_hangs_is_not_waited_for_for_ever(batches: RunConfig) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"rank 0 of 2 failed .*--resume"):
        strike(run_ranks(batches, patience=timedelta(seconds=3)), signal.SIGSTOP)
    assert time.monotonic() - started < 60
    assert ranks_here() == []


@pytest.mark.slow
def test_closing_the_iterator_ends_all_ranks_and_keeps_the_work(batches: RunConfig) -> None:
    with closing(iter_run(batches)) as events:
        done = next(event for event in events if isinstance(event, Progressed))
    assert ranks_here() == []
    planned = [e for e in iter_run(replace(batches, resume=True)) if hasattr(e, "texts_done")]
    assert planned[0].texts_done >= done.texts


@pytest.fixture
def little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rank 1 run out of memory in batches of more than 100 tokens."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(
        "import torch, safetyspace_fast.models.sharded as s\n"
        "run = s._Follower.run\n"
        "def limited(self, what):\n"
        "    if what.shape[0] * what.shape[1] > 100:\n"
        "        raise torch.OutOfMemoryError('planted')\n"
        "    return run(self, what)\n"
        "s._Follower.run = limited\n"
    )
    paths = [str(tmp_path / "python"), *filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_a_rank_without_memory_makes_all_go_on_with_smaller_batches(
    batches: RunConfig, tmp_path: Path
) -> None:
    short = replace(batches, max_tokens=60)
    events = list(iter_run(short))
    notes = [event.message for event in events if isinstance(event, Note)]
    assert [note for note in notes if "out of memory" in note], notes
    run(replace(short, out=tmp_path / "one.zarr", tensor_parallel=1))
    assert_equal_to_rounding(open_run(short.out), open_run(tmp_path / "one.zarr"), "llama")


def test_a_model_without_a_plan_is_refused_by_name(models: Path, tmp_path: Path) -> None:
    save_tiny("gpt2", tmp_path / "gpt2")
    config = config_of(tmp_path, tmp_path / "run.zarr", "gpt2")
    with pytest.raises(ModelError, match=r"no tensor parallel plan for gpt2; .*--weights stream"):
        run(config)
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize(
    ("asked", "size", "reason"),
    [
        ("llama", 4, "num_key_value_heads 2 cannot be shared out over 4 devices"),
        ("llama", 3, "num_attention_heads 4 cannot be shared out over 3 devices"),
        ("random:llama", 2, "without .ADAPTER or random:"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    models: Path, asked: str, size: int, reason: str
) -> None:
    control, _, name = asked.rpartition(":")
    spec = parse_model(f"{control}:{models / name}" if control else str(models / name))
    source, _ = find_sources(spec, allow_pickle=False, trust_remote_code=False)
    with pytest.raises(ModelError, match=reason):
        check_plan(source, size, alone=not spec.random)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tensor_parallel": 0}, "expected at least 1"),
        ({"compile": True}, "leave out compile"),
        ({"verify": True}, "leave out verify"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"device": "cuda"}, "torch sees 0 GPUs"),
    ],
)
def test_wrong_options_are_refused_before_a_process_starts(
    models: Path,
    tmp_path: Path,
    fields: dict[str, object],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError, match=reason):
        run(config_of(models, tmp_path / "run.zarr", **fields))


def test_every_rank_takes_the_attention_kernels_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others would plan anew for every shape, and rank 0 would wait for them in every block."""
    asked: list[torch.device] = []
    inside: list[bool] = []

    @contextmanager
    def kernels(device: torch.device) -> Iterator[None]:
        asked.append(device)
        yield
        asked.clear()

    def backbone(**_: Any) -> None:
        inside.append(bool(asked))

    monkeypatch.setattr(sharded, "attention_kernels", kernels)
    monkeypatch.setattr(sharded.dist, "broadcast", lambda *_, **__: None)
    model = SimpleNamespace(device=torch.device("cpu"), backbone=backbone)
    sharded._Follower(model).run(sharded._Pass((2, 3), False, sharded._Reads.NONE, None))
    assert inside == [True]
    assert asked == []
