"""Curves over layers: one panel a language, one line for each model or pair of models."""

from typing import Any, NamedTuple

from .. import theme
from . import Row


class Columns(NamedTuple):
    """Columns of rows that a curve shows, beside `lang` and `layer`."""

    series: str
    """Which line a row belongs to."""
    value: str
    low: str
    high: str
    dotted: str
    """What the line is compared with, drawn as dots."""


def chart(rows: list[Row], columns: Columns, title: Any, *, axis: str, width: int) -> Any:
    """Small multiples: band of the 95 % interval, line, and the dotted line of each series.

    A language without a number has no panel: screen readers would find marks without a name there.

    Args:
        rows: with these columns.
        columns: their names.
        title: of the figure.
        axis: title of the vertical axis.
        width: of the figure, in pixels.
    """
    import altair as alt

    series, value, low, high, dotted = columns
    langs = theme.distinct([row for row in rows if row[value] is not None], "lang")
    layers = theme.distinct(rows, "layer")
    across = theme.columns(len(langs), width)
    panel = theme.panel_width(width, across)
    x = theme.layer_axis(layers, panel)
    y = alt.Y(f"{value}:Q", title=axis).scale(zero=False)
    color, dash, shape = theme.by_model(theme.distinct(rows, series), field=series)
    base = alt.Chart().encode(x=x, color=color)
    described = base.transform_calculate(
        label=f"datum.lang + ', ' + datum.{series} + ', ' + datum.layer + ': ' + datum.{value}"
    )
    layered = alt.layer(
        base.mark_area(opacity=0.25, aria=False).encode(alt.Y(f"{low}:Q"), alt.Y2(f"{high}:Q")),
        base.mark_line(strokeDash=[2, 3], strokeWidth=1.2, aria=False).encode(y=f"{dotted}:Q"),
        base.mark_line(aria=False).encode(y=y, strokeDash=dash),
        described.mark_point(size=theme.point_size(layers, panel), filled=True, opacity=1).encode(
            y=y,
            shape=shape,
            description="label:N",
            tooltip=theme.tooltip("lang", series, "layer", value, low, high, dotted),
        ),
    ).properties(width=panel, height=theme.PANEL_HEIGHT)
    return (
        layered.facet(
            data=alt.Data(values=rows),
            facet=alt.Facet("lang:N", sort=langs, title=None).header(labelLimit=panel),
            columns=across,
            spacing=theme.SPACING,
        )
        .transform_filter(alt.FieldOneOfPredicate(field="lang", oneOf=langs))
        .properties(title=title)
    )
