"""Streamed runs that are stopped, disks that fill up, checkpoints that are not whole."""

import errno
import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file
from test_extraction import files, make_config
from tiny_models import CHAT_TEMPLATE, save_tiny, tiny_tokenizer

from safetyspace_fast import api
from safetyspace_fast.errors import ModelError, StoreError
from safetyspace_fast.models import StreamedBlocks
from safetyspace_fast.store import files as store_files
from safetyspace_fast.store.scratch import Scratch
from safetyspace_fast.store.segments import Segments


class StoppedError(BaseException):
    """As a signal comes: no code of the package catches it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    texts = ["the dog " * (1 + i % 5) + f"{i}" for i in range(16)]
    rows = [{"text": text, "label": i % 2, "lang": "en"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts with sliding windows, tied weights and a template, in shards."""
    folder = tmp_path_factory.mktemp("models")
    whole = save_tiny("gpt_oss", folder / "whole", tie_word_embeddings=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(whole)
    loaded.save_pretrained(folder / "shards", max_shard_size="60KB")
    tiny_tokenizer(CHAT_TEMPLATE).save_pretrained(folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="module")
def whole(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run(model, data, tmp_path_factory.mktemp("run") / "run.zarr", weights="load")


def run(model: Path, data: Path, out: Path, **changes: Any) -> dict[str, bytes]:
    options = {"weights": "stream", "dtype": "float32", "poolings": ("mean",), "template": "chat"}
    options |= {"token_budget": 64, **changes}
    return files(api.run(make_config(model, data, out, **options)).path / "models")


def test_windows_experts_tied_weights_and_a_shared_prefix_together(
    model: Path, data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert run(model, data, tmp_path / "run.zarr", scratch=20_000) == whole


def failing(really: Callable[..., Any], at: int, error: BaseException) -> Callable[..., Any]:
    """A function of which call number `at` fails; numbers begin at 1."""
    calls = count(1)

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise error
        return really(*arguments, **options)

    return called


@pytest.mark.parametrize(
    ("where", "name", "at"),
    [
        pytest.param(store_files, "write_at", 1, id="the scratch file has no description"),
        pytest.param(store_files, "write_at", 3, id="averages are written and states are not"),
        pytest.param(store_files, "write_at", 4, id="states are written and their header is not"),
        pytest.param(store_files, "write_at", 18, id="within a later block"),
        pytest.param(StreamedBlocks, "place", 6, id="a block has been read"),
        pytest.param(Segments, "append", 2, id="some batches are in segments"),
        pytest.param(Scratch, "remove", 1, id="all batches are in segments"),
    ],
)
def test_a_run_that_is_stopped_anywhere_resumes_to_the_same_bytes(
    where: Any,
    name: str,
    at: int,
    model: Path,
    data: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(where, name, failing(getattr(where, name), at, StoppedError()))
        with pytest.raises(StoppedError):
            run(model, data, out)
    assert run(model, data, out, resume=True) == whole
    assert not out.with_name("run.zarr.work").exists()


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_loses_no_block(
    model: Path, data: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: Any
) -> None:
    out, full = tmp_path / "run.zarr", OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(store_files.os, "pwrite", failing(store_files.os.pwrite, 20, full))
        match = r"states\.scratch: cannot be written: No space left"
        with pytest.raises(StoreError, match=match) as caught:
            run(model, data, out)
    assert "\n" not in str(caught.value)
    assert run(model, data, out, resume=True) == whole


def drop_shard(model: Path, shards: list[Path]) -> None:
    shards[1].unlink()


def cut_shard(model: Path, shards: list[Path]) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[:-8])


def cut_header(model: Path, shards: list[Path]) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[:40])


def empty_shard(model: Path, shards: list[Path]) -> None:
    shards[1].write_bytes(b"")


def lose_tensor(model: Path, shards: list[Path]) -> None:
    """The index names a tensor that no shard has."""
    tensors = load_file(shards[1])
    del tensors[sorted(name for name in tensors if "layers" in name)[0]]
    save_file(tensors, shards[1], metadata={"format": "pt"})


def shift_offsets(model: Path, shards: list[Path]) -> None:
    """A header that lies: its first tensor begins behind its place."""
    content = shards[1].read_bytes()
    n_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n_bytes])
    name = min(set(header) - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    header[name]["data_offsets"][0] += 4
    text = json.dumps(header).encode()
    shards[1].write_bytes(len(text).to_bytes(8, "little") + text + content[8 + n_bytes :])


def reach_behind(model: Path, shards: list[Path]) -> None:
    """A header that lies: its tensors are longer than the file."""
    content = shards[1].read_bytes()
    n_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n_bytes])
    for entry in (header[name] for name in set(header) - {"__metadata__"}):
        entry["data_offsets"] = [2 * offset for offset in entry["data_offsets"]]
        entry["shape"][0] *= 2
    text = json.dumps(header).encode()
    shards[1].write_bytes(len(text).to_bytes(8, "little") + text + content[8 + n_bytes :])


def break_index(model: Path, shards: list[Path]) -> None:
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a"')


DAMAGES = {
    drop_shard: "the index names it, but it is missing",
    cut_shard: "not a complete safetensors file .* copy or download it again",
    cut_header: "not a complete safetensors file .* copy or download it again",
    empty_shard: "not a complete safetensors file .* copy or download it again",
    lose_tensor: r"1 weights of GptOssForCausalLM are not in its files \(first: model\.layers",
    shift_offsets: "not a complete safetensors file .* copy or download it again",
    reach_behind: "not a complete safetensors file .* copy or download it again",
    break_index: "not readable as JSON",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_checkpoint_that_is_not_whole_is_refused_before_any_block_is_read(
    damage: Callable[[Path, list[Path]], None],
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(model, damaged)
    damage(damaged, sorted(damaged.glob("*.safetensors")))
    monkeypatch.setattr(StreamedBlocks, "_read", pytest.fail)
    with pytest.raises(ModelError, match=DAMAGES[damage]) as caught:
        run(damaged, data, tmp_path / "run.zarr")
    assert "\n" not in str(caught.value)
