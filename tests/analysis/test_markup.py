"""Markdown and LaTeX tables: the cells of the text table come back, whatever names hold."""

import re
from itertools import pairwise

import pytest
import xarray
from oracle import planted, stand_in

from safetyspace_fast.analysis import compare, directions, parallel, separation, tables
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
]


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
        r"\\(textbackslash|text\w+)\{\}|\\[{}$&#%_]|\$-\$",
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
    text = re.sub(r"\\textasciitilde\{\}|\\~", "~", write(table())).replace("\\", "")
    for words in ("~: consistent with chance.", "(a) refused: why_not", "Run with x."):
        assert words in text


def test_a_wide_table_is_several_in_latex_and_one_in_markdown():
    columns = [[f"metric{i}", "full", *["0.123 [0.100, 0.200]"] * len(HOSTILE)] for i in range(9)]
    wide = table(columns=columns)
    assert to_latex(wide).count(r"\begin{table}") > 1
    assert to_latex(wide).count(r"\begin{tabular}") == to_latex(wide).count(r"\end{tabular}")
    assert to_markdown(wide).count("| --- |") == 1


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_results_have_the_numbers_of_the_text_table(form, capsys):
    x, label = planted(n=120, width=8, shift=1.0, layers=2)
    both = {"base": {"en": x, "de": x}, "aligned": {"en": x * 1.5, "de": x}}
    run = stand_in(both, {"en": label, "de": label})
    few = {"metrics": ["auc_direction", "rho"], "permutations": 39, "layers": "-1"}
    found = [
        separation(run, **few),
        compare(run, base="base", aligned="aligned", **few),
        xarray.merge([directions(run), parallel(run)]),
    ]
    for dataset in found:
        texts = []
        for name in ("table", form):
            tables.write(dataset, name)
            texts.append(capsys.readouterr().out.replace("$-$", "-"))
        numbers = [re.findall(r"\d\.\d+", text) for text in texts]
        assert sorted(numbers[0]) == sorted(numbers[1]) != []


def test_latex_has_no_letter_that_babel_or_an_old_encoding_takes_for_a_command():
    assert latex('a "quote"') == "a ''quote''"
