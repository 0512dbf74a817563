"""Rows of figures, from the datasets of results."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...analysis.marks import marks
from ..results import rounded
from . import NothingToShowError, Row

if TYPE_CHECKING:
    import xarray

INNER = 0.6745 / 1.96
"""Half length of a 50 % interval in that of a 95 % one, as of a normal distribution."""
CELL = {name: name for name in ("value", "low", "high", "floor", "p", "p_family")}
"""Numbers of `separation`, and what rows call them."""
DIFFERENCE = CELL | {"value": "difference"}
del DIFFERENCE["floor"]


def cells(
    data: "xarray.Dataset",
    dims: Sequence[str],
    numbers: Mapping[str, str],
    **same: str,
) -> Iterator[Row]:
    """One row for each entry, the last of `dims` fastest.

    Args:
        data: with these dimensions and no other.
        dims: names of columns that say where a number is.
        numbers: what a row calls each number, and its variable. With `p` a row has the
            `mark` of tables.
        same: further columns, with one entry for all rows.
    """
    labels = [[str(name) for name in data[dim].to_numpy()] for dim in dims]
    arrays = {key: data[name].transpose(*dims).to_numpy() for key, name in numbers.items()}
    has_reason = "refused" in data and set(data["refused"].dims) == set(dims)
    refused = data["refused"].transpose(*dims).to_numpy() if has_reason else None
    marked = np.add(*marks(data.transpose(*dims, ...))) if "p" in numbers else None
    for index in itertools.product(*(range(len(names)) for names in labels)):
        row: Row = {dim: names[i] for dim, names, i in zip(dims, labels, index, strict=True)}
        row |= same | {key: rounded(float(array[index])) for key, array in arrays.items()}
        if marked is not None:
            row["mark"] = marked[index]
        if refused is not None:
            row["refused"] = str(refused[index])
        yield row


def require_numbers(rows: Sequence[Row], otherwise: str, *, column: str = "value") -> list[Row]:
    """The rows, if any has a number in this column.

    Raises:
        NothingToShowError: none has; the message is `otherwise` and the reasons that rows give.
    """
    if all(row[column] is None for row in rows):
        reasons = dict.fromkeys(str(row["refused"]) for row in rows if row.get("refused"))
        why = f": {'; '.join(list(reasons)[:3])}" if reasons else ""
        raise NothingToShowError(f"{otherwise}{why}")
    return list(rows)
