"""Estimates: what is counted without a model, what hardware takes, and a simulated cluster."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_adapter, save_tiny

from safetyspace_fast import api
from safetyspace_fast.cli import main
from safetyspace_fast.config import RunConfig
from safetyspace_fast.errors import ConfigError
from safetyspace_fast.sweep import SharedWork, trial
from safetyspace_fast.sweep.forecast import seconds_of
from safetyspace_fast.sweep.hardware import DEVICES, estimate, parse_cluster
from safetyspace_fast.sweep.schedule import Conditions, Unit, simulate
from safetyspace_fast.sweep.trial import Rates, measure_rates
from safetyspace_fast.sweep.work import Work, count_work, shape_of
from safetyspace_fast.sweep.writing import Writing

TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}<assistant>{% endfor %}"


def config_of(model: Path, out: Path, **changes: object) -> RunConfig:
    options = {"data": "sample:polite", "languages": ["en", "ru"], "limit": 10, "out": out}
    return RunConfig(models=str(model), **(options | changes))


def work_of(config: RunConfig) -> Work:
    return count_work(config, SharedWork([config]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma3_text", "bert"])
def test_parameters_are_counted_without_weights(tmp_path: Path, name: str) -> None:
    folder = save_tiny(name, tmp_path / name)
    (folder / "model.safetensors").unlink()
    shape = shape_of(folder, None, False)
    assert (shape.blocks, shape.hidden_size) == (3, 32)
    if name == "llama":  # attention with two of four heads for keys, and three matrices of 32 x 64
        per_block = 32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 64
        assert shape.active == 3 * per_block
        assert shape.parameters == shape.active + 2 * 512 * 32 + 7 * 32
        assert shape.weight_bytes == 4 * shape.parameters
    if name == "mixtral":  # two of four experts for a token
        experts = 3 * 4 * 3 * 32 * 64
        assert shape.active == pytest.approx(
            shape.parameters - 2 * 512 * 32 - experts / 2 - 7 * 32, rel=0.01
        )


@pytest.mark.parametrize("template", ["none", "chat"])
def test_tokens_and_bytes_are_those_of_a_run(tmp_path: Path, template: str) -> None:
    model = save_tiny("llama", tmp_path / "m", chat_template=TEMPLATE, num_hidden_layers=2)
    config = config_of(model, tmp_path / "run.zarr", template=template)
    work = work_of(config)
    (planned,) = [e for e in api.iter_run(config) if isinstance(e, api.Planned)]
    assert work.tokens == pytest.approx(planned.tokens, rel=0.03)
    assert work.hookpoints == planned.hookpoints
    stored = sum(f.stat().st_size for f in (tmp_path / "run.zarr/models").rglob("*") if f.is_file())
    assert work.store_bytes == pytest.approx(stored, rel=0.25)


def test_an_adapter_is_read_with_its_base(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "m")
    adapter = save_adapter(base, tmp_path / "adapter")
    alone, tuned = (
        work_of(config_of(Path(model), tmp_path / "x.zarr"))
        for model in (base, f"{base}+{adapter}")
    )
    assert (tuned.tokens, tuned.shape) == (alone.tokens, alone.shape)


def test_a_trial_is_of_the_shape_and_the_texts_of_a_run(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "m", num_hidden_layers=6)
    config = config_of(model, tmp_path / "x.zarr", limit=100)
    shared = SharedWork([config])
    work = count_work(config, shared)
    rates = measure_rates(work, shared.samples(config))
    assert min(rates.bytes_per_s, rates.flops, sum(rates.finish)) > 0
    assert min(rates.start_s, *rates.finish) >= 0
    assert min(vars(rates.writing).values()) > 0


@pytest.mark.parametrize(("bases", "once"), [(0, 100.0 + 10.0 + 2 * 3.0), (1, 100.0)])
def test_writing_is_part_of_an_estimate_and_a_store_is_made_once(
    tmp_path: Path, bases: int, once: float
) -> None:
    config = config_of(save_tiny("llama", tmp_path / "m"), tmp_path / "x.zarr")
    work = count_work(config, SharedWork([config]), bases=bases)
    writing = Writing(lexical_s=3.0, store_s=10.0, model_s=100.0, text_s=0.5, language_s=7.0)
    rates = Rates(0.0, math.inf, math.inf, (0.0, 0.0), writing)
    assert seconds_of(work, rates) == pytest.approx(once + 2 * 7.0 + 0.5 * sum(work.texts))


@pytest.mark.parametrize("growth", [(2e-4, 3e-6), (2e-4, 0.0), (0.0, 3e-6)])
def test_the_trial_finds_how_finishing_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, growth: tuple[float, float]
) -> None:
    config = config_of(save_tiny("llama", tmp_path / "m"), tmp_path / "x.zarr", limit=50)
    shared = SharedWork([config])
    truth = Rates(0.0, 1.0, 1.0, growth, Writing(0.0, 0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(trial, "_cell_s", lambda _work, some, _device: truth.finish_s(1, len(some)))
    work = count_work(config, shared)
    found = trial._finish_rates(work, shared.samples(config), torch.device("cpu"))
    assert found == pytest.approx(growth, rel=1e-6, abs=1e-12)


def test_a_trial_keeps_pairs_whole_and_takes_texts_of_all_lengths(tmp_path: Path) -> None:
    config = config_of(tmp_path / "m", tmp_path / "x.zarr", data="sample:polite", limit=60)
    samples = SharedWork([config]).samples(config)
    some = trial._some(samples, "ru", 0.5)
    rows = samples.lang_range("ru")
    assert len(some) == pytest.approx((rows.stop - rows.start) / 2, abs=2)
    pairs, sizes = np.unique(some.pair[some.pair >= 0], return_counts=True)
    assert len(pairs)
    assert (sizes == 2).all()
    assert set(some.texts) < set(samples.texts[rows])


def test_hardware_is_read_with_its_units() -> None:
    cluster = parse_cluster("h100x8,nodes=16,read=20GB/s,store=500MB/s,failure=12h,price=2.50USD/h")
    assert cluster.devices == 128
    assert cluster.device is DEVICES["h100"]
    assert (cluster.read_bytes_per_s, cluster.store_bytes_per_s) == (20e9, 5e8)
    assert (cluster.hours_to_failure, cluster.price.amount) == (12, 2.5)
    assert parse_cluster("A100").devices == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h10", "hardware: got 'h10', expected `this` or one of a100, h100.*did you mean 'h100'"),
        ("h100x0", "hardware: got '0', expected a whole number from 1 on"),
        ("h100x8,nodes=20000", "hardware: got 160,000 devices, expected at most 100,000"),
        ("h100x8,nodes=" + "9" * 5000, "nodes: got '9.*', expected a whole number"),
        ("h100x8,nodes=two", "nodes: got 'two', expected a whole number"),
        ("h100x8,price=2.5", "price: got '2.5', expected .* with the currency: 2.50USD/h"),
        ("h100x8,price=2.5USD", "price: got '2.5USD'"),
        ("h100x8,read=5", "read: got '5', expected a rate with its unit, such as 5GB/s"),
        ("h100x8,failure=24", "failure: got '24', expected hours with their unit"),
        ("h100x8,node=2", "hardware: no key 'node'; .*did you mean 'nodes'"),
        ("", "hardware: got ''"),
    ],
)
def test_wrong_hardware_is_one_line_before_anything_is_read(
    text: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_cluster(text)
    assert main(["estimate", "no-such-file.toml", "--hardware", text]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "no-such-file" not in line


def large(work: Work, parameters: float, texts: int, models: int) -> list[Work]:
    """Models of this size over texts of 20 languages."""
    shape = replace(
        work.shape,
        parameters=int(parameters),
        active=int(parameters),
        weight_bytes=int(2 * parameters),
    )
    return [
        replace(
            work,
            config=replace(work.config, models=f"m{i}=x"),
            shape=shape,
            texts=(texts // 20,) * 20,
            tokens=100 * texts,
        )
        for i in range(models)
    ]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    return work_of(config_of(save_tiny("llama", folder / "m"), folder / "x.zarr"))


def test_more_devices_are_faster_until_something_else_limits(work: Work) -> None:
    works = large(work, 8e9, 400_000, 4)
    few, many, too_many = (
        estimate(works, parse_cluster(f"h100x8,nodes={nodes},failure=9999h,read=1TB/s"))
        for nodes in (1, 4, 125)
    )
    assert few.bottleneck == "forward passes"
    assert few.seconds > 2.5 * many.seconds
    assert many.seconds > 2.5 * too_many.seconds
    assert too_many.bottleneck in ("loading models", "the tail")
    assert too_many.device_hours > 1.5 * few.device_hours
    expected = sum(2 * w.shape.active * w.tokens for w in works) / (0.4 * 989e12) / 8
    assert few.seconds == pytest.approx(expected, rel=0.2)


def test_a_model_that_no_node_holds_is_refused_by_name(work: Work) -> None:
    with pytest.raises(ConfigError, match=r"m has 405e9 parameters and needs 13 devices.*stream"):
        estimate(large(work, 405e9, 1000, 1), parse_cluster("h100x8"))
    assert estimate(large(work, 70e9, 1000, 1), parse_cluster("h100x8")).seconds > 0


UNITS = [Unit(i // 500, 60.0, 1e6) for i in range(4000)]
CALM = Conditions(1000, [16e9] * 8, 1e15, 1e15, 1e12, hours_to_failure=np.inf)


def test_a_calm_cluster_does_all_work_at_once() -> None:
    schedule = simulate(UNITS, CALM)
    assert schedule.seconds == pytest.approx(240, rel=0.01)
    assert schedule.useful == pytest.approx(1, abs=0.01)
    assert (schedule.failures, schedule.lost, schedule.away) == (0, 0, 0)


def test_no_second_of_a_worker_is_missing_or_counted_twice() -> None:
    for conditions in (
        CALM,
        replace(CALM, hours_to_failure=0.05, away_s=60, read_bytes_per_s=1e12),
        replace(CALM, read_bytes_per_s=2e11, store_bytes_per_s=5e7, hours_to_failure=1.0),
    ):
        found = simulate(UNITS, conditions)
        total = 60.0 * len(UNITS)
        assert found.useful * found.seconds * conditions.workers == pytest.approx(total)
        names = ("useful", "loading", "writing", "lost", "away", "idle")
        assert sum(getattr(found, name) for name in names) == pytest.approx(1, abs=0.02)


def test_failures_cost_more_where_batches_are_not_kept() -> None:
    stormy = replace(CALM, hours_to_failure=0.1, away_s=30.0)
    kept = simulate(UNITS, replace(stormy, batch_s=2.0))
    not_kept = simulate(UNITS, replace(stormy, batch_s=np.inf))
    assert kept.failures > 300
    assert kept.lost < 0.01
    assert not_kept.lost > 5 * kept.lost
    assert not_kept.seconds > kept.seconds
    assert simulate(UNITS, stormy, seed=1) == simulate(UNITS, stormy, seed=1)
    assert simulate(UNITS, stormy, seed=1) != simulate(UNITS, stormy, seed=2)


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"read_bytes_per_s": 5e11}, "loading models"),
        ({"store_bytes_per_s": 1e6}, "writing the store"),
        ({"hours_to_failure": 0.02, "away_s": 600.0}, "failures"),
        ({"workers": 3900}, "the tail"),
    ],
)
def test_what_limits_a_cluster_is_named(change: dict[str, float], limit: str) -> None:
    units = [*UNITS, Unit(0, 600.0, 1e6)] if limit == "the tail" else UNITS
    assert simulate(units, replace(CALM, **change)).limit == limit


def test_a_schedule_of_nothing_is_refused() -> None:
    for units, workers in (([], 3), (UNITS, 0)):
        with pytest.raises(ConfigError, match="at least one worker and one unit"):
            simulate(units, replace(CALM, workers=workers))


def test_workers_that_fail_before_they_do_anything_are_refused() -> None:
    hopeless = replace(CALM, workers=4, hours_to_failure=1e-4, start_s=30.0)
    with pytest.raises(ConfigError, match=r"failure: got 0\.0001h.*expected a longer time"):
        simulate(UNITS[:10], hopeless)


def test_the_command_states_its_assumptions_and_the_price(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny("llama", tmp_path / "m")
    (model / "model.safetensors").unlink()  # an estimate needs no weights
    content = {"out": "o", "models": [str(model)], "data": ["sample:polite"]}
    file = tmp_path / "s.json"
    file.write_text(json.dumps(content))
    assert main(["estimate", str(file), "--hardware", "h100x8,price=2.50USD/h"]) == 0
    text = capfd.readouterr().out
    assert "8 devices" in text
    assert " USD" in text
    assert "assumed      forward passes reach 40 %" in text
    assert "bottleneck   the tail" in text  # a few seconds of work for eight devices
    capfd.readouterr()
    assert main(["estimate", str(file), "--hardware", "h100", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["schedule"]["failures"] == 0
    shutil.rmtree(model)
    assert main(["estimate", str(file), "--hardware", "h100"]) == 2
    assert "nothing to estimate" in capfd.readouterr().err
