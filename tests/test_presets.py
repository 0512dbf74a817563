"""Published protocols as data."""

import re
from pathlib import Path

import pytest
from tiny_models import save_tiny

from safetyspace_fast import presets as package
from safetyspace_fast.analysis.families import metric
from safetyspace_fast.cli import main
from safetyspace_fast.config import RunConfig
from safetyspace_fast.errors import ConfigError
from safetyspace_fast.models import parse_model
from safetyspace_fast.presets import preset, presets
from safetyspace_fast.sweep import read_sweep


@pytest.mark.parametrize("name", list(presets()))
def test_every_preset_is_something_that_run_and_separation_take(name: str) -> None:
    entry = presets()[name]
    for metric_name in entry.metrics:
        metric(metric_name)
    models = entry.models(None) if entry.pairs else ("gpt2",)
    RunConfig(
        models=models,
        data=(entry.data or ("sample:polite",))[0],
        out=Path("x.zarr"),
        layers=entry.layers,
        poolings=entry.poolings,
        template=entry.template,
    )
    names = [parse_model(model).name for model in models]
    assert len(set(names)) == len(names)
    assert all(parse_model(model).revision for model in models if "@" in model)
    for published in entry.published:
        assert published["pair"] in entry.pairs
        assert published["metric"] in entry.metrics


def test_published_numbers_are_those_of_the_study() -> None:
    numbers = {x["lang"]: x for x in presets()["hidden-space-of-safety"].published}
    assert (numbers["en"]["base"], numbers["en"]["aligned"]) == (0.0081, 0.6120)
    gains = {lang: numbers[lang]["difference"] for lang in ("de", "hi", "zh")}
    assert gains == {"de": 0.2685, "hi": 0.1998, "zh": 0.1009}


def test_the_models_of_the_study_are_pinned() -> None:
    for model in preset("hidden-space-of-safety")[0].models(None):
        assert re.fullmatch("[0-9a-f]{40}", model.rpartition("@")[2]), model


def test_wrong_names_list_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="hidden-space-of-safety, kldo, lin-2024"):
        preset("nobody")
    with pytest.raises(ConfigError, match="choose from llama-2-7b, llama-3"):
        preset("hidden-space-of-safety")[0].models("gpt2")
    with pytest.raises(ConfigError, match="names no models"):
        preset("kldo")[0].models(None)


@pytest.mark.parametrize("command", ["run", "separation", "compare"])
def test_presets_are_listed(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--list-presets"])
    assert stop.value.code == 0
    text = capfd.readouterr().out
    assert all(name in text for name in presets())
    assert "meta-llama/Llama-2-7b-chat-hf@f5db02d" in text


def test_a_study_with_stand_ins_for_its_models(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny, out = save_tiny("llama", tmp_path / "tiny"), tmp_path / "run.zarr"
    name = "hidden-space-of-safety:llama-2-7b"
    models = [f"--model=llama-2-7b.{role}={tiny}" for role in ("base", "aligned")]
    data = ["--data", "sample:polite", "--languages", "en,de,hi"]
    assert main(["run", "--preset", name, *models, *data, "--out", str(out)]) == 0
    assert "1 hookpoints" in capfd.readouterr().err
    few = ["--bootstraps", "9", "--permutations", "9"]
    assert main(["compare", str(out), "--preset", name, *few]) == 0
    text = capfd.readouterr().out
    assert "rho_pc10 base" in text
    assert "0.6120" in text
    assert "arXiv 2504.02708" in text
    assert main(["separation", str(out), "--preset", "lin-2024", *few]) == 0
    assert "rho_pc2" in capfd.readouterr().out
    assert main(["compare", str(out), "--preset", "hidden-space-of-safety:gemma-2-9b"]) == 2
    assert "holds no model pair" in capfd.readouterr().err


def test_models_and_data_are_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "x.zarr")]
    assert main(["run", "--preset", "kldo", "--data", "sample:polite", *out]) == 2
    assert "names no models" in capfd.readouterr().err
    assert main(["run", "--model", "gpt2", *out]) == 2
    assert "--data is missing" in capfd.readouterr().err


def test_weights_that_cannot_be_had_are_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["--data", "sample:polite", "--out", str(tmp_path / "x.zarr")]
    assert main(["run", "--preset", "hidden-space-of-safety:llama-2-7b", *arguments]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "meta-llama/Llama-2-7b-hf" in line


def test_a_wrong_name_offers_the_nearest_preset_or_pair() -> None:
    with pytest.raises(ConfigError, match="did you mean 'lin-2024'"):
        preset("lin-2023")
    chosen, pair = preset("hidden-space-of-safety:llama-2-8b")
    with pytest.raises(ConfigError, match=r"no pair 'llama-2-8b'.*did you mean 'llama-2-7b'\?"):
        chosen.models(pair)


@pytest.mark.parametrize("name", [name for name, entry in presets().items() if entry.pairs])
def test_a_preset_is_a_sweep_file_with_base_before_aligned(name: str) -> None:
    configs = read_sweep(Path(package.__file__).parent / f"{name}.toml").configs()
    models = presets()[name].models(None)
    assert tuple(dict.fromkeys(model for config in configs for model in config.models)) == models
    assert all(config.poolings == presets()[name].poolings for config in configs)
