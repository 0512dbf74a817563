"""`bench` measures what it says on the texts it names."""

import importlib
import json
import time
from pathlib import Path

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, save_tiny

from safetyspace_fast import api, benchmark
from safetyspace_fast.cli import main
from safetyspace_fast.errors import ConfigError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("m") / "llama", chat_template=CHAT_TEMPLATE)


def test_both_sides_run_the_same_texts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    usual = benchmark._usual_way
    monkeypatch.setattr(benchmark, "_usual_way", lambda m, t: (seen.append(len(t)), usual(m, t)))
    steps: list[tuple[int, int]] = []
    found = api.bench(
        str(tiny),
        "sample:polite",
        samples=20,
        languages=("en", "de"),
        progress=lambda done, of: steps.append((done, of)),
    )
    assert seen == [20] * 4
    assert steps == [(i, 12) for i in range(1, 13)]
    assert (found.texts, found.all_texts, found.template) == (20, 200, "chat")
    assert 0 < found.tokens < found.all_tokens
    assert found.ratio == found.usual_s / found.ours_s
    assert found.share_of_matrix_rate is not None


def test_a_slower_engine_is_seen(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = benchmark.Capture.run

    def slow(*args: object) -> torch.Tensor:
        time.sleep(0.3)
        return run(*args)

    before = api.bench(str(tiny), "sample:polite", samples=8, languages=("en",))
    monkeypatch.setattr(benchmark.Capture, "run", slow)
    after = api.bench(str(tiny), "sample:polite", samples=8, languages=("en",))
    assert after.ours_s >= 0.3 > before.ours_s


def test_encoders_and_models_without_linear_layers(tmp_path: Path) -> None:
    bert = save_tiny("bert", tmp_path / "bert")
    assert api.bench(str(bert), "sample:polite", samples=4, languages=("en",)).texts == 4
    gpt2 = save_tiny("gpt2", tmp_path / "gpt2")  # its products are Conv1D
    found = api.bench(str(gpt2), "sample:polite", samples=4, languages=("en",))
    assert found.share_of_matrix_rate is None
    with pytest.raises(ConfigError, match="samples: got 0"):
        api.bench(str(gpt2), "sample:polite", samples=0)


def test_the_command(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--model", f"m={tiny}", "--data", "sample:polite", "--samples", "6"]
    assert main([*command, "--languages", "en"]) == 0
    shown = capsys.readouterr().out
    assert "m: 6 texts, template chat, float32 on cpu" in shown
    assert "all 100 texts" in shown
    assert main([*command, "--languages", "en", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 6
    assert main(["bench", "--model", "nowhere/", "--data", "sample:polite"]) == 1


@pytest.mark.parametrize(
    "name", ["end_to_end", "gpu", "gpu_static", "ops", "separation", "store", "workers"]
)
def test_every_benchmark_finds_what_it_measures(name: str) -> None:
    """They are run by hand, so that a new name in the package would break them in silence."""
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_the_store_that_separation_is_timed_on_holds_all_that_a_run_writes(tmp_path: Path) -> None:
    from benchmarks.separation import write_store

    write_store(tmp_path / "run.zarr", layers=1, languages=2, texts=40)
    found = api.separation(api.open_run(tmp_path / "run.zarr"), metrics=["rho", "rho_standardized"])
    assert set(found["refused"].to_numpy().ravel()) == {""}
    assert (found["p"] <= 1).all()
