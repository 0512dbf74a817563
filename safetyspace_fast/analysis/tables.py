"""Results as tables for the terminal; `write` also writes JSON, CSV and Parquet."""

import math
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from .columns import (
    CHANCE,
    MOST_LAYERS,
    WIDTH,
    Style,
    aligned,
    fitting,
    fixed,
    median,
    names_along,
    numbers_of,
    reason_marks,
    reasons_of,
    width_of,
)
from .glossary import ENDS, LEAST_LANGUAGES, SPACES
from .rows import to_csv, to_json, to_parquet
from .study_tables import curve_tables, power_tables, sensitivity_tables, transfer_tables

if TYPE_CHECKING:
    import xarray
    from numpy.typing import NDArray

FORMATS = ("table", "json", "csv", "parquet")
DOMINANT = 0.5
"""Rows are marked where the largest dimension has a larger share, or the first component a larger
correlation with the length of texts."""
MARK_RESAMPLES = math.ceil(1 / CHANCE) - 1
"""With fewer resamples, of which the smallest p is 1/(1 + R), no number is marked."""


def write(dataset: "xarray.Dataset", form: str = "table", output: Path | None = None) -> None:
    """Write results to a file, or to stdout.

    Args:
        dataset: what a function of this folder returned.
        form: one of `FORMATS`.
        output: a file; None prints to stdout.

    Raises:
        ConfigError: the form is unknown, Parquet has no file, or the file cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"format: got {form!r}, expected one of {', '.join(FORMATS)}")
    if form == "parquet" and output is None:
        raise ConfigError("format: parquet is binary; name a file to write it to")
    as_text = {"table": to_table, "json": to_json, "csv": to_csv}
    if output is None:
        sys.stdout.write(as_text[form](dataset))
        return
    try:
        if form == "parquet":
            to_parquet(dataset, output)
        else:
            output.write_text(as_text[form](dataset), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from error


def to_table(dataset: "xarray.Dataset") -> str:
    """Tables of at most `WIDTH` columns; the legend is under the first one.

    With several languages there is a table for each layer, and a row for each language. With one
    language there is one table with a row for each layer. Metrics that do not fit go into another
    table below.
    """
    if "needed0" in dataset:
        return _text([*power_tables(dataset), *_settings(dataset)])
    if "size" in dataset.dims:
        return _text([*curve_tables(dataset), *_settings(dataset)])
    if "against" in dataset:
        return _text([*sensitivity_tables(dataset), *_settings(dataset)])
    if "target_auc" in dataset:
        return _text([*transfer_tables(dataset), *_settings(dataset)])
    if "metric" not in dataset.dims:
        return _text([*_matrices(dataset), *_confounds(dataset), *_settings(dataset)])
    langs, layers = names_along(dataset, "lang"), names_along(dataset, "layer")
    visible = layers if len(langs) == 1 or len(layers) <= MOST_LAYERS else layers[-1:]
    compared = "difference" in dataset
    if compared:
        views = {f"{dataset.attrs['base']} -> {dataset.attrs['aligned']}": dataset}
    else:
        views = {model: dataset.sel(model=model) for model in names_along(dataset, "model")}
    tables: list[list[str]] = []
    for name, of_model in views.items():
        for pooling in names_along(dataset, "pooling"):
            view = of_model.sel(pooling=pooling)
            title = f"{name} | pooling {pooling}"
            if len(langs) == 1:
                tables += _metrics(view.isel(lang=0), "layer", f"{title} | language {langs[0]}")
            else:
                for layer in visible:
                    tables += _layer(view.sel(layer=layer), f"{title} | layer {layer}")
            if compared:
                tables += _geometry(view, visible)
    tables.insert(1, _legend(dataset) + _what_rules(dataset.sel(layer=visible)))
    hints = []
    if len(visible) < len(layers):
        hints.append(
            f"Only the last of {len(layers)} layers is shown; choose others with --layers, or one "
            "language with --languages."
        )
    return _text([*tables, *_confounds(dataset), *_settings(dataset)], hints)


def _text(tables: Iterable[list[str]], hints: Sequence[str] = ()) -> str:
    """Tables with a blank line after each, then hints."""
    hints = [*hints, "`safetyspace-fast explain NAME` defines a metric or a column."]
    lines = [line for table in tables for line in (*table, "")]
    return "\n".join([*lines, *hints]) + "\n"


def _legend(dataset: "xarray.Dataset") -> list[str]:
    """What the marks in tables of metrics mean, and what the rows of groups hold."""
    marks = (
        f"~: consistent with chance (p > {CHANCE}). *: significant after correction over all "
        f"numbers of this result (p_family <= {CHANCE})."
    )
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
        if others := [name for name in ELSEWHERE if _disagrees(dataset, name).any()]:
            parts.append(
                f"{DISAGREE}: in other components the difference has the other sign (explain "
                f"{', '.join(others)}): the choice of components decides."
            )
        parts += _cautious(dataset)
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
            parts.append(
                f"{ANY}: the same, but a difference of spread alone is enough (`explain p_asks`)."
            )
        parts += _close_calls(dataset)
        parts.append("floor: value expected without any difference, median of the rows.")
        known = dataset["p"].notnull().any(dataset["p"].dims[1:])
        exact = dataset.sel(metric=np.isinf(dataset["resamples"]) & known)
        if names := ", ".join(names_along(exact, "metric")):
            parts.append(f"{names}: p comes from no permutation, so there is no *.")
        if any(dataset["alias_of"].to_numpy()):
            parts.append("= NAME: a transformation of that metric.")
    if dataset.sizes["lang"] > 1:
        parts += _groups(dataset)
    return textwrap.wrap(" ".join(parts), WIDTH, break_on_hyphens=False)


def _cautious(dataset: "xarray.Dataset") -> list[str]:
    """What to think of intervals of differences that exclude 0 where the mark says chance."""
    outside = (dataset["low"] > 0) | (dataset["high"] < 0)
    number = int((outside & (dataset["p"] > CHANCE)).sum())
    if not number:
        return []
    return [
        f"In {number} of all differences the interval excludes 0 but the mark is ~: in components "
        "p comes from the influence of each text, and is the more cautious of the two, so believe "
        "the marks."
    ]


def _close_calls(dataset: "xarray.Dataset") -> list[str]:
    """What to think of marks that other permutations could change, or that intervals contradict."""
    parts = []
    p, resamples = dataset["p"].to_numpy(), dataset["resamples"].to_numpy()
    if any(_is_close(x, n) for row, n in zip(p, resamples, strict=True) for x in row.flat):
        parts.append(f"?: p is so near {CHANCE} that other permutations could change the mark.")
    permuted = dataset.sel(metric=np.isfinite(dataset["resamples"]))
    chance, star = permuted["p"] > CHANCE, permuted["p_family"] <= CHANCE
    inside = (permuted["low"] <= permuted["floor"]) & (permuted["floor"] <= permuted["high"])
    outside = (permuted["low"] > permuted["floor"]) | (permuted["floor"] > permuted["high"])
    if number := int(((star & inside) | (chance & outside)).sum()):
        parts.append(
            f"In {number} of all numbers mark and interval disagree about the floor: marks come "
            "from permutations, which hold for any number of texts, so believe the marks."
        )
    return parts


def _is_close(p: float, resamples: float) -> bool:
    """Whether the Monte-Carlo error of p (two standard deviations) reaches `CHANCE`.

    Args:
        p: of a number.
        resamples: behind it; infinite if p comes from none.
    """
    return abs(p - CHANCE) <= 2 * math.sqrt(CHANCE * (1 - CHANCE) / max(resamples, 1))


ANY = "+"
"""Mark in place of `*` where p asks for any difference of the classes, not for one of means."""
DISAGREE = "^"
"""Mark of a difference that has another sign in other components."""
ELSEWHERE = tuple(f"difference_{space}" for space in SPACES)


def _disagrees(view: "xarray.Dataset", name: str) -> "NDArray[np.bool_]":
    """Whether a difference and that in other components, where it is known, differ in sign.

    Differences of the level of rounding have no sign.
    """
    if name not in view:
        return np.zeros(view["difference"].shape, bool)
    opposite = (view["difference"] * view[name] < 0) & ~(view["rounding_share"] >= 1)
    signs: NDArray[np.bool_] = opposite.transpose(*view["difference"].dims).to_numpy()
    return signs


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
        if _about_others(dataset):
            parts.append(
                f"{LIKE}: high - low for all languages like these, with a 95 % interval that "
                "allows for other languages (`explain group_like_value`)."
            )
        else:
            parts.append(
                f"There is no row for languages like these: it needs {LEAST_LANGUAGES} in each "
                "group."
            )
        if _can_leave_out(dataset):
            parts.append(
                f"{WITHOUT}: high - low when any one language is left out, and which moves it most."
            )
        return parts
    empty = " or ".join(name for name in ("high", "low") if not members[name])
    return [f"No means over groups: no language is in {empty}; see --high and --low.{neither}"]


LIKE, WITHOUT = "like these", "without one"
"""Rows under `high - low`."""


def _members(dataset: "xarray.Dataset") -> list[int]:
    """How many languages each group has."""
    return [dataset.attrs[f"group_{name}"].count(",") + 1 for name in ("high", "low")]


def _about_others(dataset: "xarray.Dataset") -> bool:
    return min(_members(dataset)) >= LEAST_LANGUAGES


def _can_leave_out(dataset: "xarray.Dataset") -> bool:
    return max(_members(dataset)) > 1


ROW_MARKS = {
    "!": "one dimension holds more than half of the variance; see rho_standardized, or another "
    "pooling (`explain largest_share`)",
    "#": "the first principal component follows the number of tokens; see auc_equal_length, or "
    "another pooling (`explain pc1_tokens`)",
}
"""Marks behind the name of a row, and what they say."""


def _row_marks(view: "xarray.Dataset") -> list[str]:
    """The marks of each row, in any of the models of a view (.., row)."""

    def largest(*names: str) -> list[float]:
        columns = [view[name].to_numpy() for name in names]
        size = np.nan_to_num(np.abs(columns)).reshape(-1, columns[0].shape[-1]).max(0)
        return [float(x) for x in size]

    marks = {"!": largest("largest_share"), "#": largest("pc1_tokens", "pc1_inverse_tokens")}
    rows = zip(*marks.values(), strict=True)
    return [
        "".join(mark for mark, size in zip(marks, row, strict=True) if size > DOMINANT)
        for row in rows
    ]


def _what_rules(dataset: "xarray.Dataset") -> list[str]:
    """What the marks of rows say, of those that are there."""
    there = set("".join(_row_marks(dataset)))
    return [
        line
        for mark, text in ROW_MARKS.items()
        if mark in there
        for line in textwrap.wrap(f"{mark}: {text}.", WIDTH, break_on_hyphens=False)
    ]


# Metrics -------------------------------------------------------------------------------------


def _layer(view: "xarray.Dataset", title: str) -> list[list[str]]:
    """All metrics of one layer, and how differences differ from those of the reference."""
    tables = _metrics(view, "lang", title)
    if reference := view.attrs.get("reference"):
        tables += _excess(view, f"{title} | difference minus that of {reference}")
    return tables


def _metrics(view: "xarray.Dataset", row_dim: str, title: str) -> list[list[str]]:
    """A row for each name along `row_dim`, a column for each metric."""
    compared = "difference" in view
    names = names_along(view, row_dim)
    below = [] if compared else ["floor"]
    if "group" in view.dims and row_dim == "lang":
        below += names_along(view, "group")
        below += [LIKE] * _about_others(view) + [WITHOUT] * _can_leave_out(view)
    marked = [f"{name} {mark}".rstrip() for name, mark in zip(names, _row_marks(view), strict=True)]
    leading = [[row_dim, "", *marked, *below]]
    if not compared:
        counts = zip(view["n0"].to_numpy().tolist(), view["n1"].to_numpy().tolist(), strict=True)
        leading.append(["", "n0+n1", *(f"{n0}+{n1}" for n0, n1 in counts), *("" for _ in below)])
    notes: dict[str, str] = {}
    columns = []
    for metric in names_along(view, "metric"):
        column = view.sel(metric=metric)
        head = str(column["space"].item())
        if not compared and (alias := str(column["alias_of"].item())):
            head = f"= {alias}"
        columns.append([metric, head, *_entries(column, grouped=len(below) > 1, notes=notes)])
    tables = [
        [title, *aligned([*leading, *part])]
        for part in fitting(columns, sum(width_of(column) + 2 for column in leading))
    ]
    tables[-1] += reasons_of(notes)
    if not compared:
        tables[-1] += _without_the_model(view)
    return tables


def _without_the_model(view: "xarray.Dataset") -> list[str]:
    """AUC of length and of characters, under a table that has an AUC of states."""
    if not any(name.startswith("auc_") for name in names_along(view, "metric")):
        return []
    langs, length, lexical = (
        np.atleast_1d(view[name].to_numpy()) for name in ("lang", "auc_length", "auc_lexical")
    )
    each = (
        f"{lang} {fixed(of_length, '.3f')}, {fixed(of_characters, '.3f')}"
        for lang, of_length, of_characters in zip(langs, length, lexical, strict=True)
    )
    text = f"AUC without the model, of length and of characters: {'; '.join(each)}."
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _entries(column: "xarray.Dataset", *, grouped: bool, notes: dict[str, str]) -> list[str]:
    """Entries of one metric: of the names along the rows, its floor, and means over groups.

    Args:
        column: one metric of one layer or one language.
        grouped: whether to show means over groups.
        notes: mark of each reason for which a number is refused; new ones are added.
    """
    compared = "difference" in column
    refused = column["refused"].to_numpy().tolist()
    marks = reason_marks(refused, notes)
    middle = "difference" if compared else "value"
    numbers = numbers_of(column, (middle, "low", "high", "p", "p_family"))
    resamples = float(column["resamples"].item())
    marked = resamples >= MARK_RESAMPLES
    style = Style.of(numbers)
    star = ANY if "p_asks" in column.coords and column["p_asks"].item() != "means" else "*"
    entries = [style.entry(*(row if marked else row[:3]), star=star) for row in numbers]
    if marked and not compared:
        close = [_is_close(row[3], resamples) for row in numbers]
        entries = ["?" * here + entry for here, entry in zip(close, entries, strict=True)]
    if compared:
        apart = np.any([_disagrees(column, name) for name in ELSEWHERE], 0)
        entries = [DISAGREE * int(x) + entry for x, entry in zip(apart, entries, strict=True)]
        both = numbers_of(column, ("base", "aligned"))
        entries = [
            f"{style.number(base)} > {style.number(aligned)}, {entry}"
            for (base, aligned), entry in zip(both, entries, strict=True)
        ]
    entries = [mark or entry for mark, entry in zip(marks, entries, strict=True)]
    if not compared:
        entries.append(style.number(median(column["floor"].to_numpy().tolist())))
    entries = _padded([*entries, *(_group_entries(column, style) if grouped else [])])
    if "verdict" in column:
        verdicts = [
            word.replace("no change larger than", "within")
            for word in column["verdict"].to_numpy().tolist()
        ]
        verdicts += [""] * (len(entries) - len(verdicts))
        words = max(map(len, verdicts))
        entries = [f"{x} {word:>{words}}" for x, word in zip(entries, verdicts, strict=True)]
    return entries


def _group_entries(column: "xarray.Dataset", style: Style) -> list[str]:
    """Entries of one metric for the rows of groups."""
    means = numbers_of(column, ("group_value", "group_low", "group_high"))
    entries = [style.entry(*mean) for mean in means]
    gap = column.sel(group="high - low")
    if _about_others(column):
        parts = ("group_like_value", "group_like_low", "group_like_high", "group_like_p")
        entries.append(style.entry(*(float(gap[part]) for part in parts)))
    if _can_leave_out(column):
        ends = (float(gap[f"group_without_{end}"]) for end in ("low", "high"))
        most = str(gap["group_without"].item())
        entries.append(" to ".join(map(style.number, ends)) + f" ({most})" if most else "-")
    return entries


def _excess(view: "xarray.Dataset", title: str) -> list[list[str]]:
    """Differences of differences of one layer: a row for each language."""
    langs = [lang for lang in names_along(view, "lang") if lang != view.attrs["reference"]]
    columns = []
    for metric in names_along(view, "metric"):
        column = view.sel(metric=metric, lang=langs)
        names = ("excess", "excess_low", "excess_high", "excess_p", "excess_p_family")
        numbers = numbers_of(column, names)
        style = Style.of(numbers)
        marked = int(column["resamples"].item()) >= MARK_RESAMPLES
        entries = [
            "-" if reason else style.entry(*(row if marked else row[:3]))
            for row, reason in zip(numbers, column["refused"].to_numpy().tolist(), strict=True)
        ]
        if any(entry != "-" for entry in entries):
            columns.append([metric, *_padded(entries)])
    leading = ["lang", *langs]
    return [[title, *aligned([leading, *part])] for part in fitting(columns, width_of(leading) + 2)]


def _padded(entries: list[str]) -> list[str]:
    """Add a blank where another entry of the column ends with a star."""
    if not any(entry.endswith(("*", ANY)) for entry in entries):
        return entries
    return [entry if entry.endswith(("*", ANY)) else f"{entry} " for entry in entries]


# Beside the metrics --------------------------------------------------------------------------


def _geometry(view: "xarray.Dataset", layers: list[str]) -> list[list[str]]:
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
    return [
        aligned([*leading, *some])
        for some in fitting(columns, sum(width_of(column) + 2 for column in leading))
    ]


def _matrices(dataset: "xarray.Dataset") -> list[list[str]]:
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
                    tables.append([title, *aligned(columns)])
            if bool(view["semantic"].notnull().any()):
                columns = [["layer", *layers]]
                for name in ("semantic", "language"):
                    parts = numbers_of(view, [f"{name}{end}" for end in ("", "_low", "_high")])
                    columns.append([name, *(Style("z.3f").entry(*part) for part in parts)])
                title = f"{model} | pooling {pooling} | silhouette by content and by language"
                tables.append([title, *aligned(columns)])
    legend = "Rows: language of the texts. Columns: language that the direction was fitted to."
    tables.insert(1, [legend])
    return tables


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


def _confounds(dataset: "xarray.Dataset") -> list[list[str]]:
    """Variables of `CONFOUNDS`; models with the same numbers share a table."""
    langs = names_along(dataset, "lang")
    tables: dict[str, list[str]] = {}
    for i, model in enumerate(names_along(dataset, "model")):
        view = dataset.isel(model=i)  # a model may be compared with itself
        columns = [
            [name, *_confound_entries(view, name, form)] for name, form in _CONFOUND_FORMS.items()
        ]
        leading = ["lang", *langs]
        lines = [
            line
            for part in fitting(columns, width_of(leading) + 2)
            for line in aligned([leading, *part])
        ]
        tables.setdefault("\n".join(lines), []).append(model)
    what = "other differences between the languages" if len(langs) > 1 else "about the texts"
    together = bool(((dataset["duplicates"] > 0) | (dataset["clustered"] > 0)).any())
    note = ["Texts that belong together are one unit of evidence: see `explain units`."] * together
    return [[f"{', '.join(models)} | {what}", table, *note] for table, models in tables.items()]


def _confound_entries(view: "xarray.Dataset", name: str, form: str) -> list[str]:
    """Entries of one variable of `CONFOUNDS`, with its interval if it has one."""
    if f"{name}_low" not in view:
        return [fixed(x, form) for x in view[name].to_numpy()]
    return [Style(form).entry(*row) for row in numbers_of(view, [name + end for end in ENDS])]


def _settings(dataset: "xarray.Dataset") -> list[list[str]]:
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
    return [textwrap.wrap(" ".join(lines), WIDTH, break_on_hyphens=False)]


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
