"""The README's Python runs, and its commands exist."""

import re
from pathlib import Path

import pytest
from tiny_models import save_tiny

from safetyspace_fast.cli import main

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo's store, made by a tiny model under the demo's name."""
    folder = tmp_path_factory.mktemp("readme")
    model = save_tiny("llama", folder / "tiny")
    arguments = ["--data", "sample:polite", "--out", str(folder / "demo.zarr")]
    assert main(["run", "--model", f"smollm2={model}", *arguments]) == 0
    return folder


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), {})


def test_make_targets_exist() -> None:
    makefile = (REPO / "Makefile").read_text("utf-8")
    named = set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_commands_and_options_exist(capfd: pytest.CaptureFixture[str]) -> None:
    for command in set(re.findall(r"safetyspace-fast ([a-z]+)\b", README)):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command
    help_text = ""
    for command in ("run", "separation", "compare", "info"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        help_text += capfd.readouterr().out
    for option in set(re.findall(r"`(--[a-z-]+)", README)):
        assert option in help_text, option
