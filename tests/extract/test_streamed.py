"""Models whose blocks stay on disk: the same bytes as from memory, in any number of passes."""

import json
from pathlib import Path

import pytest
from test_extraction import files, make_config
from tiny_models import save_tiny

from safetyspace_fast import api

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
