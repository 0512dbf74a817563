"""What notebooks show: static, escaped, small; and the example notebook runs."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny_models

import safetyspace_fast as ssf
from safetyspace_fast.notebook import MOST_ROWS, Section, html
from safetyspace_fast.report.results import Results

REPO = Path(__file__).resolve().parents[2]
NOTEBOOK = REPO / "safetyspace_fast" / "report" / "example.ipynb"


class Page(HTMLParser):
    """Tags and text of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ssf.Run:
    folder = tmp_path_factory.mktemp("notebook")
    model = tiny_models.save_tiny("llama", folder / "tiny")
    data = {"data": "sample:polite", "languages": ["en", "de"], "limit": 12}
    return ssf.run(models=f"m={model}", out=folder / "a.zarr", proj_dim=16, **data)


def test_a_run_shows_its_models_and_texts(run: ssf.Run) -> None:
    page = Page(run._repr_html_())
    assert repr(run) in page.text
    for word in ("complete", "mean, last", "language", "harmful", "de"):
        assert word in page.text
    assert "script" not in page.tags
    assert Page(run.model("m")._repr_html_()).text.count(run.model("m").identity) == 1
    results = Results(run)
    assert "auc_direction" in Page(results._repr_html_()).text
    assert repr(results).endswith("computed: nothing>")


def test_names_are_text_and_long_lists_are_cut() -> None:
    bad = '<script>alert(1)</script>" onload="x'
    rows = [(bad, 10_000 + i) for i in range(3 * MOST_ROWS)]
    page = Page(text := html(bad, bad, [Section(bad, ("name", bad), rows)]))
    assert "script" not in page.tags
    assert bad in page.text
    assert f"and {2 * MOST_ROWS} more" in page.text
    assert "10,039" in page.text
    assert "10,040" not in page.text
    wide = html("x" * 10**5, "y" * 10**4, [Section("s", ("n",) * 5, [("z" * 400,) * 5] * 900)] * 1)
    assert max(len(text), len(wide)) <= 20_000


def test_the_example_notebook_runs_and_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in code[1:])
    tiny_models.save_tiny("llama", tmp_path / "tiny-model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in code:
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert (tmp_path / "layers.svg").stat().st_size > 1000
