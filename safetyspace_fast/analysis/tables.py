"""Results as tables for the terminal; `write` also writes all other formats."""

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from ..names import printable
from .columns import (
    CHANCE,
    MOST_LAYERS,
    WIDTH,
    Style,
    Table,
    Tables,
    aligned,
    fixed,
    names_along,
    numbers_of,
)
from .glossary import ENDS, LEAST_LANGUAGES
from .marks import (
    ANY,
    CLOSE,
    DISAGREE,
    ELSEWHERE,
    LIKELY_CHANCE,
    MARK_RESAMPLES,
    MEANINGS,
    SIGNIFICANT,
    disagrees,
    is_chance,
    is_close,
    is_significant,
)
from .markup import to_latex, to_markdown
from .metric_tables import (
    LIKE,
    ROW_MARKS,
    WITHOUT,
    about_others,
    can_leave_out,
    layer_tables,
    metric_table,
    row_marks,
)
from .rows import to_csv, to_json, to_parquet
from .study_tables import curve_tables, power_tables, sensitivity_tables, transfer_tables

if TYPE_CHECKING:
    import xarray


def write(dataset: "xarray.Dataset", form: str = "table", output: Path | None = None) -> None:
    """Write results to a file, or to stdout.

    Args:
        dataset: what a function of this folder returned; of `directions` and `parallel`, both
            merged.
        form: one of `FORMATS`.
        output: a file; None prints to stdout.

    Raises:
        ConfigError: the form is unknown, Parquet has no file, or the file cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"format: got {form!r}, expected one of {', '.join(FORMATS)}")
    if form == "parquet" and output is None:
        raise ConfigError("format: parquet is binary; name a file to write it to")
    if output is None:
        sys.stdout.write(_AS_TEXT[form](dataset))
        return
    try:
        if form == "parquet":
            to_parquet(dataset, output)
        else:
            output.write_text(_AS_TEXT[form](dataset), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from error


def to_table(dataset: "xarray.Dataset") -> str:
    """Tables of at most `WIDTH` columns; the legend is under the first one.

    With several languages there is a table for each layer, and a row for each language. With one
    language there is one table with a row for each layer. Metrics that do not fit go into another
    table below.
    """
    result = tables_of(dataset)
    blocks = [block for table in result.tables for block in table.text()]
    blocks = [*blocks[:1], list(result.legend), *blocks[1:], list(result.settings)]
    lines = [line for block in blocks for line in (*block, "")]
    hint = "`safetyspace-fast explain NAME` defines a metric or a column."
    return "\n".join(map(printable, [*lines, *result.hints, hint])) + "\n"


def tables_of(dataset: "xarray.Dataset") -> Tables:
    """All tables of a result, in no format yet."""
    if "needed0" in dataset:
        result = power_tables(dataset)
    elif "size" in dataset.dims:
        result = curve_tables(dataset)
    elif "against" in dataset:
        result = sensitivity_tables(dataset)
    elif "target_auc" in dataset:
        result = transfer_tables(dataset)
    elif "metric" not in dataset.dims:
        result = _matrices(dataset)
    else:
        result = _metrics(dataset)
    return replace(result, settings=_settings(dataset))


def _metrics(dataset: "xarray.Dataset") -> Tables:
    """Tables of `separation` and `compare`."""
    langs, layers = names_along(dataset, "lang"), names_along(dataset, "layer")
    visible = layers if len(langs) == 1 or len(layers) <= MOST_LAYERS else layers[-1:]
    compared = "difference" in dataset
    if compared:
        views = {f"{dataset.attrs['base']} -> {dataset.attrs['aligned']}": dataset}
    else:
        views = {model: dataset.sel(model=model) for model in names_along(dataset, "model")}
    tables: list[Table] = []
    for name, of_model in views.items():
        for pooling in names_along(dataset, "pooling"):
            view = of_model.sel(pooling=pooling)
            title = f"{name} | pooling {pooling}"
            if len(langs) == 1:
                of_lang = view.isel(lang=0)
                tables.append(metric_table(of_lang, "layer", f"{title} | language {langs[0]}"))
            else:
                for layer in visible:
                    tables += layer_tables(view.sel(layer=layer), f"{title} | layer {layer}")
            if compared:
                tables.append(_geometry(view, visible))
    legend = _legend(dataset) + _what_rules(dataset.sel(layer=visible))
    hidden = len(visible) < len(layers)
    hints = [
        f"Only the last of {len(layers)} layers is shown; choose others with --layers, or one "
        "language with --languages."
    ] * hidden
    return Tables([*tables, *_confounds(dataset)], legend, hints)


def _legend(dataset: "xarray.Dataset") -> list[str]:
    """What the marks in tables of metrics mean, and what the rows of groups hold."""
    marks = " ".join(f"{mark}: {MEANINGS[mark]}." for mark in (LIKELY_CHANCE, SIGNIFICANT))
    coarse = [
        name
        for name, number in zip(
            names_along(dataset, "metric"), dataset["resamples"].to_numpy(), strict=True
        )
        if number < MARK_RESAMPLES and bool(dataset["p"].sel(metric=name).notnull().any())
    ]
    if coarse:
        whose = "" if len(coarse) == dataset.sizes["metric"] else f" on {', '.join(coarse)}"
        marks += (
            f" No marks{whose}: fewer than {MARK_RESAMPLES} resamples cannot give p <= {CHANCE}; "
            "see --permutations and --bootstraps."
        )
    if "difference" in dataset:
        parts = [
            "before > after, difference [95 % interval].",
            marks,
        ]
        if "verdict" in dataset:
            largest = f"{dataset['verdict'].attrs['equivalence']:g}"
            parts.append(
                f"within {largest}: no change larger than that (the 90 % interval lies inside). "
                "changed: not so, and the 95 % interval excludes 0."
            )
        if any(" pc" in space for space in names_along(dataset, "space")):
            parts.append(f"{dataset.attrs['components']}.")
        elsewhere = [name for name in ELSEWHERE if name in dataset]
        if others := [name for name in elsewhere if disagrees(dataset, name).any()]:
            parts.append(
                f"{DISAGREE}: {MEANINGS[DISAGREE]} (explain {', '.join(others)}): the choice of "
                "components decides."
            )
        parts += _disputed(dataset)
        share = dataset["rounding_share"].to_numpy()
        if alike := int((share >= 1).sum()):
            parts.append(
                f"In {alike} of {share.size} layers, poolings and languages the models differ only "
                "by rounding (rounding_share is 1 or more): nothing is marked there."
            )
        if not dataset.attrs["reference"] and dataset.sizes["lang"] > 1:
            parts.append("No language is the reference: there are no differences of differences.")
    else:
        parts = ["value [95 % interval].", marks]
        if "any difference" in dataset["p_asks"].to_numpy():
            parts.append(f"{ANY}: {MEANINGS[ANY]}.")
        parts += _close_calls(dataset)
        parts.append("floor: value expected without any difference, median of the rows.")
        known = dataset["p"].notnull().any(dataset["p"].dims[1:])
        exact = dataset.sel(metric=np.isinf(dataset["resamples"]) & known)
        if names := ", ".join(names_along(exact, "metric")):
            parts.append(f"{names}: p comes from no permutation, so there is no *.")
        if any(dataset["alias_of"].to_numpy()):
            parts.append("= NAME: a transformation of that metric.")
    parts += _lengths_differ(dataset)
    if dataset.sizes["lang"] > 1:
        parts += _groups(dataset)
    return textwrap.wrap(" ".join(parts), WIDTH, break_on_hyphens=False)


def _disputed(dataset: "xarray.Dataset") -> list[str]:
    """What to think of intervals of differences that say otherwise than the mark."""
    marked = dataset["p"].notnull() & (dataset["resamples"] >= MARK_RESAMPLES)
    chance = is_chance(dataset)
    outside = (dataset["low"] > 0) | (dataset["high"] < 0)
    inside = (dataset["low"] <= 0) & (dataset["high"] >= 0)
    cases = (
        (int((outside & chance).sum()), "the interval excludes 0 but the mark is ~"),
        (int((inside & marked & ~chance).sum()), "the interval holds 0 but there is no ~"),
    )
    said = [f"in {number} {what}" for number, what in cases if number]
    if not said:
        return []
    both = int(((outside | inside) & marked).sum())
    return [
        f"Of {both} differences with mark and interval, {' and '.join(said)}: p comes from the "
        "influence of each text on the difference, the interval from the intervals of both models. "
        "Believe the mark on whether there is a difference."
    ]


def _close_calls(dataset: "xarray.Dataset") -> list[str]:
    """What to think of marks that other permutations could change, or that intervals contradict."""
    parts = []
    if is_close(dataset).any():
        parts.append(f"{CLOSE}: {MEANINGS[CLOSE]}.")
    resamples = dataset["resamples"]
    permuted = dataset.sel(metric=np.isfinite(resamples) & (resamples >= MARK_RESAMPLES))
    chance, star = is_chance(permuted), is_significant(permuted)
    inside = (permuted["low"] <= permuted["floor"]) & (permuted["floor"] <= permuted["high"])
    outside = (permuted["low"] > permuted["floor"]) | (permuted["floor"] > permuted["high"])
    if number := int(((star & inside) | (chance & outside)).sum()):
        both = int((permuted["p"].notnull() & (inside | outside)).sum())
        parts.append(
            f"Of {both} numbers with mark and interval, in {number} these disagree about the "
            "floor: marks come from permutations, which hold for any number of texts, so believe "
            "the marks."
        )
    return parts


def _lengths_differ(dataset: "xarray.Dataset") -> list[str]:
    """Where length alone tells the classes apart, and which metrics see what is left without it."""
    names = names_along(dataset, "metric")
    if "rho_equal_length" in names or "auc_equal_length" in names:
        return []
    apart = (dataset["auc_length_low"] > 0.5) | (dataset["auc_length_high"] < 0.5)
    langs = names_along(dataset.sel(lang=apart.any("model").to_numpy()), "lang")
    if not langs:
        return []
    return [
        f"Harmful and harmless texts differ in length in {', '.join(langs)}: see also "
        "--metric rho_equal_length --metric auc_equal_length."
    ]


def _groups(dataset: "xarray.Dataset") -> list[str]:
    """Which languages the rows `high` and `low` hold, or why there are none."""
    members = {
        name: dataset.attrs.get(f"group_{name}", "").replace(",", ", ")
        for name in ("high", "low", "none")
    }
    neither = f" In neither: {members['none']}." if members["none"] else ""
    if "group" in dataset.dims:
        parts = [
            f"high: mean of {members['high']}. low: mean of {members['low']}.{neither}",
            "These rows and high - low are about exactly these languages and show nothing about "
            "others.",
        ]
        if about_others(dataset):
            parts.append(
                f"{LIKE}: high - low for all languages like these, with a 95 % interval that "
                "allows for other languages (`explain group_like_value`)."
            )
        else:
            parts.append(
                f"There is no row for languages like these: it needs {LEAST_LANGUAGES} in each "
                "group."
            )
        if can_leave_out(dataset):
            parts.append(
                f"{WITHOUT}: high - low when any one language is left out, and which moves it most."
            )
        return parts
    empty = " or ".join(name for name in ("high", "low") if not members[name])
    return [f"No means over groups: no language is in {empty}; see --high and --low.{neither}"]


def _what_rules(dataset: "xarray.Dataset") -> list[str]:
    """What the marks of rows say, of those that are there."""
    there = set("".join(row_marks(dataset)))
    return [
        line
        for mark, text in ROW_MARKS.items()
        if mark in there
        for line in textwrap.wrap(f"{mark}: {text}.", WIDTH, break_on_hyphens=False)
    ]


# Beside the metrics --------------------------------------------------------------------------


def _geometry(view: "xarray.Dataset", layers: list[str]) -> Table:
    """Variables of `GEOMETRY`: a row for each layer and language."""
    names = [
        str(name)
        for name, variable in view.data_vars.items()
        if variable.dims == ("layer", "lang") and "definition" in variable.attrs
    ]
    langs = names_along(view, "lang")
    part = view[names].sel(layer=layers)
    leading = [
        ["layer", *(layer for layer in layers for _ in langs)],
        ["lang", *(lang for _ in layers for lang in langs)],
    ]
    columns = [[name, *(fixed(x, ".3f") for x in part[name].to_numpy().flat)] for name in names]
    return Table("", leading, columns)


def _matrices(dataset: "xarray.Dataset") -> Tables:
    """Tables of `directions` and `parallel`: matrices of languages, silhouettes of all layers."""
    layers, langs = names_along(dataset, "layer"), names_along(dataset, "lang")
    tables = []
    for model in names_along(dataset, "model"):
        for pooling in names_along(dataset, "pooling"):
            view = dataset.sel(model=model, pooling=pooling)
            for layer in layers if len(layers) <= MOST_LAYERS else layers[-1:]:
                for name in ("transfer_auc", "direction_cosine", "direction_reliability"):
                    numbers = view[name].sel(layer=layer).transpose("lang", "other_lang").to_numpy()
                    columns = [["lang", *langs]]
                    for i, other in enumerate(langs):
                        columns.append([other, *(fixed(x, ".2f") for x in numbers[:, i])])
                    title = f"{model} | pooling {pooling} | layer {layer} | {name}"
                    tables.append(Table(title, columns))
            if bool(view["semantic"].notnull().any()):
                columns = [["layer", *layers]]
                for name in ("semantic", "language"):
                    parts = numbers_of(view, [f"{name}{end}" for end in ("", "_low", "_high")])
                    columns.append([name, *(Style("z.3f").entry(*part) for part in parts)])
                title = f"{model} | pooling {pooling} | silhouette by content and by language"
                tables.append(Table(title, columns))
    legend = "Rows: language of the texts. Columns: language that the direction was fitted to."
    return Tables([*tables, *_confounds(dataset)], [legend])


_CONFOUND_FORMS = {
    "tokens0": ".1f",
    "tokens1": ".1f",
    "chars_per_token": ".2f",
    "truncated": ".1%",
    "duplicates": ".1%",
    "clustered": ".1%",
    "units": ".0f",
    "design_effect": ".2f",
    "elsewhere": ".1%",
    "harmful": ".1%",
    "auc_length": ".3f",
    "auc_lexical": ".3f",
}
"""Columns of the table, and how their numbers are written; those with an interval show it."""


def _confounds(dataset: "xarray.Dataset") -> list[Table]:
    """Variables of `CONFOUNDS`; models with the same numbers share a table."""
    langs = names_along(dataset, "lang")
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for i, model in enumerate(names_along(dataset, "model")):
        view = dataset.isel(model=i)  # a model may be compared with itself
        columns = tuple(
            (name, *_confound_entries(view, name, form)) for name, form in _CONFOUND_FORMS.items()
        )
        alike.setdefault(columns, []).append(model)
    what = "other differences between the languages" if len(langs) > 1 else "about the texts"
    together = bool(((dataset["duplicates"] > 0) | (dataset["clustered"] > 0)).any())
    note = ["Texts that belong together are one unit of evidence: see `explain units`."] * together
    return [
        Table(f"{', '.join(models)} | {what}", [["lang", *langs]], columns, notes=note, one=True)
        for columns, models in alike.items()
    ]


def _confound_entries(view: "xarray.Dataset", name: str, form: str) -> list[str]:
    """Entries of one variable of `CONFOUNDS`, with its interval if it has one."""
    if f"{name}_low" not in view:
        return [fixed(x, form) for x in view[name].to_numpy()]
    return [Style(form).entry(*row) for row in numbers_of(view, [name + end for end in ENDS])]


def _settings(dataset: "xarray.Dataset") -> list[str]:
    """How the models were run, and in what their runs differ."""
    shared, differ = (dataset.attrs[name] for name in ("run_as", "settings_differ"))
    lines = [f"Run with {shared}."] if shared else []
    if differ:
        lines.append(f"The models were not run alike: {differ}.")
    if older := dataset.attrs.get("p_in_projection", "").replace(",", ", "):
        lines.append(
            f"p of {older} come from the projection and change with its seed: the store holds no "
            "permutations of these texts (an earlier version, or --unpaired); run again for exact "
            "ones."
        )
    return textwrap.wrap(" ".join(lines), WIDTH, break_on_hyphens=False)


def _markdown(dataset: "xarray.Dataset") -> str:
    return to_markdown(tables_of(dataset))


def _latex(dataset: "xarray.Dataset") -> str:
    return to_latex(tables_of(dataset))


_AS_TEXT: "dict[str, Callable[[xarray.Dataset], str]]" = {
    "table": to_table,
    "json": to_json,
    "csv": to_csv,
    "markdown": _markdown,
    "latex": _latex,
}
FORMATS = (*_AS_TEXT, "parquet")


def beside_published(
    dataset: "xarray.Dataset", published: Sequence[Mapping[str, str | float]], source: str
) -> str:
    """A table of published numbers beside those of `compare`.

    Args:
        dataset: what `compare` returned, for one layer and pooling.
        published: each with lang, metric and some of base, aligned, difference.
        source: where they were published.
    """
    columns = [["lang"], ["metric"], ["published"], ["here"], ["space"]]
    results = dataset.squeeze(["layer", "pooling"])
    for entry in published:
        lang, metric = str(entry["lang"]), str(entry["metric"])
        if lang not in results["lang"].to_numpy() or metric not in results["metric"].to_numpy():
            continue
        result = results.sel(lang=lang, metric=metric)
        for name in ("base", "aligned", "difference"):
            if name in entry:
                numbers = (f"{x:.4f}" for x in (float(entry[name]), result[name].item()))
                cells = (lang, f"{metric} {name}", *numbers, result["space"].item())
                for column, cell in zip(columns, cells, strict=True):
                    column.append(cell)
    if len(columns[0]) == 1:
        return f"{source}: no published number of this pair is known here"
    return "\n".join([f"published: {source}", *aligned(columns)])
