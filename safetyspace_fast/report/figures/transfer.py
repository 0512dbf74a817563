"""Does the harm direction of one language hold in another? Held-out AUC of every two languages."""

from typing import TYPE_CHECKING, Any

from .. import theme
from . import NothingToShowError, Row, _matrix
from ._cells import cells, require_numbers

if TYPE_CHECKING:
    from ..results import Results

NAME = "transfer"
TITLE = "Transfer between languages"
ABOUT = (
    "AUC of the texts of one language (rows) along the harm direction of another (columns), held "
    "out. 0.5: chance."
)
_NUMBERS = {"value": "transfer_auc", "low": "transfer_low", "high": "transfer_high"}


def rows(results: "Results") -> list[Row]:
    """One row a model, language of the texts and language of the direction: `languages`' AUC."""
    if len(results.selection.languages) < 2:
        raise NothingToShowError("a matrix of languages needs two languages or more")
    same = {"layer": results.layer, "pooling": results.pooling}
    data = results.directions.sel(same | {"model": list(results.names)})
    found = list(cells(data, ("model", "lang", "other_lang"), _NUMBERS, **same))
    return require_numbers(found, "no pair of languages has an AUC")


def chart(rows: list[Row], *, width: int) -> Any:
    """A matrix a model."""
    title = theme.title(TITLE, theme.shown(rows), ABOUT, width=width)
    return _matrix.chart(rows, title, domain=(0.0, 1.0), width=width)
