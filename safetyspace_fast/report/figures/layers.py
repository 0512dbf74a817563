"""Separation layer by layer: one panel a language, one line a model."""

from typing import TYPE_CHECKING, Any

from .. import theme
from ..results import rounded
from . import NothingToShowError, Row

if TYPE_CHECKING:
    from ..results import Results

NAME = "layers"
TITLE = "Separation in every layer"
ABOUT = "Band: 95 % interval. Dotted: value expected without any difference (floor)."


def rows(results: "Results") -> list[Row]:
    """One row a language, model and layer: value, interval, floor and marks of the table."""
    metric, pooling = results.metric, results.pooling
    data = results.separation.sel(metric=metric.name, pooling=pooling)
    found: list[Row] = []
    for lang in results.selection.languages:
        for model in results.names:
            for i, layer in enumerate(results.selection.layers):
                cell = data.sel(lang=lang, model=model, layer=layer)
                numbers = {
                    name: rounded(float(cell[name]))
                    for name in ("value", "low", "high", "floor", "p", "p_family")
                }
                found.append(
                    {
                        "lang": lang,
                        "model": model,
                        "layer": layer,
                        "depth": i,
                        "metric": metric.name,
                        "pooling": pooling,
                        **numbers,
                        "refused": str(cell["refused"].item()),
                    }
                )
    if all(row["value"] is None for row in found):
        raise NothingToShowError(f"no layer has a number of {metric.name}: {found[0]['refused']}")
    return found


def chart(rows: list[Row], *, width: int) -> Any:
    """Small multiples: band of the 95 % interval, line, and the dotted floor of each model."""
    import altair as alt

    langs, models = theme.distinct(rows, "lang"), theme.distinct(rows, "model")
    columns = theme.columns(len(langs), width)
    panel = theme.panel_width(width, columns)
    x = theme.layer_axis(theme.distinct(rows, "layer"), panel)
    y = alt.Y("value:Q", title=theme.axis_title(rows)).scale(zero=False)
    color, dash, shape = theme.by_model(models)
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, color=color)
    label = "datum.lang + ', ' + datum.model + ', ' + datum.layer"
    described = base.transform_calculate(label=label)
    layered = alt.layer(
        described.mark_area(opacity=0.18, aria=False).encode(alt.Y("low:Q"), alt.Y2("high:Q")),
        described.mark_line(strokeDash=[1, 3], strokeWidth=1, aria=False).encode(y="floor:Q"),
        described.mark_line(aria=False).encode(y=y, strokeDash=dash),
        described.mark_point(size=14, filled=True, opacity=1).encode(
            y=y,
            shape=shape,
            description="label:N",
            tooltip=theme.tooltip("lang", "model", "layer", "value", "low", "high", "floor"),
        ),
    ).properties(width=panel, height=theme.PANEL_HEIGHT)
    return layered.facet(
        facet=alt.Facet("lang:N", sort=langs, title=None), columns=columns
    ).properties(
        title=theme.title(
            TITLE,
            theme.shown(rows),
            ABOUT,
            width=width,
        )
    )
