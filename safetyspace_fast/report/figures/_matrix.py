"""A matrix of languages: rows are the languages of texts, columns those of directions."""

from typing import Any

from .. import theme
from . import Row

MOST_WRITTEN = 14
"""With more languages, numbers are only in the table and in tooltips."""


def chart(rows: list[Row], title: Any, *, domain: tuple[float, float], width: int) -> Any:
    """One matrix a model, with numbers in the cells where there is room.

    Args:
        rows: with `model`, `lang`, `other_lang` and `value`.
        title: of the figure.
        domain: smallest and largest value of the scale of colours, which is white between them.
        width: of the figure, in pixels.
    """
    import altair as alt

    models, langs = theme.distinct(rows, "model"), theme.distinct(rows, "lang")
    columns = max(1, min(len(models), width // max(200, 30 * len(langs) + 60)))
    labels = theme.label_width(langs)
    side = max(40, min(34 * len(langs), (width - 60) // columns - labels - 25))
    y = alt.Y("lang:N", sort=langs, title="texts").axis(ticks=False)
    x = alt.X("other_lang:N", sort=langs, title="direction").axis(ticks=False, labelAngle=-90)
    middle, reach = sum(domain) / 2, (domain[1] - domain[0]) * 0.32
    base = (
        alt.Chart()
        .encode(x=x, y=y)
        .transform_filter("isValid(datum.value)")
        .transform_calculate(
            label="datum.model + ', texts ' + datum.lang + ', direction ' + datum.other_lang "
            "+ ': ' + datum.value"
        )
    )
    cell = base.mark_rect().encode(
        color=alt.Color("value:Q", title=None)
        .scale(scheme=theme.DIVERGING, domain=list(domain), clamp=True)
        .legend(**theme.gradient(min(len(langs), 8))),
        description="label:N",
        tooltip=theme.tooltip("model", "lang", "other_lang", "value", "low", "high"),
    )
    layers = [cell]
    if len(langs) <= MOST_WRITTEN and side / len(langs) >= 18:
        layers.append(
            base.mark_text(fontSize=9, aria=False).encode(
                text=alt.Text("value:Q", format=".2f"),
                color=alt.condition(
                    f"abs(datum.value - {middle}) < {reach}",
                    alt.value("#000000"),
                    alt.value("#ffffff"),
                ),
            )
        )
    height = side if side / len(langs) >= 12 else 12 * len(langs)
    return (
        alt.layer(*layers)
        .properties(width=side, height=height)
        .facet(
            data=alt.Data(values=rows),
            facet=alt.Facet("model:N", sort=models, title=None).header(labelLimit=side),
            columns=columns,
        )
        .properties(title=title)
    )
