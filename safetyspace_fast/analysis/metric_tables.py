"""Tables of metrics: a row for each language or layer, a column for each metric."""

import math
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
from .glossary import LEAST_LANGUAGES, SPACES

if TYPE_CHECKING:
    import xarray
    from numpy.typing import NDArray

DOMINANT = 0.5
"""Rows are marked where the largest dimension has a larger share, or the first component a larger
correlation with the length of texts."""
HEAVY = 0.1
"""Rows are marked where a hundredth of the texts holds a larger share of the variance."""
MARK_RESAMPLES = math.ceil(1 / CHANCE) - 1
"""With fewer resamples, of which the smallest p is 1/(1 + R), no number is marked."""

ANY = "+"
"""Mark in place of `*` where p asks for any difference of the classes, not for one of means."""
DISAGREE = "^"
"""Mark of a difference that has another sign in other components."""
ELSEWHERE = tuple(f"difference_{space}" for space in SPACES)


def disagrees(view: "xarray.Dataset", name: str) -> "NDArray[np.bool_]":
    """Whether a difference and that in other components, where it is known, differ in sign.

    Differences of the level of rounding have no sign.
    """
    if name not in view:
        return np.zeros(view["difference"].shape, bool)
    opposite = (view["difference"] * view[name] < 0) & ~(view["rounding_share"] >= 1)
    signs: NDArray[np.bool_] = opposite.transpose(*view["difference"].dims).to_numpy()
    return signs


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
    "frechet, tpr_at_1_fpr and accuracies may cover less than 95 % (`explain tail_share`)",
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


def is_close(p: float, resamples: float) -> bool:
    """Whether the Monte-Carlo error of p (two standard deviations) reaches `CHANCE`.

    Args:
        p: of a number.
        resamples: behind it; infinite if p comes from none.
    """
    return abs(p - CHANCE) <= 2 * math.sqrt(CHANCE * (1 - CHANCE) / max(resamples, 1))


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
    marks = reason_marks(refused, notes)
    middle = "difference" if compared else "value"
    numbers = numbers_of(column, (middle, "low", "high", "p", "p_family"))
    resamples = float(column["resamples"].item())
    marked = resamples >= MARK_RESAMPLES
    style = Style.of(numbers)
    star = ANY if "p_asks" in column.coords and column["p_asks"].item() != "means" else "*"
    entries = [style.entry(*(row if marked else row[:3]), star=star) for row in numbers]
    if marked and not compared:
        close = [is_close(row[3], resamples) for row in numbers]
        entries = ["?" * here + entry for here, entry in zip(close, entries, strict=True)]
    if compared:
        apart = np.any([disagrees(column, name) for name in ELSEWHERE], 0)
        entries = [DISAGREE * int(x) + entry for x, entry in zip(apart, entries, strict=True)]
        both = numbers_of(column, ("base", "aligned"))
        entries = [
            f"{style.number(base)} > {style.number(aligned)}, {entry}"
            for (base, aligned), entry in zip(both, entries, strict=True)
        ]
    entries = [mark or entry for mark, entry in zip(marks, entries, strict=True)]
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


def _group_entries(column: "xarray.Dataset", style: Style) -> list[str]:
    """Entries of one metric for the rows of groups."""
    means = numbers_of(column, ("group_value", "group_low", "group_high"))
    entries = [style.entry(*mean) for mean in means]
    gap = column.sel(group="high - low")
    if about_others(column):
        parts = ("group_like_value", "group_like_low", "group_like_high", "group_like_p")
        entries.append(style.entry(*(float(gap[part]) for part in parts)))
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
        names = ("excess", "excess_low", "excess_high", "excess_p", "excess_p_family")
        numbers = numbers_of(column, names)
        style = Style.of(numbers)
        marked = int(column["resamples"].item()) >= MARK_RESAMPLES
        entries = [
            "-" if reason else style.entry(*(row if marked else row[:3]))
            for row, reason in zip(numbers, column["refused"].to_numpy().tolist(), strict=True)
        ]
        if any(entry != "-" for entry in entries):
            columns.append([metric, *_padded(entries)])
    return [Table(title, [["lang", *langs]], columns)] if columns else []


def _padded(entries: list[str]) -> list[str]:
    """Add a blank where another entry of the column ends with a star."""
    if not any(entry.endswith(("*", ANY)) for entry in entries):
        return entries
    return [entry if entry.endswith(("*", ANY)) else f"{entry} " for entry in entries]
