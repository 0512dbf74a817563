"""Models whose blocks stay on disk: the same bytes as from memory, in any number of passes."""

from pathlib import Path

import pytest
from test_extraction import files, make_config, write_data
from tiny_models import CHAT_TEMPLATE, save_adapter, save_tiny

from safetyspace_fast import api

FAMILIES = ("llama", "gemma3_text", "gpt2", "mixtral", "qwen3", "bert", "falcon_alibi")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "texts.jsonl")


def run(model: Path | str, data: Path, out: Path, **changes: object) -> api.Run:
    """A run over few texts, in several batches."""
    return api.run(make_config(model, data, out, **({"limit": 20, "token_budget": 128} | changes)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_from_disk_give_the_bytes_of_a_model_in_memory(
    family: str, dtype: str, data: Path, tmp_path: Path
) -> None:
    model = save_tiny(family, tmp_path / "model")
    options = {"dtype": dtype}
    whole = run(model, data, tmp_path / "whole.zarr", weights="load", **options)
    streamed = run(model, data, tmp_path / "streamed.zarr", weights="stream", **options)
    assert files(streamed.path / "models") == files(whole.path / "models")
