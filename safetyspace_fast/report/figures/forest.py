"""Languages below each other: every model, groups of languages, and what tuning changed."""

from typing import TYPE_CHECKING, Any

from .. import theme
from . import Row
from ._cells import CELL, DIFFERENCE, INNER, cells, require_numbers

if TYPE_CHECKING:
    import xarray

    from ..results import Results

NAME = "forest"
TITLE = "Separation by language"
ABOUT = (
    "Thin bar: 95 % interval; thick bar: 50 % (if normal). Grey tick: floor. Dashed: no change. "
    "high, low: means over groups."
)
VALUE, GAP, CHANGE = "value", "high - low", "difference"
"""Panels: of models, of their gap between the groups, and of pairs of models."""
_GROUP = {"value": "group_value", "low": "group_low", "high": "group_high"}


def rows(results: "Results") -> list[Row]:
    """One row a panel, language or group, and model (or pair, `aligned - base`), of one layer."""
    metric, pooling, layer = results.metric.name, results.pooling, results.layer
    at = {"metric": metric, "pooling": pooling, "layer": layer}
    data = results.separation.sel(at | {"model": list(results.names)})
    entries = list(cells(data, ("lang", "model"), CELL, panel=VALUE, **at))
    entries += _groups(data, ("group", "model"), at)
    for (base, aligned), comparison in results.comparisons().items():
        same = {"panel": CHANGE, "model": f"{aligned} - {base}"} | at
        change = comparison.sel(at)
        entries += cells(change, ("lang",), DIFFERENCE, **same)
        entries += _groups(change, ("group",), same)
    for row in entries:
        value, low, high = row["value"], row["low"], row["high"]
        if isinstance(value, float) and isinstance(low, float) and isinstance(high, float):
            row["inner_low"] = value - INNER * (value - low)
            row["inner_high"] = value + INNER * (high - value)
    return require_numbers(entries, "no language has a number")


def _groups(data: "xarray.Dataset", dims: tuple[str, ...], same: dict[str, str]) -> list[Row]:
    """Means over groups; the gap of models has a panel of its own, around zero."""
    if "group_value" not in data:
        return []
    entries = []
    for row in cells(data, dims, _GROUP, **same):
        row["lang"] = row.pop("group")
        row["mark"] = ""
        if "panel" not in row:
            row["panel"] = GAP if row["lang"] == "high - low" else VALUE
        entries.append(row)
    return entries


def chart(rows: list[Row], *, width: int) -> Any:
    """Panels below each other, with one axis of names."""
    import altair as alt

    metric, labels = theme.axis_title(rows), theme.label_width(theme.distinct(rows, "lang"))
    panels = []
    for panel, title in ((VALUE, metric), (GAP, f"{metric}, high - low"), (CHANGE, "")):
        inside = [row for row in rows if row["panel"] == panel]
        if any(row["value"] is not None for row in inside):
            title = title or f"{metric}, {' or '.join(theme.distinct(inside, 'model'))}"
            panels.append(_panel(inside, title, labels, legend=panel != GAP, width=width))
    return (
        alt.vconcat(*panels, data=alt.Data(values=rows), spacing=12)
        .resolve_scale(color="independent", shape="independent", yOffset="independent")
        .properties(
            title=theme.title(TITLE, theme.shown(rows), ABOUT, theme.marks_in(rows), width=width)
        )
    )


def _panel(rows: list[Row], title: str, labels: int, *, legend: bool, width: int) -> Any:
    import altair as alt

    langs, models = theme.distinct(rows, "lang"), theme.distinct(rows, "model")
    color, _, shape = theme.by_model(models, legend=legend)
    zero = all(row.get("floor") is None for row in rows)
    base = (
        alt.Chart()
        .transform_filter(theme.only_like(rows[0], "panel"))
        .encode(
            y=alt.Y("lang:N", sort=langs, title=None).axis(
                grid=False, ticks=False, minExtent=labels, maxExtent=labels
            ),
            yOffset=alt.YOffset("model:N", sort=models),
            color=color,
        )
        .transform_calculate(label="datum.lang + ', ' + datum.model + ': ' + datum.value")
    )
    x = (
        alt.X("value:Q", title=title)
        .scale(zero=zero, nice=True)
        .axis(tickCount=width // 80, titleLimit=width - labels)
    )
    if zero:
        line = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(
            color=theme.GREY, strokeDash=[4, 2], aria=False
        )
        reference = line.encode(x="zero:Q")
    else:
        reference = base.mark_tick(thickness=1.5, aria=False).encode(
            x="floor:Q", color=alt.value(theme.GREY)
        )
    return alt.layer(
        reference,
        base.mark_rule(strokeWidth=1.2, aria=False).encode(alt.X("low:Q"), alt.X2("high:Q")),
        base.mark_rule(strokeWidth=3.5, aria=False).encode(
            alt.X("inner_low:Q"), alt.X2("inner_high:Q")
        ),
        base.mark_point(size=34, filled=True, opacity=1).encode(
            x=x,
            shape=shape,
            description="label:N",
            tooltip=theme.tooltip("lang", "model", "value", "low", "high", "floor", "p"),
        ),
        base.mark_text(align="left", dx=4, fontSize=11, aria=False).encode(
            x=alt.value("width"), text="mark:N", color=alt.value(theme.GREY)
        ),
    ).properties(
        width=max(60, width - labels - 25),
        height=alt.Step(theme.ROW_HEIGHT),
    )
