"""`verify`: every architecture is supported, and every mistake that could be made is caught."""

import dataclasses
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import (
    ARCHITECTURES,
    CHAT_TEMPLATE,
    ENCODERS,
    FURTHER_ARCHITECTURES,
    HIDDEN_SIZE,
    NUM_BLOCKS,
    PADDING_READERS,
    VISION,
    save_adapter,
    save_tiny,
    tiny_config,
    tiny_tokenizer,
)

from safetyspace_fast import api, verification
from safetyspace_fast.cli import main
from safetyspace_fast.config import POOLINGS
from safetyspace_fast.errors import DataError, ModelError
from safetyspace_fast.extract import Verification, capture, prepare
from safetyspace_fast.models import layers, load_model, parse_model
from safetyspace_fast.verification import verify_model

TEXTS = [
    "short",
    "a text of middling length, with a comma",
    "привет, как дела?",
    " white space before it: not taken",
    "one rather longer text that goes on for a while, so that its row pads all the others well",
    "天地玄黄,宇宙洪荒。",
    "the same text twice",
    "the same text twice",
]
LAST_CHARACTER_OF_SEVERAL_TOKENS = "a bird 🦜"


def check(path: Path, texts: list[str] = TEXTS, **options: Any) -> Verification:
    samples: Any = SimpleNamespace(texts=texts, name="texts")
    return verify_model(parse_model(str(path)), samples, **options)


def assert_supported(found: Verification) -> None:
    assert found.verdict == "supported", [c for c in found.cells if c.verdict != "supported"]
    assert found.problem is None


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("m") / "llama", chat_template=CHAT_TEMPLATE)


@pytest.mark.parametrize(
    ("name", "adapted", "loads"), [("llama", False, 3), ("llama", True, 3), ("bloom", False, 5)]
)
def test_one_copy_of_a_model_is_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, adapted: bool, loads: int
) -> None:
    """The engine's, and transformers' in two dtypes, for some models also with one more block."""
    path = save_tiny(name, tmp_path / name, chat_template=CHAT_TEMPLATE)
    last_blocks: list[weakref.ref[torch.nn.Module]] = []
    alive = []

    def counting(load: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            alive.append(sum(block() is not None for block in last_blocks))
            model = load(*arguments, **options)
            parts = getattr(model, "backbone", model).children()
            blocks = next(part for part in parts if isinstance(part, torch.nn.ModuleList))
            last_blocks.append(weakref.ref(blocks[-1]))
            return model

        return counted

    monkeypatch.setattr(verification, "load_model", counting(verification.load_model))
    monkeypatch.setattr(verification._Oracle, "_load", counting(verification._Oracle._load))
    spec = f"{path}+{save_adapter(path, tmp_path / 'a')}" if adapted else str(path)
    gc.disable()  # it would free by chance what a circle of references keeps alive
    try:
        samples: Any = SimpleNamespace(texts=TEXTS, name="texts")
        assert_supported(verify_model(parse_model(spec), samples))
    finally:
        gc.enable()
    assert alive == [0] * loads


# What is right is called so


@pytest.mark.parametrize(
    "name", [*ARCHITECTURES, *FURTHER_ARCHITECTURES, *ENCODERS, *PADDING_READERS]
)
def test_every_architecture_is_supported(name: str, tmp_path: Path) -> None:
    found = check(save_tiny(name, tmp_path / name))
    assert_supported(found)
    assert len(found.cells) == 2 * (NUM_BLOCKS + 2)
    assert (found.texts, found.dtype, found.exact_dtype) == (7, "float32", "float64")
    assert all(0 <= cell.error < 1e-5 for cell in found.cells)


MULTIMODAL: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {}, "siglip_vision_model", VISION),
    "mistral3": ("mistral", {}, "pixtral", VISION),
    "llava": ("llama", {}, "clip_vision_model", VISION),
    "llama4": (
        "llama4_text",
        {},
        "llama4_vision_model",
        VISION | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl_text",
        {
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 2],
            },
        },
        "qwen2_5_vl_vision",
        {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": HIDDEN_SIZE},
    ),
}


def test_an_encoder_that_was_saved_without_its_decoder(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=512, **sizes)  # as many blocks as parts of a block
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    assert_supported(check(tmp_path / "t5"))


@pytest.mark.parametrize("name", MULTIMODAL)
def test_of_a_multimodal_checkpoint_the_text_part_is_read(name: str, tmp_path: Path) -> None:
    text, changes, vision, options = MULTIMODAL[name]
    config = transformers.AutoConfig.for_model(
        name,
        text_config=tiny_config(text, **changes).to_dict(),
        vision_config=transformers.AutoConfig.for_model(vision, **options).to_dict(),
    )
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    parts = [part for part, _ in load_model(parse_model(str(tmp_path))).backbone.named_modules()]
    assert not any("vis" in part for part in parts)
    assert_supported(check(tmp_path))


def test_an_adapter_of_a_multimodal_model(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        "llava",
        text_config=tiny_config("llama").to_dict(),
        vision_config=transformers.AutoConfig.for_model("clip_vision_model", **VISION).to_dict(),
    )
    auto = transformers.AutoModelForImageTextToText
    auto.from_config(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    adapter = save_adapter(
        tmp_path / "base",
        tmp_path / "lora",
        auto=auto.__name__,
        task_type=None,
        target_modules=r".*language_model.*q_proj",
    )
    assert_supported(check(Path(f"{tmp_path / 'base'}+{adapter}")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_held_to_its_own_rounding(llama: Path, dtype: str) -> None:
    found = check(llama, dtype=dtype)
    assert found.verdict in ("supported", "degraded")
    assert found.exact_dtype == "float32"
    assert max(cell.rounding or 0 for cell in found.cells) > 1e-4


def test_all_poolings_with_and_without_template(llama: Path) -> None:
    for template in ("chat", "none"):
        texts = [*TEXTS, LAST_CHARACTER_OF_SEVERAL_TOKENS]
        found = check(llama, texts, template=template, poolings=POOLINGS)
        assert_supported(found)
        assert found.template == template


@pytest.mark.parametrize("template", ["none", "chat"])
def test_a_real_model(smollm2: Path, template: str) -> None:
    texts = [*TEXTS[:3], LAST_CHARACTER_OF_SEVERAL_TOKENS]
    found = check(smollm2, texts, template=template, layers="embed,block.0,block.20,-2,-1")
    assert_supported(found)


def test_without_bos_the_first_position_is_in_mean_all_only(tmp_path: Path) -> None:
    path = save_tiny("gpt2", tmp_path / "gpt2", adds_bos=False)
    texts = [*TEXTS, "a"]  # "a" is one token
    found = check(path, texts, poolings=("mean", "mean_all", "last"))
    assert_supported(found)
    assert found.odd_tokens == ()


def test_a_real_model_that_adds_bos(shared: Path) -> None:
    assert_supported(check(shared / "data" / "stories260k"))


def test_a_real_encoder(minilm: Path) -> None:
    assert_supported(check(minilm, poolings=("mean", "last", "last_text")))


def test_an_adapter_and_a_tokenizer_without_padding_token(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "lora")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(adapter)
    found = check(Path(f"{llama}+{adapter}"))
    assert_supported(found)
    assert found.template == "none"  # the adapter's tokenizer has none, the base's has


@pytest.mark.parametrize(
    "adapters",
    [
        [{}, {"seed": 2, "target_modules": ["v_proj"]}],
        [{"rows": 600}],
        [{"auto": "AutoModel", "task_type": "FEATURE_EXTRACTION", "rows": 600}],
        [{"auto": "AutoModelForSequenceClassification", "task_type": "SEQ_CLS"}, {"seed": 2}],
    ],
)
def test_chains_of_adapters_of_every_head(
    llama: Path, tmp_path: Path, adapters: list[dict[str, Any]]
) -> None:
    paths = [save_adapter(llama, tmp_path / f"{i}", **how) for i, how in enumerate(adapters)]
    assert_supported(check(Path("+".join(map(str, [llama, *paths])))))


def test_an_adapter_in_the_folder_of_its_base(llama: Path, tmp_path: Path) -> None:
    both = shutil.copytree(llama, tmp_path / "both")
    save_adapter(llama, both)
    assert_supported(check(Path(f"{both}+{both}")))


def test_the_sample_spans_the_data_and_progress_is_told(llama: Path) -> None:
    told: list[tuple[int, int]] = []
    texts = [f"text number {i}" for i in range(50)] + ["long " * 200 + "end"]
    found = check(llama, texts, num_texts=5, progress=lambda *at: told.append(at))
    assert found.texts == 4  # the last of five is cut, so another text
    assert told == [(i, 8) for i in range(1, 9)]


def test_nothing_to_verify_with(llama: Path) -> None:
    with pytest.raises(DataError, match="no text without white space"):
        check(llama, [" a", ""])
    with pytest.raises(DataError, match="fits into the window"):
        check(llama, ["long " * 200 + "end"])


# What is wrong is caught


Patch = Callable[[pytest.MonkeyPatch], None]


def left_padding_is_pooled(patch: pytest.MonkeyPatch) -> None:
    def padded(model: Any, tokens: Any, batch: Any) -> Any:
        ids, spans, mask = right(model, tokens, batch)
        for row, length in enumerate(tokens.lengths[batch.unique]):
            ids[row] = ids[row].roll(ids.shape[1] - int(length))
            spans[row, 0] = torch.tensor([0, ids.shape[1]])
        spans[:, 1] = torch.tensor([ids.shape[1] - 1, ids.shape[1]])
        return ids, spans, mask

    right = capture.padded
    patch.setattr(capture, "padded", padded)


def _with_spans(patch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    def tokenize(*args: Any, **options: Any) -> Any:
        tokens = original(*args, **options)
        change(tokens)
        return tokens

    original = prepare.tokenize
    patch.setattr(prepare, "tokenize", tokenize)


def bos_is_averaged(patch: pytest.MonkeyPatch) -> None:
    def change(tokens: Any) -> None:
        tokens.spans[:, 0, 0] -= 1

    _with_spans(patch, change)


def first_position_is_averaged(patch: pytest.MonkeyPatch) -> None:
    def change(tokens: Any) -> None:
        tokens.spans[:, 0, 0] = 0

    _with_spans(patch, change)


def template_is_averaged(patch: pytest.MonkeyPatch) -> None:
    def change(tokens: Any) -> None:
        tokens.spans[:, 0] = np.stack([np.zeros_like(tokens.lengths), tokens.lengths], axis=1)

    _with_spans(patch, change)


def bos_is_there_twice(patch: pytest.MonkeyPatch) -> None:
    def tokenize(*args: Any, **options: Any) -> Any:
        tokens = original(*args, **options)
        prompts = [tokens.prompt(i) for i in range(len(tokens))]
        return dataclasses.replace(
            tokens,
            ids=np.concatenate([part for p in prompts for part in (p[:1], p)]),
            starts=tokens.starts + np.arange(len(tokens.starts)),
            spans=tokens.spans + 1,
        )

    original = prepare.tokenize
    patch.setattr(prepare, "tokenize", tokenize)


def sums_are_bfloat16(patch: pytest.MonkeyPatch) -> None:
    def pool(self: Any, i_layer: int, states: torch.Tensor) -> None:
        spans = self._spans
        out = torch.zeros(*spans.shape[:2], states.shape[-1], dtype=torch.bfloat16)
        for row, pooling in np.ndindex(*spans.shape[:2]):
            start, stop = spans[row, pooling].tolist()
            for state in states[row, start:stop]:
                out[row, pooling] += state.bfloat16()
            out[row, pooling] /= stop - start
        self._pooled[i_layer].copy_(out)

    patch.setattr(capture.PoolProject, "__call__", pool)


def half_of_the_residual_stream_is_read(patch: pytest.MonkeyPatch) -> None:
    def watch(backbone: Any, blocks: Any, name: str, callback: Any) -> Any:
        if name != "block.1":
            return original(backbone, blocks, name, callback)
        return blocks[1].register_forward_hook(
            lambda _module, args, output: callback(layers.block_output(output) - args[0])
        )

    original = layers.watch
    patch.setattr(layers, "watch", watch)


def the_last_block_is_read_after_the_norm(patch: pytest.MonkeyPatch) -> None:
    def watch(backbone: Any, blocks: Any, name: str, callback: Any) -> Any:
        last = f"block.{NUM_BLOCKS - 1}"
        return original(backbone, blocks, "final_norm" if name == last else name, callback)

    original = layers.watch
    patch.setattr(layers, "watch", watch)


def samples_are_in_another_order(patch: pytest.MonkeyPatch) -> None:
    def plan(*args: Any, **options: Any) -> Any:
        return [dataclasses.replace(b, source=b.source[::-1]) for b in original(*args, **options)]

    original = prepare.make_plan
    patch.setattr(prepare, "make_plan", plan)


def positions_are_off_by_the_padding(patch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **options: Any) -> Any:
        def shift(_module: Any, _args: Any, kwargs: dict[str, Any]) -> Any:
            ids = kwargs["input_ids"]
            filler = (ids == model.pad_token_id).sum(1, keepdim=True)
            positions = torch.arange(ids.shape[1]) + filler
            return (), kwargs | {"position_ids": positions}

        model = original(*args, **options)
        model.backbone.register_forward_pre_hook(shift, with_kwargs=True)
        return model

    original = verification.load_model
    patch.setattr(verification, "load_model", load)


@pytest.mark.parametrize(
    ("plant", "name", "template", "hookpoints", "poolings"),
    [
        (left_padding_is_pooled, "llama", "none", "all", ("mean",)),
        (bos_is_averaged, "llama", "none", "all", ("mean",)),
        (first_position_is_averaged, "qwen2", "none", "all", ("mean",)),
        (template_is_averaged, "llama", "chat", "all", ("mean",)),
        (bos_is_there_twice, "gpt2", "none", "all", ("mean", "last")),
        (sums_are_bfloat16, "llama", "none", "all", ("mean", "last")),
        (half_of_the_residual_stream_is_read, "llama", "none", "block.1", ("mean", "last")),
        (the_last_block_is_read_after_the_norm, "llama", "none", "block.2", ("mean", "last")),
        (samples_are_in_another_order, "llama", "none", "all", ("mean", "last")),
        (positions_are_off_by_the_padding, "gpt2", "none", "all", ("mean", "last")),
    ],
)
def test_a_planted_mistake_is_wrong_where_it_is(
    plant: Patch,
    name: str,
    template: str,
    hookpoints: str,
    poolings: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adds_bos = plant is not first_position_is_averaged
    path = save_tiny(name, tmp_path / name, chat_template=CHAT_TEMPLATE, adds_bos=adds_bos)
    assert_supported(check(path, template=template))
    plant(monkeypatch)
    found = check(path, template=template)
    wrong = {(cell.hookpoint, cell.pooling) for cell in found.cells if cell.verdict == "wrong"}
    where = ["embed", "block.0", "block.1", "block.2", "final_norm"]
    where = where if hookpoints == "all" else [hookpoints]
    assert wrong >= {(hookpoint, pooling) for hookpoint in where for pooling in poolings}
    if hookpoints != "all":
        assert {hookpoint for hookpoint, _ in wrong} == {hookpoints}
    assert found.verdict == "wrong"
    assert found.problem is not None
    if "averaged" in plant.__name__ or "twice" in plant.__name__:
        assert len(found.odd_tokens) == found.texts
        assert "the tokens of 7 of 7 texts" in found.problem


def test_little_too_much_rounding_is_degraded(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(self: Any, i_layer: int, states: Any) -> None:
        original(self, i_layer, states)
        self._pooled[i_layer].mul_(1 + 1.5e-6)

    original = capture.PoolProject.__call__
    monkeypatch.setattr(capture.PoolProject, "__call__", coarse)
    found = check(llama, layers="final_norm")
    assert found.verdict == "degraded"
    assert found.problem is None


def test_a_state_that_is_not_finite_where_transformers_is_is_wrong(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        capture.PoolProject, "__call__", lambda self, i, states: self._pooled[i].fill_(np.nan)
    )
    found = check(llama, layers="block.1")
    assert {(cell.error, cell.verdict) for cell in found.cells} == {(None, "wrong")}


def test_where_the_dtype_overflows_nothing_can_be_checked() -> None:
    truth = np.ones((3, 4))
    over = truth * [[1], [np.inf], [1]]
    cell = verification._check("block.0", "mean", truth.astype(np.float32), truth, over)
    assert (cell.error, cell.rounding, cell.verdict) == (0, None, "unchecked")


def test_quantised_weights_have_nothing_more_exact(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "llama")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }
    (path / "config.json").write_text(json.dumps(config))
    # transformers unpacks such weights in a function that torch would compile for ten seconds.
    eager = torch.compiler.set_stance("force_eager")
    with eager, pytest.raises(ModelError, match=r"quantised \(bitnet\)"):
        check(path)


# The command line and runs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"text": f"{text} {i}", "label": i % 2, "lang": "en"}
        for i in range(10)
        for text in ("good dog", "a rather bad dog that barks")
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_prints_every_layer(
    llama: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["verify", "--model", f"m={llama}", "--data", str(data), "--samples", "4"]
    assert main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("m: supported: 10 supported (4 texts, template chat; engine in")
    assert len(lines) == 2 + 10
    assert main([*asked, "--layers=-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], len(found["cells"])) == ("supported", 2)


def test_the_command_fails_on_wrong_and_a_run_refuses(
    llama: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = ["run", "--verify", "--model", f"m={llama}", "--data", str(data), "--out"]
    assert main([*run, str(tmp_path / "good.zarr")]) == 0
    assert "m: supported: 10 supported" in capsys.readouterr().err
    assert api.open_run(tmp_path / "good.zarr").model("m").hookpoints[0] == "embed"

    half_of_the_residual_stream_is_read(monkeypatch)
    assert main(["verify", "--model", f"m={llama}", "--data", str(data)]) == 1
    out, err = capsys.readouterr()
    assert "wrong" in out
    assert "1 hookpoints (first: block.1)" in err
    assert main([*run, str(tmp_path / "bad.zarr")]) == 1
    assert "differs from transformers" in capsys.readouterr().err
    assert not list(tmp_path.glob("bad.zarr/models/m"))
