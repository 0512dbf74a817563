"""The page says how a store was made: commands that make it again, and no folder of the machine."""

import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetyspace_fast.report.made import made
from safetyspace_fast.report.write import command_of

LAYERS = ("embed", "block.0", "block.1", "final_norm")


def stored(name: str, bases: list[str], model: dict[str, Any], **manifest: Any) -> SimpleNamespace:
    """What `made` reads of one model."""
    usual = {"template": "none", "dtype": "float32", "seed": 0, "proj_dim": 64, "compile": False}
    return SimpleNamespace(
        name=name,
        attrs={"model": model, "bases": bases},
        manifest=usual | manifest,
        hookpoints=manifest.get("hookpoints", LAYERS),
        poolings=("mean",),
    )


def made_of(*stores: SimpleNamespace) -> tuple[list[list[str]], str]:
    """The words of each command, and all text that the page shows."""
    run: Any = SimpleNamespace(
        models=sorted(store.name for store in stores),
        model={store.name: store for store in stores}.__getitem__,
        samples=SimpleNamespace(label=[0, 1]),
        languages=("en",),
        attrs={"data_name": "texts", "data_sha256": "0" * 64},
    )
    about = made("a.zarr", run)
    return [shlex.split(line) for line in about.command.splitlines()], str(vars(about))


def value_of(words: list[str], option: str) -> list[str]:
    return [after for word, after in pairwise(words) if word == option]


def test_models_are_named_in_the_order_of_their_run() -> None:
    base, tuned = {"id": "one/base", "commit": "a1"}, {"id": "one/chat", "commit": "b2"}
    (command,), _ = made_of(stored("z", [], base), stored("a", ["z"], tuned))
    assert value_of(command, "--model") == ["z=one/base@a1", "a=one/chat@b2"]


def test_no_folder_is_shown_of_any_kind_of_model() -> None:
    models = (
        stored("a", [], {"id": "/home/me/base"}),
        stored("b", ["a"], {"id": "random:/home/me/base"}),
        stored("c", ["a", "b"], {"id": "home/me/base", "adapter": "/home/me/x+home/me/y"}),
        stored("d", ["a", "b", "c"], {"id": "~/home/me/base", "adapter": "org/x+me/y",
                                      "adapter_commit": "c3+"}),
    )  # fmt: skip
    (command,), text = made_of(*models)
    asked = ["a=base", "b=random:base", "c=base+x+y", "d=base+org/x+y"]
    assert value_of(command, "--model") == asked
    assert "home" not in text


def test_the_command_has_every_option_that_decides_numbers() -> None:
    model = {"id": "one/base", "commit": "a1"}
    layers = ("block.1", "final_norm")
    (command,), _ = made_of(
        stored("a", [], model, proj_dim=16, max_tokens=99, compile=True, hookpoints=layers)
    )
    assert value_of(command, "--proj-dim") == ["16"]
    assert value_of(command, "--max-tokens") == ["99"]
    assert value_of(command, "--layers") == ["block.1,final_norm"]
    assert "--compile" in command


def test_models_that_were_run_otherwise_are_added_by_a_command_of_their_own() -> None:
    model = {"id": "one/base", "commit": "a1"}
    one, two = stored("a", [], model), stored("b", ["a"], model, template="chat")
    first, second = made_of(one, two)[0]
    assert (value_of(first, "--template"), value_of(second, "--template")) == (["none"], ["chat"])
    assert ("--resume" in first, "--resume" in second) == (False, True)


def test_the_command_of_a_page_has_what_was_chosen_but_no_folder() -> None:
    command = command_of(
        ["a b.zarr"], Path("/home/me/page.html"), texts=["t.jsonl"], metrics="rho_adjusted",
        base="base", aligned=["dpo", "sft"], layers=["-1"], poolings=None,
    )  # fmt: skip
    assert shlex.split(command) == [
        "safetyspace-fast", "report", "a b.zarr", "--metric", "rho_adjusted", "--base", "base",
        "--aligned", "dpo", "--aligned", "sft", "--layers=-1", "--texts", "t.jsonl", "--show-texts",
        "-o", "page.html",
    ]  # fmt: skip
