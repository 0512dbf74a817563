"""An untrained control: `random:BASE` is the base in all but its weights."""

from pathlib import Path

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, save_tiny

from safetyspace_fast import api
from safetyspace_fast.cli import main
from safetyspace_fast.errors import ConfigError, ModelError, StoreError
from safetyspace_fast.models import ModelSpec, load_model, parse_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return save_tiny("llama", folder / "llama", chat_template=CHAT_TEMPLATE)


def state_of(spec: str, **options: str) -> dict[str, torch.Tensor]:
    return load_model(parse_model(spec), **options).backbone.state_dict()


def test_a_name_says_that_weights_are_random(base: Path, tmp_path: Path) -> None:
    assert parse_model(f"control=random:{base}") == ModelSpec("control", str(base), random=True)
    assert parse_model(f"random:{base}").name == "llama-random"
    found = parse_model("random:org/model@main")
    assert (found.base, found.revision, found.asked) == ("org/model", "main", "random:org/model")
    folder = tmp_path / "random:m"  # a path that exists is a path
    folder.mkdir()
    assert not parse_model(str(folder)).random
    with pytest.raises(ConfigError, match="adapters for random weights, expected random:BASE"):
        parse_model(f"random:{base}+{tmp_path}")
    with pytest.raises(ConfigError, match="empty part"):
        parse_model("x=random:")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "mt5"])
def test_a_control_is_its_base_with_other_weights(name: str, tmp_path: Path) -> None:
    path = save_tiny(name, tmp_path / name)
    trained, control = (load_model(parse_model(f"{kind}{path}")) for kind in ("", "random:"))
    assert control.hookpoints == trained.hookpoints
    assert (control.hidden_size, control.causal) == (trained.hidden_size, trained.causal)
    assert control.tokenizer("a text").input_ids == trained.tokenizer("a text").input_ids
    same = ("config_sha256", "tokenizer_sha256", "architecture")
    assert all(control.identity[key] == trained.identity[key] for key in same)
    assert control.identity["id"] == f"random:{path}"
    assert control.identity["weights"] == {"random": "seed 1"}
    assert control.identity["weights_sha256"] != trained.identity["weights_sha256"]
    one, other = trained.backbone.state_dict(), control.backbone.state_dict()
    assert one.keys() == other.keys()
    matrices = [key for key, weight in one.items() if weight.ndim == 2]
    assert matrices
    for key in matrices:
        assert one[key].shape == other[key].shape
        assert not torch.equal(one[key], other[key])
        assert torch.isfinite(other[key]).all()


def test_its_weights_are_the_same_each_time_and_in_each_dtype(base: Path) -> None:
    torch.manual_seed(5)
    first = state_of(f"random:{base}", dtype="bfloat16")
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))  # the caller's random numbers go on undisturbed
    again = state_of(f"random:{base}", dtype="bfloat16")
    assert all(torch.equal(again[key], weight) for key, weight in first.items())


def test_a_control_runs_beside_its_base(base: Path, tmp_path: Path) -> None:
    fields = {"data": "sample:polite", "languages": ["en"], "limit": 20, "dtype": "float32"}
    fields |= {"out": tmp_path / "run.zarr", "layers": "-1", "resume": True}
    run = api.run(models=[f"base={base}", f"control=random:{base}"], **fields)
    assert run.models == ("base", "control")
    found = api.separation(run, metrics=["rho"], bootstraps=0, permutations=0)
    values = found["value"].sel(pooling="mean").squeeze()
    assert float(values.sel(model="base")) != float(values.sel(model="control"))
    assert found.attrs["settings_differ"] == ""
    again = api.iter_run(models=[f"control=random:{base}"], **fields)
    said = [event.message for event in again if isinstance(event, api.Note)]
    assert said[-1] == "complete in the store already; nothing to do"
    for name, model in (("control", str(base)), ("base", f"random:{base}")):
        with pytest.raises(StoreError, match="was run with another weights"):
            api.run(models=[f"{name}={model}"], **fields)


def test_a_control_cannot_be_verified(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="verify its base instead"):
        api.verify(f"random:{base}", "sample:polite")
    assert main(["verify", "--model", f"random:{base}", "--data", "sample:polite"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "llama-random: its random weights are in no file" in line
