"""Whole runs on tiny models: what may not change the numbers, and what must not be lost."""

import json
import os
import random
import resource
import signal
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
import zarr
from tiny_models import save_tiny

from safetyspace_fast import api, extract, store
from safetyspace_fast.errors import ModelError, StoreError
from safetyspace_fast.extract import loop
from safetyspace_fast.extract.plan import Batch
from safetyspace_fast.models import Tokenized
from safetyspace_fast.store.layout import MODEL, SAMPLES, SHARD_SAMPLES

LANGUAGES = {"de": 90, "en": 300, "ru": 170}
"""Texts of each; ranges of languages cross the shards' borders."""


def write_data(path: Path, *, seed: int = 0) -> Path:
    """Random sentences with a weak sign of the class; the seed only shuffles the lines."""
    draw = random.Random(7)
    rows = []
    for lang, count in LANGUAGES.items():
        for i in range(count):
            words = [draw.choice(["the", "dog", "лиса", "über", "fox", "quick"]) for _ in range(9)]
            cut = draw.randint(1, 9)
            sign = ["bad", "good"][i % 2] if draw.random() < 0.7 else "word"
            text = " ".join([*words[:cut], sign])
            if i % 50 == 2:
                text = "one and the same text"
            rows.append(
                {"text": text, "label": 1 - i % 2 if "same" not in text else 1, "lang": lang}
            )
    clash = {row["text"] for row in rows if row["label"]}
    rows = [row for row in rows if row["label"] or row["text"] not in clash]
    random.Random(seed).shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "texts.jsonl")


@pytest.fixture(scope="module")
def finished(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """An uninterrupted run, which others must equal."""
    return api.run(make_config(tiny, data, tmp_path_factory.mktemp("run") / "run.zarr"))


def make_config(model: Path, data: Path, out: Path, **changes: object) -> api.RunConfig:
    options = {"models": (f"m={model}",), "data": str(data), "out": out, "template": "none"}
    return api.RunConfig(**(options | changes))


def arrays(run: api.Run) -> dict[str, np.ndarray]:
    model = run.model("m")
    return {spec.name: model.read(spec.name) for spec in MODEL if model.has(spec.name)}


def files(store: Path) -> dict[str, bytes]:
    """Every chunk of a store; metadata hold times, so they are compared elsewhere."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "zarr.json"
    }


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, values in expected.items():
        if values.dtype.kind != "f":
            np.testing.assert_array_equal(got[name], values, err_msg=name)
            continue
        if name == "pca_basis":  # merged from truncated parts: weak components may turn
            continue
        scale = np.nanmax(np.abs(values)) or 1.0
        bits = {"projected": 2**-12, "fold_mean": 2**-12}.get(name, 2e-5)
        np.testing.assert_allclose(got[name], values, atol=bits * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_the_token_budget_changes_no_number(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path, budget: int
) -> None:
    run = api.run(make_config(tiny, data, tmp_path / "run.zarr", token_budget=budget))
    assert_close(arrays(run), arrays(finished))


def test_the_order_of_the_file_changes_no_number(
    finished: api.Run, tiny: Path, tmp_path: Path
) -> None:
    shuffled = write_data(tmp_path / "shuffled.jsonl", seed=1)
    run = api.run(make_config(tiny, shuffled, tmp_path / "run.zarr"))
    assert files(run.path / "models") == files(finished.path / "models")
    assert (run.samples.file_position != finished.samples.file_position).any()


def test_threads_change_no_number(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        run = api.run(make_config(tiny, data, tmp_path / "run.zarr"))
    finally:
        torch.set_num_threads(threads)
    assert_close(arrays(run), arrays(finished))


def test_other_languages_change_no_number(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path
) -> None:
    run = api.run(make_config(tiny, data, tmp_path / "run.zarr", languages=("en",)))
    alone, among = run.model("m"), finished.model("m")
    where = finished.lang_range("en")
    i_lang = finished.languages.index("en")
    for spec in MODEL:
        if among.has(spec.name) and (spec.by_sample or spec.by_language):
            values = among.read(spec.name, samples=where, lang=slice(i_lang, i_lang + 1))
            np.testing.assert_array_equal(alone.read(spec.name), values, err_msg=spec.name)


def test_class_statistics_are_those_of_the_states(finished: api.Run, tiny: Path) -> None:
    """The store's own columns agree with each other: three roads to the same squares."""
    model, where = finished.model("m"), finished.lang_range("ru")
    label = finished.samples.label[where]
    i_lang = finished.languages.index("ru")
    for layer, pooling in np.ndindex(len(model.hookpoints), len(model.poolings)):
        chosen = {"layer": layer, "pooling": pooling}
        variance = model.read("class_var", lang=i_lang, **chosen).sum(1)
        sqdist = model.read("class_sqdist", samples=where, **chosen)
        for cls in (0, 1):
            own = sqdist[label == cls, cls]
            expected = pytest.approx(variance[cls], rel=1e-9, abs=1e-12)
            assert own.sum() / (len(own) - 1) == expected
        explained = model.read("pca_explained", lang=i_lang, **chosen)
        coords = model.read("pca_coords", samples=where, **chosen)
        np.testing.assert_allclose(
            coords.var(0, ddof=1), explained, rtol=1e-4, atol=1e-5 * explained[0]
        )
        gap = coords.astype(float)[:, None] - coords[None]
        distances = np.sqrt(np.square(gap).sum(2))  # at most the full-width distance
        full = model.read("pair_sum", samples=where, **chosen).sum(1)
        assert (distances.sum(1) <= full * (1 + 1e-5)).all()


def test_identical_texts_run_once_and_agree(tiny: Path, data: Path, finished: api.Run) -> None:
    hashes = finished.samples.text_sha256[finished.lang_range("en")]
    _, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    assert len(first) < len(hashes), "the data hold no duplicates"
    projected = finished.model("m").read("projected", samples=finished.lang_range("en"))
    np.testing.assert_array_equal(projected, projected[:, :, first[inverse.ravel()]])


@pytest.mark.parametrize("stop_after", [1, 3, 8, 12, 16])
def test_a_stopped_run_resumes_to_the_same_bytes(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path, stop_after: int
) -> None:
    out = tmp_path / "run.zarr"
    seen = list(islice(api.iter_run(make_config(tiny, data, out)), stop_after))
    with pytest.raises(StoreError, match="--resume"):
        api.run(make_config(tiny, data, out))
    planned = None
    for event in api.iter_run(make_config(tiny, data, out, resume=True)):
        if isinstance(event, api.Planned):
            planned = event
    assert planned is not None
    assert planned.texts_done == sum(e.texts for e in seen if isinstance(e, api.Progressed))
    assert files(out) == files(finished.path)
    assert not out.with_name("run.zarr.work").exists()


def run_killed(config: api.RunConfig, steps: int) -> None:
    """Be a process that is killed at an event, the first of which is 1."""
    for step, _ in enumerate(api.iter_run(config), 1):
        if step == steps:
            os.kill(os.getpid(), signal.SIGKILL)


def run_and_kill(model: Path, data: Path, out: Path, steps: int, device: str) -> None:
    """Run in another process, which dies without a word after so many events."""
    changes = {"dtype": "float32", "resume": True, "device": device, "token_budget": 512}
    killed = warm.start(run_killed, make_config(model, data, out, **changes), steps)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("beside", [False, True])
def test_arrays_computed_beside_the_next_language_are_the_same_bytes(
    finished: api.Run,
    tiny: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    beside: bool,
) -> None:
    monkeypatch.setattr(loop, "finishes_beside", lambda _device: beside)
    events = list(api.iter_run(make_config(tiny, data, tmp_path / "run.zarr")))
    assert files(tmp_path / "run.zarr") == files(finished.path)
    done = [event.lang for event in events if isinstance(event, api.LanguageDone)]
    assert done == list(LANGUAGES)
    assert isinstance(events[-1], api.ModelDone)


@pytest.mark.parametrize("stop_after", [3, 40, 70])
def test_a_run_stopped_while_arrays_are_computed_beside_it_resumes(
    finished: api.Run,
    tiny: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
) -> None:
    monkeypatch.setattr(loop, "finishes_beside", lambda _device: True)
    out = tmp_path / "run.zarr"
    events = api.iter_run(make_config(tiny, data, out))
    list(islice(events, stop_after))
    events.close()
    api.run(make_config(tiny, data, out, resume=True))
    assert files(out) == files(finished.path)


def test_an_error_beside_the_forward_passes_ends_the_run(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(loop, "finishes_beside", lambda _device: True)
    monkeypatch.setattr(loop.Session, "write_language", fail)
    with pytest.raises(OSError, match="disk full"):
        api.run(make_config(tiny, data, tmp_path / "run.zarr"))


def test_arrays_without_room_on_the_device_are_one_line_and_lose_nothing(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    config = make_config(tiny, data, tmp_path / "run.zarr", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish_language", starved)
        with pytest.raises(ModelError, match=r"the arrays of 'de' \(\d+ texts\) do not fit"):
            api.run(config)
    assert files(api.run(config).path) == files(finished.path)


def test_states_stay_in_an_eighth_of_what_a_job_may_use() -> None:
    """A limit of this process stands in for that of a job, beyond which it would be killed."""
    used = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[5])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + (2 << 30), hard))
    try:
        assert 0 < loop.kept_budget() <= 2 << 27
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_states_that_stay_in_memory_are_read_there(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other batch stays, as where pinned memory is short; the rest comes from the disk."""
    freed, read, sizes = [], [], []

    class Copy(loop.HostCopy):
        started = 0

        def __init__(self, device: torch.device, largest: int, kept: int, budget: int) -> None:
            super().__init__(device, largest, kept, budget)
            self.announced = largest, kept

        def start(self, result: torch.Tensor) -> loop.HostResult:
            self.started += 1
            sizes.append(result.nbytes)
            assert max(sizes) <= self.announced[0]  # what is allocated before the first batch
            assert result.nbytes <= self.announced[1] <= kept_budget

            def free() -> None:
                freed.append(1)
                result.numpy().fill(np.nan)  # as the next batch would

            return loop.HostResult(result, lambda: None, free, kept=self.started % 2 == 0)

    kept_budget, read_kept = loop.kept_budget(), loop._InMemory.read

    def counted(kept: loop._InMemory, layer: int, pooling: int) -> np.ndarray:
        read.append(1)
        return read_kept(kept, layer, pooling)

    monkeypatch.setattr(loop, "HostCopy", Copy)
    monkeypatch.setattr(loop._InMemory, "read", counted)
    events = list(api.iter_run(make_config(tiny, data, tmp_path / "run.zarr")))
    assert files(tmp_path / "run.zarr") == files(finished.path)
    batches = sum(isinstance(event, api.Progressed) for event in events)
    assert len(freed) == batches
    model = finished.model("m")
    assert len(read) == batches // 2 * len(model.hookpoints) * len(model.poolings)


def test_a_killed_run_resumes_to_the_same_bytes(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    for steps in (2, 7, 7):
        run_and_kill(tiny, data, out, steps, "auto")
    run = api.run(make_config(tiny, data, out, resume=True))
    # One thread there and several here: equal numbers, not bytes.
    assert_close(arrays(run), arrays(finished))


@pytest.mark.parametrize("n_arrays", [0, 3, 10, 25])
def test_a_crash_while_arrays_are_made_or_first_written_loses_nothing(
    finished: api.Run,
    tiny: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_arrays: int,
) -> None:
    """Stop at any array: of the samples, of the model, or at `n_tokens` once all are there."""
    out = tmp_path / "run.zarr"
    made = 0
    create_array, write = zarr.Group.create_array, store.ModelWriter.write

    def create_some(group: zarr.Group, *args: object, **options: object) -> object:
        nonlocal made
        made += 1
        if made > n_arrays:
            raise KeyboardInterrupt
        return create_array(group, *args, **options)

    def write_nothing(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr.Group, "create_array", create_some)
    monkeypatch.setattr(store.ModelWriter, "write", write_nothing)
    with pytest.raises(KeyboardInterrupt):
        api.run(make_config(tiny, data, out))
    monkeypatch.setattr(zarr.Group, "create_array", create_array)
    monkeypatch.setattr(store.ModelWriter, "write", write)
    if n_arrays < len(SAMPLES):
        with pytest.raises(StoreError, match="half made"):
            api.open_run(out)
    run = api.run(make_config(tiny, data, out, resume=True))
    assert files(run.path) == files(finished.path)


def test_a_segment_cut_short_costs_one_batch(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    list(islice(api.iter_run(make_config(tiny, data, out)), 6))
    (segment,) = (tmp_path / "run.zarr.work" / "m").glob("*.seg")
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 100)
    run = api.run(make_config(tiny, data, out, resume=True))
    assert files(run.path) == files(finished.path)


def test_resume_with_other_settings_is_refused(tiny: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    list(islice(api.iter_run(make_config(tiny, data, out)), 4))
    with pytest.raises(StoreError, match="poolings"):
        api.run(make_config(tiny, data, out, poolings=("mean",), resume=True))
    with pytest.raises(StoreError, match=r"of its de texts, \d+ are not"):
        api.run(make_config(tiny, data, out, languages=("en",), resume=True))


def test_a_second_model_joins_the_store(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    other = save_tiny("gpt2", tmp_path / "gpt2")
    run = api.run(make_config(tiny, data, out, models=(f"m={tiny}", f"other={other}")))
    assert run.models == ("m", "other")
    assert files(out / "models" / "m") == files(finished.path / "models" / "m")
    notes = [
        event.message
        for event in api.iter_run(make_config(tiny, data, out, resume=True))
        if isinstance(event, api.Note)
    ]
    assert notes == ["complete in the store already; nothing to do"]


def test_out_of_memory_halves_the_batches_and_says_so_once(
    finished: api.Run, tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_batch = extract.Capture.run

    def starved(capture: extract.Capture, tokens: Tokenized, batch: Batch) -> torch.Tensor:
        if len(batch.unique) > 3:
            raise torch.OutOfMemoryError("no room")
        return run_batch(capture, tokens, batch)

    monkeypatch.setattr(extract.Capture, "run", starved)
    events = list(api.iter_run(make_config(tiny, data, tmp_path / "run.zarr")))
    notes = [event.message for event in events if isinstance(event, api.Note)]
    assert notes == ["out of memory: continuing with smaller batches"]
    assert_close(arrays(api.open_run(tmp_path / "run.zarr")), arrays(finished))


def test_out_of_memory_limits_tokens_and_not_texts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair of long texts that does not fit must not leave one text a batch for all others."""
    rows = [{"text": f"a {i}", "label": i % 2, "lang": "aa"} for i in range(30)]
    rows += [{"text": f"{i} dog" * 100, "label": i % 2, "lang": "aa"} for i in range(2)]
    rows += [{"text": f"b {i}", "label": i % 2, "lang": "bb"} for i in range(30)]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run_batch = extract.Capture.run
    ran: list[Batch] = []

    def starved(capture: extract.Capture, tokens: Tokenized, batch: Batch) -> torch.Tensor:
        if batch.padded_tokens > 1.5 * tokens.lengths.max():
            raise torch.OutOfMemoryError("no room")
        ran.append(batch)
        return run_batch(capture, tokens, batch)

    monkeypatch.setattr(extract.Capture, "run", starved)
    api.run(make_config(tiny, data, tmp_path / "run.zarr", token_budget=2000))
    longest = max(batch.length for batch in ran)
    long = [batch for batch in ran if batch.length > longest / 2]
    assert [len(batch.unique) for batch in long] == [1, 1]
    assert max(len(batch.unique) for batch in ran[-2:]) >= 15


def test_after_out_of_memory_batches_stay_as_large_as_the_memory_allows(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for 45 of the 89 texts of a batch: the halves run, and nothing smaller."""
    rows = [
        {"text": f"{lang} {i}", "label": i % 2, "lang": lang}
        for lang in ("aa", "bb")
        for i in range(10, 99)
    ]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run_batch = extract.Capture.run
    texts_of_batches: list[int] = []

    def starved(capture: extract.Capture, tokens: Tokenized, batch: Batch) -> torch.Tensor:
        texts_of_batches.append(len(batch.unique))
        if len(batch.unique) > 45:
            raise torch.OutOfMemoryError("no room")
        return run_batch(capture, tokens, batch)

    monkeypatch.setattr(extract.Capture, "run", starved)
    api.run(make_config(tiny, data, tmp_path / "run.zarr", token_budget=10_000))
    assert texts_of_batches == [89, 44, 45, 44, 45]


def test_out_of_memory_with_one_text_is_an_error(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(extract.Capture, "run", starved)
    with pytest.raises(ModelError, match="a single text of"):
        api.run(make_config(tiny, data, tmp_path / "run.zarr"))


def test_texts_that_differ_after_their_first_token_only_have_different_states(
    tiny: Path, tmp_path: Path
) -> None:
    texts = ["the fox", "the dog", "the quick fox", "the quick dog"]
    rows = [{"text": t, "label": i % 2, "lang": "en"} for i, t in enumerate(texts)]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run = api.run(make_config(tiny, data, tmp_path / "run.zarr"))
    states = run.model("m").read("projected")[1:]  # embeddings of a last token know no other
    for i in range(len(texts)):
        for j in range(i):
            apart = np.abs(states[:, :, i] - states[:, :, j]).max(-1)
            assert (apart > 1e-4).all(), (i, j)


def test_nonfinite_states_are_counted_by_layer(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    # As if the tokens that the blocks are found with were the only ones that do not overflow.
    monkeypatch.setattr("safetyspace_fast.models.layers._refuse_overflow", lambda *_: None)
    path = save_tiny("llama", tmp_path / "llama")
    weights = safetensors.torch.load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.inf
    safetensors.torch.save_file(weights, path / "model.safetensors", {"format": "pt"})
    run = api.run(make_config(path, data, tmp_path / "run.zarr"))
    model = run.model("m")
    nonfinite = dict(zip(model.hookpoints, model.read("nonfinite"), strict=True))
    assert nonfinite["block.0"] == 0
    assert nonfinite["block.1"] == nonfinite["final_norm"] == 2 * len(run.samples.label)
    assert model.read("count", layer=model.hookpoints.index("block.1")).sum() == 0
    assert model.read("count", layer=0).sum() == 2 * len(run.samples.label)


def test_shards_cross_languages(finished: api.Run) -> None:
    borders = [finished.lang_range(lang).stop for lang in finished.languages]
    assert any(border % SHARD_SAMPLES for border in borders[:-1])


def test_a_run_says_what_it_plans(tiny: Path, data: Path, tmp_path: Path) -> None:
    started = time.perf_counter()
    planned, *rest = api.iter_run(make_config(tiny, data, tmp_path / "run.zarr"))
    assert isinstance(planned, api.Planned)
    progressed = [event for event in rest if isinstance(event, api.Progressed)]
    assert sum(event.tokens for event in progressed) == planned.tokens
    assert sum(event.texts for event in progressed) == planned.texts
    assert planned.unique_texts < planned.texts
    done = rest[-1]
    assert isinstance(done, api.ModelDone)
    assert 0 < done.forward_seconds < time.perf_counter() - started
