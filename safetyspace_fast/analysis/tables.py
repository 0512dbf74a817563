"""Results as tables for the terminal; `write` also writes JSON, CSV and Parquet."""

import math
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .rows import numbers_of, to_csv, to_json, to_parquet

if TYPE_CHECKING:
    import xarray

FORMATS = ("table", "json", "csv", "parquet")
WIDTH = 100
MOST_LAYERS = 3
"""With several languages, tables show all layers up to this number, else the last one only."""
CHANCE = 0.05
"""Numbers with a larger p are marked as consistent with chance."""


def write(dataset: "xarray.Dataset", form: str = "table", output: Path | None = None) -> None:
    """Write results to a file, or to stdout.

    Args:
        dataset: what `separation`, `compare`, `directions` or `parallel` returned.
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
    """Tables of at most `WIDTH` columns.

    With several languages there is a table for each layer, and a row for each language. With one
    language there is one table with a row for each layer. Metrics that do not fit go into another
    table below.
    """
    if "metric" not in dataset.dims:
        return _matrices(dataset)
    compared = "difference" in dataset
    layers = [str(name) for name in dataset["layer"].to_numpy()]
    langs = [str(name) for name in dataset["lang"].to_numpy()]
    shown = layers if len(langs) == 1 or len(layers) <= MOST_LAYERS else layers[-1:]
    reference = str(dataset.attrs.get("reference", ""))
    views: list[tuple[str, xarray.Dataset]] = []
    if compared:
        views.append((f"{dataset.attrs['base']} -> {dataset.attrs['aligned']}", dataset))
    else:
        views += [(str(model), dataset.sel(model=model)) for model in dataset["model"].to_numpy()]
    lines: list[str] = []
    for name, model_view in views:
        for pooling in dataset["pooling"].to_numpy():
            view = model_view.sel(pooling=pooling)
            title = f"{name} | pooling {pooling}"
            if len(langs) == 1:
                lines += _metrics(view.isel(lang=0), "layer", f"{title} | language {langs[0]}")
            else:
                for layer in shown:
                    at = f"{title} | layer {layer}"
                    lines += _metrics(view.sel(layer=layer), "lang", at)
                    if reference:
                        lines += _excess(view.sel(layer=layer), f"{at} | more than {reference}")
            if compared:
                lines += _geometry(view, shown)
    lines += _confounds(dataset)
    if compared:
        lines.append(f"before > after, difference [95 % interval]. ~: p > {CHANCE}, two-sided.")
        lines += textwrap.wrap(f"{dataset.attrs['components']}.", WIDTH)
        if reference and len(langs) > 1:
            lines.append(
                f"more than {reference}: the difference less that of {reference}, with its own "
                "interval and p."
            )
    else:
        lines.append(
            f"[low, high]: 95 % interval of the value. ~: p > {CHANCE}, no more than chance. "
            "floor: expected without"
        )
        lines.append("any difference (median of the rows). =: an alias, the same number.")
    lines.append(
        f"*: p_family <= {CHANCE}, beyond chance even as the largest of all layers and languages."
    )
    lines.append("`safetyspace-fast explain NAME` says what a number or column is.")
    if len(shown) < len(layers):
        lines.append(
            f"{len(layers)} layers are in the results, the last is shown: choose with --layers, "
            "or one of --languages."
        )
    return "\n".join(lines) + "\n"


def _geometry(view: "xarray.Dataset", layers: list[str]) -> list[str]:
    """Variables of `GEOMETRY`: a row for each layer and language."""
    names = [
        str(name)
        for name, variable in view.data_vars.items()
        if variable.dims == ("layer", "lang") and "definition" in variable.attrs
    ]
    langs = [str(name) for name in view["lang"].to_numpy()]
    part = view[names].sel(layer=layers)
    leading = [
        ["layer", *(layer for layer in layers for _ in langs)],
        ["lang", *(lang for _ in layers for lang in langs)],
    ]
    columns = [
        [name, *(f"{x:.3f}" if math.isfinite(x) else "-" for x in part[name].to_numpy().flat)]
        for name in names
    ]
    lines = []
    for some in _fitting(columns, sum(_width(column) + 2 for column in leading)):
        lines += [*_aligned([*leading, *some]), ""]
    return lines


def beside_published(
    dataset: "xarray.Dataset", published: Sequence[Mapping[str, Any]], source: str
) -> str:
    """A table of published numbers beside those of `compare`.

    Args:
        dataset: what `compare` returned, for one layer and pooling.
        published: each with lang, metric and some of base, aligned, difference.
        source: where they were published.
    """
    columns = [["lang"], ["metric"], ["published"], ["ours"], ["space"]]
    ours = dataset.squeeze(["layer", "pooling"])
    for entry in published:
        here = {"lang": entry["lang"], "metric": entry["metric"]}
        if all(here[dim] in ours[dim].to_numpy() for dim in here):
            one = ours.sel(here)
            for name in ("base", "aligned", "difference"):
                if name in entry:
                    numbers = (f"{x:.4f}" for x in (entry[name], one[name].item()))
                    cells = (here["lang"], f"{here['metric']} {name}", *numbers)
                    for column, cell in zip(columns, (*cells, one["space"].item()), strict=True):
                        column.append(cell)
    if len(columns[0]) == 1:
        return f"{source}: no published number of this pair is known here"
    return "\n".join([f"published: {source}", *_aligned(columns)])


def _matrices(dataset: "xarray.Dataset") -> str:
    """Tables of `directions` and `parallel`: matrices of languages, silhouettes of all layers."""
    lines = []
    layers = [str(name) for name in dataset["layer"].to_numpy()]
    langs = [str(name) for name in dataset["lang"].to_numpy()]
    for model in dataset["model"].to_numpy():
        for pooling in dataset["pooling"].to_numpy():
            view = dataset.sel(model=model, pooling=pooling)
            for layer in layers if len(layers) <= MOST_LAYERS else layers[-1:]:
                for name in ("transfer_auc", "direction_cosine", "direction_ceiling"):
                    lines.append(f"{model} | pooling {pooling} | layer {layer} | {name}")
                    numbers = view[name].sel(layer=layer).transpose("lang", "other_lang").to_numpy()
                    columns = [["lang", *langs]]
                    for i, other in enumerate(langs):
                        shown = (f"{x:.2f}" if math.isfinite(x) else "-" for x in numbers[:, i])
                        columns.append([other, *shown])
                    lines += [*_aligned(columns), ""]
            if bool(view["semantic"].notnull().any()):
                columns = [["layer", *layers]]
                for name in ("semantic", "language"):
                    parts = (view[f"{name}{end}"].to_numpy() for end in ("", "_low", "_high"))
                    cells = (
                        f"{x:.3f} [{low:.3f}, {high:.3f}]"
                        for x, low, high in zip(*parts, strict=True)
                    )
                    columns.append([name, *cells])
                title = f"{model} | pooling {pooling} | silhouette by content and by language"
                lines += [title, *_aligned(columns), ""]
    lines += _confounds(dataset)
    lines.append("rows: the language of the texts; columns: the language of the direction.")
    lines.append("`safetyspace-fast explain NAME` says what a number or column is.")
    return "\n".join(lines) + "\n"


def _metrics(view: "xarray.Dataset", row_dim: str, title: str) -> list[str]:
    """A row for each name along `row_dim`, a column for each metric."""
    compared = "difference" in view
    first = [row_dim, "", *(str(name) for name in view[row_dim].to_numpy())]
    leading = [first]
    if not compared:
        counts = zip(view["n0"].to_numpy().tolist(), view["n1"].to_numpy().tolist(), strict=True)
        leading = [[*first, "floor"], ["", "n0+n1", *(f"{n0}+{n1}" for n0, n1 in counts), ""]]
    grouped = "group" in view.dims and row_dim == "lang"
    if grouped:
        names = [str(name) for name in view["group"].to_numpy()]
        leading[0] = [*leading[0], *names]
        leading[1:] = [[*column, *("" for _ in names)] for column in leading[1:]]
    notes: dict[str, str] = {}
    columns = []
    for i, metric in enumerate(view["metric"].to_numpy()):
        column = view.isel(metric=i)
        alias = "" if compared else str(column["alias_of"].item())
        refused = column["refused"].to_numpy().tolist()
        marks = [
            notes.setdefault(reason, f"({chr(ord('a') + len(notes) % 26)})") if reason else ""
            for reason in refused
        ]
        numbers = {name: column[name].to_numpy().tolist() for name in numbers_of(view)}
        cells = _differences(numbers) if compared else _values(numbers)
        shown = [mark or cell for mark, cell in zip([*marks, ""], cells, strict=False)]
        if grouped:
            parts = (column[f"group_{end}"].to_numpy().tolist() for end in ("value", "low", "high"))
            shown += [_group_cell(*part) for part in zip(*parts, strict=True)]
        columns.append(
            [str(metric), f"= {alias}" if alias else str(column["space"].item()), *_padded(shown)]
        )
    lines = []
    for part in _fitting(columns, sum(_width(column) + 2 for column in leading)):
        lines += [title, *_aligned([*leading, *part]), ""]
    lines[-1:] = [f"{mark} refused: {reason}" for reason, mark in notes.items()] + [""]
    return lines


def _values(numbers: dict[str, list[float]]) -> list[str]:
    """Entries of one metric, then its floor."""
    names = ("value", "low", "high", "p", "p_family")
    shown = list(zip(*(numbers[name] for name in names), strict=True))
    grain = _median(_grain(low, high, value) for value, low, high, *_ in shown)
    floor = _median(numbers["floor"])
    last = "-" if math.isnan(floor) else f"{floor:{_form(grain)}}"
    return [*(_cell(row, grain) for row in shown), last]


def _differences(numbers: dict[str, list[float]]) -> list[str]:
    """Entries of one metric of two models, with the difference."""
    names = ("base", "aligned", "difference", "low", "high", "p", "p_family")
    shown = list(zip(*(numbers[name] for name in names), strict=True))
    grain = _median(_grain(low, high, value) for _, _, value, low, high, *_ in shown)
    form = _form(grain)
    return [
        f"{base:{form}} > {aligned:{form}}, {_cell(row, grain)}" for base, aligned, *row in shown
    ]


def _excess(view: "xarray.Dataset", title: str) -> list[str]:
    """Differences of differences of one layer: a row for each language."""
    langs = [str(name) for name in view["lang"].to_numpy() if name != view.attrs["reference"]]
    columns = []
    for metric in view["metric"].to_numpy():
        column = view.sel(metric=metric, lang=langs)
        names = ("excess", "excess_low", "excess_high", "excess_p", "excess_p_family")
        shown = list(zip(*(column[name].to_numpy().tolist() for name in names), strict=True))
        grain = _median(_grain(low, high, value) for value, low, high, *_ in shown)
        cells = [
            "-" if reason or math.isnan(row[0]) else _cell(row, grain)
            for row, reason in zip(shown, column["refused"].to_numpy().tolist(), strict=True)
        ]
        if any(cell != "-" for cell in cells):
            columns.append([str(metric), *_padded(cells)])
    leading = ["lang", *langs]
    lines = []
    for part in _fitting(columns, _width(leading) + 2):
        lines += [title, *_aligned([leading, *part]), ""]
    return lines


def _group_cell(value: float, low: float, high: float) -> str:
    grain = _grain(low, high, value)
    return "-" if math.isnan(value) else _cell((value, low, high, math.nan, math.nan), grain)


def _fitting(columns: list[list[str]], taken: int) -> Iterator[list[list[str]]]:
    """Split columns into groups that fit `WIDTH` beside the columns that take `taken`."""
    part: list[list[str]] = []
    width = taken
    for column in columns:
        if part and width + _width(column) + 2 > WIDTH:
            yield part
            part, width = [], taken
        part.append(column)
        width += _width(column) + 2
    if part:
        yield part


def _confounds(dataset: "xarray.Dataset") -> list[str]:
    """Variables of `CONFOUNDS`; nothing for one language."""
    langs = [str(name) for name in dataset["lang"].to_numpy()]
    if len(langs) == 1:
        return []
    tables: dict[str, list[str]] = {}
    for i, model in enumerate(dataset["model"].to_numpy()):
        columns = [["lang", *langs]]
        for name, form in (
            ("tokens0", "{:.1f}"),
            ("tokens1", "{:.1f}"),
            ("chars_per_token", "{:.2f}"),
            ("truncated", "{:.1%}"),
            ("duplicates", "{:.1%}"),
            ("harmful", "{:.1%}"),
        ):
            numbers = dataset[name].to_numpy()[i].tolist()
            columns.append([name, *(form.format(x) for x in numbers)])
        tables.setdefault("\n".join(_aligned(columns)), []).append(str(model))
    return [
        line
        for table, models in tables.items()
        for line in (f"{', '.join(models)} | what else differs between languages", table, "")
    ]


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    widths = [_width(column) for column in columns]
    found = []
    for cells in zip(*columns, strict=True):
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        found.append("  ".join(padded).rstrip())
    return found


def _width(column: Sequence[str]) -> int:
    return max(len(cell) for cell in column)


def _median(numbers: Iterable[float]) -> float:
    known = sorted(x for x in numbers if math.isfinite(x))
    return known[len(known) // 2] if known else math.nan


def _grain(low: float, high: float, value: float) -> float:
    """Half of the interval, or a tenth of a number without one: its uncertainty."""
    open_ = (high - low) / 2 if math.isfinite(high - low) else abs(value) / 10
    return open_ if open_ > 0 and math.isfinite(open_) else math.nan


def _form(grain: float) -> str:
    """A format that shows two digits of the uncertainty `grain`."""
    decimals = 2 if math.isnan(grain) else max(0, 1 - math.floor(math.log10(grain)))
    return ".3g" if decimals > 6 or grain > 1e5 else f".{decimals}f"


def _cell(numbers: Sequence[float], grain: float) -> str:
    """One entry from value, low, high, p and p_family.

    It has the format of its column, unless that would show no digit that matters.
    """
    value, low, high, p, p_family = numbers
    own = _grain(low, high, value)
    form = _form(own if own < grain / 10 or own > 1e5 else grain)
    mark = "~" if p > CHANCE else ""
    star = "*" if p_family <= CHANCE else ""
    if math.isnan(low):
        return f"{mark}{value:{form}}{star}"
    return f"{mark}{value:{form}} [{low:{form}}, {high:{form}}]{star}"


def _padded(cells: list[str]) -> list[str]:
    """Add a blank where another entry of the column ends with a star."""
    if not any(cell.endswith("*") for cell in cells):
        return cells
    return [cell if cell.endswith("*") else f"{cell} " for cell in cells]
