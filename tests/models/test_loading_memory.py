"""Loading holds the weights once in the host's memory, and on the way to a GPU not even that."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
import transformers

BLOCKS, WIDTH, INNER = 8, 512, 4096
"""197 MiB of weights in float32, the largest of 8 MiB."""

MEASURE = """
import sys, threading, torch
from transformers.models.llama import modeling_llama
from safetyspace_fast.models import find_sources, parse_model
from safetyspace_fast.models.weights import load_weights

def private():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.002):
        seen.append(private())

dtype, device = getattr(torch, sys.argv[2]), torch.device(sys.argv[3])
source, _ = find_sources(parse_model("m=" + sys.argv[1]), False, False)
before, seen, done = private(), [0], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
model, _ = load_weights(source, dtype, device, False, False, print)
done.set()
watcher.join()
print(max(seen) - before, sum(w.nbytes for w in model.parameters()))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    config = tiny_models.tiny_config(
        "llama", hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=BLOCKS
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to_empty(device="cpu")
    for number, weight in enumerate(model.parameters()):
        weight.data.fill_(number)
    model.save_pretrained(folder)
    tiny_models.tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("dtype", "device", "most"),
    [("float32", "cpu", 1.3), ("bfloat16", "cpu", 1.3), ("bfloat16", "meta", 0.3)],
)
def test_weights_are_never_twice_in_memory(
    large: Path, dtype: str, device: str, most: float
) -> None:
    """Private memory, without pages of files; `meta`, which has none, stands in for a GPU."""
    command = [sys.executable, "-c", MEASURE, str(large), dtype, device]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, weights = map(int, shown.split()[-2:])
    assert weights > 90 << 20
    assert peak < most * weights, f"{peak / weights:.2f} times the weights"
