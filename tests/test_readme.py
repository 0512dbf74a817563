"""Every README: its Python runs, its commands, options, files and links exist."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny_models import save_tiny

from safetyspace_fast.cli import main
from safetyspace_fast.report.figures import figure

REPO = Path(__file__).resolve().parent.parent
README = REPO / "README.md"
ROOMS = ("analysis", "data", "models", "ops", "report", "store", "sweep")
PAGES = [
    README,
    *(REPO / folder / "README.md" for folder in ("benchmarks", "tests", "safetyspace_fast")),
    *(REPO / "safetyspace_fast" / room / "README.md" for room in ROOMS),
    REPO / ".github" / "CONTRIBUTING.md",
]
FOREIGN = {"--peers"}
"""Options of `python -m benchmarks`."""
IN_CODE = re.compile(r"(?:^|[`$] ?)safetyspace-fast ([a-z]+)\b", re.MULTILINE)
COMMANDS = (
    *(
        "run",
        "estimate",
        "data",
        "separation",
        "compare",
        "languages",
        "power",
        "curve",
        "transfer",
    ),
    *("plot", "report", "verify", "bench", "check", "merge", "info"),
)


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(REPO))


PYTHON = [
    pytest.param(page, block, id=f"{name_of(page)}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' Python finds: the demo's store, and tiny models under the names they use."""
    folder = tmp_path_factory.mktemp("readme")
    model = save_tiny("llama", folder / "tiny")
    save_tiny("gpt2", folder / "gpt2")
    arguments = ["--data", "sample:polite", "--out", str(folder / "demo.zarr")]
    assert main(["run", "--model", f"smollm2={model}", *arguments]) == 0
    return folder


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_files_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(page))
    for link in links:
        assert (page.parent / link).exists(), link
    assert page == README or len(text_of(page).splitlines()) > 20


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_python_blocks_run(
    page: Path, block: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    exec(compile(block, str(page), "exec"), {})


def test_the_front_page_is_two_screens() -> None:
    lines = text_of(README).splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 100
    assert "```python" in text_of(README)


def test_make_targets_exist() -> None:
    makefile = (REPO / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    in_code = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
    named = {page: set(in_code.findall(text_of(page))) for page in PAGES}
    assert {"demo", "test"} <= named[README]
    for page, words in named.items():
        assert words <= targets, name_of(page)


def test_commands_and_options_exist(capfd: pytest.CaptureFixture[str]) -> None:
    help_text = ""
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        help_text += capfd.readouterr().out
    for page in PAGES:
        for command in set(IN_CODE.findall(text_of(page))):
            assert command in (*COMMANDS, "explain"), f"{name_of(page)}: {command}"
        for option in set(re.findall(r"`(--[a-z-]+)", text_of(page))) - FOREIGN:
            assert option in help_text, f"{name_of(page)}: {option}"


def test_the_picture_in_the_readme_is_a_figure_of_plot() -> None:
    (path,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text_of(README))
    drawing = ElementTree.fromstring((REPO / path).read_text("utf-8"))
    (title,) = (part.text for part in drawing if part.tag.endswith("title"))
    assert title is not None
    assert title.startswith(figure("layers").TITLE)
