"""Figures: one file each, found by its name. A file here has

    NAME          what `plot --figure` calls it
    TITLE         what it shows, in a few words
    ABOUT         how to read it, in one or two sentences
    rows(results)         its numbers: one dict a mark, rounded, in the order of the table behind it
    chart(rows, *, width) an Altair chart of these rows that is about `width` pixels wide

`rows` raises `NothingToShowError` where a store lacks what the figure needs. A chart has no colours
of its own for text, axes and background: `theme.config` gives them, for a paper or a page.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, cast

from ...errors import ConfigError
from ...names import nearest

if TYPE_CHECKING:
    from ..results import Results

Row = dict[str, str | float | bool | None]


class NothingToShowError(ConfigError):
    """A store lacks what a figure needs; the message says what."""


class Figure(Protocol):
    """A file of this folder."""

    NAME: str
    TITLE: str
    ABOUT: str

    def rows(self, results: "Results") -> list[Row]:
        """The numbers of the figure."""

    def chart(self, rows: list[Row], *, width: int) -> Any:
        """The chart of these numbers: an `altair.Chart`, or several joined."""


ORDER = (
    *("forest", "layers", "heatmap", "directions", "scatter", "scores", "cosines", "transfer"),
    "controls",
)
"""Figures in the order in which a page shows them; others follow by name."""


def names() -> list[str]:
    """Names of all figures, which are those of their files."""
    names = sorted(file.name for file in iter_modules(__path__) if not file.name.startswith("_"))
    return [name for name in ORDER if name in names] + [x for x in names if x not in ORDER]


def figure(name: str) -> Figure:
    """One figure by name.

    Raises:
        ConfigError: there is no such figure.
    """
    if name not in (known := names()):
        raise ConfigError(
            f"figure: no {name!r}; choose from {', '.join(known)}{nearest(name, known)}"
        )
    return cast(Figure, import_module(f"{__name__}.{name}"))
