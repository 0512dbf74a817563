"""Markdown and LaTeX tables: the cells of the text table come back, whatever names hold."""

import re
import shutil
import subprocess
from itertools import pairwise

import numpy as np
import pytest
import xarray
from oracle import planted, stand_in

from safetyspace_fast.analysis import (
    compare,
    curve,
    directions,
    parallel,
    power,
    sensitivity,
    separation,
    tables,
    transfer,
)
from safetyspace_fast.analysis.columns import Table, Tables
from safetyspace_fast.analysis.markup import latex, markdown, to_latex, to_markdown

HOSTILE = [
    "*a*|b",
    "[c](d)",
    r"\input{x} $e$ _f_ & <script> # % ~ ^ {g}",
    "`h`",
    "שלום\u202eabc",
    "-1.5",
    'a "quote"',
    "x--y---z",
    "naïve Größe, ñ",
]
LATEX = shutil.which("pdflatex")
PACKAGES = ["kpsewhich", "booktabs.sty", "adjustbox.sty"]
COMPILES = LATEX is not None and not subprocess.run(PACKAGES, capture_output=True).returncode


def table(**changes):
    fields = {
        "title": "m_1 | pooling mean",
        "leading": [["lang", "", *HOSTILE]],
        "columns": [["auc", "full", *(f"~0.{i} [-0.1, 0.2]*" for i in range(len(HOSTILE)))]],
        "heads": 2,
        "notes": ["(a) refused: why_not"],
    }
    return Tables([Table(**fields | changes)], ["~: consistent with chance."], (), ["Run with x."])


def cells_of_markdown(text):
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    split = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in split]


def cells_of_latex(text):
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip()
    return [re.split(r"(?<!\\)&", row.removesuffix(r"\\")) for row in body.splitlines()]


def test_markdown_cells_are_those_of_the_table():
    head, rule, *rows = cells_of_markdown(to_markdown(table()))
    assert head == ["lang", "auc (full)"]
    assert rule == ["---", "---:"]
    names = [name.replace("&", "&amp;").replace("\u202e", " ") for name in HOSTILE]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == table().tables[0].columns[0][2:]


def test_markdown_has_no_markup_of_names():
    text = markdown(" ".join(HOSTILE))
    assert not re.search(r"(?<!\\)[*_`<>|\[\]$~#]", text)


def test_latex_rows_have_all_cells_and_no_command_of_a_name():
    text = to_latex(table())
    rows = cells_of_latex(text)
    assert len(rows) == len(HOSTILE)
    assert all(len(row) == 2 for row in rows)
    bare = re.sub(
        r"\\(textbackslash|text\w+)\{\}|\\`\{\}|\\[{}$&#%_]|\$(-|\\sim)\$",
        "",
        " ".join(cell for row in rows for cell in row),
    )
    assert not re.search(r"[\\$&#%_~^<>|`]", bare)
    for before, after in pairwise(text.splitlines()):
        assert not (before.endswith(r"\\") and after.startswith(("*", "[")))


def test_latex_numbers_have_a_minus_and_words_a_hyphen():
    assert latex("-0.5 [-1e-05, 2] en-US high - low") == ("$-$0.5 [$-$1e-05, 2] en-US high - low")


@pytest.mark.parametrize("write", [to_markdown, to_latex])
def test_intervals_and_marks_are_explained(write):
    text = re.sub(r"\$\\sim\$|\\~", "~", write(table())).replace("\\", "")
    for words in ("~: consistent with chance.", "(a) refused: why_not", "Run with x."):
        assert words in text


def test_a_wide_table_is_several_in_latex_and_one_in_markdown():
    columns = [[f"metric{i}", "full", *["0.123 [0.100, 0.200]"] * len(HOSTILE)] for i in range(9)]
    wide = table(columns=columns)
    assert to_latex(wide).count(r"\begin{table}") > 1
    assert to_latex(wide).count(r"\begin{tabular}") == to_latex(wide).count(r"\end{tabular}")
    assert to_markdown(wide).count("| --- |") == 1


def results(base, aligned, langs):
    """What each command that prints tables gives, for models and languages of these names."""
    x, label = planted(n=120, width=8, shift=1.0, layers=2)
    both = {base: dict.fromkeys(langs, x), aligned: dict.fromkeys(langs, x) | {langs[0]: x * 1.5}}
    run = stand_in(both, dict.fromkeys(langs, label))
    few = {"metrics": ["auc_direction", "rho"], "permutations": 39, "layers": "-1"}
    compared = compare(run, base=base, aligned=aligned, **few)
    yield separation(run, **few)
    yield compared
    yield xarray.merge([directions(run), parallel(run)])
    yield power(run, metrics="rho", difference=0.1)
    yield curve(run, draws=2, layers="-1")
    yield sensitivity(compared)
    other = stand_in({base: {langs[0]: x + 0.01}}, {langs[0]: label})
    other.place, other.samples.text_sha256[:] = "other", 255 - other.samples.text_sha256
    direction = np.diff(run.model(base).read("class_mean")[:, :, 0], axis=2)[:, :, 0]
    score = np.einsum("lpnd,lpd->lpn", x, direction)[..., None]
    other.model(base).add("basis_score", score, ("layer", "pooling", "sample", "a"))
    other.model(base).attrs["bases"] = [run.model(base).identity]
    yield transfer(run, other)


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_results_have_the_numbers_of_the_text_table(form, capsys):
    for dataset in results("base", "aligned", ["en", "de"]):
        texts = []
        for name in ("table", form):
            tables.write(dataset, name)
            printed = capsys.readouterr().out.replace("$-$", "-")
            texts.append(re.sub(r"(?m)^\\begin.*", "", printed))
        numbers = [re.findall(r"\d+(?:\.\d+)?", text) for text in texts]
        assert set(numbers[0]) == set(numbers[1]) != set()


@pytest.mark.skipif(not COMPILES, reason="needs LaTeX: apt-get install texlive-latex-recommended")
def test_every_table_compiles_whatever_names_hold(tmp_path):
    names = [name for name in HOSTILE if name.isascii() or "ï" in name]
    tall = [["metric", *(f"m{i}" for i in range(150))]]
    bodies = [
        to_latex(table(leading=[["lang", "", *names]], columns=[["a", "b", *names]])),
        to_latex(Tables([Table("w " * 45, tall, [["x" * 95, *"y" * 150]])] * 60, [])),
        *(to_latex(tables.tables_of(found)) for found in results(names[0], names[2], names[3:6])),
    ]
    article = r"""\documentclass{article}
%s
\begin{document}
%s
\end{document}
"""
    packages = re.match(r"% (.*)", bodies[0])[1]
    (tmp_path / "a.tex").write_text(article % (packages, "\n".join(bodies)), encoding="utf-8")
    command = [LATEX, "-halt-on-error", "-interaction=nonstopmode", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    log = (tmp_path / "a.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "Missing character" not in log
    assert "Float too large" not in log
    assert not re.findall(r"Overfull \\hbox.* in paragraph at", log)
    assert ".pk>" not in log  # letters as pixels


def test_latex_has_no_letter_that_babel_or_an_old_encoding_takes_for_a_command():
    assert latex('a "quote"') == "a ''quote''"
