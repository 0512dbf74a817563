"""What transformers does on loading without a word is refused, or told in one line."""

import base64
import hashlib
import json
import shutil
import warnings

import pytest
import tiny_models
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loaded import IDS, last_states, load, refused
from safetensors.torch import load_file, save_file

from safetyspace_fast.models import tokenize
from safetyspace_fast.models.quiet import quiet_transformers


def rewrite(path, change):
    """Change the weights of a model directory: `change` takes and gives names and tensors."""
    weights = change(load_file(path / "model.safetensors"))
    save_file({name: w.clone() for name, w in weights.items()}, path / "model.safetensors")


def configure(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    config.pop("layer_types", None)
    (path / "config.json").write_text(json.dumps(config))


# Weights


def test_more_blocks_in_the_files_than_in_the_config(copy):
    configure(copy, num_hidden_layers=2)
    refused(
        copy,
        r"9 weights of its files have no place in LlamaForCausalLM \(first: model.layers.2.input_",
    )
    rewrite(copy, lambda ws: {name.removeprefix("model."): w for name, w in ws.items()})
    refused(copy, r"9 weights .* no place in LlamaForCausalLM \(first: layers.2.input_layernorm")


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "self_attn.q_norm.weight", "new.weight"])
def test_a_weight_that_a_block_does_not_have(copy, name):
    name = f"model.layers.1.{name}"
    rewrite(copy, lambda weights: weights | {name: torch.ones(8)})
    refused(copy, rf"1 weights of its files have no place in LlamaForCausalLM \(first: {name}\)")


@pytest.mark.parametrize(
    "name",
    [
        "score.weight",
        "v_head.summary.weight",
        "model.vision_tower.patch.weight",
        "model.mtp.0.weight",
        "model.pooler.dense.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.masked_bias",
    ],
)
def test_what_is_never_run_may_lie_in_the_files(copy, llama, name):
    rewrite(copy, lambda weights: weights | {name: torch.ones(8)})
    model, notes = load(copy)
    torch.testing.assert_close(last_states(model), last_states(load(llama)[0]), rtol=0, atol=0)
    assert notes == []


def test_an_unknown_part_beside_the_blocks_is_told(copy):
    rewrite(copy, lambda weights: weights | {"model.wpe.weight": torch.ones(8)})
    _, notes = load(copy)
    assert notes == ["1 weights of its files are not used (first: model.wpe.weight)"]


def test_blocks_that_predict_further_tokens_are_no_mistake(tmp_path):
    path = tiny_models.save_tiny("deepseek_v3", tmp_path / "m")
    rewrite(
        path,
        lambda weights: (
            weights
            | {n.replace(".2.", ".3.", 1): w for n, w in weights.items() if ".layers.2." in n}
        ),
    )
    configure(path, num_nextn_predict_layers=1)
    assert load(path)[0].hookpoints[-2] == "block.2"
    configure(path, num_nextn_predict_layers=0)
    refused(path, r"have no place in DeepseekV3ForCausalLM \(first: model.layers.3")


def test_a_head_of_another_size_does_not_matter(copy, llama):
    rewrite(copy, lambda weights: weights | {"lm_head.weight": torch.ones(7, 32)})
    torch.testing.assert_close(
        last_states(load(copy)[0]), last_states(load(llama)[0]), rtol=0, atol=0
    )


def test_sizes_other_than_in_the_config(copy):
    configure(copy, intermediate_size=128)
    refused(
        copy,
        r"9 weights have other sizes than config.json says \(first: "
        r"model.layers.0.mlp.down_proj.weight is \[32, 64\], expected \[32, 128\]\)",
    )


def test_integers_are_no_plain_weights(copy):
    name = "model.layers.0.mlp.down_proj.weight"
    rewrite(copy, lambda weights: weights | {name: weights[name].to(torch.int8)})
    refused(copy, rf"{name} holds integers \(I8\), .* config.json has no quantization_config")


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(prefix=st.from_regex(r"[a-z_]{1,8}(\.[a-z_]{1,8})?\.", fullmatch=True))
def test_a_prefix_before_all_names_is_named(llama, tmp_path, prefix):
    path = shutil.copytree(llama, tmp_path / "m", dirs_exist_ok=True)
    rewrite(path, lambda weights: {f"wrap.{prefix}{name}": w for name, w in weights.items()})
    error = refused(path, "29 weights of LlamaForCausalLM are not in its files")
    assert f"they begin with 'wrap.{prefix}' there: rename them without it" in str(error)


def test_a_model_saved_with_an_adapter_that_is_not_merged(copy):
    def wrap(weights):
        names = {name: name.replace("q_proj.", "q_proj.base_layer.") for name in weights}
        return {names[name]: w for name, w in weights.items()}

    rewrite(copy, wrap)
    refused(copy, "saved with an adapter that is not merged: call PEFT's merge_and_unload")


def test_experts_that_are_missing(tmp_path):
    path = tiny_models.save_tiny("mixtral", tmp_path / "m")
    rewrite(path, lambda ws: {name: w for name, w in ws.items() if "experts.1.w1" not in name})
    refused(path, "its weights are incomplete or of another architecture than config.json says")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "xlm-roberta", "deberta-v2"])
@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
def test_classifiers_load_without_their_heads(tmp_path, name, task):
    auto = getattr(transformers, f"AutoModelFor{task}")
    saved = auto.from_config(tiny_models.tiny_config(name), dtype=torch.float32).eval()
    saved.save_pretrained(tmp_path)
    tiny_models.tiny_tokenizer().save_pretrained(tmp_path)
    with torch.no_grad():
        states = saved.base_model(input_ids=IDS).last_hidden_state
    model, notes = load(tmp_path)
    torch.testing.assert_close(last_states(model), states, rtol=1e-4, atol=1e-4)
    assert notes == []


# Files


def test_a_whole_model_is_read_and_hashed_before_a_split_one(copy, llama):
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    model, notes = load(copy)
    assert model.identity["weights"] == load(llama)[0].identity["weights"]
    assert notes == [
        f"{copy} holds a whole and a split model; transformers reads model.safetensors only"
    ]


def test_the_file_that_the_config_names_is_read_and_hashed(copy, llama):
    torch.manual_seed(0)
    wanted = load_file(copy / "model.safetensors")
    save_file(wanted, copy / "other.safetensors", {"format": "pt"})
    rewrite(copy, lambda weights: {name: torch.randn_like(w) for name, w in weights.items()})
    configure(copy, transformers_weights="other.safetensors")
    model, _ = load(copy)
    torch.testing.assert_close(last_states(model), last_states(load(llama)[0]), rtol=0, atol=0)
    digest = hashlib.sha256((copy / "other.safetensors").read_bytes()).hexdigest()
    assert model.identity["weights"] == {"other.safetensors": digest}


def test_files_of_other_programs_are_not_hashed(copy):
    weights = load_file(copy / "model.safetensors")
    save_file(weights, copy / "consolidated.safetensors")
    save_file(weights, copy / "adapter_model.safetensors")
    assert list(load(copy)[0].identity["weights"]) == ["model.safetensors"]
    (copy / "model.safetensors").unlink()
    refused(copy, "found adapter_model.safetensors, which transformers does not read")

    torch.save(weights, copy / "pytorch_model.bin")
    torch.save({}, copy / "training_args.bin")
    model, _ = load(copy, allow_pickle=True)
    assert list(model.identity["weights"]) == ["pytorch_model.bin"]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_parts_without_an_index(copy, suffix):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    part = copy / f"{stem}-00001-of-00002.{suffix}"
    save_file(weights, part) if suffix == "safetensors" else torch.save(weights, part)
    refused(copy, rf"{stem}\.{suffix}\.index\.json is missing", allow_pickle=True)


def test_a_part_of_a_split_gguf_file(tmp_path):
    part = tmp_path / "m-00001-of-00003.gguf"
    part.write_bytes(b"GGUF")
    refused(part, "one part of a split GGUF file; join the parts")


# Warnings


def test_warnings_come_once_in_one_line_and_leave_no_trace():
    logger = transformers.utils.logging.get_logger("transformers.models.somewhere")
    root = transformers.utils.logging.get_logger("transformers")
    before = (root.handlers[:], root.propagate, root.level, warnings.showwarning)
    for _ in range(2):  # transformers itself says some things only once in a process
        told = []
        with quiet_transformers(told.append):
            logger.warning("two\n  lines")
            logger.warning("two lines")
            logger.warning_once("seldom")
            logger.info("detail")
            warnings.warn("of a user", stacklevel=1)
            warnings.warn("of a programmer", DeprecationWarning, stacklevel=1)
        assert told == ["two lines", "seldom", "of a user"]
    assert before == (root.handlers, root.propagate, root.level, warnings.showwarning)


def test_what_transformers_warns_of_reaches_the_user(copy, capfd):
    configure(copy, bos_token_id=99999)
    _, notes = load(copy)
    assert len(notes) == 1
    assert "bos_token_id" in notes[0]
    assert "99999" not in capfd.readouterr().err


def test_a_tokenizer_with_the_wrong_pattern_is_told(tmp_path):
    path = tiny_models.save_tiny("mistral", tmp_path / "m")
    configure(path, transformers_version="4.50.0")
    file = path / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<filler{i}>": i for i in range(len(vocabulary), 100_001)}
    file.write_text(json.dumps(content))  # transformers takes large vocabularies for Mistral's
    configure(path, vocab_size=len(vocabulary))
    table = torch.zeros(len(vocabulary), tiny_models.HIDDEN_SIZE)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    rewrite(path, lambda weights: weights | dict.fromkeys(names, table))
    _, notes = load(path)
    assert any("incorrect regex pattern" in note for note in notes), notes


@pytest.mark.parametrize("name", ["smollm2", "gemma", "minilm"])
def test_a_healthy_model_says_nothing(request, name):
    _, notes = load(request.getfixturevalue(name))
    assert [note for note in notes if "compiled kernels" not in note] == []


# Tokenizers


def save_tekken(path, vocabulary=256):
    """Write a tokenizer of bytes as Mistral does."""
    tokens = [
        {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None}
        for i in range(vocabulary)
    ]
    special = [
        {"rank": i, "token_str": name, "is_control": True}
        for i, name in enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    ]
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        "num_vocab_tokens": vocabulary,
        "default_vocab_size": vocabulary + 100,
        "default_num_special_tokens": 100,
        "version": "v7",
    }
    content = {"config": config, "vocab": tokens, "special_tokens": special}
    (path / "tekken.json").write_text(json.dumps(content))


def test_prompts_of_a_bare_tekken_file_begin_as_mistrals(tmp_path):
    path = tiny_models.save_tiny("mistral", tmp_path / "m")
    for file in path.glob("*token*"):
        file.unlink()
    save_tekken(path)
    model, notes = load(path)
    ids = tokenize(model, ["the river"], template="none").prompt(0).tolist()
    assert ids == [1, *(100 + byte for byte in b"the river")]
    digest = hashlib.sha256((path / "tekken.json").read_bytes()).hexdigest()
    assert model.identity["tokenizer_sha256"] == digest
    assert notes == ["its tokenizer is read from tekken.json; prompts begin with <s>"]


@pytest.mark.parametrize("stated", [None, False, True])
def test_a_converted_tokenizer_that_adds_no_bos_is_told(llama, copy, tmp_path, stated):
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(tiny_models.TRAINING_TEXTS * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=300,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    for file in copy.glob("*token*"):
        file.unlink()
    shutil.copy(tmp_path / "sp.model", copy / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    if stated is not None:
        config["add_bos_token"] = stated
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    model, notes = load(copy)
    told = [note for note in notes if "puts no <s> before prompts" in note]
    assert len(told) == (stated is None)
    ids = tokenize(model, ["the river"], template="none").prompt(0).tolist()
    assert (ids[0] == 1) == (stated is True)
