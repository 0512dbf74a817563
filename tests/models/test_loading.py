"""What loads, what it is called in a manifest, and what is refused in one line."""

import hashlib
import importlib.util
import json
import shutil
import struct
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import hub
import peft
import pytest
import tiny_models
import torch
import transformers
from loaded import IDS, last_states, refused
from safetensors.torch import load_file, save_file

from benchmarks.small_models import small_gguf
from safetyspace_fast.errors import ConfigError, ModelError
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

# peft asks transformers in a way that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def lora(llama, tmp_path_factory):
    return tiny_models.save_adapter(llama, tmp_path_factory.mktemp("adapter") / "lora")


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


# Refusals


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


# Quantised weights


def quantised(path, **settings):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return path


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "gptqmodel"),
    ],
)
def test_quantised_weights_name_the_package_they_need(copy, settings, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"tests what is said without {package}, which is installed here")
    refused(quantised(copy, **settings), f"a package is missing to load it: .*{package}")


def test_quantised_weights_load_and_are_told(copy, lora):
    plain = last_states(load_model(ModelSpec("m", str(copy))))
    online = {"linear_class": "autobitlinear", "quantization_mode": "online"}
    quantised(copy, quant_method="bitnet", **online)
    model = load_model(ModelSpec("m", str(copy)))
    assert model.identity["quantization"] == "bitnet"
    assert not torch.equal(last_states(model), plain)
    refused(
        f"{copy}+{lora}",
        r"quantised \(bitnet\), so an adapter merged into them would be rounded away",
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU they may run packed")
def test_quantised_weights_that_transformers_unpacks_are_told(copy):
    notes = []
    quantised(copy, quant_method="fp8")
    model = load_model(ModelSpec("m", str(copy)), on_note=notes.append)
    assert model.identity["quantization"] == "fp8"
    assert notes == ["fp8 weights dequantised to float32"]


def test_an_unknown_quantisation_is_not_read_as_plain_weights(copy):
    refused(quantised(copy, quant_method="q7"), "quantised with 'q7', which this version")


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


# GGUF


def test_what_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 something else")
    refused(tmp_path / "m.gguf", r"m\.gguf: expected a GGUF file")
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    refused(tmp_path / "m.gguf", r"m\.gguf: transformers cannot load it")
    (tmp_path / "config.txt").write_text("")
    refused(tmp_path, "holds GGUF files; name one of them")


@pytest.mark.parametrize("has_amx", [False, True])
def test_auto_is_bfloat16_on_cpus_with_amx(tmp_path, monkeypatch, has_amx):
    llama = tiny_models.save_tiny("llama", tmp_path / "tiny")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    model = load_model(parse_model(str(llama)), device="cpu")
    assert model.dtype == (torch.bfloat16 if has_amx else torch.float32)


def test_gguf_unpacks(tmp_path):
    file = tmp_path / "tiny.gguf"
    # transformers reads no size of heads from a GGUF file of this architecture.
    llama = tiny_models.save_tiny("llama", tmp_path / "plain", head_dim=8)
    state = tiny_models.save_tiny_gguf(llama, file)
    model = load_model(parse_model(str(file)))
    expected = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    expected.load_state_dict(state)
    with torch.no_grad():
        states = expected.model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(last_states(model), states, rtol=1e-5, atol=1e-5)
    assert model.tokenizer.tokenize("the dog 🙂") == tiny_models.tiny_tokenizer().tokenize(
        "the dog 🙂"
    )

    assert load_model(parse_model(str(file))).identity == model.identity
    assert len(str(model.identity["tokenizer_sha256"])) == 64

    whole = file.read_bytes()
    for size in (100, 5000, len(whole) - 1000):
        file.write_bytes(whole[:size])
        refused(file, r"tiny\.gguf: transformers cannot load it")


@pytest.mark.slow
def test_real_gguf_equals_its_conversion(smollm2, tmp_path):
    file = small_gguf("smollm2", tmp_path / "smollm2.gguf")
    if file is None:
        pytest.skip("the real GGUF file is not in the cache: run `make models`")
    notes = []
    unpacked = load_model(parse_model(str(file)), on_note=notes.append)
    converted = load_model(ModelSpec("m", str(smollm2)))
    torch.testing.assert_close(last_states(unpacked), last_states(converted), rtol=0, atol=0)
    assert notes == ["GGUF weights dequantised to float32"]
    assert unpacked.tokenizer("Hello 🙂").input_ids == converted.tokenizer("Hello 🙂").input_ids
    assert unpacked.identity["quantization"] == "gguf"
    assert list(unpacked.identity["weights"]) == ["smollm2.gguf"]


# The shared adapters on their real bases


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_real_adapter_moves_the_real_model(request, shared, name):
    base = request.getfixturevalue(name)
    (adapter,) = (shared / "models").glob(f"{name}*")
    plain = last_states(load_model(ModelSpec("base", str(base))))
    merged = last_states(load_model(ModelSpec("aligned", str(base), (str(adapter),))))
    distance = float((plain - merged).norm() / plain.norm())
    assert 0.01 < distance < 2


# The hub


@pytest.fixture
def hub_id(llama, tmp_path, monkeypatch):
    """A model on a local stand-in of the hub, beside files that are not to be fetched."""
    folder = shutil.copytree(llama, tmp_path / "hub" / "models" / "someone" / "tiny" / "main")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"a copy")
    shutil.copytree(folder, folder.parent / "v2")
    (folder.parent / "v2" / "README.txt").write_text("second")
    with hub.serve(tmp_path / "hub") as url:
        hub.point_client_at(url, tmp_path / "cache", monkeypatch)
        yield "someone/tiny"


def test_hub_id_loads_and_is_pinned(hub_id, llama, tmp_path):
    model = load_model(parse_model(hub_id))
    main = hub.commit_of(tmp_path / "hub" / "models" / hub_id / "main")
    assert (model.name, model.identity["id"], model.identity["commit"]) == ("tiny", hub_id, main)
    expected = load_model(ModelSpec("m", str(llama)))
    assert model.identity["weights_sha256"] == expected.identity["weights_sha256"]
    torch.testing.assert_close(last_states(model), last_states(expected), rtol=0, atol=0)
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert "model.safetensors" in fetched
    assert not {"pytorch_model.bin", "onnx"} & fetched

    second = load_model(parse_model(f"{hub_id}@v2"))
    v2 = hub.commit_of(tmp_path / "hub" / "models" / hub_id / "v2")
    assert (second.identity["revision"], second.identity["commit"]) == ("v2", v2)


def test_hub_adapter(hub_id, lora, llama, tmp_path):
    shutil.copytree(lora, tmp_path / "hub" / "models" / "someone" / "lora" / "main")
    model = load_model(parse_model(f"{hub_id}+someone/lora@main"))
    expected = load_model(parse_model(f"{llama}+{lora}"))
    torch.testing.assert_close(last_states(model), last_states(expected), rtol=0, atol=0)
    commit = model.identity["adapter_commit"]
    assert commit == hub.commit_of(tmp_path / "hub" / "models" / "someone" / "lora" / "main")

    chain = load_model(parse_model(f"{hub_id}+someone/lora@main+{lora}+someone/lora"))
    assert chain.identity["adapter"] == f"someone/lora@main+{lora}+someone/lora"
    assert chain.identity["adapter_commit"] == f"{commit}++{commit}"


def test_hub_refusals(hub_id, tmp_path):
    refused(
        "someone/absent", "someone/absent: no such directory, and the model hub does not give it"
    )
    refused(f"{hub_id}@v3", "at revision v3")
    (tmp_path / "hub" / "models" / hub_id / "GATED").touch()
    refused(hub_id, "GatedRepoError.*ask for access on its page")


def test_hub_model_with_pickles_only(hub_id, tmp_path):
    (tmp_path / "hub" / "models" / hub_id / "main" / "model.safetensors").unlink()
    refused(hub_id, "it has no weights: expected model.safetensors")


def test_hub_out_of_reach(monkeypatch, tmp_path):
    hub.point_client_at("http://127.0.0.1:9", tmp_path, monkeypatch)
    error = refused("someone/tiny", "the model hub does not give it")
    assert isinstance(error, ModelError)


def test_without_accelerate_weights_reach_a_gpu_by_way_of_the_host(monkeypatch):
    gpu = torch.device("cuda", 1)
    assert placed_on(gpu) == {"device_map": {"": gpu}}
    assert placed_on(torch.device("cpu")) == {}
    monkeypatch.setattr(weights, "find_spec", lambda _name: None)
    assert placed_on(gpu) == {}
