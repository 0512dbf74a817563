"""Adapters as PEFT writes them give PEFT's own states; what does not fit is refused with sizes."""

import copy
import json
import shutil

import peft
import pytest
import tiny_models
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from loaded import IDS, last_states, load, refused
from safetensors.torch import load_file, save_file

from safetyspace_fast.errors import ModelError
from safetyspace_fast.models import StreamedBlocks, loading, tokenize
from safetyspace_fast.models.adapters import AddedWeights
from safetyspace_fast.models.weights import load_weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ROWS = 600


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The folder of a Llama, one with tied embeddings, a BERT and a GPT-2."""
    folder = tmp_path_factory.mktemp("bases")
    tiny_models.save_tiny("llama", folder / "llama")
    tiny_models.save_tiny("llama", folder / "tied", tie_word_embeddings=True)
    tiny_models.save_tiny("bert", folder / "bert")
    tiny_models.save_tiny("gpt2", folder / "gpt2")
    return folder


@pytest.fixture(scope="module")
def chain(bases, tmp_path_factory):
    """Two adapters, the second trained on the first merged into the Llama."""
    folder = tmp_path_factory.mktemp("chain")
    first = tiny_models.save_adapter(bases / "llama", folder / "sft")
    merged = with_peft(bases / "llama", first).merge_and_unload()
    merged.save_pretrained(folder / "middle")
    return first, tiny_models.save_adapter(folder / "middle", folder / "dpo", seed=2)


def with_peft(base, adapter, auto="AutoModelForCausalLM", rows=None):
    model = getattr(transformers, auto).from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def states_of(model):
    with torch.no_grad():
        return model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]


def assert_close(model, expected):
    torch.testing.assert_close(last_states(model), expected, rtol=1e-4, atol=1e-4)


KINDS = {
    "every linear layer": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r"model\.layers\.[01]\..*\.(q_proj|v_proj)"},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "ranks by module": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 32}},
    "the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "a whole norm": {"modules_to_save": ["norm"]},
    "a whole embedding": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "some tokens": {"trainable_token_indices": [5, 17, 300]},
    "a larger embedding": {"rows": ROWS},
    "a larger embedding with LoRA": {"rows": ROWS, "target_modules": ["q_proj", "embed_tokens"]},
    "a larger whole embedding": {"rows": ROWS, "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens of a larger one": {"rows": ROWS, "trainable_token_indices": [5, 599]},
}


@pytest.mark.parametrize("base", ["llama", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_states_of_peft(bases, tmp_path, base, kind):
    base = bases / base
    adapter = tiny_models.save_adapter(base, tmp_path / "a", **KINDS[kind])
    model, notes = load(f"{base}+{adapter}")
    expected = states_of(with_peft(base, adapter, rows=KINDS[kind].get("rows")))
    assert_close(model, expected)
    assert notes == [f"adapter {adapter} merged into {base} in float32"]
    plain, _ = load(base)
    assert (last_states(plain) - expected).abs().max() > 0.05


@pytest.mark.parametrize(
    ("base", "auto", "options"),
    [
        ("llama", "AutoModel", {"task_type": "FEATURE_EXTRACTION"}),
        ("llama", "AutoModel", {"task_type": None}),
        ("llama", "AutoModel", {"task_type": "FEATURE_EXTRACTION", "rows": ROWS}),
        ("llama", "AutoModel", {"task_type": None, "modules_to_save": ["embed_tokens"]}),
        ("llama", "AutoModelForSequenceClassification", {"task_type": "SEQ_CLS"}),
        ("llama", "AutoModelForSequenceClassification", {"modules_to_save": ["score"]}),
        ("llama", "AutoModelForTokenClassification", {"task_type": "TOKEN_CLS"}),
        ("gpt2", "AutoModel", {"target_modules": ["c_attn"]}),
        ("gpt2", "AutoModelForSequenceClassification", {"target_modules": ["c_attn", "c_proj"]}),
        ("bert", "AutoModel", {"target_modules": ["query", "dense"]}),
        ("bert", "AutoModelForMaskedLM", {"target_modules": ["query", "dense"]}),
        (
            "bert",
            "AutoModelForSequenceClassification",
            {"task_type": "SEQ_CLS", "target_modules": "all-linear"},
        ),
    ],
)
def test_of_a_model_with_another_head_the_states_before_it(bases, tmp_path, base, auto, options):
    if base != "llama" or "modules_to_save" in options:
        options = {"task_type": None} | options
    base = bases / base
    adapter = tiny_models.save_adapter(base, tmp_path / "a", auto=auto, **options)
    model, _ = load(f"{base}+{adapter}")
    assert_close(model, states_of(with_peft(base, adapter, auto, options.get("rows"))))


VISION = {"model_type": "clip_vision_model", **tiny_models.VISION}


@pytest.mark.parametrize("renamed", [False, True], ids=["as now", "as in transformers 4"])
def test_the_text_part_of_a_multimodal_model(tmp_path, renamed):
    text = tiny_models.tiny_config("llama").to_dict()
    config = transformers.AutoConfig.for_model("llava", text_config=text, vision_config=VISION)
    auto = "AutoModelForImageTextToText"
    base = tmp_path / "base"
    getattr(transformers, auto).from_config(config, dtype=torch.float32).save_pretrained(base)
    tiny_models.tiny_tokenizer().save_pretrained(base)
    adapter = tiny_models.save_adapter(
        base, tmp_path / "a", auto=auto, task_type=None, target_modules=r".*language_model.*q_proj"
    )
    text_part = with_peft(base, adapter, auto).get_base_model().model.language_model
    with torch.no_grad():
        expected = text_part(input_ids=IDS).last_hidden_state
    if renamed:
        weights = load_file(adapter / "adapter_model.safetensors")
        old = {
            name.replace("model.language_model.", "language_model.model."): w
            for name, w in weights.items()
        }
        save_file(old, adapter / "adapter_model.safetensors")
    assert_close(load(f"{base}+{adapter}")[0], expected)


def test_an_adapter_of_the_text_part_alone(bases, tmp_path):
    llama = transformers.AutoModelForCausalLM.from_pretrained(bases / "llama")
    config = transformers.AutoConfig.for_model(
        "llava", text_config=llama.config.to_dict(), vision_config=VISION
    )
    whole = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    whole.model.language_model.load_state_dict(llama.model.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    tiny_models.tiny_tokenizer().save_pretrained(tmp_path / "whole")
    adapter = tiny_models.save_adapter(bases / "llama", tmp_path / "a")
    expected = states_of(with_peft(bases / "llama", adapter))
    assert_close(load(f"{tmp_path / 'whole'}+{adapter}")[0], expected)


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM"])
@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.LoHaConfig(target_modules=["q_proj"]),
        peft.OFTConfig(target_modules=["q_proj"], oft_block_size=8),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_other_types_that_can_be_merged(bases, tmp_path, config, auto):
    model = getattr(transformers, auto).from_pretrained(bases / "llama")
    adapted = peft.get_peft_model(model, copy.deepcopy(config)).eval()
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path)
    assert_close(load(f"{bases / 'llama'}+{tmp_path}")[0], states_of(adapted))


def test_a_chain_is_merged_in_its_order(bases, chain):
    base, (first, second) = bases / "llama", chain
    model, notes = load(f"{base}+{first}+{second}")
    middle = with_peft(base, first).merge_and_unload()
    assert_close(model, states_of(peft.PeftModel.from_pretrained(middle, second).eval()))
    assert notes == [
        f"adapter {first} merged into {base} in float32",
        f"adapter {second} merged into {base}+{first} in float32",
    ]
    assert model.identity["adapter"] == f"{first}+{second}"
    assert list(model.identity["weights"]) == [
        "model.safetensors",
        "adapter_model.safetensors",
        "2/adapter_model.safetensors",
    ]
    other, _ = load(f"{base}+{second}+{first}")
    assert other.identity["weights_sha256"] != model.identity["weights_sha256"]


@settings(max_examples=6, deadline=None)
@given(order=st.lists(st.integers(0, 1), min_size=1, max_size=3))
def test_any_chain_equals_peft_one_after_the_other(bases, chain, order):
    base = bases / "llama"
    expected = transformers.AutoModelForCausalLM.from_pretrained(base)
    for i in order:
        expected = peft.PeftModel.from_pretrained(expected, chain[i]).merge_and_unload()
    model, _ = load("+".join([str(base), *(str(chain[i]) for i in order)]))
    assert_close(model, states_of(expected.eval()))


def test_a_part_of_a_chain_that_is_nowhere_is_named(bases, chain, tmp_path):
    base, (first, second) = bases / "llama", chain
    absent = tmp_path / "absent"
    refused(f"{base}+{first}+{absent}", rf"^{absent}: no such directory or file$")
    refused(f"{base}+{absent}+{second}", rf"^{absent}: no such directory or file$")
    refused(f"{absent}+{first}+{second}", rf"^{absent}: no such directory or file$")


# A folder with both


@pytest.fixture
def both(bases, chain, tmp_path):
    """A model's folder into which an adapter was saved."""
    folder = shutil.copytree(bases / "llama", tmp_path / "both")
    shutil.copytree(chain[0], folder, dirs_exist_ok=True)
    return folder


def test_a_model_beside_an_adapter_is_refused_with_the_two_ways_to_mean_it(both, bases, chain):
    refused(both, rf"holds a model and an adapter; .*adapter_config.json.*write {both}\+{both}$")
    model, notes = load(f"{both}+{both}")
    once = states_of(with_peft(bases / "llama", chain[0]))
    assert_close(model, once)
    assert notes == [f"adapter {both} merged into {both} in float32"]
    assert list(model.identity["weights"]) == ["model.safetensors", "adapter_model.safetensors"]
    assert_close(load(f"{bases / 'llama'}+{both}")[0], once)
    model, notes = load(f"{both}+{chain[0]}")
    assert_close(model, once)
    assert notes[0] == f"the adapter that lies in {both} is not merged"

    for file in both.glob("adapter_*"):
        file.unlink()
    alone, _ = load(both)
    expected = last_states(load(bases / "llama")[0])
    torch.testing.assert_close(last_states(alone), expected, rtol=0, atol=0)


def test_the_base_is_checked_though_an_adapter_lies_beside_it(both):
    config = json.loads((both / "config.json").read_text())
    config["num_hidden_layers"] = 2
    config.pop("layer_types", None)
    (both / "config.json").write_text(json.dumps(config))
    refused(f"{both}+{both}", "9 weights of its files have no place in LlamaForCausalLM")


def test_an_adapter_with_a_config_of_its_base_is_no_model(both):
    (both / "model.safetensors").unlink()
    refused(both, rf"it is an adapter; write BASE\+{both}")


# What does not fit


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "peft cannot read it"),
        ("{}", "names no peft_type"),
        ('{"peft_type": "NEW"}', "this version of peft has no adapters of type 'NEW'"),
    ],
)
def test_a_broken_configuration_is_refused(bases, chain, tmp_path, content, match):
    adapter = shutil.copytree(chain[0], tmp_path / "a")
    (adapter / "adapter_config.json").write_text(content)
    refused(f"{bases / 'llama'}+{adapter}", rf"^{adapter}: .*{match}")


def test_a_whole_module_that_was_not_saved_is_missed(bases, tmp_path):
    adapter = tiny_models.save_adapter(bases / "llama", tmp_path / "a", modules_to_save=["norm"])
    weights = load_file(adapter / "adapter_model.safetensors")
    left = {name: w for name, w in weights.items() if "layers" in name}
    assert len(left) == len(weights) - 1
    save_file(left, adapter / "adapter_model.safetensors")
    refused(f"{bases / 'llama'}+{adapter}", "not an adapter for .*: it has no .*model.norm.weight")


def test_sizes_that_differ_are_in_the_line(bases, tmp_path):
    wide = tiny_models.save_tiny("llama", tmp_path / "wide", hidden_size=64)
    adapter = tiny_models.save_adapter(wide, tmp_path / "a")
    refused(f"{bases / 'llama'}+{adapter}", r"not an adapter for .*: size mismatch .*64.*32")
    larger = tiny_models.save_adapter(wide, tmp_path / "b", rows=ROWS)
    refused(f"{bases / 'llama'}+{larger}", r"size mismatch .*64.*32")


def test_a_template_with_tokens_that_nothing_embeds_is_refused(bases, tmp_path):
    adapter = tiny_models.save_adapter(bases / "llama", tmp_path / "a")
    template = "<|turn|>{{ messages[0]['content'] }}"
    tokenizer = tiny_models.tiny_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.save_pretrained(adapter)
    model, _ = load(f"{bases / 'llama'}+{adapter}")
    assert len(tokenize(model, ["a text"], template="none")) == 1
    with pytest.raises(ModelError, match=r"template holds the token '<\|turn\|>' \(512\), but"):
        tokenize(model, ["a text"], template="chat")
    grown = tiny_models.save_adapter(bases / "llama", tmp_path / "b", rows=513)
    tokenizer.save_pretrained(grown)
    model, _ = load(f"{bases / 'llama'}+{grown}")
    assert model.backbone.get_input_embeddings().weight.shape[0] == 513


# The dtype of the sum


def in_bfloat16(base, path):
    """A copy of a model's folder with weights of two bytes, as most models have them."""
    shutil.copytree(base, path)
    weights = {n: w.bfloat16() for n, w in load_file(base / "model.safetensors").items()}
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture
def whole_model_in_float32(monkeypatch):
    """The other way to merge, which the one by layers must equal to the bit."""

    def load_it(spec, **options):
        with monkeypatch.context() as patch:
            patch.setattr(loading, "_merges_by_layer", lambda *_: False)
            patch.setattr(loading, "_merges_by_block", lambda *_: False)
            return load(spec, **options)[0]

    return load_it


def assert_equal_weights(model, expected):
    got, wanted = model.backbone.state_dict(), expected.backbone.state_dict()
    assert got.keys() == wanted.keys()
    assert {name for name, w in wanted.items() if not torch.equal(got[name], w)} == set()
    assert all(got[name].dtype == w.dtype for name, w in wanted.items())


@pytest.mark.parametrize("base", ["llama", "tied"])
@pytest.mark.parametrize("kind", [*KINDS, "experts"])
def test_merging_by_layers_gives_the_bits_of_a_merged_float32_model(
    bases, tmp_path, monkeypatch, whole_model_in_float32, base, kind
):
    if kind == "experts":
        tiny_models.save_tiny("qwen2_moe", tmp_path / "experts", tie_word_embeddings=base == "tied")
        options = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
        options |= {"lora_dropout": 0.0}
        base = tmp_path / "experts"
    else:
        options, base = KINDS[kind], bases / base
    half = in_bfloat16(base, tmp_path / "half")
    adapter = tiny_models.save_adapter(base, tmp_path / "a", **options)
    expected = whole_model_in_float32(f"{half}+{adapter}", dtype="bfloat16")
    asked = []
    monkeypatch.setattr(
        loading, "load_weights", lambda *args: (asked.append(args[1]), load_weights(*args))[1]
    )
    model, _ = load(f"{half}+{adapter}", dtype="bfloat16")
    # No float32 copy of the model, unless the adapter brings the weights to add to.
    brings = kind in ("the embedding", "the head", "a larger embedding with LoRA")
    assert asked == [torch.float32 if brings else torch.bfloat16]
    assert_equal_weights(model, expected)
    plain, _ = load(half, dtype="bfloat16")
    assert not torch.equal(last_states(plain), last_states(model))


@pytest.mark.parametrize("why", ["float32 files", "two adapters"])
def test_where_layers_would_round_otherwise_one_block_at_a_time_is_in_float32(
    bases, chain, tmp_path, monkeypatch, whole_model_in_float32, why
):
    base, adapters = bases / "llama", chain[:1]
    if why == "two adapters":
        base, adapters = in_bfloat16(base, tmp_path / "half"), chain
    spec = "+".join(map(str, [base, *adapters]))
    expected = whole_model_in_float32(spec, dtype="bfloat16")
    wide, lists, merge = [], [], AddedWeights.merge
    begin = StreamedBlocks.__init__

    def begun(self, blocks, *rest):
        lists.append(blocks)
        begin(self, blocks, *rest)

    def counted(self, i_block, block):
        merge(self, i_block, block)
        wide.append((i_block, {w.dtype for w in block.parameters()}))
        resident = [w for w in lists[-1].parameters() if not w.is_meta]
        assert {w.dtype for w in resident} <= {torch.bfloat16}  # the blocks before

    monkeypatch.setattr(StreamedBlocks, "__init__", begun)
    monkeypatch.setattr(AddedWeights, "merge", counted)
    monkeypatch.setattr(loading, "load_weights", pytest.fail)
    model, notes = load(spec, dtype="bfloat16")
    assert_equal_weights(model, expected)
    assert model.streamed is None
    assert not any(block._forward_hooks for block in model.blocks)
    assert [i for i, _ in wide] == [i for i in range(3) for _ in adapters]
    assert {dtype for _, dtypes in wide for dtype in dtypes} == {torch.float32}
    assert [note.startswith("adapter ") for note in notes] == [True] * len(adapters)
    torch.testing.assert_close(last_states(model), last_states(expected), rtol=0, atol=0)


def test_adapters_of_a_decoder_that_never_runs_are_no_news(tmp_path, whole_model_in_float32):
    tiny_models.save_tiny("mt5", tmp_path / "mt5")
    options = {"target_modules": ["q"], "task_type": "SEQ_2_SEQ_LM"}
    adapters = [
        tiny_models.save_adapter(
            tmp_path / "mt5",
            tmp_path / f"a{seed}",
            auto="AutoModelForSeq2SeqLM",
            seed=seed,
            **options,
        )
        for seed in (1, 2)
    ]
    spec = "+".join(map(str, [tmp_path / "mt5", *adapters]))
    model, notes = load(spec, dtype="bfloat16")
    assert [note.split(" ")[0] for note in notes] == ["adapter", "adapter"]
    assert_equal_weights(model, whole_model_in_float32(spec, dtype="bfloat16"))


@pytest.mark.parametrize("why", ["PiSSA", "another type"])
def test_adapters_that_do_more_than_add_are_merged_into_a_whole_model_in_float32(
    bases, tmp_path, monkeypatch, why
):
    base = in_bfloat16(bases / "llama", tmp_path / "half")
    if why == "PiSSA":
        adapters = [tiny_models.save_adapter(base, tmp_path / "a", init_lora_weights="pissa")]
    if why == "another type":
        adapters = [tmp_path / "a"]
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        config = peft.LoHaConfig(target_modules=["q_proj"])
        peft.get_peft_model(model, config).save_pretrained(tmp_path / "a")
    asked = []
    monkeypatch.setattr(
        loading, "load_weights", lambda *args: (asked.append(args[1:3]), load_weights(*args))[1]
    )
    load("+".join(map(str, [base, *adapters])), dtype="bfloat16")
    assert asked == [(torch.float32, torch.device("cpu"))]


def test_only_one_layer_at_a_time_is_in_float32(bases, tmp_path, monkeypatch):
    base = in_bfloat16(bases / "llama", tmp_path / "half")
    adapter = tiny_models.save_adapter(base, tmp_path / "a", target_modules="all-linear")
    wide, models = [], []

    def put_on(model, *rest):
        models.append(model)
        merge_adapter(model, *rest)

    def merge(layer, *args, **options):
        merge_one(layer, *args, **options)
        weights = [w for name, w in models[0].named_parameters() if "lora_" not in name]
        wide.append(sum(w.dtype == torch.float32 for w in weights))

    merge_adapter, merge_one = loading.merge_adapter, peft.tuners.lora.Linear.merge
    monkeypatch.setattr(loading, "merge_adapter", put_on)
    monkeypatch.setattr(peft.tuners.lora.Linear, "merge", merge)
    load(f"{base}+{adapter}", dtype="bfloat16")
    assert len(wide) == 3 * 7
    assert set(wide) == {1}


def test_beside_a_gpu_an_adapter_is_merged_there(bases, tmp_path, monkeypatch):
    """Not by way of a float32 model on the host; a device without memory stands in for the GPU."""
    base = in_bfloat16(bases / "llama", tmp_path / "half")
    adapter = tiny_models.save_adapter(base, tmp_path / "a")
    there, asked, merged = torch.device("meta"), [], []
    monkeypatch.setattr(loading, "find_device", lambda *_: there)
    monkeypatch.setattr(
        loading, "load_weights", lambda *args: (asked.append(args[1:3]), load_weights(*args))[1]
    )

    def merge(model, *_):
        merged.append((model.dtype, model.device))
        raise ModelError("that is all")

    monkeypatch.setattr(loading, "merge_adapter", merge)
    refused(f"{base}+{adapter}", "that is all", dtype="bfloat16")
    assert asked == [(torch.bfloat16, there)]
    assert merged == [(torch.bfloat16, there)]
