"""Tables of metrics: a row for each language or layer, a column for each metric."""

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from .columns import (
    CHANCE,
    WIDTH,
    Style,
    Table,
    fixed,
    median,
    names_along,
    numbers_of,
    reason_marks,
    reasons_of,
)
from .glossary import LEAST_LANGUAGES
from .marks import ANY, LIKELY_CHANCE, SIGNIFICANT, marks

if TYPE_CHECKING:
    import xarray

DOMINANT = 0.5
"""Rows are marked where the largest dimension has a larger share, or the first component a larger
correlation with the length of texts."""
HEAVY = 0.1
"""Rows are marked where a hundredth of the texts holds a larger share of the variance."""
LIKE, WITHOUT = "like these", "without one"
"""Rows under `high - low`."""


def _members(dataset: "xarray.Dataset") -> list[int]:
    """How many languages each group has."""
    return [dataset.attrs[f"group_{name}"].count(",") + 1 for name in ("high", "low")]


def about_others(dataset: "xarray.Dataset") -> bool:
    """Whether there are numbers about languages like these."""
    return min(_members(dataset)) >= LEAST_LANGUAGES


def can_leave_out(dataset: "xarray.Dataset") -> bool:
    """Whether a group is left with a language without one of its own."""
    return max(_members(dataset)) > 1


ROW_MARKS = {
    "!": "one dimension holds more than half of the variance; see rho_standardized, or another "
    "pooling (`explain largest_share`)",
    "#": "the first principal component follows the number of tokens; see auc_equal_length, or "
    "another pooling (`explain pc1_tokens`)",
    "%": "1 % of the texts hold more than a tenth of the variance (heavy tails): intervals of "
    "frechet and tpr_at_1_fpr may cover less than 95 % (`explain tail_share`)",
}
"""Marks behind the name of a row, and what they say."""


def row_marks(view: "xarray.Dataset") -> list[str]:
    """The marks of each row, in any of the models of a view (.., row)."""

    def largest(*names: str) -> list[float]:
        columns = [view[name].to_numpy() for name in names]
        size = np.nan_to_num(np.abs(columns)).reshape(-1, columns[0].shape[-1]).max(0)
        return [float(x) for x in size]

    marks = {
        "!": (largest("largest_share"), DOMINANT),
        "#": (largest("pc1_tokens", "pc1_inverse_tokens"), DOMINANT),
        "%": (largest("tail_share"), HEAVY),
    }
    rows = range(len(marks["!"][0]))
    return [
        "".join(mark for mark, (sizes, most) in marks.items() if sizes[row] > most) for row in rows
    ]


def layer_tables(view: "xarray.Dataset", title: str) -> list[Table]:
    """All metrics of one layer, and how differences differ from those of the reference."""
    tables = [metric_table(view, "lang", title)]
    if reference := view.attrs.get("reference"):
        tables += _excess(view, f"{title} | difference minus that of {reference}")
    return tables


def metric_table(view: "xarray.Dataset", row_dim: str, title: str) -> Table:
    """A row for each name along `row_dim`, a column for each metric."""
    compared = "difference" in view
    names = names_along(view, row_dim)
    below = [] if compared else ["floor"]
    if "group" in view.dims and row_dim == "lang":
        below += names_along(view, "group")
        below += [LIKE] * about_others(view) + [WITHOUT] * can_leave_out(view)
    marked = [f"{name} {mark}".rstrip() for name, mark in zip(names, row_marks(view), strict=True)]
    leading = [[row_dim, "", *marked, *below]]
    if not compared:
        counts = zip(view["n0"].to_numpy().tolist(), view["n1"].to_numpy().tolist(), strict=True)
        leading.append(["", "n0+n1", *(f"{n0}+{n1}" for n0, n1 in counts), *("" for _ in below)])
    notes: dict[str, str] = {}
    columns = []
    for metric in names_along(view, "metric"):
        column = view.sel(metric=metric)
        head = str(column["space"].item())
        if not compared and (alias := str(column["alias_of"].item())):
            head = f"= {alias}"
        columns.append([metric, head, *_entries(column, grouped=len(below) > 1, notes=notes)])
    lines = reasons_of(notes)
    if not compared:
        lines += _without_the_model(view)
    return Table(title, leading, columns, heads=2, notes=lines)


def _without_the_model(view: "xarray.Dataset") -> list[str]:
    """AUC of length and of characters, under a table that has an AUC of states."""
    if not any(name.startswith("auc_") for name in names_along(view, "metric")):
        return []
    langs, length, lexical = (
        np.atleast_1d(view[name].to_numpy()) for name in ("lang", "auc_length", "auc_lexical")
    )
    each = (
        f"{lang} {fixed(of_length, '.3f')}, {fixed(of_characters, '.3f')}"
        for lang, of_length, of_characters in zip(langs, length, lexical, strict=True)
    )
    text = f"AUC without the model, of length and of characters: {'; '.join(each)}."
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _entries(column: "xarray.Dataset", *, grouped: bool, notes: dict[str, str]) -> list[str]:
    """Entries of one metric: of the names along the rows, its floor, and means over groups.

    Args:
        column: one metric of one layer or one language.
        grouped: whether to show means over groups.
        notes: mark of each reason for which a number is refused; new ones are added.
    """
    compared = "difference" in column
    refused = column["refused"].to_numpy().tolist()
    reasons = reason_marks(refused, notes)
    middle = "difference" if compared else "value"
    numbers = numbers_of(column, (middle, "low", "high"))
    style = Style.of(numbers, _group_numbers(column) if grouped else ())
    entries = _marked(column, numbers, style)
    if compared:
        both = numbers_of(column, ("base", "aligned"))
        entries = [
            f"{style.number(base)} > {style.number(aligned)}, {entry}"
            for (base, aligned), entry in zip(both, entries, strict=True)
        ]
    entries = [reason or entry for reason, entry in zip(reasons, entries, strict=True)]
    if not compared:
        entries.append(style.number(median(column["floor"].to_numpy().tolist())))
    entries = _padded([*entries, *(_group_entries(column, style) if grouped else [])])
    if "verdict" in column:
        verdicts = [
            word.replace("no change larger than", "within")
            for word in column["verdict"].to_numpy().tolist()
        ]
        verdicts += [""] * (len(entries) - len(verdicts))
        words = max(map(len, verdicts))
        entries = [f"{x} {word:>{words}}" for x, word in zip(entries, verdicts, strict=True)]
    return entries


def _marked(
    column: "xarray.Dataset", numbers: list[tuple[float, ...]], style: Style, prefix: str = ""
) -> list[str]:
    """Numbers of one metric with their marks; `prefix` as in `marks`."""
    rows = zip(numbers, *marks(column, prefix), strict=True)
    return [style.entry(*row, before=before, behind=behind) for row, before, behind in rows]


def _group_numbers(column: "xarray.Dataset") -> list[tuple[float, ...]]:
    """Means over groups and their gap, with intervals; then the gap of languages like these."""
    like = column.sel(group=["high - low"])
    return [
        *numbers_of(column, ("group_value", "group_low", "group_high")),
        *numbers_of(like, ("group_like_value", "group_like_low", "group_like_high")),
    ]


def _group_entries(column: "xarray.Dataset", style: Style) -> list[str]:
    """Entries of one metric for the rows of groups."""
    gap = column.sel(group="high - low")
    numbers = _group_numbers(column)
    entries = [style.entry(*row) for row in numbers[:3]]
    if about_others(column):
        mark = LIKELY_CHANCE * bool(gap["group_like_p"] > CHANCE)
        entries.append(style.entry(*numbers[3], before=mark))
    if can_leave_out(column):
        ends = (float(gap[f"group_without_{end}"]) for end in ("low", "high"))
        most = str(gap["group_without"].item())
        entries.append(" to ".join(map(style.number, ends)) + f" ({most})" if most else "-")
    return entries


def _excess(view: "xarray.Dataset", title: str) -> list[Table]:
    """Differences of differences of one layer: a row for each language."""
    langs = [lang for lang in names_along(view, "lang") if lang != view.attrs["reference"]]
    columns = []
    for metric in names_along(view, "metric"):
        column = view.sel(metric=metric, lang=langs)
        numbers = numbers_of(column, ("excess", "excess_low", "excess_high"))
        entries = [
            "-" if reason else entry
            for entry, reason in zip(
                _marked(column, numbers, Style.of(numbers), "excess_"),
                column["refused"].to_numpy().tolist(),
                strict=True,
            )
        ]
        if any(entry != "-" for entry in entries):
            columns.append([metric, *_padded(entries)])
    return [Table(title, [["lang", *langs]], columns)] if columns else []


def _padded(entries: list[str]) -> list[str]:
    """Add a blank where another entry of the column ends with a star."""
    if not any(entry.endswith((SIGNIFICANT, ANY)) for entry in entries):
        return entries
    return [entry if entry.endswith((SIGNIFICANT, ANY)) else f"{entry} " for entry in entries]
