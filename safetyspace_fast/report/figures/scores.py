"""Distributions of held-out scores: how much the classes overlap along the harm direction."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import theme
from ..results import rounded
from . import NothingToShowError, Row
from ._drawn import LABELS, choices, packed, row_values

if TYPE_CHECKING:
    from ..results import Results

NAME = "scores"
TITLE = "Scores along the harm direction"
ABOUT = (
    "The position of each text along the difference of the class means of the other texts, 0 in "
    "the middle between them: what overlaps here cannot be told apart by this direction. No text "
    "is in the direction that judges it. Solid: harmless; dashed: harmful."
)
BINS = 32


def rows(results: "Results") -> list[Row]:
    """One row a language, model, label and bin, of the layer and the pooling that are shown."""
    i_layer = results.selection.layers.index(results.layer)
    i_pooling = results.selection.poolings.index(results.pooling)
    entries: list[Row] = []
    for lang in results.selection.languages:
        label = np.asarray(results.run.samples.label[results.run.lang_range(lang)])
        counts, ends = _histograms(_scores(results, lang), label)
        low, high = ends[i_layer, i_pooling]
        edges = np.linspace(low, high, BINS + 1)
        for model, own in zip(results.names, counts, strict=True):
            for name, bins in zip(LABELS, own[i_layer, i_pooling], strict=True):
                if not (total := bins.sum()):
                    continue
                entries += [
                    {"lang": lang, "model": model, "layer": results.layer,
                     "pooling": results.pooling, "text": name, "from": rounded(float(edges[i]), 4),
                     "to": rounded(float(edges[i + 1]), 4), "texts": int(bins[i]),
                     "share": rounded(float(bins[i] / total), 4)}
                    for i in range(BINS)
                ]  # fmt: skip
    if not entries:
        raise NothingToShowError("no text has a held-out score: the states are not finite")
    return entries


def chart(rows: list[Row], *, width: int) -> Any:
    """One panel a language and model: two histograms."""
    import altair as alt

    langs, models = theme.distinct(rows, "lang"), theme.distinct(rows, "model")
    across = min(len(models), max(1, width // 150))
    return (
        _histogram()
        .properties(width=theme.panel_width(width, across), height=theme.PANEL_HEIGHT)
        .facet(
            data=alt.Data(values=rows),
            row=alt.Row("lang:N", sort=langs, title=None),
            column=alt.Column("model:N", sort=models, title=None),
        )
        .resolve_scale(x="independent")
        .properties(
            title=theme.title(
                TITLE, f"{rows[0]['layer']}, pooling {rows[0]['pooling']}.", width=width
            )
        )
    )


def panel(*, width: int) -> Any:
    """The chart of one model on a page; a script fills `rows` and sets the ends of the axes."""
    import altair as alt

    return (
        _histogram(x={"expr": "[low, high]"}, y={"expr": "[0, top]"})
        .properties(width=width, height=round(width * 0.5))
        .add_params(*(alt.param(name=name, value=1.0) for name in ("low", "high", "top")))
    )


def _histogram(x: Any = None, y: Any = None) -> Any:
    import altair as alt

    def scale(domain: Any) -> Any:
        return alt.Scale(nice=False) if domain is None else alt.Scale(domain=domain, nice=False)

    legend = alt.Legend(title=None, symbolOpacity=1, symbolType="stroke", symbolStrokeWidth=2)
    color = alt.Color("text:N", legend=legend).scale(domain=list(LABELS), range=theme.COLORS[:2])
    dash = alt.StrokeDash("text:N", legend=legend).scale(
        domain=list(LABELS), range=[[1, 0], [5, 3]]
    )
    base = alt.Chart().encode(
        x=alt.X("from:Q", title="held-out score", scale=scale(x)),
        y=alt.Y("share:Q", title="share of texts", scale=scale(y), stack=None),
        color=color,
    )
    line = base.mark_line(interpolate="step-after", strokeWidth=1.6, aria=False, clip=True)
    area = base.mark_area(interpolate="step-after", opacity=0.16, aria=False, clip=True)
    middle = alt.Chart().mark_rule(color=theme.GREY, aria=False).encode(x=alt.datum(0))
    return alt.layer(area, line.encode(strokeDash=dash), middle)


def moving(results: "Results") -> tuple[dict[str, Any], list[Row]]:
    """All layers for the page: uint32 [layer, pooling, lang, label, bin] a model, and the table."""
    langs, models = results.selection.languages, results.names
    counts, ends = [], []
    table: list[Row] = []
    for lang in langs:
        label = np.asarray(results.run.samples.label[results.run.lang_range(lang)])
        scores = _scores(results, lang)
        own_counts, own_ends = _histograms(scores, label)
        counts.append(own_counts)
        ends.append(own_ends)
        table += _summary(results, lang, scores, label)
    by_model = np.stack(counts, 3)  # [model, layer, pooling, lang, label, bin]
    cells = np.stack(ends, 2).reshape(-1, len(langs), 2)
    return {
        "kind": "bins",
        "names": list(LABELS),
        "bins": BINS,
        "model": list(models),
        "lang": list(langs),
        "pooling": list(results.selection.poolings),
        "ends": [[[float(f"{x:.4g}") for x in pair] for pair in cell] for cell in cells.tolist()],
        "blobs": [packed(own.astype(np.uint32)) for own in by_model],
        "choices": choices(results),
    }, table


def _summary(
    results: "Results", lang: str, scores: NDArray[np.float32], label: NDArray[np.int64]
) -> Iterator[Row]:
    """The table of the page: mean and quartiles of the scores of each model, label and layer."""
    for model, of_model in zip(results.names, scores, strict=True):
        for value, name in enumerate(LABELS):
            own = of_model[:, :, label == value]
            for i, layer in enumerate(results.selection.layers):
                for j, pooling in enumerate(results.selection.poolings):
                    same: Row = {"model": model, "lang": lang, "layer": layer, "pooling": pooling}
                    yield same | {"text": name, **_numbers(own[i, j])}


def _numbers(scores: NDArray[np.float32]) -> Row:
    known = scores[np.isfinite(scores)].astype(np.float64)
    names = ("mean score", "first quartile", "median", "third quartile")
    if not len(known):
        return {"texts": 0, **dict.fromkeys(names)}
    numbers = (known.mean(), *np.quantile(known, (0.25, 0.5, 0.75)))
    values = {name: rounded(float(x), 4) for name, x in zip(names, numbers, strict=True)}
    return {"texts": len(known), **values}


def _scores(results: "Results", lang: str) -> NDArray[np.float32]:
    """[model, layer, pooling, text], held-out scores; NaN where there is none."""
    return np.stack([row_values(results, x, "heldout_score", lang) for x in results.names])


def _histograms(
    scores: NDArray[np.float32], label: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """[model, layer, pooling, label, bin] counts, and [layer, pooling, 2] ends of the bins."""
    finite = np.isfinite(scores)
    low = np.where(finite, scores, np.inf).min((0, 3), initial=np.inf)
    high = np.where(finite, scores, -np.inf).max((0, 3), initial=-np.inf)
    empty = ~(low < high)
    middle = np.where(np.isfinite(low), low, 0.0)
    low, high = np.where(empty, middle - 1, low), np.where(empty, middle + 1, high)
    place = (scores - low[..., None]) / (high - low)[..., None] * BINS
    bins = np.nan_to_num(place).astype(np.int64).clip(0, BINS - 1)
    code = np.where(finite, label * BINS + bins, 2 * BINS)
    flat = code.reshape(-1, code.shape[-1])
    counts = np.stack([np.bincount(row, minlength=2 * BINS + 1)[: 2 * BINS] for row in flat])
    return counts.reshape(*code.shape[:3], 2, BINS), np.stack([low, high], -1).astype(np.float64)
