"""What loads, and what it is called in a manifest."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import peft
import pytest
import tiny_models
import torch
import transformers
from loaded import IDS, last_states, refused

from safetyspace_fast.errors import ModelError
from safetyspace_fast.models import (
    ModelSpec,
    find_sources,
    identity,
    load_model,
    loading,
    parse_model,
    unfuse,
    weights,
)
from safetyspace_fast.models.weights import load_weights, placed_on


def test_what_a_loaded_model_says_of_itself(llama):
    model = load_model(ModelSpec("mine", str(llama)))
    assert (model.name, model.dtype, model.device.type) == ("mine", torch.float32, "cpu")
    assert model.hookpoints == ("embed", "block.0", "block.1", "block.2", "final_norm")
    assert (model.hidden_size, model.max_tokens) == (32, 128)
    assert model.pad_token_id not in (tiny_models.BOS, tiny_models.EOS, tiny_models.PAD)
    weights = hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()
    config = hashlib.sha256((llama / "config.json").read_bytes()).hexdigest()
    tokenizer = hashlib.sha256((llama / "tokenizer.json").read_bytes()).hexdigest()
    assert model.identity == {
        "id": str(llama),
        "revision": None,
        "commit": None,
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "config_sha256": config,
        "weights": {"model.safetensors": weights},
        "weights_sha256": hashlib.sha256(f"{weights}  model.safetensors\n".encode()).hexdigest(),
        "adapter": None,
        "adapter_commit": None,
        "tokenizer": str(llama),
        "tokenizer_sha256": tokenizer,
        "dtype": "float32",
        "quantization": None,
    }
    json.dumps(model.identity)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtype_by_name(llama, dtype):
    model = load_model(ModelSpec("m", str(llama)), dtype=dtype)
    assert last_states(model).dtype == model.dtype == getattr(torch, dtype)
    assert model.identity["dtype"] == dtype


def test_sharded_weights_give_the_same_states(llama, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    tiny_models.tiny_tokenizer().save_pretrained(tmp_path)
    sharded = load_model(ModelSpec("m", str(tmp_path)))
    assert len(sharded.identity["weights"]) > 1
    whole = load_model(ModelSpec("m", str(llama)))
    torch.testing.assert_close(last_states(sharded), last_states(whole), rtol=0, atol=0)


def test_beside_a_gpu_hashing_goes_on_after_loading(tmp_path, monkeypatch):
    goes_on, done = threading.Event(), []
    monkeypatch.setattr(identity, "sha256", lambda f: (goes_on.wait(20), done.append(f), f.name)[2])
    files = {"first": tmp_path / "a", "second": tmp_path / "b"}
    with identity.hashing(files, wait=False) as hashes:
        pass
    assert not done  # the block has ended without them
    goes_on.set()
    assert hashes() == {"first": "a", "second": "b"}


def test_beside_a_gpu_a_model_is_ready_before_its_hashes(llama, monkeypatch):
    """A device without memory stands in for the GPU."""
    goes_on, done = threading.Event(), []
    monkeypatch.setattr(loading, "find_device", lambda *_: torch.device("meta"))
    monkeypatch.setattr(identity, "sha256", lambda f: (goes_on.wait(20), done.append(f), f.name)[2])
    found = SimpleNamespace(modules=[], causal=True, width=32)
    monkeypatch.setattr(loading.layers, "find_blocks", lambda *_: found)  # by a forward pass
    model = load_model(ModelSpec("m", str(llama)), dtype="float32")
    assert not done
    goes_on.set()
    assert model.identity["weights"] == {"model.safetensors": "model.safetensors"}


def test_a_model_that_cannot_be_loaded_is_not_hashed_to_its_end(tmp_path, monkeypatch):
    goes_on, seen = threading.Event(), []
    monkeypatch.setattr(identity, "sha256", lambda file: (goes_on.wait(60), seen.append(file)))
    files = {str(i): tmp_path / str(i) for i in range(40)}
    with pytest.raises(ModelError), identity.hashing(files, wait=True):
        raise ModelError("no")
    goes_on.set()
    time.sleep(0.2)  # enough for all 40
    assert len(seen) <= 4


@pytest.mark.parametrize("random", [False, True])
def test_on_a_cpu_a_loaded_model_is_hashed(llama, monkeypatch, random):
    """What follows is measured, and has the processor for itself."""
    loaded, done, find_blocks = threading.Event(), [], loading.layers.find_blocks

    def hashed(file):
        loaded.wait(20)
        time.sleep(0.3)  # longer than what is left to do
        done.append(file)

    def find(*args):
        loaded.set()
        return find_blocks(*args)

    monkeypatch.setattr(identity, "sha256", hashed)
    monkeypatch.setattr(loading.layers, "find_blocks", find)
    load_model(ModelSpec("m", str(llama), random=random))
    assert len(done) == (0 if random else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_put_on_the_device_as_they_are_read(llama, dtype):
    """A device without memory stands in for a GPU: no weight may be left on the host."""
    source, _ = find_sources(ModelSpec("m", str(llama)), False, False)
    meta = torch.device("meta")
    model, _ = load_weights(source, dtype, meta, False, False, pytest.fail)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device for tensor in tensors} == {meta}
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_importing_and_naming_models_needs_no_transformers():
    code = (
        "import sys; from safetyspace_fast.models import parse_model; parse_model('a=b');"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("window", "changes"),
    [
        (128, {}),
        (32, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    ],
)
def test_window_stops_where_positions_would_depend_on_the_batch(tmp_path, window, changes):
    if changes:
        changes["rope_parameters"]["original_max_position_embeddings"] = window
    path = tiny_models.save_tiny("llama", tmp_path, **changes)
    assert load_model(ModelSpec("m", str(path))).max_tokens == window


# Adapters


def test_adapter_is_merged_in_float32(llama, lora):
    notes = []
    spec = parse_model(f"{llama}+{lora}")
    model = load_model(spec, on_note=notes.append)
    reference = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(llama), lora
    ).eval()
    with torch.no_grad():
        expected = reference(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(last_states(model), expected, rtol=1e-4, atol=1e-4)
    plain = last_states(load_model(ModelSpec("m", str(llama))))
    assert (plain - expected).abs().max() > 0.1
    assert model.name == "lora"
    assert list(model.identity["weights"]) == ["model.safetensors", "adapter_model.safetensors"]
    assert notes == [f"adapter {lora} merged into {llama} in float32"]


def test_adapter_is_merged_before_rounding_to_the_working_dtype(llama, lora):
    merged = load_model(parse_model(f"{llama}+{lora}")).backbone
    unfuse(merged)
    single = merged.state_dict()
    half = load_model(parse_model(f"{llama}+{lora}"), dtype="bfloat16").backbone.state_dict()
    for name, weight in single.items():
        torch.testing.assert_close(half[name], weight.bfloat16(), rtol=0, atol=0)


def test_adapter_brings_its_own_tokenizer(llama, lora, tmp_path):
    path = shutil.copytree(lora, tmp_path / "lora")
    tiny_models.tiny_tokenizer(tiny_models.CHAT_TEMPLATE).save_pretrained(path)
    model = load_model(parse_model(f"{llama}+{path}"))
    assert model.tokenizer.chat_template == tiny_models.CHAT_TEMPLATE
    assert model.identity["tokenizer"] == str(path)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"hidden_size": 64}),
        ("llama", {"num_hidden_layers": 4}),
        ("llama", {"num_hidden_layers": 2}),
        ("gpt2", {}),
    ],
)
def test_adapter_for_another_model_is_refused(lora, tmp_path, architecture, changes):
    base = tiny_models.save_tiny(architecture, tmp_path / "other", **changes)
    error = refused(f"{base}+{lora}", "not an adapter for")
    assert str(lora) in str(error)
    assert str(base) in str(error)


def test_what_is_no_adapter_is_refused(llama, lora, tmp_path):
    refused(f"{llama}+{llama}", "no adapter_config.json")
    refused(f"{llama}+{tmp_path / 'none'}", "no such directory")
    refused(f"{tmp_path / 'none'}+{lora}", "none: no such directory")
    refused(lora, r"it is an adapter; write BASE\+")
    empty = shutil.copytree(lora, tmp_path / "empty")
    (empty / "adapter_model.safetensors").unlink()
    refused(f"{llama}+{empty}", "it has no weights")


def test_adapter_that_cannot_be_merged_is_refused(llama, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "prompt")
    refused(f"{llama}+{tmp_path / 'prompt'}", "PROMPT_TUNING cannot be merged")


@pytest.mark.parametrize(
    ("name", "auto"),
    [("bert", "AutoModel"), ("bert", "AutoModelForMaskedLM"), ("mt5", "AutoModelForTextEncoding")],
)
def test_encoders_load_from_every_kind_of_checkpoint(tmp_path, name, auto):
    config = tiny_models.tiny_config(name)
    saved = getattr(transformers, auto).from_config(config, dtype=torch.float32).eval()
    saved.save_pretrained(tmp_path)
    tiny_models.tiny_tokenizer().save_pretrained(tmp_path)
    with torch.no_grad():
        states = saved.base_model(input_ids=IDS).last_hidden_state
    model = load_model(ModelSpec("m", str(tmp_path)))
    unfuse(model.backbone)  # then not even the rounding differs
    torch.testing.assert_close(last_states(model), states, rtol=0, atol=0)


def test_an_encoder_counts_its_positions_from_the_padding_token(tmp_path):
    path = tiny_models.save_tiny("xlm-roberta", tmp_path, max_position_embeddings=24)
    model = load_model(ModelSpec("m", str(path)))
    assert model.max_tokens == 24 - (tiny_models.PAD + 1)
    model.backbone(input_ids=torch.full((1, model.max_tokens), 9))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model.backbone(input_ids=torch.full((1, model.max_tokens + 1), 9))


@pytest.mark.parametrize("has_amx", [False, True])
def test_auto_is_bfloat16_on_cpus_with_amx(tmp_path, monkeypatch, has_amx):
    llama = tiny_models.save_tiny("llama", tmp_path / "tiny")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    model = load_model(parse_model(str(llama)), device="cpu")
    assert model.dtype == (torch.bfloat16 if has_amx else torch.float32)


# The shared adapters on their real bases


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_real_adapter_moves_the_real_model(request, shared, name):
    base = request.getfixturevalue(name)
    (adapter,) = (shared / "models").glob(f"{name}*")
    plain = last_states(load_model(ModelSpec("base", str(base))))
    merged = last_states(load_model(ModelSpec("aligned", str(base), (str(adapter),))))
    distance = float((plain - merged).norm() / plain.norm())
    assert 0.01 < distance < 2


def test_without_accelerate_weights_reach_a_gpu_by_way_of_the_host(monkeypatch):
    gpu = torch.device("cuda", 1)
    assert placed_on(gpu) == {"device_map": {"": gpu}}
    assert placed_on(torch.device("cpu")) == {}
    monkeypatch.setattr(weights, "find_spec", lambda _name: None)
    assert placed_on(gpu) == {}
