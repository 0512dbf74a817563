"""Peak memory depends on the batch alone: not on the layers that are kept, nor on the texts."""

from pathlib import Path

import pytest
from tiny_models import save_tiny

from benchmarks.harness import extra_memory_bytes

TOKEN_BUDGET = 4096
WIDTH = 512
BLOCKS = 24
STATE_BYTES = 4 * TOKEN_BUDGET * WIDTH
"""Hidden states of one layer and one batch; keeping all layers would take BLOCKS times as much."""

SETUP = """
import torch
from safetyspace_fast import api
torch.set_num_threads(1)

def run(layers, limit):
    config = api.RunConfig(
        models=("m={model}",), data="sample:polite", out="{out}", template="none", overwrite=True,
        languages=("ru",), layers=layers, limit=limit, token_budget=4096, poolings=("mean",),
    )
    api.run(config)

run("final_norm", 2)
"""


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("memory")
    model = save_tiny(
        "llama",
        Path(folder / "model"),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=BLOCKS,
    )
    return SETUP.format(model=model, out=folder / "run.zarr")


def test_memory_does_not_grow_with_layers_or_texts(setup: str) -> None:
    one_layer = extra_memory_bytes(setup, "run('final_norm', 25)")
    all_layers = extra_memory_bytes(setup, "run('all', 25)")
    more_texts = extra_memory_bytes(setup, "run('final_norm', 50)")
    assert one_layer > STATE_BYTES, "the measurement does not see a single state"
    assert all_layers - one_layer < 3 * STATE_BYTES
    assert more_texts - one_layer < 3 * STATE_BYTES
