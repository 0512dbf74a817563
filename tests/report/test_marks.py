"""A number has one mark, whether a table, a figure or the page shows it."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import vl_convert
from browser import Browser
from test_page import choose, rows_of, save_pair, write_texts

import safetyspace_fast as ssf
from safetyspace_fast.analysis.marks import MEANINGS
from safetyspace_fast.analysis.tables import tables_of
from safetyspace_fast.cli import main
from safetyspace_fast.report import figures, theme
from safetyspace_fast.report.results import Results

LANGUAGES = ("en", "de", "ar")
METRICS = ("silhouette_pc2", "silhouette_cosine")
"""Of which one asks for means and has components, and the other asks for any difference."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marks")
    write_texts(folder / "texts.jsonl", LANGUAGES)
    base, aligned = save_pair(folder)
    models = (f"base={base}", f"aligned={aligned}")
    out = folder / "pair.zarr"
    ssf.run(models=models, data=folder / "texts.jsonl", out=out, proj_dim=16)
    return out


def printed(store: Path) -> dict[tuple[str, ...], str]:
    """Marks of the tables of `separation` and `compare`, mean pooling: by metric, model, .."""
    run = ssf.open_run(store)
    results = {
        None: ssf.separation(run, metrics=METRICS),
        "aligned - base": ssf.compare(run, base="base", aligned="aligned", metrics=METRICS),
    }
    found = {}
    for pair, dataset in results.items():
        for layer in map(str, dataset["layer"].to_numpy()):
            shown = tables_of(dataset.sel(layer=[layer], pooling=["mean"]))
            for table in shown.tables:
                if not table.title.endswith(f"pooling mean | layer {layer}"):
                    continue
                model = pair or table.title.partition(" | ")[0]
                for metric, _, *entries in table.columns:
                    for lang, entry in zip(table.leading[0][2:], entries, strict=True):
                        mark = "".join(letter for letter in entry if letter in MEANINGS)
                        found[metric, model, layer, lang.partition(" ")[0]] = mark
    return {key: mark for key, mark in found.items() if key[-1] in LANGUAGES}


def test_marks_of_the_page_are_those_of_the_tables(
    store: Path, window: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    asked = [word for name in METRICS for word in ("--metric", name)]
    assert main(["report", str(store), *asked, "-o", str(page)]) == 0
    window.open(page)
    shown = {}
    for metric in METRICS:
        for figure in ("heatmap", "layers", "forest"):
            choose(window, figure, "Metric", metric)
            for row in rows_of(window, figure):
                if row["lang"] in LANGUAGES:
                    shown[metric, row["model"], row["layer"], row["lang"]] = row["mark"]
            caption = window.js(f"document.querySelector('#{figure} figcaption').textContent")
            if figure == "heatmap":
                there = set("".join(mark for key, mark in shown.items() if key[0] == metric))
                assert {mark for mark in there if MEANINGS[mark] not in caption} == set()
    assert shown == printed(store)
    assert set("".join(shown.values())) == set(MEANINGS)


def test_every_mark_is_drawn(store: Path) -> None:
    results = Results(ssf.open_run(store), metrics=METRICS)
    first, *_ = figures.figure("heatmap").rows(results)
    rows = [first | {"layer": f"block.{i}", "mark": mark} for i, mark in enumerate(MEANINGS)]
    spec = figures.figure("heatmap").chart(rows, width=640).to_dict()
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(spec, config=theme.config()))
    drawn = [
        node
        for node in root.iter("{http://www.w3.org/2000/svg}path")
        if node.get("stroke-width") == "0.7"
    ]
    assert len({node.get("d") for node in drawn}) == 3
    letters = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert (letters.count("?"), letters.count("^")) == (2, 2)  # black below white
    rows = [row for row in figures.figure("forest").rows(results) if row["panel"] == "difference"]
    rows = [row | {"mark": mark} for row, mark in zip(rows, MEANINGS, strict=False)]
    spec = figures.figure("forest").chart(rows, width=640).to_dict()
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(spec, config=theme.config()))
    letters = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {row["mark"] for row in rows} <= set(letters)


@pytest.mark.parametrize(("permutations", "said"), [(18, False), (19, True)])
def test_too_few_resamples_mark_nothing(store: Path, permutations: int, said: bool) -> None:
    results = Results(ssf.open_run(store), metrics=METRICS)
    coarse = ssf.separation(ssf.open_run(store), metrics=METRICS, permutations=permutations)
    results._computed["separation"] = coarse
    rows = [x for x in figures.figure("heatmap").rows(results) if x["panel"] == "value"]
    assert any(row["mark"] for row in rows) is said
    legend = " ".join(tables_of(coarse).legend)
    assert (MEANINGS["?"] in legend) is said
