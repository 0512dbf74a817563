"""How figures look: colours, shapes and dashes, widths, fonts, and words on axes."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.marks import ANY, MEANINGS, SIGNIFICANT

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D1F", "#5B5EA6")
"""Okabe & Ito 2008, without the colours that are too light on white paper; all have a contrast of
at least 3 to white and to the page's dark background."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
"""Beside colour: no figure depends on colour alone."""
GREY = "#808080"
"""Floors and zero lines: visible on white and on black."""
SEQUENTIAL, DIVERGING = "viridis", "blueorange"

FONT = "Liberation Sans, Arial, Helvetica, DejaVu Sans, sans-serif"
"""Fonts as alike as those of most papers; vl-convert brings the first of them."""
PANEL_HEIGHT = 110
ROW_HEIGHT = 10
"""Of one model in a row of names, in pixels."""
HEAT_HEIGHT = 16
"""Of a row of a matrix, in pixels."""
CROSS = "M-1,-1L1,1M1,-1L-1,1"
"""A mark that is told from a dot without colour."""
MOST_IN_A_ROW = 16
"""Letters; with a longer name each entry of a legend has its own row."""
SPACING = 12
LABEL_LIMIT = 130
"""Pixels; longer names are cut on axes, while tables and tooltips have them whole."""

SHORT_LAYER = (
    "replace(replace(replace(datum.value, 'block.', ''), 'final_norm', 'n'), 'embed', 'e')"
)
"""Labels of a layer axis, as an expression of Vega."""

PAPER: dict[str, str | None] = {
    "ink": "#1a1a1a",
    "quiet": "#595959",
    "line": "#d0d0d0",
    "paper": "white",
}
"""Colours of a figure in a paper; those of a page are `page.COLORS`."""


def config(colors: dict[str, str | None] = PAPER) -> dict[str, Any]:
    """The Vega-Lite configuration of a figure.

    Args:
        colors: of text, axes and background (None: that of the page).
    """
    ink, quiet, line = colors["ink"], colors["quiet"], colors["line"]
    axis = {"labelColor": quiet, "titleColor": ink, "titleFontWeight": "normal"}
    lines = {"gridColor": line, "domainColor": line, "tickColor": line}
    limits = {"labelLimit": LABEL_LIMIT, "titleLimit": 320}
    return {
        "background": colors["paper"],
        "font": FONT,
        "view": {"stroke": line},
        "axis": axis | lines | {"labelFontSize": 10, "titleFontSize": 11, **limits},
        "legend": {"labelColor": ink, "titleColor": quiet, "orient": "bottom", "columns": 4}
        | {"labelLimit": 220, "titleFontWeight": "normal"},
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "labelLimit": 200},
        "title": {"color": ink, "subtitleColor": quiet, "anchor": "start", "fontSize": 13}
        | {"subtitleFontSize": 10, "frame": "bounds"},
        "range": {"category": list(COLORS)},
        "text": {"color": ink},
    }


def distinct(rows: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """What rows have of a column, each once, in their order."""
    return list(dict.fromkeys(row.get(key) for row in rows))


def columns(panels: int, width: int) -> int:
    """How many small panels stand side by side."""
    return max(1, min(panels, 4, width // 150))


def panel_width(width: int, columns: int, labels: int = 45) -> int:
    """Width of one of `columns` panels; `labels` are the pixels of the axis beside them."""
    return max(40, (width - labels) // columns - 20)


def layer_axis(layers: Sequence[str], width: int) -> Any:
    """The axis of layers, with as many labels as fit `width` pixels."""
    import altair as alt

    step = max(1, math.ceil(len(layers) * 22 / width))
    short = {"embed": "e: embed", "final_norm": "n: final norm"}
    words = ", ".join(short[layer] for layer in layers if layer in short)
    title = f"layer ({words})" if words and width > 220 else "layer"
    return alt.X("layer:N", sort=list(layers), title=title).axis(
        labelExpr=SHORT_LAYER, values=list(layers)[::step], labelAngle=0
    )


def point_size(layers: Sequence[str], width: int) -> int:
    """Area of points that leave some room between each other."""
    return 16 if width / len(layers) > 8 else 7


def label_width(names: Sequence[str]) -> int:
    """Pixels beside a panel whose axis has these names."""
    return 10 + min(LABEL_LIMIT, 6 * max(len(name) for name in names))


def gradient(names: int) -> dict[str, Any]:
    """The legend of colours beside a matrix of so many rows."""
    return {
        "orient": "right",
        "gradientLength": max(40, names * HEAT_HEIGHT),
        "gradientThickness": 8,
        "tickCount": 3,
    }


def by_model(
    models: Sequence[str], *, field: str = "model", legend: bool = True
) -> tuple[Any, Any, Any]:
    """Colour, dash and shape of each model, with one legend if there are several.

    Args:
        models: their names, or what else `field` holds.
        field: the column of rows.
        legend: False leaves it out.
    """
    import altair as alt

    def cycle(values: Sequence[Any]) -> list[Any]:
        return [values[i % len(values)] for i in range(len(models))]

    shown = legend and len(models) > 1
    columns = 1 if max(map(len, models)) > MOST_IN_A_ROW else 4
    key = alt.Legend(title=field, symbolOpacity=1, symbolStrokeWidth=0, columns=columns)
    key = key if shown else None
    names = list(models)
    return (
        alt.Color(f"{field}:N", legend=key).scale(domain=names, range=cycle(COLORS)),
        alt.StrokeDash(f"{field}:N", legend=key).scale(domain=names, range=cycle(DASHES)),
        alt.Shape(f"{field}:N", legend=key).scale(domain=names, range=cycle(SHAPES)),
    )


def tooltip(*names: str) -> list[Any]:
    """What is shown when a mark is pointed at."""
    import altair as alt

    return [alt.Tooltip(name, type="nominal") for name in names]


def axis_title(rows: Sequence[dict[str, Any]]) -> str:
    """Title of an axis of values."""
    return str(rows[0]["metric"])


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """Which metric, pooling and layer a figure shows, of those that are the same in all rows."""
    one = rows[0]
    words = [str(one["metric"])] if "metric" in one else []
    words += [f"{key} {one[key]}" for key in ("pooling", "layer") if len(distinct(rows, key)) == 1]
    return ", ".join(words) + "."


def marks_in(rows: Sequence[dict[str, Any]], drawn: Mapping[str, str] | None = None) -> str:
    """What the marks of these rows mean, as under the tables.

    Args:
        rows: with `mark`.
        drawn: what a mark is called that is not drawn as its letter.
    """
    there = set("".join(row["mark"] for row in rows))
    there |= {SIGNIFICANT} if ANY in there else set()  # whose meaning begins with "the same"
    names = {mark: mark for mark in MEANINGS} | dict(drawn or {})
    return " ".join(f"{names[mark]}: {MEANINGS[mark]}." for mark in MEANINGS if mark in there)


def only_like(row: dict[str, Any], *columns: str) -> Any:
    """A filter of rows: those that have the entries of this one in these columns."""
    import altair as alt

    wanted = [alt.FieldEqualPredicate(field=name, equal=row[name]) for name in columns]
    return alt.LogicalAndPredicate(**{"and": wanted})


def title(text: str, *lines: str, width: int) -> Any:
    """The title of a figure, with lines below it that fit its width."""
    import altair as alt

    letters = max(20, int(width / 5.6))
    wrapped = [part for line in lines for part in textwrap.wrap(line, letters)]
    return alt.TitleParams(text=textwrap.wrap(text, max(16, int(width / 7.6))), subtitle=wrapped)
