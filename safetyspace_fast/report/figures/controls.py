"""What else differs between the languages, and what is left without the model or its training."""

from typing import TYPE_CHECKING, Any

from .. import theme
from . import Row
from ._cells import cells, require_numbers

if TYPE_CHECKING:
    import xarray

    from ..results import Results

NAME = "controls"
TITLE = "Controls"
ABOUT = (
    "A model that does not exceed the AUC of text length, of characters alone or of an untrained "
    "model may hold no more than these. Below: length of harmless and harmful texts in tokens."
)
AUC, TOKENS = "AUC", "tokens"
"""Panels."""
_COMPARED = "auc_direction"
_WITHOUT_MODEL = {"length": "auc_length", "characters": "auc_lexical"}


def rows(results: "Results") -> list[Row]:
    """One row a language and source of an AUC, and one a language, model and class of texts."""
    at = {"layer": results.layer, "pooling": results.pooling}
    data = results.separation
    entries: list[Row] = []
    if _COMPARED in data["metric"]:
        of_states = data.sel(at | {"metric": _COMPARED})
        for name in results.names:
            source = f"{name} (untrained)" if name in results.controls else name
            numbers = {"value": "value", "low": "low", "high": "high"}
            view = of_states.sel(model=name)
            entries += cells(view, ("lang",), numbers, panel=AUC, source=source, **at)
    for source, name in _WITHOUT_MODEL.items():
        numbers = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
        entries += cells(data.isel(model=0), ("lang",), numbers, panel=AUC, source=source, **at)
    entries += _tokens(data.sel(model=list(results.names)), at)
    return require_numbers(entries, "no language has a number")


def _tokens(data: "xarray.Dataset", at: dict[str, str]) -> list[Row]:
    """Mean lengths; models with the same numbers share their rows."""
    of_texts: dict[tuple[object, ...], list[Row]] = {}
    for model in data["model"].to_numpy().tolist():
        view = data.sel(model=model)
        rows = [
            row
            for source, name in (("harmless texts", "tokens0"), ("harmful texts", "tokens1"))
            for row in cells(view, ("lang",), {"value": name}, panel=TOKENS, source=source, **at)
        ]
        of_texts.setdefault(tuple(row["value"] for row in rows), rows)
    several = len(of_texts) > 1
    models = data["model"].to_numpy().tolist()
    return [
        row | {"source": f"{row['source']}, {model}"} if several else row
        for model, rows in zip(models, of_texts.values(), strict=False)
        for row in rows
    ]


def chart(rows: list[Row], *, width: int) -> Any:
    """Points with 95 % bars, one panel for AUC and one for lengths."""
    import altair as alt

    panels = []
    titles = {AUC: "held-out AUC, harmful against harmless", TOKENS: "mean tokens of a text"}
    for panel, title in titles.items():
        inside = [row for row in rows if row["panel"] == panel and row["value"] is not None]
        if inside:
            panels.append(_panel(inside, title, width))
    return (
        alt.vconcat(*panels, data=alt.Data(values=rows), spacing=12)
        .resolve_scale(color="independent", shape="independent", yOffset="independent")
        .properties(title=theme.title(TITLE, theme.shown(rows), ABOUT, width=width))
    )


def _panel(rows: list[Row], title: str, width: int) -> Any:
    import altair as alt

    langs, sources = theme.distinct(rows, "lang"), theme.distinct(rows, "source")
    labels = theme.label_width(langs)
    color, _, shape = theme.by_model(sources, field="source")
    is_auc = rows[0]["panel"] == AUC
    y = alt.Y("lang:N", sort=langs, title=None).axis(
        grid=not is_auc, ticks=False, minExtent=labels, maxExtent=labels
    )
    base = (
        alt.Chart()
        .transform_filter(theme.only_like(rows[0], "panel"))
        .transform_filter("isValid(datum.value)")
        .encode(y=y, color=color)
        .transform_calculate(label="datum.lang + ', ' + datum.source + ': ' + datum.value")
    )
    if is_auc:
        base = base.encode(yOffset=alt.YOffset("source:N", sort=sources))
    x = alt.X("value:Q", title=title).scale(zero=not is_auc).axis(tickCount=width // 80)
    layers = [
        base.mark_point(size=34, filled=True, opacity=1).encode(
            x=x,
            shape=shape,
            description="label:N",
            tooltip=theme.tooltip("lang", "source", "value", "low", "high"),
        )
    ]
    if is_auc:
        chance = alt.Chart(alt.Data(values=[{"chance": 0.5}])).mark_rule(
            color=theme.GREY, strokeDash=[4, 2], aria=False
        )
        bar = base.mark_rule(strokeWidth=1.2, aria=False)
        layers = [
            chance.encode(x="chance:Q"),
            bar.encode(alt.X("low:Q"), alt.X2("high:Q")),
            *layers,
        ]
    return alt.layer(*layers).properties(
        width=max(60, width - labels - 25),
        height=alt.Step(theme.ROW_HEIGHT if is_auc else 2 * theme.ROW_HEIGHT),
    )
