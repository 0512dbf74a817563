"""Quantised weights and GGUF: what is unpacked, what is told, and what is refused."""

import importlib.util
import json

import pytest
import tiny_models
import torch
import transformers
from loaded import IDS, last_states, refused

from benchmarks.small_models import small_gguf
from safetyspace_fast.models import ModelSpec, load_model, parse_model


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


def test_what_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 something else")
    refused(tmp_path / "m.gguf", r"m\.gguf: expected a GGUF file")
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    refused(tmp_path / "m.gguf", r"m\.gguf: transformers cannot load it")
    (tmp_path / "config.txt").write_text("")
    refused(tmp_path, "holds GGUF files; name one of them")


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
