"""Figures: their numbers are those of the tables, their files are what was asked."""

import io
import json
import re
import sys
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny_models
import torch

import safetyspace_fast as ssf
from safetyspace_fast.analysis.metric import MetricName
from safetyspace_fast.cli import main
from safetyspace_fast.errors import ConfigError, SafetySpaceError
from safetyspace_fast.report import figures, fonts, theme
from safetyspace_fast.report.plot import save
from safetyspace_fast.report.results import METRICS, Results

RTL, LONG, SCRIPT = "عربي\u202eabc", "y" * 300, "<script>x</script>&\"'"


def texts(path: Path, langs: tuple[str, ...], number: int) -> Path:
    """As many texts of each language, half of them harmful."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for lang in langs:
            for i in range(number):
                words = ["fine", "tea", "dog"] if i % 2 else ["bad", "hate", "fox"]
                drawn = rng.choice([*words, *words, "the"], 6 + i % 5)
                text = " ".join([*drawn, f"{i} {lang[:9]}"])
                row = {"text": text, "label": 1 - i % 2, "lang": lang}
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A tiny model, one with other weights in its last block, and an untrained control."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_models.save_tiny("llama", folder / "base")
    model = tiny_models.tiny_model("llama")
    with torch.no_grad():
        for weight in model.model.layers[-1].parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder / "tuned")
    tiny_models.tiny_tokenizer().save_pretrained(folder / "tuned")
    return f"base={base}", f"aligned={folder / 'tuned'}", f"control=random:{base}"


@pytest.fixture(scope="module")
def run(models: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> ssf.Run:
    folder = tmp_path_factory.mktemp("run")
    data = texts(folder / "texts.jsonl", ("en", "de", "ar"), 40)
    return ssf.run(models=models, data=data, out=folder / "a.zarr", proj_dim=16)


@pytest.fixture(scope="module")
def results(run: ssf.Run) -> Results:
    return Results(run)


def printed(command: str, run: ssf.Run, capsys: pytest.CaptureFixture[str], *more: str) -> list:
    capsys.readouterr()
    assert main([command, str(run.path), "--format", "json", *more]) == 0
    rows: list = json.loads(capsys.readouterr().out)["rows"]
    return rows


def same(shown: object, exact: object) -> bool:
    if shown is None or exact is None:
        return shown is exact
    return bool(shown == pytest.approx(exact, rel=1e-4))


def test_values_are_those_of_separation(
    run: ssf.Run, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [word for name in METRICS for word in ("--metric", name)]
    table = {
        (row["metric"], row["model"], row["layer"], row["pooling"], row["lang"]): row
        for row in printed("separation", run, capsys, *asked)
    }
    checked = 0
    for name in ("layers", "heatmap", "forest"):
        for row in figures.figure(name).rows(results):
            if row.get("panel", "value") != "value":
                continue
            place = (row["metric"], row["model"], row["layer"], row["pooling"], row["lang"])
            entry = table[place]
            floor = entry["floor"] if row["lang"] not in ("high", "low") else None
            assert all(same(row[key], entry[key]) for key in ("value", "low", "high"))
            assert same(row.get("floor"), floor)
            checked += 1
    assert checked == 2 * 3 * 3 * 5 + 3 * 5


def test_differences_are_those_of_compare(
    run: ssf.Run, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results.pairs == (("base", "aligned"),)
    asked = [word for name in METRICS for word in ("--metric", name)]
    table = {
        (row["layer"], row["lang"]): row
        for row in printed("compare", run, capsys, *asked, "--base", "base", "--aligned", "aligned")
        if (row["metric"], row["pooling"]) == (results.metric.name, results.pooling)
    }
    for name in ("heatmap", "forest"):
        rows = [row for row in figures.figure(name).rows(results) if row["panel"] == "difference"]
        assert rows
        for row in rows:
            entry = table[row["layer"], row["lang"]]
            assert row["model"] == "aligned - base"
            assert same(row["value"], entry["difference"])
            assert same(row["low"], entry["low"])
            assert same(row["high"], entry["high"])


def test_turns_of_the_direction_are_those_of_compare(
    run: ssf.Run, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--metric", "auc_direction", "--base", "base", "--aligned", "aligned")
    table = {
        (row["metric"], row["pooling"], row["layer"], row["lang"]): row["value"]
        for row in printed("compare", run, capsys, *asked)
    }
    rows = figures.figure("directions").rows(results)
    assert len(rows) == 5 * 3
    for row in rows:
        assert row["pair"] == "base → aligned"
        for end in ("cosine", "low", "high", "reliability"):
            key = f"direction_{end}"
            assert same(row[key], table[key, row["pooling"], row["layer"], row["lang"]])
    assert any(row["direction_cosine"] is not None for row in rows)
    alone = Results(run, models="base")
    with pytest.raises(figures.NothingToShowError, match="no two models"):
        figures.figure("directions").rows(alone)


def test_a_language_without_a_number_has_no_panel(results: Results) -> None:
    rows = figures.figure("layers").rows(results)
    known = [row | {"value": None} if row["lang"] == "de" else row for row in rows]
    root = ElementTree.fromstring(svg_of("layers", known))
    shown = {"".join(node.itertext()) for node in root.iter() if node.tag.endswith("}text")}
    assert {"en", "ar"} <= shown
    assert "de" not in shown


@pytest.mark.parametrize("name", ["forest", "heatmap"])
def test_a_pair_without_a_number_has_no_panel(name: str, results: Results) -> None:
    rows = figures.figure(name).rows(results)
    known = [row | {"value": None} if row["panel"] == "difference" else row for row in rows]
    before, after = (
        len(figures.figure(name).chart(some, width=640).to_dict()["vconcat"])
        for some in (rows, known)
    )
    assert after == before - 1


def test_matrices_are_those_of_languages(
    run: ssf.Run, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {
        (row["model"], row["lang"], row["other_lang"]): row
        for row in printed("languages", run, capsys, "--layers=-1", "--poolings", results.pooling)
    }
    rows = figures.figure("transfer").rows(results)
    assert len(rows) == 3 * 3 * 3
    for row in rows:
        entry = table[row["model"], row["lang"], row["other_lang"]]
        assert same(row["value"], entry["transfer_auc"])


def test_controls_have_the_baselines_and_the_untrained_model(results: Results) -> None:
    rows = figures.figure("controls").rows(results)
    sources = {row["source"] for row in rows if row["panel"] == "AUC"}
    assert sources == {"base", "aligned", "control (untrained)", "length", "characters"}
    lengths = results.separation["auc_length"].sel(model="base")
    for row in rows:
        if row["source"] == "length":
            assert same(row["value"], float(lengths.sel(lang=row["lang"])))


def test_showing_another_metric_or_pooling_computes_nothing(results: Results) -> None:
    figures.figure("forest").rows(results)
    before = len(results._computed)
    other = results.showing(metric="rho_adjusted", pooling="last", layer="block.1")
    rows = figures.figure("forest").rows(other)
    assert {row["metric"] for row in rows} == {"rho_adjusted"}
    assert {(row["pooling"], row["layer"]) for row in rows} == {("last", "block.1")}
    assert len(results._computed) == before
    for wrong in ({"metric": "dunn"}, {"pooling": "men"}, {"layer": "block.77"}):
        with pytest.raises(ConfigError, match=r"has|choose from"):
            results.showing(**wrong)


@pytest.mark.parametrize(
    "name",
    [name for name in figures.names() if name != "cosines"],  # these models have no direction
)
def test_a_figure_is_a_valid_svg_of_the_asked_width_with_labels(
    name: str, results: Results, tmp_path: Path
) -> None:
    file = tmp_path / "figure.svg"
    save(results, name, file, width="120")
    root = ElementTree.fromstring(file.read_text("utf-8"))
    assert float(root.attrib["width"]) / 96 * 25.4 == pytest.approx(120, abs=0.01)
    _, _, wide, high = map(float, root.attrib["viewBox"].split())
    assert wide / high == pytest.approx(
        float(root.attrib["width"]) / float(root.attrib["height"]), rel=1e-3
    )
    assert 1 <= wide / float(root.attrib["width"]) < 1.1  # fonts are hardly scaled
    assert root.attrib["aria-label"].startswith(figures.figure(name).TITLE)
    assert root[0].tag.endswith("}title")  # where screen readers look for it
    assert "aria-label" in file.read_text("utf-8").partition("<title>")[2]


def test_cosines_have_the_ceiling_on_the_diagonal(results: Results) -> None:
    rows = figures.figure("cosines").rows(results)
    assert len(rows) == 3 * 3 * 3
    for row in rows:
        if row["lang"] == row["other_lang"]:
            assert (row["value"], row["low"]) == (row["ceiling"], None)
            assert 0.65 <= row["value"] < 1
        else:
            assert row["low"] <= row["value"] <= row["high"]


def test_a_pdf_has_its_fonts_and_is_as_wide_as_a_column(
    run: ssf.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figure.pdf"
    assert main(["plot", str(run.path), "--figure", "layers", "-o", str(file)]) == 0
    assert capsys.readouterr().out == f"figure: {file}\n"
    content = file.read_bytes()
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ", content)
    assert box is not None
    assert float(box[1]) / 72 * 25.4 == pytest.approx(85, abs=0.01)
    assert re.search(rb"/FontFile[23]?", content)


def test_an_svg_has_the_letters_that_it_uses(results: Results, tmp_path: Path) -> None:
    from fontTools.ttLib import TTFont

    file = tmp_path / "figure.svg"
    save(results, "layers", file)
    svg = file.read_text("utf-8")
    face = re.compile(
        r'@font-face{font-family:"Liberation Sans";font-weight:(\w+);'
        r"src:url\(data:font/woff;base64,([^)]+)\)}"
    )
    embedded = {weight: TTFont(io.BytesIO(b64decode(data))) for weight, data in face.findall(svg)}
    used: dict[str, set[str]] = {}
    for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        assert node.attrib["font-family"].startswith("Liberation Sans,")
        used.setdefault(node.get("font-weight", "normal"), set()).update("".join(node.itertext()))
    assert set(embedded) == set(used) == {"normal", "bold"}
    for weight, font in embedded.items():
        assert {chr(code) for code in font.getBestCmap()} - {"\xa0"} == used[weight]
    assert len(svg) - len(face.sub("", svg)) < 20_000


def test_letters_that_the_font_lacks_are_left_to_other_fonts() -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><text>{}</text></svg>'
    assert fonts.style(svg.format("a")) == fonts.style(svg.format("a中अ"))
    assert fonts.style(svg.format("")) == "<style></style>"


def test_a_png_has_300_dots_an_inch(results: Results, tmp_path: Path) -> None:
    file = tmp_path / "figure.png"
    save(results, "forest", file, width="page")
    assert abs(int.from_bytes(file.read_bytes()[16:20]) - 170 / 25.4 * 300) <= 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--figure", "layer", "-o", "x.svg"], "did you mean 'layers'"),
        (["--figure", "layers", "-o", "x.gif"], r"expected a name that ends with .svg"),
        (["--figure", "layers", "-o", "x.svg", "--width", "5"], "column, page, or millimetres"),
        (["--figure", "layers", "-o", "x.svg", "--metric", "rho_adjustd"], "did you mean"),
        (["--figure", "layers", "-o", "x.svg", "--languages", "xx"], "no language 'xx'"),
        (["--figure", "forest", "-o", "x.svg", "--base", "base"], "belong together"),
        (
            ["--figure", "forest", "-o", "x.svg", "--base", "base", "--aligned", "no"],
            "no 'no' in the store",
        ),
        (["--figure", "layers", "-o", "no/folder/x.svg"], "its folder does not exist"),
        (["--figure", "transfer", "-o", "x.svg", "--languages", "en"], "two languages"),
    ],
)
def test_what_is_wrong_is_one_line(
    options: list[str],
    words: str,
    run: ssf.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plot", str(run.path), *options]) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("safetyspace-fast: ")]
    assert len(lines) == 1
    assert re.search(words, lines[0])
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(run: ssf.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(SafetySpaceError, match=r"altair is missing; pip install 'safetyspace-fast"):
        run.plot.layers()


def test_a_store_without_a_complete_model_has_nothing_to_show() -> None:
    with pytest.raises(ConfigError, match="no model is complete"):
        Results(SimpleNamespace(models=(), place="a.zarr"))


def test_one_text_a_class_gives_the_reason(models: tuple[str, ...], tmp_path: Path) -> None:
    data = texts(tmp_path / "two.jsonl", ("en",), 2)
    out = tmp_path / "two.zarr"
    results = Results(ssf.run(models=models[0], data=data, out=out, proj_dim=16))
    for name in ("layers", "forest", "heatmap"):
        with pytest.raises(figures.NothingToShowError, match=r"no .* has a number.*: .*texts"):
            figures.figure(name).rows(results)


def enlarged(rows: list, key: str, names: list[str]) -> list:
    """The rows of the first name of a column, for each of these names."""
    first = [row for row in rows if row[key] == rows[0][key]]
    return [row | {key: name} for name in names for row in first]


def svg_of(name: str, rows: list, width: int = 321) -> str:
    import vl_convert

    spec = figures.figure(name).chart(rows, width=width).to_dict()
    return str(vl_convert.vegalite_to_svg(spec, config=theme.config()))


@pytest.mark.parametrize("name", ["layers", "heatmap", "forest"])
def test_names_may_be_anything(name: str, results: Results) -> None:
    langs = [RTL, LONG, SCRIPT]
    rows = enlarged(figures.figure(name).rows(results), "lang", langs)
    rows = [row | {"model": LONG if row["model"] == "base" else row["model"]} for row in rows]
    root = ElementTree.fromstring(svg_of(name, rows))
    assert not [node for node in root.iter() if node.tag.endswith("script")]
    shown = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("}text")]
    assert SCRIPT in shown
    assert any(text.endswith("…") and text.startswith("yyy") for text in shown)
    assert float(root.attrib["width"]) < 1.6 * 321


@pytest.mark.parametrize("name", ["layers", "heatmap"])
def test_200_layers_and_60_languages_stay_readable(name: str, results: Results) -> None:
    layers = ["embed", *(f"block.{i}" for i in range(198)), "final_norm"]
    langs = [f"l{i}" for i in range(60)]
    rows = [row for row in figures.figure(name).rows(results) if row["model"] == "base"]
    deep = [row for row in rows if row["lang"] == "en"]
    for many in (enlarged(deep, "layer", layers), enlarged(rows, "lang", langs)):
        root = ElementTree.fromstring(svg_of(name, many, width=640))
        shown = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("}text")]
        assert {str(row["lang"]) for row in many} <= set(shown)
        assert 3 <= len({text for text in shown if text.isdigit()}) <= 40
        assert float(root.attrib["width"]) < 760


def test_a_new_figure_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text('NAME = "mine"\nTITLE = "Mine"\nABOUT = ""\n', "utf-8")
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(tmp_path)])
    assert figures.names()[-1] == "mine"
    assert figures.figure("mine").TITLE == "Mine"


def test_a_notebook_gets_charts_that_can_be_changed(run: ssf.Run) -> None:
    metric: MetricName = "rho_adjusted"
    chart = run.plot.forest(metric=metric, layer="block.1", languages="en,de", width=300)
    assert chart.properties(title="Mine").to_dict()["title"] == "Mine"
    assert "layers" in dir(run.plot)
    with pytest.raises(AttributeError, match="no figure 'lyers'; there are forest"):
        run.plot.lyers  # noqa: B018 - asking for it is the test


@pytest.mark.parametrize("name", figures.names())
def test_rows_are_in_a_chart_once_and_it_is_valid(name: str, results: Results) -> None:
    module = figures.figure(name)
    rows = module.rows(results)
    spec = module.chart(rows, width=640).to_dict()  # Altair checks it
    assert spec["data"]["values"] == rows
    assert len(json.dumps(spec | {"data": None})) < 20_000


def test_a_new_figure_file_needs_what_figures_have() -> None:
    for name in figures.names():
        module = figures.figure(name)
        assert name == module.NAME
        assert module.TITLE
        assert module.ABOUT
