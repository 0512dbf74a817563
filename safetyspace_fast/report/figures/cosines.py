"""Do languages share one harm direction? Cosines, with the noise ceiling on the diagonal."""

from typing import TYPE_CHECKING, Any

from .. import theme
from . import NothingToShowError, Row, _matrix
from ._cells import cells, require_numbers

if TYPE_CHECKING:
    from ..results import Results

NAME = "cosines"
TITLE = "Harm directions of languages"
ABOUT = (
    "Cosine between the directions of two languages, corrected for noise. Diagonal: reliability, "
    "the cosine between two halves of a language's own texts. Empty: too noisy."
)
_NUMBERS = {
    "value": "direction_cosine",
    "low": "direction_low",
    "high": "direction_high",
    "ceiling": "direction_reliability",
}


def rows(results: "Results") -> list[Row]:
    """One row a model and two languages; of a language with itself the value is the ceiling."""
    if len(results.selection.languages) < 2:
        raise NothingToShowError("cosines between languages need two languages or more")
    same = {"layer": results.layer, "pooling": results.pooling}
    data = results.directions.sel(same | {"model": list(results.names)})
    entries = list(cells(data, ("model", "lang", "other_lang"), _NUMBERS, **same))
    apart = [row for row in entries if row["lang"] != row["other_lang"]]
    require_numbers(apart, "no two languages have directions that are reliable enough for a cosine")
    for row in entries:
        if row["lang"] == row["other_lang"]:
            row |= {"value": row["ceiling"], "low": None, "high": None}
    return entries


def chart(rows: list[Row], *, width: int) -> Any:
    """A matrix a model."""
    title = theme.title(TITLE, theme.shown(rows), ABOUT, width=width)
    return _matrix.chart(rows, title, domain=(-1.0, 1.0), width=width)
