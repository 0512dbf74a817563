"""What cannot be loaded is refused in one line, which names what is wrong."""

import json
import shutil
import struct

import pytest
import tiny_models
import torch
import transformers
from loaded import last_states, refused
from safetensors.torch import load_file, save_file

from safetyspace_fast.errors import ConfigError
from safetyspace_fast.models import ModelSpec, load_model


def test_a_path_that_leads_nowhere(tmp_path):
    refused(tmp_path / "absent", "no such directory")
    refused("./absent", "no such directory")
    refused("absent.gguf", "no such directory or file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path / "notes.txt", "got a file")
    refused(ModelSpec("m", str(tmp_path / "empty"), revision="v1"), "a directory has no revision")


def test_a_truncated_weight_file_is_named(copy):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 1000, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(copy, r"model\.safetensors: not a complete safetensors file")
    file.write_bytes(struct.pack("<Q", 8) + b"not json" + whole[100:])
    refused(copy, r"model\.safetensors: not a complete safetensors file")


def test_a_missing_shard_is_named(copy):
    model = transformers.AutoModelForCausalLM.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="60KB")
    shard = sorted(copy.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(copy, rf"{shard.name}: the index names it, but it is missing")


@pytest.mark.parametrize("content", [[], {}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}])
def test_a_broken_index_is_named(copy, content):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps(content))
    refused(copy, r"model\.safetensors\.index\.json: expected a 'weight_map'")


def test_a_broken_adapter_file_is_named(llama, lora, tmp_path):
    path = shutil.copytree(lora, tmp_path / "lora")
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    refused(f"{llama}+{path}", r"adapter_model\.safetensors: not a complete safetensors file")


def test_missing_or_misshapen_weights_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    part = {key: value for key, value in weights.items() if key != name}
    save_file(part, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, rf"1 weights of LlamaForCausalLM are not in its files \(first: {name}\)")
    weights[name] = weights[name][:5].clone()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(
        copy,
        r"1 weights have other sizes than config\.json says "
        rf"\(first: {name} is \[5, 32\], expected \[64, 32\]\)",
    )


def test_a_missing_head_does_not_matter(copy, llama):
    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    found, expected = (load_model(ModelSpec("m", str(path))) for path in (copy, llama))
    torch.testing.assert_close(last_states(found), last_states(expected), rtol=0, atol=0)


def test_broken_config_is_named(copy):
    (copy / "config.json").write_text("{")
    refused(copy, r"config\.json: not readable as JSON")
    (copy / "config.json").write_text('{"model_type": "no_such_architecture"}')
    refused(copy, "cannot load it as a language model")


def test_pickled_weights_only_by_name(copy, llama):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    refused(copy, r"pytorch_model\.bin: pickled weights can run code")
    model = load_model(ModelSpec("m", str(copy)), allow_pickle=True)
    expected = last_states(load_model(ModelSpec("m", str(llama))))
    torch.testing.assert_close(last_states(model), expected, rtol=0, atol=0)
    assert list(model.identity["weights"]) == ["pytorch_model.bin"]


def test_remote_code_runs_only_by_name(copy, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.syspath_prepend(str(tmp_path / "hf"))
    marker = tmp_path / "ran"
    (copy / "own_model.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "own_model.OwnConfig",
        "AutoModelForCausalLM": "own_model.OwnModel",
    }
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, r"'own' is not part of transformers; the model brings its own code \(AutoConfig")
    assert not marker.exists()
    model = load_model(ModelSpec("m", str(copy)), trust_remote_code=True)
    assert marker.exists()
    assert type(model.backbone).__name__ == "LlamaModel"


def test_one_block_used_many_times_is_refused(tmp_path):
    config = tiny_models.tiny_config("albert", embedding_size=16)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    tiny_models.tiny_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "expected one list of 3 blocks in AlbertModel")


@pytest.mark.parametrize("name", ["switch_transformers", "nllb-moe"])
def test_experts_with_a_capacity_are_refused(tmp_path, name):
    config = tiny_models.tiny_config(name)
    config.save_pretrained(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, "fixed number of tokens of each batch")


def test_tokenizer_must_be_there_and_belong(copy):
    config = json.loads((copy / "config.json").read_text())
    weights = load_file(copy / "model.safetensors")
    (copy / "tokenizer.json").rename(copy / "kept.json")
    refused(copy, "no usable tokenizer")
    (copy / "kept.json").rename(copy / "tokenizer.json")

    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:400].clone()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
    refused(copy, "tokenizer has 512 tokens but the model embeds only 400")


def test_a_tokenizer_without_offsets_is_refused(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    transformers.ByT5Tokenizer().save_pretrained(copy)
    refused(copy, "ByT5Tokenizer gives no character offsets")


def test_device_and_dtype_must_exist(llama):
    refused(llama, "expected 'auto', 'cpu', 'cuda'", device="abacus")
    error = refused(llama, "expected 'auto', 'float64'", dtype="int8")
    assert isinstance(error, ConfigError)
