"""Tables of what a study asks beside the metrics: power, curve, sensitivity, transfer."""

import itertools
import math
import textwrap
from typing import TYPE_CHECKING

from .columns import (
    CHANCE,
    MOST_LAYERS,
    WIDTH,
    Style,
    Table,
    Tables,
    fixed,
    names_along,
    numbers_of,
    reason_marks,
    reasons_of,
)
from .marks import LIKELY_CHANCE, MEANINGS
from .texts import MIN_TEXTS

if TYPE_CHECKING:
    import xarray


# Power ---------------------------------------------------------------------------------------


def power_tables(dataset: "xarray.Dataset") -> Tables:
    """Tables of `power`: a row for each language, or for each layer of one language."""
    langs, layers = names_along(dataset, "lang"), names_along(dataset, "layer")
    asked, versus = dataset.attrs["asked_difference"], dataset.attrs["versus"]
    by, across = ("layer", "lang") if len(langs) == 1 else ("lang", "layer")
    visible = layers if by == "layer" or len(layers) <= MOST_LAYERS else layers[-1:]
    others = langs if by == "layer" else visible
    tables = []
    for model in names_along(dataset, "model"):
        for pooling in names_along(dataset, "pooling"):
            for other in others:
                for metric in names_along(dataset, "metric"):
                    place = {"model": model, "pooling": pooling, "metric": metric, across: other}
                    view = dataset.sel(place)
                    minus = f"{model} - {versus}" if versus else model
                    title = f"{minus} | pooling {pooling} | {across} {other} | {metric}"
                    tables.append(_power_table(view, by, title))
    share, level = dataset.attrs["power"], dataset.attrs["level"]
    legend = (
        f"needed: texts, harmless + harmful, that show a difference of {asked:g} in {share:.0%} of "
        f"studies (two-sided, level {level:g}), if they are like those of the pilot; at least "
        f"{MIN_TEXTS} of each. 95 %: the interval of all of them, for a pilot knows them only "
        "roughly. detectable: what the texts of the pilot show. "
    )
    legend += (
        "The same texts run in both models."
        if versus
        else "Shown: the interval of the value excludes a number that is this far away, such as "
        "the floor. >: the value is nearer than that to its floor, and the number is rough."
    )
    hidden = by == "lang" and len(visible) < len(layers)
    hints = [f"Only the last of {len(layers)} layers is shown; see --layers."] * hidden
    return Tables(tables, textwrap.wrap(legend, WIDTH, break_on_hyphens=False), hints)


def _power_table(view: "xarray.Dataset", by: str, title: str) -> Table:
    """The table of one metric: a row for each name along `by`."""
    notes: dict[str, str] = {}
    marks = reason_marks(view["refused"].to_numpy().tolist(), notes)
    near = (view["value"] - view["floor"] < view.attrs["asked_difference"]).to_numpy()
    rough = ["> " * bool(x and not view.attrs["versus"]) for x in near]
    counts = ("n0", "n1"), ("needed0", "needed1")
    pilot, needed = (
        [f"{n0:.0f}+{n1:.0f}" for n0, n1 in numbers_of(view, names)] for names in counts
    )
    columns = [[by, *names_along(view, by)], ["pilot", *pilot]]
    columns += [
        [name, *(fixed(x, ".3g") for x in view[name].to_numpy())]
        for name in ("value", "deviation", "detectable")
    ]
    entries = zip(marks, rough, needed, strict=True)
    columns.append(["needed", *(mark or f"{sign}{texts}" for mark, sign, texts in entries)])
    ends = numbers_of(view, ("needed_low", "needed_high"))
    columns.append(
        ["95 %", *("-" if math.isnan(low) else f"{low:.0f} to {high:.0f}" for low, high in ends)]
    )
    columns += [
        [name, *(fixed(x, form) for x in view[name].to_numpy())]
        for name, form in (("needed_units", ".0f"), ("unit_effect", ".2f"))
    ]
    return Table(title, columns, notes=reasons_of(notes))


# Curves --------------------------------------------------------------------------------------


def curve_tables(dataset: "xarray.Dataset") -> Tables:
    """Tables of `curve`: a row for each size, a column for each language."""
    sizes, langs = names_along(dataset, "size"), names_along(dataset, "lang")
    leading = ["texts", *sizes]
    tables = []
    for axis in itertools.product(
        *(names_along(dataset, d) for d in ("model", "pooling", "layer"))
    ):
        for metric in names_along(dataset, "metric"):
            view = dataset.sel(model=axis[0], pooling=axis[1], layer=axis[2], metric=metric)
            notes: dict[str, str] = {}
            columns = []
            for lang in langs:
                column = view.sel(lang=lang)
                numbers = numbers_of(column, ("value", "low", "high"))
                style = Style.of(numbers)
                marks = reason_marks(column["refused"].to_numpy().tolist(), notes)
                entries = zip(marks, numbers, strict=True)
                columns.append([lang, *(mark or style.entry(*row) for mark, row in entries)])
            title = f"{axis[0]} | pooling {axis[1]} | layer {axis[2]} | {metric}"
            tables.append(Table(title, [leading], columns, notes=reasons_of(notes)))
    legend = (
        "texts: of the rarer label. Value and 95 % interval of sub-samples of so many, the mean of "
        f"{dataset.attrs['draws']}, in the random projection: a store does not keep the full "
        "width of single texts. full width: all texts, as in `separation`."
    )
    return Tables(tables, textwrap.wrap(legend, WIDTH, break_on_hyphens=False))


# Sensitivity ---------------------------------------------------------------------------------


def sensitivity_tables(dataset: "xarray.Dataset") -> Tables:
    """Tables of `sensitivity`: a row for each set of choices, a column for each language."""
    compared = "base" in dataset.attrs
    if compared:
        views = {f"{dataset.attrs['base']} -> {dataset.attrs['aligned']}": dataset}
    else:
        views = {model: dataset.sel(model=model) for model in names_along(dataset, "model")}
    tables = []
    leading = ["choices", *names_along(dataset, "choice")]
    for name, view in views.items():
        columns = []
        for lang in names_along(dataset, "lang"):
            column = view.sel(lang=lang)
            parts = numbers_of(column, ("direction", "agree", "choices", "shown", "against"))
            columns.append([lang, *(_agreement(*part) for part in parts)])
        title = f"{name} | choices of metric, layer and pooling that agree"
        tables.append(Table(title, [leading], columns))
    what = (
        "the classes are further apart in the aligned model"
        if compared
        else "the value is above its floor"
    )
    legend = (
        f"+14/16 (9): in 14 of 16 choices {what}, in 9 the 95 % interval says so. -: in most it is "
        "the other way round. !2: in 2 choices the interval says the opposite of most. The choices "
        "are of the same texts: they are not so many pieces of evidence."
    )
    return Tables(tables, textwrap.wrap(legend, WIDTH, break_on_hyphens=False))


def _agreement(direction: float, agree: float, choices: float, shown: float, against: float) -> str:
    """How many choices agree, as the legend says."""
    if not choices:
        return "-"
    sign = {1.0: "+", -1.0: "-"}.get(direction, "")
    return f"{sign}{agree:.0f}/{choices:.0f} ({shown:.0f})" + f" !{against:.0f}" * bool(against)


# Transfer ------------------------------------------------------------------------------------


def transfer_tables(dataset: "xarray.Dataset") -> Tables:
    """Tables of `transfer`: a row for each language."""
    tables = []
    for model in names_along(dataset, "model"):
        for pooling in names_along(dataset, "pooling"):
            title = f"{model} | pooling {pooling} | AUC along the direction of the first store"
            tables.append(_transfer_table(dataset.sel(model=model, pooling=pooling), title))
    legend = (
        f"First: {dataset.attrs['source']}. Second: {dataset.attrs['target']}. layer: the one with "
        "the largest AUC on the first. chosen: this AUC, too high because it is the largest of "
        "several. tested: AUC of the texts of the second. own: their held-out AUC along the second "
        "store's own direction. removed: texts of the second store that are in the first too, and "
        f"the rest of their units. {LIKELY_CHANCE}: {MEANINGS[LIKELY_CHANCE]}."
    )
    if bool((dataset["space"] == "projection").any()):
        legend += (
            " space projection: approximate; run the second store with --basis of the first for "
            "the full width."
        )
    return Tables(tables, textwrap.wrap(legend, WIDTH, break_on_hyphens=False))


def _transfer_table(view: "xarray.Dataset", title: str) -> Table:
    """The table of one model and pooling."""
    notes: dict[str, str] = {}
    style = Style("z.3f")
    marks = reason_marks(view["refused"].to_numpy().tolist(), notes)
    source = numbers_of(view, ("source_auc", "source_low", "source_high"))
    target = numbers_of(view, ("target_auc", "target_low", "target_high", "target_p"))
    entries = [
        mark or style.entry(*row[:3], before=LIKELY_CHANCE * (row[3] > CHANCE))
        for mark, row in zip(marks, target, strict=True)
    ]
    counts = numbers_of(view, ("target_n0", "target_n1"))
    columns = [
        ["lang", *names_along(view, "lang")],
        ["layer", *(layer or "-" for layer in names_along(view, "best_layer"))],
        ["chosen", *(style.entry(*row) for row in source)],
        ["tested", *entries],
        ["p", *(fixed(row[3], ".3f") for row in target)],
        ["own", *(fixed(x, ".3f") for x in view["target_own_auc"].to_numpy())],
        ["texts", *(f"{n0:.0f}+{n1:.0f}" if math.isfinite(n0) else "-" for n0, n1 in counts)],
        ["removed", *(fixed(x, ".0f") for x in view["removed"].to_numpy())],
        ["space", *(space or "-" for space in names_along(view, "space"))],
    ]
    return Table(title, columns, notes=reasons_of(notes))
