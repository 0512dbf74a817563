"""Columns of text: how numbers are written, and how columns stand side by side."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray

WIDTH = 100
"""Characters of a line, at most."""
MOST_LAYERS = 3
"""With several languages, tables show all layers up to this number, else the last one only."""
CHANCE = 0.05
"""Numbers with a larger p are marked as consistent with chance."""


def names_along(dataset: "xarray.Dataset", dim: str) -> list[str]:
    """The names along a dimension, in their order."""
    return [str(name) for name in dataset[dim].to_numpy()]


def numbers_of(view: "xarray.Dataset", names: Sequence[str]) -> list[tuple[float, ...]]:
    """Variables side by side: one tuple for each name along the rows."""
    return list(zip(*(view[name].to_numpy().tolist() for name in names), strict=True))


def reason_marks(refused: Sequence[str], notes: dict[str, str]) -> list[str]:
    """The mark of each reason, or ""; new reasons are added to the notes."""
    return [
        notes.setdefault(reason, f"({chr(ord('a') + len(notes) % 26)})") if reason else ""
        for reason in refused
    ]


def reasons_of(notes: Mapping[str, str]) -> list[str]:
    """Lines under a table: what the marks of refused numbers mean."""
    return [f"{mark} refused: {reason}." for reason, mark in notes.items()]


@dataclass(frozen=True)
class Style:
    """How all numbers of one column are written."""

    form: str
    """Format of a float; `z` makes -0.0 to 0.0."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], others: Sequence[Sequence[float]] = ()) -> "Style":
        """Choose the format of a column: two digits of a typical uncertainty are visible.

        An interval that excludes 0 is never written as one that reaches it.

        Args:
            rows: value, low, high and possibly more, of every row.
            others: the same of rows that do not count for what is typical.
        """
        open_ = [_uncertainty(*row[:3]) for row in rows]
        typical = median(open_)
        smallest = min((x for x in open_ if math.isfinite(x)), default=math.nan)
        if math.isnan(typical):
            return cls("z.2f")
        # And one digit of the smallest, and of the end of an interval that is nearest to 0; numbers
        # too different for that have three digits each.
        smallest = min([smallest, *(_nearest(*row[1:3]) for row in (*rows, *others))])
        decimals = max(0, 1 - _exponent(typical), -_exponent(smallest))
        fits = decimals <= min(6, 3 - _exponent(typical)) and typical <= 1e5
        return cls(f"z.{decimals}f" if fits else "z.3g")

    def number(self, value: float) -> str:
        """A number; `-` if it is not finite."""
        return f"{value:{self.form}}" if math.isfinite(value) else "-"

    def entry(
        self,
        value: float,
        low: float,
        high: float,
        *,
        before: str = "",
        behind: str = "",
    ) -> str:
        """A value with its interval, between its marks; `-` without a value."""
        if math.isnan(value):
            return "-"
        interval = "" if math.isnan(low) else f" [{low:{self.form}}, {high:{self.form}}]"
        return f"{before}{value:{self.form}}{interval}{behind}"


def _uncertainty(value: float, low: float, high: float) -> float:
    """Half of the interval, or a tenth of a number without one; NaN where that is 0."""
    half = (high - low) / 2 if math.isfinite(high - low) else abs(value) / 10
    return half if half > 0 and math.isfinite(half) else math.nan


def _nearest(low: float, high: float) -> float:
    """How far from 0 the nearer end of an interval is; infinite if 0 is inside."""
    return min(abs(low), abs(high)) if low > 0 or high < 0 else math.inf


def _exponent(number: float) -> int:
    """Power of ten of the first digit."""
    return math.floor(math.log10(number))


def median(numbers: Iterable[float]) -> float:
    """The upper median of the finite ones; NaN if there are none."""
    known = sorted(x for x in numbers if math.isfinite(x))
    return known[len(known) // 2] if known else math.nan


def fixed(number: float, form: str) -> str:
    """A number in a format; `-` if it is not finite."""
    return f"{number:{form}}" if math.isfinite(number) else "-"


def fitting(columns: Sequence[Sequence[str]], taken: int) -> Iterator[list[Sequence[str]]]:
    """Split columns into groups that fit `WIDTH` beside the columns that take `taken`."""
    part: list[Sequence[str]] = []
    width = taken
    for column in columns:
        if part and width + width_of(column) + 2 > WIDTH:
            yield part
            part, width = [], taken
        part.append(column)
        width += width_of(column) + 2
    if part:
        yield part


def aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [width_of(column) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def width_of(column: Sequence[str]) -> int:
    """Characters of the longest entry."""
    return max(len(cell) for cell in column)


@dataclass(frozen=True)
class Table:
    """A table before it is written in some format."""

    title: str
    leading: Sequence[Sequence[str]]
    """Columns at the left of every part: head, then entries."""
    columns: Sequence[Sequence[str]] = ()
    """Other columns; those that do not fit go into another part below."""
    heads: int = 1
    """Entries of a column that are its head."""
    notes: Sequence[str] = ()
    """Lines under the last part."""
    one: bool = False
    """Whether all parts are under one title, without a blank line between them."""

    def parts(self) -> list[list[Sequence[str]]]:
        """Columns of each part, as wide as `WIDTH`."""
        taken = sum(width_of(column) + 2 for column in self.leading)
        parts = [[*self.leading, *part] for part in fitting(list(self.columns), taken)]
        return parts or [list(self.leading)]

    def text(self) -> list[list[str]]:
        """Lines of each part."""
        title = [self.title] * bool(self.title)
        blocks = [aligned(part) for part in self.parts()]
        if self.one:
            blocks = [[line for block in blocks for line in block]]
        blocks = [[*title, *block] for block in blocks]
        return [*blocks[:-1], [*blocks[-1], *self.notes]]


@dataclass(frozen=True)
class Tables:
    """All that is printed of a result."""

    tables: Sequence[Table]
    legend: Sequence[str]
    """What rows, columns and marks mean: lines under the first table."""
    hints: Sequence[str] = ()
    """Lines at the very end: what to type to see more."""
    settings: Sequence[str] = ()
    """Lines under the last table: how the models were run."""
