"""What notebooks show: static, escaped, small; and the example notebook runs."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny_models

import safetyspace_fast as ssf
from safetyspace_fast.benchmark import Bench
from safetyspace_fast.extract import CellCheck, Verification
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


def test_a_data_set_shows_its_languages_and_what_was_left_out(tmp_path: Path) -> None:
    data = tmp_path / "a<b>.jsonl"
    rows = [{"text": f"text {i}", "label": i % 2, "lang": "en-GB"} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "text": ""}]))
    summary = ssf.describe_data(data)
    page = Page(summary._repr_html_())
    assert not {"script"} & set(page.tags)
    for word in ("12 texts", "en-GB", "a<b>", "rows left out", *summary.left_out, *summary.notes):
        assert word in page.text


def test_a_verification_shows_the_worst_first() -> None:
    good, bad = ("embed", "mean", 1e-8, 2e-7, "supported"), ("block.0", "last", 0.5, 2e-7, "wrong")
    cells = (CellCheck(*good), CellCheck("x", "mean", None, None, "unchecked"), CellCheck(*bad))
    page = Page(Verification("<i>", 32, "none", "float32", "float64", (), cells)._repr_html_())
    assert "i" not in page.tags
    assert "Verification of <i>: wrong" in page.text
    shown = page.text.partition("3 hookpoints and poolings")[2]
    assert shown.index("block.0") < shown.index("unchecked") < shown.index("embed")
    assert "5.0e-01" in shown


def test_a_bench_shows_how_many_times_as_fast() -> None:
    result = Bench("<i>", "cpu", "float32", "none", 128, 4096, 8.0, 2.0, None, 1000, 40_960)
    page = Page(result._repr_html_())
    assert "i" not in page.tags
    for word in ("Bench of <i>: 4.0 times as fast", "4,096", "8.00 s", "2.00 s", "20 s"):
        assert word in page.text


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
