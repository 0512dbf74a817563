"""How figures look: colours, shapes and dashes, widths, fonts, and words on axes."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D1F", "#5B5EA6")
"""Okabe & Ito 2008, without the colours that are too light on white paper; all have a contrast of
at least 3 to white and to `DARK`."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
"""Beside colour: no figure depends on colour alone."""
GREY = "#808080"
"""Floors and zero lines: visible on white and on `DARK`."""
SEQUENTIAL, DIVERGING = "viridis", "blueorange"

FONT = "DejaVu Sans"
FALLBACK = f"system-ui, {FONT}, sans-serif"
PANEL_HEIGHT = 110
ROW_HEIGHT = 18
"""Of a row of names, in pixels."""
MOST_LETTERS = 24
"""Longer names are cut on axes and in legends; tables and tooltips have them whole."""

SHORT_LAYER = (
    "replace(replace(replace(datum.value, 'block.', ''), 'final_norm', 'n'), 'embed', 'e')"
)
"""Labels of a layer axis, as an expression of Vega."""

LIGHT = {"ink": "#1a1a1a", "quiet": "#595959", "line": "#d0d0d0", "paper": None}
DARK = {"ink": "#ececec", "quiet": "#b5b5b5", "line": "#484848", "paper": None}
PAPER = LIGHT | {"paper": "white"}


def config(colors: dict[str, str | None] = PAPER) -> dict[str, Any]:
    """The Vega-Lite configuration of a figure.

    Args:
        colors: `PAPER`, `LIGHT` or `DARK`; the last two leave the background to the page.
    """
    ink, quiet, line = colors["ink"], colors["quiet"], colors["line"]
    axis = {"labelColor": quiet, "titleColor": ink, "titleFontWeight": "normal"}
    lines = {"gridColor": line, "domainColor": line, "tickColor": line}
    limits = {"labelLimit": 130, "titleLimit": 320}
    return {
        "background": colors["paper"],
        "font": FALLBACK,
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
    return list(dict.fromkeys(row[key] for row in rows))


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
    return alt.X("layer:N", sort=list(layers), title="layer").axis(
        labelExpr=SHORT_LAYER, values=list(layers)[::step], labelAngle=0
    )


def by_model(models: Sequence[str]) -> tuple[Any, Any, Any]:
    """Colour, dash and shape of each model, with one legend."""
    import altair as alt

    def cycle(values: Sequence[Any]) -> list[Any]:
        return [values[i % len(values)] for i in range(len(models))]

    one = len(models) == 1
    legend = None if one else alt.Legend(title="model", symbolOpacity=1, symbolStrokeWidth=2)
    names = list(models)
    return (
        alt.Color("model:N", legend=legend).scale(domain=names, range=cycle(COLORS)),
        alt.StrokeDash("model:N", legend=legend).scale(domain=names, range=cycle(DASHES)),
        alt.Shape("model:N", legend=legend).scale(domain=names, range=cycle(SHAPES)),
    )


def tooltip(*names: str) -> list[Any]:
    """What is shown when a mark is pointed at."""
    import altair as alt

    return [alt.Tooltip(name, type="nominal") for name in names]


def axis_title(rows: Sequence[dict[str, Any]]) -> str:
    """Title of an axis of values."""
    return str(rows[0]["metric"])


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """Which metric and pooling a figure shows."""
    return f"{rows[0]['metric']}, pooling {rows[0]['pooling']}."


def title(text: str, *lines: str, width: int) -> Any:
    """The title of a figure, with lines below it that fit its width."""
    import altair as alt

    letters = max(20, int(width / 5.6))
    wrapped = [part for line in lines for part in textwrap.wrap(line, letters)]
    return alt.TitleParams(text=textwrap.wrap(text, max(16, int(width / 7.6))), subtitle=wrapped)
