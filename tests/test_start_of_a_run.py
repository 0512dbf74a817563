"""What is decided before the first batch, and that a failed start leaves nothing behind."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import peft
import pytest
import transformers
from tiny_models import CHAT_TEMPLATE, save_tiny, tiny_tokenizer

from safetyspace_fast import api
from safetyspace_fast.errors import (
    DataError,
    ImplementationError,
    ModelError,
    SafetySpaceError,
    StoreError,
)
from safetyspace_fast.models import ModelSpec, choose_templates, load_model
from safetyspace_fast.models.source import sha256
from safetyspace_fast.store import Place

OTHER_TEMPLATE = CHAT_TEMPLATE.replace("[assistant]", "<answer>")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: base (no template), chat (the same weights, a template), and adapters of base."""
    home = tmp_path_factory.mktemp("models")
    save_tiny("llama", home / "base")
    shutil.copytree(home / "base", home / "chat")
    tiny_tokenizer(CHAT_TEMPLATE).save_pretrained(home / "chat")
    for name in ("plain", "talks"):
        model = transformers.AutoModelForCausalLM.from_pretrained(home / "base")
        lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(model, lora).save_pretrained(home / name)
    tiny_tokenizer(OTHER_TEMPLATE).save_pretrained(home / "talks")
    return home


def chosen(models: Path, mode: str, **specs: str) -> tuple[dict[str, str | None], list[str]]:
    notes: list[str] = []
    listed = []
    for name, parts in specs.items():
        base, *adapters = (str(models / part) for part in parts.split("+"))
        listed.append(ModelSpec(name, base, tuple(adapters)))
    return choose_templates(listed, mode, on_note=notes.append), notes


def test_a_pair_gets_the_template_of_its_base(models: Path) -> None:
    assert chosen(models, "auto", a="base", b="base+talks") == (
        {"a": None, "b": None},
        [
            "a, b: one chat template for all: none, as their base has none (b has another, which "
            "is not used)"
        ],
    )
    assert chosen(models, "auto", a="chat", b="chat+talks") == (
        {"a": CHAT_TEMPLATE, "b": CHAT_TEMPLATE},
        ["a, b: one chat template for all: that of their base (b has another, which is not used)"],
    )
    assert chosen(models, "auto", a="base+plain", b="base+talks", c="chat")[0] == {
        "a": None,
        "b": None,
    }


def test_chat_on_a_pair_takes_a_template_for_both(models: Path) -> None:
    assert chosen(models, "chat", a="base", b="base+talks") == (
        {"a": OTHER_TEMPLATE, "b": OTHER_TEMPLATE},
        ["a, b: one chat template for all: that of b"],
    )
    with pytest.raises(ModelError, match="a: its tokenizer has no chat template"):
        chosen(models, "chat", a="base", b="base+plain")


def test_without_a_template_nothing_is_chosen_but_all_models_are_looked_for(models: Path) -> None:
    assert chosen(models, "none", a="base", b="chat+talks") == ({}, [])
    for mode in ("none", "auto"):
        with pytest.raises(ModelError, match="nowhere: no such directory"):
            chosen(models, mode, a="base", b="nowhere")


def test_models_of_several_bases_keep_their_own_and_it_is_said(models: Path) -> None:
    assert chosen(models, "auto", a="base", b="chat") == (
        {},
        [
            "the models have different chat templates, a none: `compare` refuses such pairs; "
            "--template none gives all models the text alone"
        ],
    )
    assert chosen(models, "auto", a="chat") == ({}, [])
    assert chosen(models, "auto", a="base+talks")[1] == [
        "a: its chat template is that of its adapter, not of its base"
    ]


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_a_template_that_only_the_processor_reads_is_named(
    models: Path, tmp_path: Path, file: str
) -> None:
    shutil.copytree(models / "base", tmp_path / "m")
    (tmp_path / "m" / file).write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    (note,) = chosen(tmp_path, "auto", a="m")[1]
    assert note.startswith(f"a: {tmp_path}/m/{file} holds a chat template")
    assert chosen(tmp_path, "none", a="m")[1] == []


def test_a_template_beside_an_adapter_without_a_tokenizer_is_named(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "base", tmp_path / "base")
    shutil.copytree(models / "plain", tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    notes = chosen(tmp_path, "auto", a="base", b="base+plain")[1]
    assert len(notes) == 2
    assert notes[1].startswith(f"a, b: {tmp_path}/plain/chat_template.jinja holds a chat template")


@pytest.mark.parametrize("written", ["file", "config", "list", "named"])
def test_templates_are_read_from_files_as_transformers_reads_them(
    models: Path, tmp_path: Path, written: str
) -> None:
    for name in ("m", "other"):
        shutil.copytree(models / "chat", tmp_path / name)
        (tmp_path / name / "chat_template.jinja").unlink()
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        if written == "file":
            config["chat_template"] = OTHER_TEMPLATE
            (tmp_path / name / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        elif written == "config":
            config["chat_template"] = CHAT_TEMPLATE
        else:
            parts = {"tool_use": OTHER_TEMPLATE, "default": CHAT_TEMPLATE}
            config["chat_template"] = (
                parts
                if written == "named"
                else [{"name": name, "template": text} for name, text in parts.items()]
            )
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copytree(models / "plain", tmp_path / "plain")
    read = chosen(tmp_path, "auto", a="m", b="m+plain")[0]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m").get_chat_template()
    assert read == {"a": CHAT_TEMPLATE, "b": CHAT_TEMPLATE} == {"a": theirs, "b": theirs}


def test_a_run_of_a_pair_gives_the_difference_of_the_tuning_alone(
    models: Path, tmp_path: Path
) -> None:
    events = api.iter_run(
        models=[f"a={models}/base", f"b={models}/base+{models}/talks"],
        data="sample:polite",
        languages=["en"],
        out=tmp_path / "o.zarr",
        verify=True,
    )
    notes = [event.message for event in events if isinstance(event, api.Note)]
    assert notes[0].startswith("a, b: one chat template for all: none")
    run = api.open_run(tmp_path / "o.zarr")
    manifests = [run.model(name).attrs["manifest"] for name in "ab"]
    assert manifests[0]["template_sha256"] == manifests[1]["template_sha256"]
    assert run.model("a").read("n_tokens").tolist() == run.model("b").read("n_tokens").tolist()


def test_a_template_of_the_base_is_used_with_the_tokenizer_of_the_adapter(models: Path) -> None:
    spec = ModelSpec("m", str(models / "base"), (str(models / "talks"),))
    model = load_model(spec, chat_template=CHAT_TEMPLATE)
    assert model.tokenizer.get_chat_template() == CHAT_TEMPLATE
    assert load_model(spec).tokenizer.get_chat_template() == OTHER_TEMPLATE


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"models": "nowhere/at/all"}, ModelError),
        ({"models": ["m=BASE", "n=BASE+nowhere/at/all"]}, ModelError),
        ({"layers": "block.77"}, SafetySpaceError),
        ({"max_tokens": 1, "template": "chat", "models": "m=CHAT"}, SafetySpaceError),
        ({"data": "no/such/file.jsonl"}, DataError),
        ({"template": "chat"}, ModelError),
        ({"impl": "cuda"}, ImplementationError),
    ],
)
@pytest.mark.parametrize("again", [{}, {"resume": True}, {"overwrite": True}])
def test_a_start_that_fails_leaves_nothing_behind(
    models: Path,
    tmp_path: Path,
    wrong: dict[str, object],
    error: type[Exception],
    again: dict[str, bool],
) -> None:
    def named(value: object) -> object:
        if isinstance(value, list):
            return [named(part) for part in value]
        if not isinstance(value, str):
            return value
        return value.replace("BASE", f"{models}/base").replace("CHAT", f"{models}/chat")

    out = tmp_path / "new" / "o.zarr"
    right = {"models": f"m={models}/base", "data": "sample:polite", "languages": ["en"]}
    right |= {"out": out, "limit": 5}
    with pytest.raises(error):
        api.run(**{**right, **{key: named(value) for key, value in wrong.items()}}, **again)
    assert not out.exists()
    assert not Place(out).work.exists()
    assert api.run(**right).models == ("m",)


def test_overwrite_keeps_the_old_store_until_a_model_is_ready(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.zarr"
    right = {"data": "sample:polite", "languages": ["en"], "out": out, "limit": 5}
    api.run(models=f"m={models}/base", **right)
    with pytest.raises(SafetySpaceError, match="layer"):
        api.run(models=f"n={models}/base", layers="block.77", overwrite=True, **right)
    assert api.open_run(out).models == ("m",)
    assert api.run(models=f"n={models}/base", overwrite=True, **right).models == ("n",)


def test_the_home_folder_may_be_written_as_a_tilde(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    api.run(
        models=f"m={models}/base", data="sample:polite", out="~/o.zarr", languages=["en"], limit=5
    )
    assert (tmp_path / "o.zarr" / "zarr.json").is_file()
    assert api.open_run("~/o.zarr").models == ("m",)


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"template": "none"}, "template"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"poolings": ["last"]}, "poolings"),
        ({"layers": "embed,-1"}, "layers"),
        ({"seed": 3, "proj_dim": 8}, "proj_dim, seed"),
        ({"max_tokens": 20}, "max_tokens"),
        ({"models": "m=OTHER"}, "weights"),
        ({"models": "m=base+plain"}, "weights"),
    ],
)
def test_a_finished_model_is_not_taken_for_another(
    models: Path, tmp_path: Path, change: dict[str, object], differing: str
) -> None:
    save_tiny("llama", tmp_path / "OTHER", num_hidden_layers=2)
    for name in ("base", "plain"):
        (tmp_path / name).symlink_to(models / name)
    right = {"models": "m=base", "data": "sample:polite", "languages": ["en"], "limit": 5}
    right |= {"out": tmp_path / "o.zarr", "resume": True, "dtype": "float32"}
    with contextlib.chdir(tmp_path):
        api.run(**right)
        with pytest.raises(StoreError, match=f"was run with another {differing};"):
            api.run(**right | change)
        assert api.run(**right).models == ("m",)


def test_a_finished_model_is_hashed_again_only_if_it_could_be_another(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def counting(file: Path) -> str:
        hashed.append(file)
        return sha256(file)

    shutil.copytree(models / "base", tmp_path / "m")
    os.utime(tmp_path / "m" / "model.safetensors", (0, 0))
    right = {"data": "sample:polite", "languages": ["en"], "limit": 5, "resume": True}
    right["out"] = tmp_path / "o.zarr"
    api.run(models=str(tmp_path / "m"), **right)
    monkeypatch.setattr("safetyspace_fast.models.identity.sha256", counting)
    api.run(models=str(tmp_path / "m"), **right)
    assert hashed == []
    (tmp_path / "m").rename(tmp_path / "moved")  # the same files elsewhere are the same model
    api.run(models=f"m={tmp_path}/moved", **right)
    assert len(hashed) == 1
    save_tiny("llama", tmp_path / "moved", initializer_range=0.1)
    (tmp_path / "moved").rename(tmp_path / "m")  # trained further, in place
    with pytest.raises(StoreError, match="another weights"):
        api.run(models=str(tmp_path / "m"), **right)


@pytest.mark.parametrize("lost", ["manifest", "model", "ended"])
def test_a_finished_model_without_its_facts_is_one_line(
    models: Path, tmp_path: Path, lost: str
) -> None:
    right = {"models": f"m={models}/base", "data": "sample:polite", "languages": ["en"]}
    right |= {"limit": 5, "out": tmp_path / "o.zarr", "resume": True}
    api.run(**right)
    group = Place(tmp_path / "o.zarr").group(read_only=False)["models/m"]
    group.attrs[lost] = None
    with pytest.raises(StoreError, match="model 'm': damaged metadata"):
        api.run(**right)
