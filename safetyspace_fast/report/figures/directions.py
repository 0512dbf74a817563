"""Did tuning turn the harm direction? The cosine between both models' directions, by layer."""

from typing import TYPE_CHECKING, Any

from .. import theme
from . import NothingToShowError, Row, _curves
from ._cells import cells, require_numbers

if TYPE_CHECKING:
    from ..results import Results

NAME = "directions"
TITLE = "Harm direction before and after tuning"
ABOUT = (
    "Cosine between the harm directions of both models, corrected for noise: 1 if tuning did not "
    "turn the direction. Band: 95 % interval. Dotted: reliability, the cosine between two halves "
    "of the texts in the noisier model. Gaps, and languages without a panel: too noisy."
)
_NUMBERS = ("direction_cosine", "direction_low", "direction_high", "direction_reliability")


def rows(results: "Results") -> list[Row]:
    """One row a pair of models, language and layer: the numbers of `compare`."""
    if not (comparisons := results.comparisons()):
        raise NothingToShowError("no two models that can be compared")
    entries: list[Row] = []
    for pair, data in comparisons.items():
        same = {"pair": " → ".join(pair), "pooling": results.pooling}
        view = data[list(_NUMBERS)].sel(pooling=results.pooling)
        entries += cells(view, ("lang", "layer"), {name: name for name in _NUMBERS}, **same)
    return require_numbers(
        entries,
        "no harm direction is reliable enough for a cosine, or the models differ in width",
        column="direction_cosine",
    )


def chart(rows: list[Row], *, width: int) -> Any:
    """Small multiples, with a line for each pair of models."""
    title = theme.title(TITLE, theme.shown(rows), ABOUT, width=width)
    columns = _curves.Columns("pair", *_NUMBERS)
    return _curves.chart(rows, columns, title, axis="cosine", width=width)
