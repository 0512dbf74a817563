"""Languages x layers: the value in each model, and the difference that tuning made."""

from typing import TYPE_CHECKING, Any

from ...analysis.marks import ANY, CLOSE, DISAGREE, LIKELY_CHANCE, SIGNIFICANT
from .. import theme
from . import Row
from ._cells import CELL, DIFFERENCE, cells, require_numbers

if TYPE_CHECKING:
    from ..results import Results

NAME = "heatmap"
TITLE = "Separation in every layer and language"
ABOUT = "One colour a number; dots and crosses say what is significant. Empty: no number."
VALUE, CHANGE = "value", "difference"
DRAWN = {
    LIKELY_CHANCE: ("Cross", theme.CROSS),
    SIGNIFICANT: ("Dot", "circle"),
    ANY: ("Square", "square"),
}
"""Marks that are drawn as a shape, and its name; others are letters in a corner of the cell."""


def rows(results: "Results") -> list[Row]:
    """One row a panel, model (or pair, `aligned - base`), language and layer."""
    metric, pooling = results.metric.name, results.pooling
    at = {"metric": metric, "pooling": pooling}
    data = results.separation.sel(at | {"model": list(results.names)})
    entries = list(cells(data, ("model", "lang", "layer"), CELL, panel=VALUE, **at))
    for (base, aligned), comparison in results.comparisons().items():
        same = {"panel": CHANGE, "model": f"{aligned} - {base}"} | at
        entries += cells(comparison.sel(at), ("lang", "layer"), DIFFERENCE, **same)
    return require_numbers(entries, "no layer has a number in any language")


def chart(rows: list[Row], *, width: int) -> Any:
    """One panel a model and one a pair; values share a scale of colours, and differences do."""
    import altair as alt

    panels = []
    for panel in (VALUE, CHANGE):
        inside = [row for row in rows if row["panel"] == panel]
        panels += [
            _panel(
                [row for row in inside if row["model"] == model],
                _scale(inside, diverging=panel == CHANGE),
                width,
            )
            for model in theme.distinct([x for x in inside if x["value"] is not None], "model")
        ]
    about = (
        theme.shown(rows),
        ABOUT,
        theme.marks_in(rows, {key: name for key, (name, _) in DRAWN.items()}),
    )
    return alt.vconcat(*panels, data=alt.Data(values=rows), spacing=10).properties(
        title=theme.title(TITLE, *about, width=width)
    )


def _scale(rows: list[Row], *, diverging: bool) -> Any:
    """Colours of all panels of a kind; those of differences are symmetric about 0."""
    import altair as alt

    known = [float(row["value"]) for row in rows if row["value"] is not None]
    if diverging:
        largest = max(map(abs, known), default=0.0) or 1.0
        return alt.Scale(scheme=theme.DIVERGING, domain=[-largest, largest])
    return alt.Scale(scheme=theme.SEQUENTIAL, domain=[min(known, default=0), max(known, default=1)])


def _panel(rows: list[Row], scale: Any, width: int) -> Any:
    import altair as alt

    langs, layers = theme.distinct(rows, "lang"), theme.distinct(rows, "layer")
    labels = theme.label_width(langs)
    panel = max(60, width - labels - 60)
    y = alt.Y("lang:N", sort=langs, title=None).axis(
        ticks=False, minExtent=labels, maxExtent=labels
    )
    base = alt.Chart().encode(x=theme.layer_axis(layers, panel), y=y)
    color = alt.Color("value:Q", title=None).scale(scale).legend(**theme.gradient(len(langs)))
    middle = sum(scale.domain) / 2
    on_dark = (
        f"datum.panel == '{VALUE}' && datum.shape == '{LIKELY_CHANCE}' && datum.value < {middle}"
    )
    cell = panel / len(layers)
    size = min(14, cell**2 / 6)
    letter = {"dx": min(5, cell / 4), "dy": -3, "fontSize": min(9, cell), "aria": False}
    letters = base.encode(text="letter:N").transform_filter("datum.letter != ''")
    return (
        alt.layer(
            base.mark_rect().encode(
                color=color,
                description="label:N",
                tooltip=theme.tooltip("model", "lang", "layer", "value", "low", "high", "p"),
            ),
            base.transform_filter("datum.shape != ''")
            .mark_point(filled=True, size=size, opacity=1, aria=False)
            .encode(
                shape=alt.Shape("shape:N", legend=None).scale(
                    domain=list(DRAWN), range=[shape for _, shape in DRAWN.values()]
                ),
                color=alt.value("#ffffff"),
                stroke=alt.condition(on_dark, alt.value("#ffffff"), alt.value("#000000")),
                strokeWidth=alt.value(0.7),
            ),
            letters.mark_text(stroke="#000000", strokeWidth=2, **letter),
            letters.mark_text(color="#ffffff", **letter),
        )
        .transform_filter(theme.only_like(rows[0], "panel", "model"))
        .transform_filter("isValid(datum.value)")
        .transform_calculate(
            label="datum.model + ', ' + datum.lang + ', ' + datum.layer + ': ' + datum.value",
            shape=f"replace(datum.mark, /[{CLOSE}{DISAGREE}]/g, '')",
            letter=f"replace(datum.mark, /[^{CLOSE}{DISAGREE}]/g, '')",
        )
        .properties(
            width=panel,
            height=alt.Step(theme.HEAT_HEIGHT),
            title=alt.TitleParams(rows[0]["model"], limit=panel, fontSize=11, fontWeight="normal"),
        )
        .resolve_scale(color="independent")
    )
