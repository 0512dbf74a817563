"""The path of a batch on a device: from loading to the store. Without a GPU the CPU shows that the
tests are right; `make gpu-check` runs them where there is one.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpus import need_cuda
from test_extraction import (
    LANGUAGES,
    arrays,
    assert_close,
    files,
    make_config,
    run_and_kill,
    write_data,
)
from tiny_models import CHAT_TEMPLATE, save_tiny

from safetyspace_fast import api
from safetyspace_fast.data import read_samples
from safetyspace_fast.extract import Capture
from safetyspace_fast.extract.chance import Chance
from safetyspace_fast.extract.finish import finish_cell
from safetyspace_fast.extract.plan import Batching, make_plan
from safetyspace_fast.extract.prepare import prepare
from safetyspace_fast.extract.transfer import HostCopy
from safetyspace_fast.extract.tune import USUAL
from safetyspace_fast.models import load_model, parse_model
from safetyspace_fast.sweep.devices import run_on_devices

TEXTS = [f"{word} number {i}" + " and so on" * (i % 7) for i in range(40) for word in ("a", "the")]
NEEDS_CUDA = pytest.mark.needs_cuda


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "cuda":
        need_cuda()
    return name


@pytest.fixture
def gpu() -> torch.device:
    need_cuda()
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        "llama", tmp_path_factory.mktemp("models") / "llama", chat_template=CHAT_TEMPLATE
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "texts.jsonl")


@pytest.fixture(scope="module")
def on_cpu(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    out = tmp_path_factory.mktemp("cpu") / "run.zarr"
    return api.run(make_config(tiny, data, out, device="cpu", dtype="float32"))


TURNING = ("pca_coords", "pca_components")
"""Weak components, which rounding turns a little."""
BY_TIES = ("null", "nearest", "standard_score", "equal_length_score")
"""Rounding decides ties; few but at `embed`, where all texts of one last token have one state."""


def assert_close_to_the_cpu(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """But for rounding; two CPUs, with and without AVX-512, differ by a tenth of what may be."""
    for name in (*TURNING, *BY_TIES):
        scale = np.nanmax(np.abs(expected[name]))
        atol = (2e-4 if name in TURNING else 2e-5) * scale
        one, other = (found[name][name in BY_TIES :] for found in (got, expected))
        close = np.isclose(one, other, rtol=0, atol=atol, equal_nan=True)
        assert close.mean() >= (0.998 if name in BY_TIES else 1), name
    others = {n: x for n, x in expected.items() if n not in TURNING and n not in BY_TIES}
    assert_close(got, others)


@pytest.fixture
def same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch costs on a GPU is measured, so two runs might have other batches."""
    monkeypatch.setattr(
        "safetyspace_fast.extract.prepare.find_batching", lambda model, *_: USUAL[model.device.type]
    )


@pytest.mark.parametrize("template", ["none", "chat"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_are_those_of_transformers(
    device: str, tiny: Path, data: Path, template: str, dtype: str
) -> None:
    """Against float64 or float32, with and without a shared prefix."""
    found = api.verify(str(tiny), str(data), device=device, dtype=dtype, template=template)
    assert found.verdict == "supported"


def test_a_run_on_a_device_is_the_cpus_but_for_rounding(
    device: str, tiny: Path, data: Path, on_cpu: api.Run, tmp_path: Path
) -> None:
    config = make_config(tiny, data, tmp_path / "run.zarr", device=device, dtype="float32")
    assert_close_to_the_cpu(arrays(api.run(config)), arrays(on_cpu))


@pytest.mark.usefixtures("same_batches")
def test_two_runs_on_one_card_give_the_same_bytes(
    device: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    first, second = (tmp_path / name for name in ("one.zarr", "two.zarr"))
    for out in (first, second):
        api.run(make_config(tiny, data, out, device=device))
    assert files(first) == files(second)


@pytest.mark.usefixtures("same_batches")
@pytest.mark.parametrize("stop_after", [4, 30])
def test_a_stopped_run_goes_on(
    device: str, tiny: Path, data: Path, tmp_path: Path, stop_after: int
) -> None:
    whole, stopped = (tmp_path / name for name in ("whole.zarr", "stopped.zarr"))
    api.run(make_config(tiny, data, whole, device=device))
    events = api.iter_run(make_config(tiny, data, stopped, device=device))
    list(islice(events, stop_after))
    events.close()
    api.run(make_config(tiny, data, stopped, device=device, resume=True))
    assert files(stopped) == files(whole)


def test_a_killed_run_goes_on(
    device: str, tiny: Path, data: Path, on_cpu: api.Run, tmp_path: Path
) -> None:
    """In a process that can neither end its copies nor its writes; the batches stay the same."""
    out = tmp_path / "run.zarr"
    run_and_kill(tiny, data, out, 15, device)
    config = make_config(tiny, data, out, device=device, dtype="float32", resume=True)
    planned: list[api.Planned] = []
    run = api.run(
        config, on_event=lambda e: planned.append(e) if isinstance(e, api.Planned) else None
    )
    assert planned[0].texts_done > 0
    assert_close_to_the_cpu(arrays(run), arrays(on_cpu))


def test_a_run_begun_on_one_device_goes_on_on_another(
    device: str, tiny: Path, data: Path, on_cpu: api.Run, tmp_path: Path
) -> None:
    """A GPU that is lost in the middle: the batches of its plan run elsewhere."""
    out = tmp_path / "run.zarr"
    events = api.iter_run(make_config(tiny, data, out, device=device, dtype="float32"))
    list(islice(events, 20))
    events.close()
    config = make_config(tiny, data, out, device="cpu", dtype="float32", resume=True)
    assert_close_to_the_cpu(arrays(api.run(config)), arrays(on_cpu))


def test_blocks_from_disk_give_the_cpus_numbers_but_for_rounding(
    device: str, tiny: Path, data: Path, on_cpu: api.Run, tmp_path: Path
) -> None:
    options = {"device": device, "dtype": "float32", "weights": "stream"}
    assert_close_to_the_cpu(
        arrays(api.run(make_config(tiny, data, tmp_path / "run.zarr", **options))), arrays(on_cpu)
    )


@NEEDS_CUDA
def test_a_worker_on_each_of_two_cards(
    tiny: Path, data: Path, on_cpu: api.Run, tmp_path: Path
) -> None:
    need_cuda(2)
    out = tmp_path / "run.zarr"
    config = make_config(tiny, data, out, dtype="float32")
    for _ in run_on_devices([config], ("cuda:0", "cuda:1")):
        pass
    assert_close_to_the_cpu(arrays(api.open_run(out)), arrays(on_cpu))


@NEEDS_CUDA
def test_a_model_shared_out_over_two_cards(
    tiny: Path, data: Path, on_cpu: api.Run, tmp_path: Path
) -> None:
    need_cuda(2)
    options = {"device": "cuda", "dtype": "float32", "tensor_parallel": 2}
    assert_close_to_the_cpu(
        arrays(api.run(make_config(tiny, data, tmp_path / "run.zarr", **options))), arrays(on_cpu)
    )


@pytest.mark.slow
def test_compiled_blocks_on_a_device(
    device: str, tiny: Path, data: Path, on_cpu: api.Run, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    options = {"device": device, "dtype": "float32", "compile": True}
    assert_close_to_the_cpu(
        arrays(api.run(make_config(tiny, data, out, **options))), arrays(on_cpu)
    )


def test_the_statistics_of_a_cell_are_the_cpus(device: str) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(300, 96, generator=draws) * torch.logspace(1, -1, 96) + 3
    y, fold = torch.arange(300) % 2, torch.arange(300) // 2 % 10
    expected = finish_cell(x, y, fold)
    got = finish_cell(*(tensor.to(device) for tensor in (x, y, fold)))
    for name, values in expected.items():
        torch.testing.assert_close(got[name].cpu(), values, rtol=2e-5, atol=2e-5, msg=name)


def test_what_chance_gives_in_a_cell_is_the_cpus(device: str, data: Path) -> None:
    """Also the kernel's means, of which MMD^2 is made; one text is not finite."""
    chance = Chance(read_samples(str(data)), "en")
    n = len(chance.unit)
    x = torch.randn(n, 96, generator=torch.Generator().manual_seed(0)) + 3
    x[1, 2] = torch.nan
    kept = chance.counted(x)
    y = torch.arange(n) % 2
    pair_sum = finish_cell(x, y, torch.arange(n) // 2 % 10)["pair_sum"]
    assert torch.equal(chance.counted(x.to(device)), kept)
    expected = chance.of_cell(x, kept, pair_sum)
    got = chance.of_cell(x.to(device), kept, pair_sum.to(device))
    assert expected["kernel_null"].isfinite().all()
    for name, values in expected.items():
        one, other = got[name].cpu().double(), values.double()
        close = torch.isclose(one, other, rtol=2e-5, atol=2e-5, equal_nan=True)
        assert close.double().mean() >= (0.998 if name == "null" else 1), name


@NEEDS_CUDA
def test_results_reach_the_host_whole_while_the_next_ones_are_computed(gpu: torch.device) -> None:
    """Real streams: a buffer that is reused too early would hold another batch's numbers."""
    copy = HostCopy(gpu, 4 * 240_000, kept=40 << 20, budget=8 << 20)
    waiting = []
    for i in range(40):
        result = torch.full((200_000 + 1000 * i,), float(i), device=gpu).mul_(1.0)
        waiting.append((i, copy.start(result)))
        del result
        if len(waiting) == 2:
            number, host = waiting.pop(0)
            assert (host.get() == number).all()
            host.free()


@NEEDS_CUDA
def test_no_pinned_memory_is_allocated_for_states_after_the_first_batch(
    gpu: torch.device, tiny: Path, data: Path, tmp_path: Path
) -> None:
    """But for the tokens of a batch, which take less than 64 KiB here; the states take 500."""
    taken = []
    for event in api.iter_run(make_config(tiny, data, tmp_path / "run.zarr", device="cuda")):
        if isinstance(event, api.LanguageDone):
            break
        if isinstance(event, api.Progressed):
            taken.append(torch.cuda.host_memory_stats()["allocated_bytes.current"])
    assert len(taken) > 1
    assert taken[-1] - taken[0] < 64 << 10


@NEEDS_CUDA
def test_the_loop_never_waits_for_the_device(gpu: torch.device, tiny: Path) -> None:
    model = load_model(parse_model(str(tiny)), device=gpu)
    for template in ("none", "chat"):
        work = prepare(model, TEXTS, template=template)
        arguments = (model, work.hookpoints, work.projection, None, work.cache)
        with Capture(*arguments, packed=work.packed) as capture:
            for batch in work.plan:  # what is compiled or planned once may wait
                capture.run(work.tokens, batch)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                for batch in work.plan:
                    capture.run(work.tokens, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def little_memory(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 128 MiB in a forward pass, beside what is there; as much as there is elsewhere.

    What cuBLAS keeps for each stream (32 MiB on an H100) is there by then, or fits.
    """
    run, total = Capture.run, torch.cuda.get_device_properties(gpu).total_memory

    def limited(*arguments: Any) -> torch.Tensor:
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved(gpu) + (128 << 20)
        torch.cuda.set_per_process_memory_fraction(room / total, gpu)
        try:
            return run(*arguments)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, gpu)

    monkeypatch.setattr(Capture, "run", limited)


@NEEDS_CUDA
@pytest.mark.usefixtures("little_memory")
def test_a_card_that_is_too_small_for_a_batch_runs_smaller_ones(tiny: Path, tmp_path: Path) -> None:
    """Of 384,000 tokens: the first MLP alone needs 250 MiB."""
    rows = [
        {"text": f"{i} " + "word and dog " * 150, "label": i % 2, "lang": "en"} for i in range(3000)
    ]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    out = tmp_path / "run.zarr"
    config = make_config(tiny, data, out, device="cuda", dtype="float32", token_budget=500_000)
    notes = [e.message for e in api.iter_run(config) if isinstance(e, api.Note)]
    assert "out of memory: continuing with smaller batches" in notes
    assert np.isfinite(api.open_run(out).model("m").read("projected")).all()


@NEEDS_CUDA
def test_packed_batches_on_a_card_are_the_padded_ones(gpu: torch.device, tiny: Path) -> None:
    model = load_model(parse_model(str(tiny)), device=gpu, dtype="bfloat16")
    work = prepare(model, TEXTS, template="none")
    found = []
    for packed in (False, True):
        with Capture(model, work.hookpoints, work.projection, packed=packed) as capture:
            found.append([capture.run(work.tokens, batch) for batch in work.plan])
    for one, other in zip(*found, strict=True):
        gap = (one - other).norm(dim=-1) / one.norm(dim=-1)
        assert gap.max() < 0.05
        assert gap.median() < 0.01


@NEEDS_CUDA
def test_the_second_of_two_cards_gives_the_numbers_of_the_first(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    need_cuda(2)
    runs = [
        api.run(make_config(tiny, data, tmp_path / f"{i}.zarr", device=f"cuda:{i}"))
        for i in range(2)
    ]
    assert_close(arrays(runs[1]), arrays(runs[0]))


def test_the_plan_of_a_gpu_is_one_that_a_cpu_can_run(tiny: Path) -> None:
    model = load_model(parse_model(str(tiny)))
    batching = Batching(16_384, batch_cost=512, part_samples=4096)
    work = prepare(model, TEXTS, template="none", batching=batching)
    assert work.batching == batching
    assert work.plan.sha256 == make_plan(work.tokens, batching=batching).sha256
    assert set(LANGUAGES) == {"de", "en", "ru"}
