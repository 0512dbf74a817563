"""Models whose blocks stay on disk: the same bytes as from memory, in any number of passes."""

import argparse
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import warm
from safetensors.torch import load_file, save_file
from test_extraction import files, make_config
from tiny_models import (
    ARCHITECTURES,
    CHAT_TEMPLATE,
    ENCODERS,
    FURTHER_ARCHITECTURES,
    PADDING_READERS,
    save_adapter,
    save_tiny,
    save_tiny_gguf,
    tiny_tokenizer,
)

from safetyspace_fast import api
from safetyspace_fast.cli.options import size
from safetyspace_fast.errors import ConfigError, ModelError, SafetySpaceError, StoreError
from safetyspace_fast.extract import Note, blocks
from safetyspace_fast.models import StreamedBlocks, device, load_model, parse_model
from safetyspace_fast.models.skeleton import why_not_streamed
from safetyspace_fast.models.source import Source
from safetyspace_fast.runner import Steps, run_models
from safetyspace_fast.store import files as store_files
from safetyspace_fast.store.scratch import Scratch

WORDS = ["the", "dog", "лиса", "über", "fox", "quick"]
FAMILIES = [
    *((family, "float32") for family in ("llama", "gemma3_text", "gpt2", "mixtral", "qwen3")),
    *((family, "float32") for family in ("bert", "bloom")),
    *((family, "bfloat16") for family in ("gemma3_text", "gpt2", "mixtral")),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty texts of several lengths: seven batches of 64 tokens."""
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    texts = [" ".join(WORDS[(i * j) % 6] for j in range(3 + i % 7)) + f" {i}" for i in range(20)]
    rows = [{"text": text, "label": i % 2, "lang": "en"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def whole(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A run with all weights in memory, which others must equal."""
    return run(tiny, data, tmp_path_factory.mktemp("run") / "run.zarr", weights="load")


def run(model: Path | str, data: Path, out: Path, **changes: object) -> api.Run:
    return api.run(config(model, data, out, **changes))


def config(model: Path | str, data: Path, out: Path, **changes: object) -> api.RunConfig:
    usual = {"token_budget": 64, "poolings": ("mean",), "weights": "stream", "dtype": "float32"}
    return make_config(model, data, out, **(usual | changes))


def assert_same(streamed: api.Run, whole: api.Run) -> None:
    expected = files(whole.path / "models")
    assert expected
    assert files(streamed.path / "models") == expected


@pytest.mark.parametrize(("family", "dtype"), FAMILIES)
def test_blocks_from_disk_give_the_bytes_of_a_model_in_memory(
    family: str, dtype: str, data: Path, tmp_path: Path
) -> None:
    model = save_tiny(family, tmp_path / "model")
    whole = run(model, data, tmp_path / "whole.zarr", weights="load", dtype=dtype)
    streamed = run(model, data, tmp_path / "streamed.zarr", dtype=dtype)
    assert_same(streamed, whole)


MORE = sorted({*ARCHITECTURES, *FURTHER_ARCHITECTURES, *ENCODERS, *PADDING_READERS} - {"mt5"})


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE)
def test_all_families_but_t5_give_the_bytes_of_a_model_in_memory(
    family: str, data: Path, tmp_path: Path
) -> None:
    model = save_tiny(family, tmp_path / "model")
    whole = run(model, data, tmp_path / "whole.zarr", weights="load")
    assert_same(run(model, data, tmp_path / "streamed.zarr"), whole)


def test_a_model_that_runs_twice_is_tried_again_before_the_second_run(
    data: Path, tmp_path: Path
) -> None:
    """As a sweep runs it; padding changes the states of this one."""
    model = save_tiny("convbert", tmp_path / "model")
    whole = run(model, data, tmp_path / "whole.zarr", weights="load")
    loaded = load_model(parse_model(f"m={model}"), dtype="float32", weights="stream")
    steps = Steps(load=lambda _spec, **_options: loaded)
    for name in ("first", "second"):
        out = tmp_path / f"{name}.zarr"
        for _ in run_models(config(model, data, out), steps):
            pass
        assert_same(api.open_run(out), whole)


def test_a_shared_prefix_goes_through_each_block_once(data: Path, tmp_path: Path) -> None:
    """Sliding windows that are shorter than the prompts take part."""
    for family in ("llama", "gemma3_text"):
        model = save_tiny(family, tmp_path / family, chat_template=CHAT_TEMPLATE)
        options = {"template": "chat"}
        whole = run(model, data, tmp_path / f"{family}.zarr", weights="load", **options)
        out = tmp_path / f"{family}-s.zarr"
        events = list(api.iter_run(config(model, data, out, scratch=14_000, **options)))
        assert next(e for e in events if isinstance(e, api.Planned)).prefix_tokens > 0
        assert passes(events) > 1
        assert_same(api.open_run(out), whole)


def passes(events: list[api.Event]) -> int:
    """How often the weights were read, as a run says before it reads them."""
    (told,) = [e.message for e in events if isinstance(e, Note) and "streamed" in e.message]
    return int(told.partition(" time")[0].split()[-1])


@pytest.mark.parametrize("scratch", [11_000, 25_000, None])
def test_the_scratch_budget_changes_the_passes_and_no_byte(
    scratch: int | None, tiny: Path, data: Path, whole: api.Run, tmp_path: Path, reads: list[int]
) -> None:
    out = tmp_path / "run.zarr"
    events = list(api.iter_run(config(tiny, data, out, scratch=scratch)))
    assert_same(api.open_run(out), whole)
    expected = {11_000: 5, 25_000: 3, None: 1}[scratch]
    assert passes(events) == expected
    assert reads == [0, 1, *[2, 0, 1] * (expected - 1), 2]
    assert not list(tmp_path.rglob("*.scratch"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that are read from disk, in order."""
    read: list[int] = []
    really = StreamedBlocks._read

    def counted(self: StreamedBlocks, i_block: int) -> torch.nn.Module:
        read.append(i_block)
        return really(self, i_block)

    monkeypatch.setattr(StreamedBlocks, "_read", counted)
    return read


def test_blocks_behind_the_deepest_layer_are_not_read(
    tiny: Path, data: Path, tmp_path: Path, reads: list[int]
) -> None:
    chosen = {"layers": "embed,block.1"}
    whole = run(tiny, data, tmp_path / "whole.zarr", weights="load", **chosen)
    assert_same(run(tiny, data, tmp_path / "run.zarr", **chosen), whole)
    assert reads == [0, 1]


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"use_dora": True}, marks=pytest.mark.slow)], ids=["lora", "dora"]
)
def test_a_model_in_shards_with_an_adapter_gives_the_same_bytes(
    options: dict[str, bool], tiny: Path, data: Path, tmp_path: Path
) -> None:
    model = tmp_path / "shards"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    loaded.save_pretrained(model, max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(model)
    assert len(list(model.glob("*.safetensors"))) > 2
    adapter = save_adapter(tiny, tmp_path / "adapter", **options)
    spec = f"{model}+{adapter}"
    for dtype in ("float32", "bfloat16"):
        whole = run(spec, data, tmp_path / f"{dtype}.zarr", weights="load", dtype=dtype)
        assert_same(run(spec, data, tmp_path / f"{dtype}-s.zarr", dtype=dtype), whole)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    # transformers reads no size of heads from a GGUF file of this architecture.
    save_tiny_gguf(save_tiny("llama", folder / "plain", head_dim=8), folder / "tiny.gguf")
    return folder / "tiny.gguf"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_gives_the_bytes_of_one_that_is_unpacked_as_a_whole(
    dtype: str, gguf_file: Path, data: Path, tmp_path: Path, reads: list[int]
) -> None:
    whole = run(gguf_file, data, tmp_path / "whole.zarr", weights="load", dtype=dtype)
    assert not reads
    assert_same(run(gguf_file, data, tmp_path / "streamed.zarr", dtype=dtype), whole)
    assert sorted({*reads}) == [0, 1, 2]


def test_a_gguf_file_that_does_not_fit_is_streamed_by_itself(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse_model(f"m={gguf_file}")
    assert load_model(spec, device="cpu", weights="auto").streamed is None
    monkeypatch.setattr(device, "available_bytes", lambda: 100_000)
    model = load_model(spec, device="cpu", weights="auto")
    assert model.streamed is not None
    assert model.streamed.n_bytes() < gguf_file.stat().st_size
    assert model.identity["quantization"] == "gguf"


def test_a_gguf_file_that_is_not_read_by_tensors_is_refused_with_the_reason(
    gguf_file: Path, data: Path, tmp_path: Path
) -> None:
    whole = gguf_file.read_bytes()
    changes = {
        "early": (whole[:-1000], r"early\.gguf ends early \(\d+ of \d+ bytes\)"),
        "header": (whole[:300], r"the header of header\.gguf cannot be read \("),
        "other": (
            whole.replace(b"\5\0\0\0\0\0\0\0llama", b"\4\0\0\0\0\0\0\0lfm2", 1) + b"\0",
            "transformers reads GGUF files of lfm2 in a way of its own",
        ),
        "experts": (
            whole.replace(b"blk.1.ffn_down", b"blk.1.fd_exps."),
            "transformers puts the experts of llama together from several tensors",
        ),
    }
    for name, (content, reason) in changes.items():
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(content)
        match = rf"{name}\.gguf: its weights cannot be streamed: .*{reason}.* use --weights load"
        refused(ModelError, match, file, data, tmp_path / f"{name}.zarr")


@pytest.mark.parametrize("stop_after", [4, 9, 13])
def test_a_stopped_run_goes_on_at_the_block_where_it_stopped(
    stop_after: int,
    tiny: Path,
    data: Path,
    whole: api.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advanced: list[int] = []
    really = blocks.BlockCapture.advance

    def counted(self: blocks.BlockCapture, *arguments: Any) -> Any:
        advanced.append(1)
        return really(self, *arguments)

    monkeypatch.setattr(blocks.BlockCapture, "advance", counted)
    out = tmp_path / "run.zarr"
    seen = list(islice(api.iter_run(config(tiny, data, out)), stop_after))
    (planned,) = [event for event in seen if isinstance(event, api.Planned)]
    begun = sum(isinstance(event, api.Progressed) for event in seen)
    assert 0 < begun < 3 * planned.batches  # each goes through three blocks
    advanced.clear()
    assert_same(run(tiny, data, out, resume=True), whole)
    assert len(advanced) == 3 * planned.batches - begun
    assert not out.with_name("run.zarr.work").exists()


def run_killed(config: api.RunConfig, batches: int) -> None:
    """Be a process that is killed after so many batches of a block."""
    for event in api.iter_run(config):
        batches -= isinstance(event, api.Progressed)
        if not batches:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_resumes_to_the_same_bytes(
    tiny: Path, data: Path, whole: api.Run, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    killed = warm.start(run_killed, config(tiny, data, out), 12)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    (scratch,) = out.with_name("run.zarr.work").rglob("*.scratch")
    assert scratch.stat().st_size > 0
    assert_same(run(tiny, data, out, resume=True), whole)
    assert not out.with_name("run.zarr.work").exists()


def test_a_batch_whose_states_are_damaged_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "states.scratch"
    sizes = {3: (8, 12), 7: (8, 12)}
    scratch = Scratch(path, "key", sizes)
    for batch in sizes:
        for level in (1, 2):
            scratch.save(batch, level, bytes([level] * 8), bytes([batch] * 4))
    assert Scratch(path, "key", sizes).level(7) == 2
    content = bytearray(path.read_bytes())
    content[content.rindex(bytes([2] * 8))] ^= 1  # the states of the last batch
    path.write_bytes(content)
    again = Scratch(path, "key", sizes)
    assert (again.level(3), again.level(7)) == (2, 0)
    assert bytes(again.averages(3).view("uint8")) == bytes([3] * 8)
    assert Scratch(path, "another", sizes).level(3) == 0


def refused(error: type[SafetySpaceError], match: str, *arguments: Any, **changes: Any) -> None:
    """Assert that a run stops with one line that matches."""
    with pytest.raises(error, match=match) as caught:
        run(*arguments, **changes)
    assert "\n" not in str(caught.value)


def test_a_scratch_budget_below_one_batch_is_refused(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    match = r"scratch: 1,000 bytes, but the largest batch of m keeps [\d,]+ between two blocks"
    out = tmp_path / "run.zarr"
    refused(ConfigError, match, tiny, data, out, scratch=1000)
    assert not out.exists()
    run(tiny, data, out, scratch=8000, token_budget=16, overwrite=True)  # as the line says


def test_a_full_disk_is_one_clear_error_before_blocks_run(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_files.os, "posix_fallocate", full)
        match = r"states\.scratch: cannot be written: No space left"
        refused(StoreError, match, tiny, data, tmp_path / "run.zarr")
    assert not list(tmp_path.rglob("*.scratch"))


def test_weights_that_cannot_be_streamed_are_refused_with_the_reason(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    encoder = save_tiny("mt5", tmp_path / "mt5")
    match = r"blocks of MT5Stack read more than the states .* use --weights load"
    refused(ModelError, match, encoder, data, tmp_path / "a.zarr")
    refused(ModelError, "random weights of a control", f"random:{tiny}", data, tmp_path / "b.zarr")
    refused(ConfigError, "verify needs the whole", tiny, data, tmp_path / "c.zarr", verify=True)


def test_a_file_that_ends_early_is_refused_before_any_block_is_read(
    tiny: Path, data: Path, tmp_path: Path, reads: list[int]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(
        ModelError,
        r"model\.safetensors: not a complete safetensors file",
        model,
        data,
        tmp_path / "a.zarr",
    )
    tensors = load_file(tiny / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    match = r"1 weights of LlamaForCausalLM are not in its files \(first: model\.layers\.1\.mlp"
    refused(ModelError, match, model, data, tmp_path / "b.zarr")
    assert not reads


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (Path.unlink, r"model\.safetensors: cannot be read \(No such file"),
        (Path.touch, r"model\.safetensors: has changed since the model was opened"),
    ],
)
def test_weights_that_change_during_the_run_end_it(
    change: Callable[[Path], None], match: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    events = api.iter_run(config(model, data, tmp_path / "run.zarr"))
    next(event for event in events if isinstance(event, api.Progressed))
    change(model / "model.safetensors")
    with pytest.raises(ModelError, match=match):
        list(events)


def test_an_adapter_in_a_pickle_is_refused_in_one_line(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tiny, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    spec, out = f"{tiny}+{adapter}", tmp_path / "run.zarr"
    refused(ModelError, "cannot be merged block by block", spec, data, out, allow_pickle=True)


def test_a_model_that_does_not_fit_is_streamed_by_itself(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse_model(f"m={tiny}")
    assert load_model(spec, device="cpu", weights="auto").streamed is None
    monkeypatch.setattr(device, "available_bytes", lambda: 100_000)
    notes: list[str] = []
    model = load_model(spec, device="cpu", weights="auto", on_note=notes.append)
    assert model.streamed is not None
    assert "its weights do not fit into memory, so they are streamed from disk" in notes
    assert load_model(spec, device="cpu").streamed is None
    control = parse_model(f"m=random:{tiny}")
    assert load_model(control, weights="auto", on_note=notes.append).streamed is None
    match = "need more memory than there is, and cannot be streamed: the random weights"
    assert any(match in note for note in notes)


def test_memory_limits_of_a_job_count_and_pages_of_files_do_not(tmp_path: Path) -> None:
    def limit(group: Path, most: str) -> None:
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text("700\n")
        (group / "memory.stat").write_text("anon 100\nactive_file 200\ninactive_file 400\n")

    step = tmp_path / "job" / "step"
    step.mkdir(parents=True)
    limit(step, "max")
    limit(step.parent, "1000")
    assert list(device._left_of_limits(step)) == [900]


def test_compiled_blocks_are_refused_if_a_model_is_streamed_by_itself(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available_bytes", lambda: 100_000)
    match, out = "compile needs the whole model in memory", tmp_path / "run.zarr"
    refused(ModelError, match, tiny, data, out, weights="auto", compile=True)


@pytest.mark.parametrize(
    ("typed", "n_bytes"), [("5000", 5000), ("1.5GB", 1_500_000_000), ("20mb", 20_000_000)]
)
def test_a_size_may_have_a_unit(typed: str, n_bytes: int) -> None:
    assert size(typed) == n_bytes


@pytest.mark.parametrize("typed", ["much", "GB", "5 miles", "inf", "nanMB"])
def test_what_is_no_size_is_refused(typed: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected bytes such as"):
        size(typed)


def test_weights_that_are_unpacked_as_a_whole_are_not_streamed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    assert "pickled" in str(why_not_streamed(Source("m", tmp_path)))
