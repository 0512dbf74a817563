"""Results as a table for the terminal, or as JSON, CSV and Parquet, one row a number."""

import csv
import io
import itertools
import json
import math
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    import xarray

FORMATS = ("table", "json", "csv", "parquet")
WIDTH = 100
MOST_LAYERS = 3
"""Tables of several languages show every layer up to this many, else the last one only."""
CHANCE = 0.05
"""Numbers whose p is above this are marked."""
NUMBERS = ("value", "low", "high", "floor", "p", "p_family")
DEFINITION = (
    "title",
    "space",
    "kind",
    "unit",
    "definition",
    "source",
    "interval",
    "null",
    "alias_of",
)


def write(dataset: "xarray.Dataset", form: str = "table", output: Path | None = None) -> None:
    """Write results to a file, or to stdout.

    Args:
        dataset: what `separation` returned.
        form: one of `FORMATS`.
        output: a file; None prints.

    Raises:
        ConfigError: the form is unknown, Parquet without a file, or a file that cannot be written.
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


def rows(dataset: "xarray.Dataset") -> Iterator[dict[str, Any]]:
    """Every number with all that belongs to it; what is not there is None.

    After the metrics come means over groups of languages, the group in the language's place, and
    what is known beside the metrics, by its name and its `value`.
    """
    if "metric" not in dataset.dims:
        frame = dataset.to_dataframe().reset_index()
        for row in frame.to_dict("records"):
            yield {str(k): _number(v) if isinstance(v, float) else v for k, v in row.items()}
        return
    dims = [str(dim) for dim in dataset["refused"].dims]
    spaces = dict(zip(dataset["metric"].to_numpy(), dataset["space"].to_numpy(), strict=True))
    numbers = numbers_of(dataset)
    counts = [name for name in ("n0", "n1") if name in dataset]
    others = {name: dataset[name] for name in beside(dataset)}
    more_dims = (str(dim) for variable in others.values() for dim in variable.dims)
    names = (*dims, *more_dims, "space", *numbers, "value", *counts, "refused")
    columns: dict[str, Any] = dict.fromkeys(names)
    table = {name: dataset[name].to_numpy() for name in (*numbers, *counts, "refused")}
    for place, cell in _cells(dataset["refused"]):
        yield {
            **columns,
            **cell,
            "space": str(spaces[cell["metric"]]),
            **{name: _number(table[name][place]) for name in numbers},
            **{name: int(table[name][place[1:]]) for name in counts},
            "refused": str(table["refused"][place]),
        }
    if "group_value" in dataset:
        middle = "difference" if "difference" in dataset else "value"
        ends = {middle: "group_value", "low": "group_low", "high": "group_high"}
        table = {name: dataset[of].to_numpy() for name, of in ends.items()}
        for place, cell in _cells(dataset["group_value"]):
            cell["lang"] = cell.pop("group")
            here = {name: _number(array[place]) for name, array in table.items()}
            yield {**columns, **cell, "space": str(spaces[cell["metric"]]), **here}
    for name, variable in others.items():
        array = variable.to_numpy()
        for place, cell in _cells(variable):
            yield {**columns, "metric": name, **cell, "value": _number(array[place])}


def beside(dataset: "xarray.Dataset") -> list[str]:
    """Names of the variables that are known beside the metrics."""
    return [
        str(name)
        for name, variable in dataset.data_vars.items()
        if "metric" not in variable.dims and name not in ("n0", "n1")
    ]


def _cells(variable: "xarray.DataArray") -> Iterator[tuple[tuple[int, ...], dict[str, str]]]:
    """Every place of a variable, and the names there."""
    names = [[str(name) for name in variable[dim].to_numpy()] for dim in variable.dims]
    for place in itertools.product(*(range(len(part)) for part in names)):
        chosen = (part[i] for part, i in zip(names, place, strict=True))
        yield place, {str(dim): name for dim, name in zip(variable.dims, chosen, strict=True)}


def numbers_of(dataset: "xarray.Dataset") -> list[str]:
    """Names of the variables that hold a number of every metric."""
    return [
        str(name)
        for name, variable in dataset.data_vars.items()
        if "metric" in variable.dims and name != "refused" and "group" not in variable.dims
    ]


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def definitions(dataset: "xarray.Dataset") -> dict[str, dict[str, str]]:
    """What every metric of the results is, and all beside them, from the results themselves."""
    found = {name: {"definition": dataset[name].attrs["definition"]} for name in beside(dataset)}
    if "metric" not in dataset.dims:
        return found
    metrics = {
        str(name): {key: str(dataset[key].to_numpy()[i]) for key in DEFINITION if key in dataset}
        for i, name in enumerate(dataset["metric"].to_numpy())
    }
    return metrics | found


def to_json(dataset: "xarray.Dataset") -> str:
    """Settings, definitions and all rows."""
    whole = {
        "settings": dict(dataset.attrs),
        "definitions": definitions(dataset),
        "rows": list(rows(dataset)),
    }
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def to_csv(dataset: "xarray.Dataset") -> str:
    """One line a number."""
    found = list(rows(dataset))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(found[0]) if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def to_parquet(dataset: "xarray.Dataset", path: Path) -> None:
    """One row a number; settings and definitions as JSON in the file's metadata."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(list(rows(dataset)))
    facts = {"settings": dict(dataset.attrs), "definitions": definitions(dataset)}
    table = table.replace_schema_metadata({"safetyspace_fast": json.dumps(facts)})
    pyarrow.parquet.write_table(table, path)


def to_table(dataset: "xarray.Dataset") -> str:
    """A table of at most 100 columns, of what `separation` or `compare` returned.

    Several languages: a row each, a block per layer (the last one only where there are many). One
    language: a row per layer. Metrics that do not fit beside each other go below.
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
                lines += _block(view.isel(lang=0), "layer", f"{title} | language {langs[0]}")
            else:
                for layer in shown:
                    at = f"{title} | layer {layer}"
                    lines += _block(view.sel(layer=layer), "lang", at)
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
    """What `compare` finds beside the metrics: a row per layer and language."""
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
    """Published numbers of one pair of models beside those of `compare`.

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
    """What `languages` finds: matrices of the last layer, and both silhouettes of every layer."""
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


def _block(view: "xarray.Dataset", row_dim: str, title: str) -> list[str]:
    """One table: a row per name along `row_dim`, a column per metric."""
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
    """Cells of one metric, and its floor below them."""
    names = ("value", "low", "high", "p", "p_family")
    shown = list(zip(*(numbers[name] for name in names), strict=True))
    grain = _median(_grain(low, high, value) for value, low, high, *_ in shown)
    floor = _median(numbers["floor"])
    last = "-" if math.isnan(floor) else f"{floor:{_form(grain)}}"
    return [*(_cell(row, grain) for row in shown), last]


def _differences(numbers: dict[str, list[float]]) -> list[str]:
    """Cells of one metric of both models with the difference."""
    names = ("base", "aligned", "difference", "low", "high", "p", "p_family")
    shown = list(zip(*(numbers[name] for name in names), strict=True))
    grain = _median(_grain(low, high, value) for _, _, value, low, high, *_ in shown)
    form = _form(grain)
    return [
        f"{base:{form}} > {aligned:{form}}, {_cell(row, grain)}" for base, aligned, *row in shown
    ]


def _excess(view: "xarray.Dataset", title: str) -> list[str]:
    """Differences of differences of one layer: a row per language, a column per metric."""
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
    """Groups of columns that fit the width."""
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
    """What else differs between the languages, beside every table that compares them."""
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
    """What an interval leaves open, or a tenth of a number without one."""
    open_ = (high - low) / 2 if math.isfinite(high - low) else abs(value) / 10
    return open_ if open_ > 0 and math.isfinite(open_) else math.nan


def _form(grain: float) -> str:
    """A format that shows two digits of `grain`."""
    decimals = 2 if math.isnan(grain) else max(0, 1 - math.floor(math.log10(grain)))
    return ".3g" if decimals > 6 or grain > 1e5 else f".{decimals}f"


def _cell(numbers: Sequence[float], grain: float) -> str:
    """Value, low, high, p and p_family, in the column's format unless that would hide them."""
    value, low, high, p, p_family = numbers
    own = _grain(low, high, value)
    form = _form(own if own < grain / 10 or own > 1e5 else grain)
    mark = "~" if p > CHANCE else ""
    star = "*" if p_family <= CHANCE else ""
    if math.isnan(low):
        return f"{mark}{value:{form}}{star}"
    return f"{mark}{value:{form}} [{low:{form}}, {high:{form}}]{star}"


def _padded(cells: list[str]) -> list[str]:
    """Room for the star where another cell of the column has one."""
    if not any(cell.endswith("*") for cell in cells):
        return cells
    return [cell if cell.endswith("*") else f"{cell} " for cell in cells]
