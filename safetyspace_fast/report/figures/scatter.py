"""Texts in two principal components; on a page with a slider over layers."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import theme
from ..results import rounded
from . import NothingToShowError, Row
from ._drawn import LABELS, choices, packed, row_values

if TYPE_CHECKING:
    from ..results import Results

NAME = "scatter"
TITLE = "Texts in two components"
ABOUT = (
    "Each mark is a text in the first two principal components of its language, around the mean of "
    "the model. A tuned model is drawn in the components of its base where the store has them, so "
    "that the panels can be compared. Two components show a small part of the space."
)
TEXTS = 200
"""Texts of a language that are drawn at most; both labels in their proportion, spread evenly over
lengths."""
NOT_FINITE = -128
STEPS = 127


def drawn(results: "Results", lang: str) -> NDArray[np.int64]:
    """Which texts of a language are drawn, counted from its first."""
    label = np.asarray(results.run.samples.label[results.run.lang_range(lang)])
    picked = []
    for value in (0, 1):
        own = np.flatnonzero(label == value)  # in order of length
        room = len(own) if len(label) <= TEXTS else max(1, TEXTS * len(own) // len(label))
        room = min(room, len(own))
        picked.append(own[np.linspace(0, len(own) - 1, room).round().astype(np.int64)])
    return np.sort(np.concatenate(picked))


def coordinates(results: "Results", model: str, lang: str) -> NDArray[np.float32]:
    """[layer, pooling, text, 2], in the components of the model's base if the store has them."""
    base = components_of(results, model)
    if base == model:
        coords = row_values(results, model, "pca_coords", lang)
    else:
        place = results.run.model(model).attrs["bases"].index(base)
        coords = row_values(results, model, "basis_coords", lang)[:, :, :, place]
    return coords[..., drawn(results, lang), :2]


def components_of(results: "Results", model: str) -> str:
    """Whose components a model is drawn in."""
    store = results.run.model(model)
    base = next((one for one, other in results.pairs if other == model), model)
    known = base in store.attrs.get("bases", []) and store.has("basis_coords")
    return base if known else model


def rows(results: "Results") -> list[Row]:
    """One row a text, of the layer and the pooling that are shown."""
    i_layer = results.selection.layers.index(results.layer)
    i_pooling = results.selection.poolings.index(results.pooling)
    entries: list[Row] = []
    for lang in results.selection.languages:
        labels = _labels(results, lang)
        for model in results.names:
            points = coordinates(results, model, lang)[i_layer, i_pooling]
            entries += [
                {"lang": lang, "model": model, "layer": results.layer, "pooling": results.pooling,
                 "text": LABELS[label], "x": rounded(float(x), 4), "y": rounded(float(y), 4)}
                for label, (x, y) in zip(labels, points, strict=True)
                if np.isfinite(x) and np.isfinite(y)
            ]  # fmt: skip
    if not entries:
        raise NothingToShowError("no text has principal components: the states are not finite")
    return entries


def chart(rows: list[Row], *, width: int) -> Any:
    """One panel a language and model; circles are harmless, triangles harmful texts."""
    langs, models = theme.distinct(rows, "lang"), theme.distinct(rows, "model")
    import altair as alt

    side = theme.panel_width(width, len(models))
    return (
        _points()
        .properties(width=side, height=min(side, 200))
        .facet(
            data=alt.Data(values=rows),
            row=alt.Row("lang:N", sort=langs, title=None),
            column=alt.Column("model:N", sort=models, title=None),
        )
        .resolve_scale(x="independent", y="independent")
        .properties(
            title=theme.title(
                TITLE, f"{rows[0]['layer']}, pooling {rows[0]['pooling']}.", width=width
            )
        )
    )


def panel(*, width: int) -> Any:
    """The chart of one model on a page; a script fills `rows`, and sets `reach`, the axes' end."""
    import altair as alt

    reach = alt.param(name="reach", value=1.0)
    return (
        _points(domain={"expr": "[-reach, reach]"})
        .properties(width=width, height=width)
        .add_params(reach)
    )


def _points(domain: Any = None) -> Any:
    import altair as alt

    color = alt.Color("text:N", title=None).scale(domain=list(LABELS), range=theme.COLORS[:2])
    shape = alt.Shape("text:N", title=None).scale(
        domain=list(LABELS), range=["circle", "triangle-up"]
    )
    scale = alt.Scale(zero=True) if domain is None else alt.Scale(domain=domain, nice=False)
    return (
        alt.Chart()
        .mark_point(size=34, opacity=0.9, strokeWidth=1.5, aria=False)
        .encode(
            x=alt.X("x:Q", title="component 1", scale=scale),
            y=alt.Y("y:Q", title="component 2", scale=scale),
            color=color,
            shape=shape,
        )
    )


def moving(results: "Results") -> tuple[dict[str, Any], list[Row]]:
    """All layers for the page: int8 [layer, text, 2] of each model and pooling, and their table.

    A coordinate is its number times the cell's `reach` over `STEPS`; `NOT_FINITE` is none.
    """
    langs, models = results.selection.languages, results.names
    parts = {model: [coordinates(results, model, lang) for lang in langs] for model in models}
    # [layer, pooling, text, 2] each
    reach = np.array(
        [np.max([_reach(parts[model][i]) for model in models], axis=0) for i in range(len(langs))]
    )  # [lang, layer, pooling]
    reach = np.where(reach > 0, reach, 1.0)
    blobs = []
    for model in models:
        codes = np.concatenate(
            [_codes(part, reach[i][..., None, None]) for i, part in enumerate(parts[model])],
            axis=2,
        )  # [layer, pooling, text of all languages, 2]
        blobs.append([packed(codes[:, j]) for j in range(codes.shape[1])])
    labels = [_labels(results, lang) for lang in langs]
    ends = np.cumsum([0, *(len(own) for own in labels)]).tolist()
    table = [
        row
        for i, lang in enumerate(langs)
        for model in models
        for row in _summary(results, model, lang, parts[model][i], labels[i])
    ]
    return {
        "kind": "points",
        "names": list(LABELS),
        "model": list(models),
        "pooling": list(results.selection.poolings),
        "labels": np.concatenate(labels).tolist(),
        "spans": list(pairwise(ends)),
        "reach": [
            [float(f"{x:.4g}") for x in cell]
            for cell in reach.transpose(1, 2, 0).reshape(-1, len(langs))
        ],
        "blobs": blobs,
        "choices": choices(results),
    }, table


def _summary(
    results: "Results",
    model: str,
    lang: str,
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> Iterator[Row]:
    """The table of the page: mean and spread of the drawn texts, of each label and layer."""
    of = components_of(results, model)
    for value, name in enumerate(LABELS):
        own = points[:, :, labels == value]
        count = np.isfinite(own).all(-1).sum(2)
        mean, spread = _moments(own)
        for i, layer in enumerate(results.selection.layers):
            for j, pooling in enumerate(results.selection.poolings):
                yield {
                    "model": model, "lang": lang, "layer": layer, "pooling": pooling, "text": name,
                    "texts": int(count[i, j]), "components of": of,
                    "mean 1": rounded(float(mean[i, j, 0]), 4),
                    "mean 2": rounded(float(mean[i, j, 1]), 4),
                    "spread 1": rounded(float(spread[i, j, 0]), 3),
                    "spread 2": rounded(float(spread[i, j, 1]), 3),
                }  # fmt: skip


def positions(results: "Results") -> NDArray[np.int64]:
    """The drawn texts of all languages, as positions in the store, in the order of `moving`."""
    return np.concatenate(
        [
            results.run.lang_range(lang).start + drawn(results, lang)
            for lang in results.selection.languages
        ]
    )


def _labels(results: "Results", lang: str) -> NDArray[np.int64]:
    label = np.asarray(results.run.samples.label[results.run.lang_range(lang)], np.int64)
    return label[drawn(results, lang)]


def _reach(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """[layer, pooling], the largest coordinate."""
    size = np.where(np.isfinite(points), np.abs(points), 0.0)
    return np.asarray(size.max((2, 3), initial=0.0) * 1.02, np.float64)


def _codes(points: NDArray[np.float32], reach: NDArray[np.float64]) -> NDArray[np.int8]:
    scaled = np.nan_to_num(points / reach * STEPS).round().clip(-STEPS, STEPS)
    return np.where(np.isfinite(points), scaled, NOT_FINITE).astype(np.int8)


def _moments(points: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[layer, pooling, 2] each: mean and standard deviation of the finite texts."""
    known = np.where(np.isfinite(points), points, np.nan).astype(np.float64)
    count = np.isfinite(known).sum(2)
    with np.errstate(all="ignore"):
        mean = np.nansum(known, 2) / count
        spread = np.sqrt(np.nansum((known - mean[:, :, None]) ** 2, 2) / np.maximum(count - 1, 1))
    return mean, np.where(count > 1, spread, np.nan)
