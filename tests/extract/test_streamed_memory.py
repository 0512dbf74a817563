"""A model three times as large as the memory that a process may take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_tokenizer

LIMIT = 900 << 20
"""Bytes of private memory (RLIMIT_DATA); about 360 MiB are taken once all packages are loaded."""
BLOCKS, WIDTH, INNER = 25, 1024, 8192

RUN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[4]),) * 2)
from safetyspace_fast import api
run = api.run(models=("m=" + sys.argv[1],), data=sys.argv[2], out=sys.argv[3], template="none",
    dtype="float32", poolings=("mean",), weights=sys.argv[5],
    on_event=lambda event: print(getattr(event, "message", ""), flush=True))
print(len(run.model("m").hookpoints), "hookpoints")
"""


def save_large(path: Path) -> int:
    """Write a model with a file for each block; returns the bytes of its weights."""
    config = tiny_config(
        "llama",
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=64,
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=True,
    )
    config.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    noise = torch.randn(INNER, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    square, wide = noise[:WIDTH].clone(), noise.T.contiguous()
    of_block = {
        **{f"self_attn.{name}_proj.weight": square.clone() for name in "qkvo"},
        **{f"mlp.{name}_proj.weight": noise.clone() for name in ("gate", "up")},
        "mlp.down_proj.weight": wide,
        "input_layernorm.weight": torch.ones(WIDTH),
        "post_attention_layernorm.weight": torch.ones(WIDTH),
    }
    others = {
        "model.embed_tokens.weight": noise[: config.vocab_size].clone(),
        "model.norm.weight": torch.ones(WIDTH),
    }
    files = {"others.safetensors": others}
    for i_block in range(BLOCKS):
        named = {f"model.layers.{i_block}.{name}": w for name, w in of_block.items()}
        files[f"block-{i_block}.safetensors"] = named
    for name, tensors in files.items():
        save_file(tensors, path / name, metadata={"format": "pt"})
    n_bytes = sum(w.nbytes for tensors in files.values() for w in tensors.values())
    index = {
        "metadata": {"total_size": n_bytes},
        "weight_map": {w: name for name, tensors in files.items() for w in tensors},
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return n_bytes


@pytest.mark.slow
def test_a_model_three_times_the_memory_limit_runs_to_the_end(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    assert save_large(model) > 3 * LIMIT
    data = tmp_path / "texts.jsonl"
    rows = [{"text": f"the fox number {i}", "label": i % 2, "lang": "en"} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(weights: str) -> "subprocess.CompletedProcess[str]":
        out = tmp_path / f"{weights}.zarr"
        return subprocess.run(
            [sys.executable, "-c", RUN, str(model), str(data), str(out), str(LIMIT), weights],
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )

    done = run("auto")
    assert done.returncode == 0, done.stderr
    assert "do not fit into memory, so they are streamed" in done.stdout
    assert f"{BLOCKS + 2} hookpoints" in done.stdout
    assert run("load").returncode != 0  # the limit is real
