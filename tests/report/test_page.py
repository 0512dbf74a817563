"""The page as people use it: in a browser, from disk, with mouse, keyboard, phone and printer."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from browser import Browser

import safetyspace_fast as ssf
from safetyspace_fast.cli import main

AXE = Path(__file__).parents[2] / ".cache" / "axe.min.js"
RTL, LONG = "عربي\u202eabc", "x" * 300
HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=2">'


def write_texts(path: Path, languages: tuple[str, ...], number: int = 24) -> None:
    """As many texts of each language, half of them harmful, of words that differ."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for lang in languages:
            for i in range(number):
                words = ["fine", "tea", "dog"] if i % 2 else ["bad", "hate", "fox"]
                text = " ".join([*rng.choice([*words, "the", "and"], 3 + i % 5), f"{i} {lang}"])
                file.write(json.dumps({"text": text, "label": 1 - i % 2, "lang": lang}) + "\n")


def save_pair(folder: Path) -> tuple[Path, Path]:
    """A tiny model, and the same with other weights in its last block."""
    base = tiny_models.save_tiny("llama", folder / "base")
    model = tiny_models.tiny_model("llama")
    with torch.no_grad():
        for weight in model.model.layers[-1].parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder / "aligned")
    tiny_models.tiny_tokenizer().save_pretrained(folder / "aligned")
    return base, folder / "aligned"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    write_texts(folder / "texts.jsonl", ("en", "de", "ar"))
    base, aligned = save_pair(folder)
    out = folder / "pair.zarr"
    models = (f"base={base}", f"aligned={aligned}")
    ssf.run(models=models, data=folder / "texts.jsonl", out=out, proj_dim=16)
    return out


@pytest.fixture(scope="module")
def page(store: Path, folder: Path) -> Path:
    path = folder / "page.html"
    assert main(["report", str(store), "-o", str(path)]) == 0
    return path


@pytest.fixture
def opened(window: Browser, page: Path) -> Browser:
    window.open(page)
    return window


def rows_of(browser: Browser, figure: str) -> list[dict[str, str]]:
    """Open the table of a figure, and read it back."""
    browser.js(f"document.querySelector('#{figure} details').open = true")
    browser.until(f"!!document.querySelector('#{figure} tbody')")
    cells = f"""(() => {{
        const table = document.querySelector('#{figure} details table');
        const texts = (row) => [...row.cells].map((cell) => cell.textContent);
        return [...table.rows].map(texts);
    }})()"""
    head, *rows = browser.js(cells)
    return [dict(zip(head, row, strict=True)) for row in rows]


def choose(browser: Browser, figure: str, title: str, value: Any) -> None:
    """Set a control of a figure, and wait until it is drawn again."""
    drawn = f"Number(document.getElementById('{figure}').dataset.drawn)"
    before = browser.js(drawn)
    browser.js(f"""(() => {{
        const labels = [...document.querySelectorAll('#{figure} .controls label')];
        const label = labels.find((one) => one.textContent.startsWith('{title}'));
        const input = label.querySelector('select, input');
        const options = [...(input.options || [])];
        const option = options.find((one) => one.textContent === {json.dumps(value)});
        input.value = option ? option.value : {json.dumps(value)};
        input.dispatchEvent(new Event('input'));
    }})()""")
    browser.until(f"{drawn} > {before}")


def test_the_page_opens_without_a_message_or_a_request(opened: Browser, page: Path) -> None:
    assert opened.messages == []
    assert opened.requests == [page.resolve().as_uri()]
    drawn = opened.js("document.querySelectorAll('section[data-figure] .chart svg').length")
    assert drawn >= 8


def test_the_policy_allows_no_source_but_the_page_itself(opened: Browser, page: Path) -> None:
    policy = opened.js("document.querySelector('meta[http-equiv]').content")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    text = page.read_text("utf-8")
    assert not re.search(r"<[^>]+ (src|href)=[\"']?(https?:)?//", text)
    refused = opened.js(
        "(() => { const one = document.createElement('script'); one.textContent = 'window.ran = 1';"
        "document.body.append(one); return window.ran; })()"
    )
    assert refused is None


def test_figures_show_the_numbers_of_the_tables_that_are_printed(
    opened: Browser, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["separation", str(store), "--metric", "auc_direction", "--metric", "rho_adjusted",
          "--json"])  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    rows = rows_of(opened, "layers")
    assert len(rows) == 2 * 3 * len(ssf.open_run(store).model("base").hookpoints)
    known = {
        (cell["model"], cell["layer"], cell["lang"]): cell
        for cell in printed["rows"]
        if cell["metric"] == "auc_direction" and cell["pooling"] == "mean"
    }
    for row in rows:
        cell = known[row["model"], row["layer"], row["lang"]]
        for name in ("value", "low", "high", "floor", "p"):
            assert float(row[name]) == pytest.approx(cell[name], rel=1e-4), (row, name)


def test_a_metric_is_chosen_and_the_table_follows(opened: Browser) -> None:
    first = rows_of(opened, "layers")
    choose(opened, "layers", "Metric", "rho_adjusted")
    second = rows_of(opened, "layers")
    assert {row["metric"] for row in second} == {"rho_adjusted"}
    assert [row["value"] for row in first] != [row["value"] for row in second]


def test_the_slider_shows_the_texts_of_another_layer(opened: Browser) -> None:
    marks = (
        "[...document.querySelectorAll('#scatter .chart:first-child .mark-symbol.role-mark path')]"
        ".map((one) => one.getAttribute('transform'))"
    )
    before = opened.js(marks)
    assert len(before) == 24
    choose(opened, "scatter", "Layer", 0)
    assert opened.js(marks) != before
    label = opened.js("document.querySelector('#scatter .slider').textContent")
    assert label == "Layer: embed"
    rows = rows_of(opened, "scatter")
    assert {row["layer"] for row in rows} == {"embed"}
    assert len(rows) == 4  # two models, two labels


def test_marks_lie_where_the_store_has_the_texts(opened: Browser, store: Path) -> None:
    model = ssf.open_run(store).model("base")
    span = ssf.open_run(store).lang_range("en")
    stored = model.read("pca_coords", layer=len(model.hookpoints) - 1, pooling=0, samples=span)
    label = ssf.open_run(store).samples.label[span]
    for row in rows_of(opened, "scatter"):
        if row["model"] == "base":
            own = stored[label == (row["text"] == "harmful"), :2].mean(0)
            assert [float(row["mean 1"]), float(row["mean 2"])] == pytest.approx(own, rel=1e-3)


def test_of_two_choices_in_a_row_the_later_one_is_drawn(opened: Browser) -> None:
    drawn = opened.js("""(async () => {
        const section = document.getElementById('layers');
        const [select] = section.querySelectorAll('.controls select');
        const drawn = () => Number(section.dataset.drawn);
        const before = drawn();
        for (const value of ['1', '0', '1']) {
            select.value = value;
            select.dispatchEvent(new Event('input'));
        }
        await new Promise((resume) => setTimeout(resume, 1500));
        while (drawn() === before) await new Promise((resume) => setTimeout(resume, 50));
        return [drawn() - before, section.querySelectorAll('.chart svg').length];
    })()""")
    assert drawn == [1, 1]
    labels = opened.js("document.querySelector('#layers .chart').textContent")
    assert "rho_adjusted" in labels


def test_a_figure_that_cannot_be_drawn_says_so_and_the_others_are_drawn(
    window: Browser, page: Path, folder: Path
) -> None:
    broken = folder / "broken.html"
    text = page.read_text("utf-8")
    broken.write_text(re.sub(r'(id="data-forest">)[^<]{40}', r"\1", text), "utf-8")
    window.open(broken)
    caption = window.js("document.querySelector('#forest figcaption').textContent")
    assert caption.startswith("This browser cannot draw the figure")
    assert window.js("document.querySelectorAll('#layers .chart svg').length") == 1
    assert window.messages == []


def test_a_csv_has_all_rows_and_the_mark_that_spreadsheets_need(opened: Browser) -> None:
    rows = rows_of(opened, "layers")
    opened.js("URL.createObjectURL = (blob) => { window.saved = blob; return 'data:,'; }")
    opened.js("document.querySelector('#layers details .button').click()")
    text = opened.js(
        "window.saved.arrayBuffer().then((x) => "
        "new TextDecoder('utf-8', { ignoreBOM: true }).decode(x))"
    )
    assert text.startswith("\ufeff")
    written = list(csv.DictReader(text[1:].splitlines()))
    assert len(written) == 2 * 2 * len(rows)  # of both metrics and poolings
    assert [row["value"] for row in written[: len(rows)]] == [row["value"] for row in rows]


def test_pairs_are_guessed_or_named_and_the_page_says_which(
    opened: Browser, window: Browser, store: Path, folder: Path
) -> None:
    answer = "document.getElementById('answer').textContent"
    assert "is a guess: \u2068base\u2069 was run before \u2068aligned\u2069" in opened.js(answer)
    path = folder / "named.html"
    few = ["--layers=-1", "--languages", "en", "--metric", "auc_direction", "-o", str(path)]
    assert main(["report", str(store), "--base", "aligned", "--aligned", "base", *few]) == 0
    window.open(path)
    assert "\u2068aligned\u2069 → \u2068base\u2069" in window.js(answer)
    assert "was named by whoever made the page" in window.js(answer)
    assert "base - aligned" in {row["model"] for row in rows_of(window, "forest")}
    command = window.js("document.querySelector('#made pre').textContent")
    assert "--base aligned --aligned base" in command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--base", "base", "--aligned", "alined"], "did you mean 'aligned'"),
        (["--base", "base"], "belong together"),
        (["--base", "base", "--aligned", "base"], "both are 'base'"),
        (["--base", "a", "--base", "b", "--aligned", "base"], "got 2 and 1 names"),
    ],
)
def test_pairs_that_cannot_be_are_refused_in_one_line(
    options: list[str], words: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    assert main(["report", str(store), *options, "-o", str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert words in lines[-1]
    assert not path.exists()


def test_a_table_is_sorted_by_its_heads(opened: Browser) -> None:
    unsorted = [float(row["value"]) for row in rows_of(opened, "layers")]
    column = (
        "[...document.querySelectorAll('#layers th button')].find((x) => x.textContent === 'value')"
    )
    for order, reverse in (("ascending", False), ("descending", True)):
        opened.js(f"{column}.click()")
        values = [float(row["value"]) for row in rows_of(opened, "layers")]
        assert values == sorted(unsorted, reverse=reverse)
        assert opened.js(f"{column}.parentElement.getAttribute('aria-sort')") == order


def test_everything_is_reached_by_the_keyboard(opened: Browser) -> None:
    opened.js("document.querySelector('#layers details').open = true")
    opened.until("!!document.querySelector('#layers tbody')")
    wanted = opened.js(
        "[...document.querySelectorAll('a[href], button, select, input, summary')]"
        ".filter((one) => one.offsetParent !== null).length"
    )
    opened.js("window.seen = new Set(); document.body.tabIndex = -1; document.body.focus()")
    for _ in range(3 * wanted):
        opened.key("Tab")
        if opened.js(
            "window.seen.add(document.activeElement); document.activeElement === document.body"
        ):
            break
    missed = opened.js(
        "[...document.querySelectorAll('a[href], button, select, input, summary')]"
        ".filter((one) => one.offsetParent !== null && !window.seen.has(one))"
        ".map((one) => one.outerHTML.slice(0, 80))"
    )
    assert missed == []


def test_the_slider_moves_by_the_keyboard(opened: Browser) -> None:
    opened.js("document.querySelector('#scatter .slider input').focus()")
    before = opened.js("document.querySelector('#scatter .slider').textContent")
    opened.key("ArrowLeft")
    opened.until(f"document.querySelector('#scatter .slider').textContent !== {json.dumps(before)}")
    spoken = opened.js("document.querySelector('#scatter .slider input').ariaValueText")
    assert opened.js("document.querySelector('#scatter .slider').textContent") == f"Layer: {spoken}"


def test_a_column_is_defined_on_focus_and_escape_closes_it(opened: Browser) -> None:
    rows_of(opened, "layers")
    opened.js(
        "[...document.querySelectorAll('#layers th button')]"
        ".find((one) => one.textContent === 'p_family').focus()"
    )
    tip = opened.js("document.getElementById('tip').textContent")
    assert tip.startswith("p corrected over all numbers of the results")
    opened.key("Escape")
    assert opened.js("document.getElementById('tip').hidden")


def test_figures_tables_and_controls_have_names_when_they_are_read_aloud(opened: Browser) -> None:
    for figure in ("layers", "scatter"):
        rows_of(opened, figure)
    opened.js("document.querySelector('#layers th button').click()")
    nodes = [
        node
        for node in opened.call("Accessibility.getFullAXTree")["nodes"]
        if not node.get("ignored")
    ]
    names: dict[str, list[str]] = {}
    for node in nodes:
        name = node.get("name", {}).get("value", "")
        names.setdefault(node["role"]["value"], []).append(name)
    for role in ("figure", "table", "slider", "combobox", "button", "graphics-document"):
        assert names[role], role
        assert all(names[role]), (role, names[role])
    assert {"Table: Separation in every layer", "Table: Texts in two components"} <= {
        *names["table"]
    }
    for role in ("figure", "graphics-document"):
        assert "Separation in every layer" in names[role]
    panels = [name for name in names["graphics-document"] if "Texts in two" in name]
    assert panels == [f"Texts in two components: {model}" for model in ("base", "aligned")]
    heads = opened.js("[...document.querySelectorAll('#layers th button')].map(x => x.textContent)")
    assert {*heads} <= {*names["button"]}  # and not the arrow that shows the order
    assert opened.js("document.querySelectorAll('#layers th[aria-sort=ascending]').length") == 1


def test_a_phone_shows_all_without_scrolling_sideways(window: Browser, page: Path) -> None:
    window.open(page, width=360, height=740)
    assert window.js("document.documentElement.scrollWidth") == 360
    assert window.messages == []


def contrast(browser: Browser) -> float:
    """Between text and paper (WCAG)."""
    value: float = browser.js("""(() => {
        const shine = (color) => {
            const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
                const share = part / 255;
                return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const style = getComputedStyle(document.body);
        const chart = getComputedStyle(document.querySelector('.chart svg text'));
        const paper = shine(style.backgroundColor);
        const ratios = [style.color, chart.fill].map((color) => {
            const ink = shine(color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        });
        return Math.min(...ratios);
    })()""")
    return value


@pytest.mark.parametrize("dark", [False, True])
def test_text_of_page_and_charts_is_read_in_light_and_dark(
    window: Browser, page: Path, dark: bool
) -> None:
    window.open(page, dark=dark)
    assert contrast(window) > 7
    paper = window.js("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark


def test_print_is_black_on_white_with_all_figures(window: Browser, page: Path) -> None:
    window.open(page, dark=True)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    window.call("Emulation.setEmulatedMedia", media="print", features=features)
    assert contrast(window) > 20
    assert not window.js("[...document.querySelectorAll('.controls')].some((x) => x.offsetParent)")
    assert window.pdf().startswith(b"%PDF")


def test_print_fits_the_paper_and_breaks_between_small_parts(window: Browser, page: Path) -> None:
    wide, high = round(96 * (8.5 - 0.8)), round(96 * (11 - 0.8))  # US Letter without its margins
    window.open(page)
    window.call("Emulation.setEmulatedMedia", media="print")
    window.call(
        "Emulation.setDeviceMetricsOverride",
        width=wide, height=high, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    boxes = """
        .map((one) => [one.closest('section')?.id, one.getBoundingClientRect()])
        .map(([name, box]) => [name, box.width, box.height])"""
    whole = window.js(
        "[...document.querySelectorAll('body *')]"
        f".filter((one) => getComputedStyle(one).breakInside === 'avoid'){boxes}"
    )
    assert len(whole) > 10
    assert [part for part in whole if part[2] > high / 2] == []  # it would leave a page half empty
    drawn = window.js(f"[...document.querySelectorAll('.chart svg')]{boxes}")
    assert [part for part in drawn if part[1] > wide] == []
    assert sum(width for name, width, _ in drawn if name == "scatter") <= wide  # side by side


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (360, False)])
def test_axe_finds_nothing(window: Browser, page: Path, width: int, dark: bool) -> None:
    if not AXE.exists():
        if os.environ.get("CI"):
            pytest.fail("no axe-core: run `make browser`")
        pytest.skip("needs axe-core: run `make browser`")
    window.open(page, width=width, dark=dark)
    window.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    window.until(
        "[...document.querySelectorAll('details')].every((one) => one.querySelector('tbody'))"
    )
    window.js(f"{AXE.read_text('utf-8')}; 0")
    found = window.js(
        "axe.run().then((result) => result.violations.map("
        "(one) => [one.id, one.impact, one.nodes.map((node) => node.html.slice(0, 150))]))"
    )
    assert found == []
