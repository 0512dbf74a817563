"""Separation layer by layer: one panel a language, one line a model."""

from typing import TYPE_CHECKING, Any

from .. import theme
from . import Row
from ._cells import CELL, cells, require_numbers

if TYPE_CHECKING:
    from ..results import Results

NAME = "layers"
TITLE = "Separation in every layer"
ABOUT = "Band: 95 % interval. Dotted: value expected without any difference (floor)."


def rows(results: "Results") -> list[Row]:
    """One row a language, model and layer: the numbers and marks of `separation`."""
    metric, pooling = results.metric.name, results.pooling
    data = results.separation.sel(metric=metric, pooling=pooling, model=list(results.names))
    found = cells(data, ("lang", "model", "layer"), CELL, metric=metric, pooling=pooling)
    return require_numbers(list(found), "no layer has a number")


def chart(rows: list[Row], *, width: int) -> Any:
    """Small multiples: band of the 95 % interval, line, and the dotted floor of each model."""
    import altair as alt

    langs, layers = theme.distinct(rows, "lang"), theme.distinct(rows, "layer")
    columns = theme.columns(len(langs), width)
    panel = theme.panel_width(width, columns)
    x = theme.layer_axis(layers, panel)
    y = alt.Y("value:Q", title=theme.axis_title(rows)).scale(zero=False)
    color, dash, shape = theme.by_model(theme.distinct(rows, "model"))
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, color=color)
    described = base.transform_calculate(
        label="datum.lang + ', ' + datum.model + ', ' + datum.layer + ': ' + datum.value"
    )
    layered = alt.layer(
        base.mark_area(opacity=0.18, aria=False).encode(alt.Y("low:Q"), alt.Y2("high:Q")),
        base.mark_line(strokeDash=[1, 3], strokeWidth=1, aria=False).encode(y="floor:Q"),
        base.mark_line(aria=False).encode(y=y, strokeDash=dash),
        described.mark_point(size=theme.point_size(layers, panel), filled=True, opacity=1).encode(
            y=y,
            shape=shape,
            description="label:N",
            tooltip=theme.tooltip("lang", "model", "layer", "value", "low", "high", "floor"),
        ),
    ).properties(width=panel, height=theme.PANEL_HEIGHT)
    return layered.facet(
        facet=alt.Facet("lang:N", sort=langs, title=None).header(labelLimit=panel),
        columns=columns,
        spacing=theme.SPACING,
    ).properties(title=theme.title(TITLE, theme.shown(rows), ABOUT, width=width))
