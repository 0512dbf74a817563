"""Separation layer by layer: one panel a language, one line a model."""

from typing import TYPE_CHECKING, Any

from .. import theme
from . import Row, _curves
from ._cells import CELL, cells, require_numbers

if TYPE_CHECKING:
    from ..results import Results

NAME = "layers"
TITLE = "Separation in every layer"
ABOUT = (
    "Band: 95 % interval. Dotted: value expected without any difference (floor). Without a panel: "
    "no number, and the table says why."
)


def rows(results: "Results") -> list[Row]:
    """One row a language, model and layer: the numbers and marks of `separation`."""
    metric, pooling = results.metric.name, results.pooling
    data = results.separation.sel(metric=metric, pooling=pooling, model=list(results.names))
    found = cells(data, ("lang", "model", "layer"), CELL, metric=metric, pooling=pooling)
    return require_numbers(list(found), "no layer has a number")


def chart(rows: list[Row], *, width: int) -> Any:
    """Small multiples, with a line for each model."""
    title = theme.title(TITLE, theme.shown(rows), ABOUT, width=width)
    columns = _curves.Columns("model", "value", "low", "high", "floor")
    return _curves.chart(rows, columns, title, axis=theme.axis_title(rows), width=width)
