"""Results as rows, one a number, and as JSON, CSV and Parquet made of them."""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray

_DESCRIBED = (
    "title",
    "space",
    "kind",
    "unit",
    "definition",
    "source",
    "interval",
    "null",
    "alias_of",
    "p_asks",
)
"""What the results say about every metric."""


GROUP_ROWS = {
    "": {"value": "group_value", "low": "group_low", "high": "group_high"},
    ", languages like these": {
        "value": "group_like_value",
        "low": "group_like_low",
        "high": "group_like_high",
        "p": "group_like_p",
    },
    ", a new language": {"low": "group_predict_low", "high": "group_predict_high"},
    ", without one language": {"low": "group_without_low", "high": "group_without_high"},
}
"""Rows of each group: what comes behind its name, and the variables of each column."""

Row = dict[str, str | float | int | None]


def rows(dataset: "xarray.Dataset") -> Iterator[Row]:
    """All numbers of a result, each with its metric, model, layer, pooling and language.

    The metrics come first, then means over groups of languages, with the group as the language,
    then the variables of `beside` as rows with their name and `value`. Missing entries are None.
    If the models were not run alike, each row says in what: `settings_differ`.

    Args:
        dataset: what `separation`, `compare`, `directions` or `parallel` returned.
    """
    differ = dataset.attrs.get("settings_differ")
    for row in _rows(dataset):
        yield row | {"settings_differ": differ} if differ else row


def _rows(dataset: "xarray.Dataset") -> Iterator[Row]:
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
    words = [name for name in ("verdict", "refused") if name in dataset]
    names = (*dims, *more_dims, "space", *numbers, "value", *counts, *words)
    empty: Row = dict.fromkeys(names)
    arrays = {name: dataset[name].to_numpy() for name in (*numbers, *counts, *words)}
    for index, labels in _entries(dataset["refused"]):
        yield {
            **empty,
            **labels,
            "space": str(spaces[labels["metric"]]),
            **{name: _number(arrays[name][index]) for name in numbers},
            **{name: int(arrays[name][index[1:]]) for name in counts},
            **{name: str(arrays[name][index]) for name in words},
        }
    if "group_value" in dataset:
        middle = "difference" if "difference" in dataset else "value"
        for what, parts in GROUP_ROWS.items():
            means = {middle if k == "value" else k: dataset[v].to_numpy() for k, v in parts.items()}
            for index, labels in _entries(dataset["group_value"]):
                numbers_here = {name: _number(array[index]) for name, array in means.items()}
                labels["lang"] = labels.pop("group") + what
                yield {**empty, **labels, "space": str(spaces[labels["metric"]]), **numbers_here}
    for name, variable in others.items():
        array = variable.to_numpy()
        for index, labels in _entries(variable):
            yield {**empty, "metric": name, **labels, "value": _number(array[index])}


def beside(dataset: "xarray.Dataset") -> list[str]:
    """Names of the variables that are reported beside the metrics."""
    return [
        str(name)
        for name, variable in dataset.data_vars.items()
        if "metric" not in variable.dims and name not in ("n0", "n1")
    ]


def numbers_of(dataset: "xarray.Dataset") -> list[str]:
    """Names of the variables that hold one number for each metric and language."""
    return [
        str(name)
        for name, variable in dataset.data_vars.items()
        if {"metric", "lang"} <= {*variable.dims} and variable.dtype.kind == "f"
    ]


def _entries(variable: "xarray.DataArray") -> Iterator[tuple[tuple[int, ...], dict[str, str]]]:
    """Index and coordinates of every entry of a variable."""
    names = [[str(name) for name in variable[dim].to_numpy()] for dim in variable.dims]
    for index in itertools.product(*(range(len(part)) for part in names)):
        chosen = (part[i] for part, i in zip(names, index, strict=True))
        yield index, {str(dim): name for dim, name in zip(variable.dims, chosen, strict=True)}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def definitions(dataset: "xarray.Dataset") -> dict[str, dict[str, str]]:
    """Definitions of the metrics and of the variables of `beside`, from the results themselves."""
    others = {name: {"definition": dataset[name].attrs["definition"]} for name in beside(dataset)}
    if "metric" not in dataset.dims:
        return others
    metrics = {
        str(name): {key: str(dataset[key].to_numpy()[i]) for key in _DESCRIBED if key in dataset}
        for i, name in enumerate(dataset["metric"].to_numpy())
    }
    return metrics | others


def to_json(dataset: "xarray.Dataset") -> str:
    """Settings, definitions and all rows."""
    result = {
        "settings": dict(dataset.attrs),
        "definitions": definitions(dataset),
        "rows": list(rows(dataset)),
    }
    return json.dumps(result, ensure_ascii=False, indent=1) + "\n"


def to_csv(dataset: "xarray.Dataset") -> str:
    """All rows, one a line."""
    lines = list(rows(dataset))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def to_parquet(dataset: "xarray.Dataset", path: Path) -> None:
    """Write all rows; settings and definitions go into the metadata of the file, as JSON."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(list(rows(dataset)))
    facts = {"settings": dict(dataset.attrs), "definitions": definitions(dataset)}
    table = table.replace_schema_metadata({"safetyspace_fast": json.dumps(facts)})
    pyarrow.parquet.write_table(table, path)
