"""One figure: as a file for a paper, or as a chart that a notebook shows and people change."""

import importlib
import os
import re
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.metric import MetricName, Metrics
from ..errors import ConfigError, SafetySpaceError
from . import figures, fonts, theme
from .results import METRICS, Results

if TYPE_CHECKING:
    from ..store import Run

FORMATS = (".svg", ".pdf", ".png")
WIDTHS = {"column": 85.0, "page": 170.0}
"""Millimetres: a column and the page of most papers of two columns."""
NARROWEST, WIDEST = 40.0, 1000.0
_PX, _PT, _INCH = 96 / 25.4, 72 / 25.4, 25.4
"""Pixels (as CSS counts them) and points of a millimetre, millimetres of an inch."""
_PNG_DPI = 300
_SVG_HEAD = re.compile(r'<svg [^>]*?width="([\d.]+)" height="([\d.]+)"[^>]*>')


def width_of(text: str) -> float:
    """Millimetres of `column`, `page` or a number.

    Raises:
        ConfigError: it is none of these.
    """
    try:
        width = WIDTHS.get(text) or float(text.removesuffix("mm"))
    except ValueError:
        width = 0.0
    if not NARROWEST <= width <= WIDEST:
        raise ConfigError(
            f"width: got {text!r}, expected {', '.join(WIDTHS)}, or millimetres from "
            f"{NARROWEST:.0f} to {WIDEST:.0f}"
        )
    return width


def format_of(path: Path) -> str:
    """The format that the name of a file asks for.

    Raises:
        ConfigError: none that exists, or the file cannot be there.
    """
    require_writable(path)
    if (suffix := path.suffix.lower()) not in FORMATS:
        raise ConfigError(
            f"{path}: got {suffix or 'no ending'!r}, expected a name that ends with "
            f"{', '.join(FORMATS)}"
        )
    return suffix


def require(*modules: str) -> None:
    """Check that packages are there which only figures need.

    Raises:
        SafetySpaceError: one is missing; the message says what to install.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SafetySpaceError(
                f"figures: {error.name or name} is missing; pip install 'safetyspace-fast[report]'"
            ) from error


def save(results: Results, name: str, path: Path, *, width: str = "column") -> None:
    """Write one figure to a file, whole or not at all.

    Args:
        results: of a store.
        name: of the figure.
        path: ends with one of `FORMATS`. SVG and PDF hold the letters that they use.
        width: `column`, `page`, or millimetres; the height follows.

    Raises:
        SafetySpaceError: an argument is wrong, the store lacks what the figure needs, a package is
            missing, or the file cannot be written.
    """
    kind, millimetres, figure = format_of(path), width_of(width), figures.figure(name)
    require("altair", "vl_convert", "fontTools")
    import vl_convert

    try:
        rows = figure.rows(results)
    except figures.NothingToShowError as error:
        raise figures.NothingToShowError(f"{results.run.place}: {name}: {error}") from error
    svg = _exactly(figure, rows, millimetres)
    if kind == ".pdf":  # a unit of the picture is a point there
        content = vl_convert.svg_to_pdf(_sized(svg, _PT / _PX))
    elif kind == ".png":
        dots = _PNG_DPI / _INCH / _PX
        content = vl_convert.svg_to_png(_sized(svg, dots), scale=1)
    else:
        content = svg.replace("</title>", f"</title>{fonts.style(svg)}", 1).encode()
    write_file(path, content)


def _exactly(figure: figures.Figure, rows: list[figures.Row], millimetres: float) -> str:
    """The figure as SVG of this width.

    Panels have whole pixels and axes are as wide as their labels, so a first drawing shows what is
    missing. What is still missing then becomes margin; what is too much is scaled away.
    """
    asked = millimetres * _PX
    svg, wide, high = _drawn(figure, rows, round(asked))
    if abs(asked - wide) >= 1:
        second = _drawn(figure, rows, round(2 * asked - wide))
        if abs(asked - second[1]) < abs(asked - wide):
            svg, wide, high = second
    box = max(wide, asked)
    tall = high * asked / box
    words = escape(f"{figure.TITLE}. {figure.ABOUT}")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'version="1.1" role="graphics-document" aria-label="{words}" width="{asked:.2f}" '
        f'height="{tall:.2f}" viewBox="0 0 {box:.2f} {high:.2f}">'
        f'<title>{words}</title><rect width="{box:.2f}" height="{high:.2f}" fill="white"/>'
    )
    return _SVG_HEAD.sub(lambda _: head, svg, count=1)


def _drawn(figure: figures.Figure, rows: list[figures.Row], width: int) -> tuple[str, float, float]:
    """The SVG of a chart that is about so many pixels wide, with its width and height."""
    import vl_convert

    spec = figure.chart(rows, width=width).to_dict()
    svg = vl_convert.vegalite_to_svg(spec, config=theme.config())
    if (head := _SVG_HEAD.match(svg)) is None:
        raise SafetySpaceError("figures: vl-convert wrote no SVG; update it with pip install -U")
    return svg, float(head[1]), float(head[2])


def _sized(svg: str, factor: float) -> str:
    """The same picture with another number of units for its width and height."""

    def resized(head: re.Match[str]) -> str:
        wide, high = (float(head[i]) * factor for i in (1, 2))
        sizes = f'width="{wide:.3f}" height="{high:.3f}"'
        return re.sub(r'width="[\d.]+" height="[\d.]+"', sizes, head[0], count=1)

    return _SVG_HEAD.sub(resized, svg, count=1)


def require_writable(path: Path) -> None:
    """Check that a file can have this name, before anything is computed for it.

    Raises:
        ConfigError: it is no file, such as a folder or a pipe, or its folder takes none.
    """
    target = path.resolve()
    if target.is_dir():
        what = "is a folder"
    elif target.exists() and not target.is_file():
        what = "is no file, and only files are replaced"
    elif not target.parent.is_dir():
        what = "its folder does not exist"
    elif not os.access(target.parent, os.W_OK):
        what = "its folder cannot be written to"
    else:
        return
    raise ConfigError(f"{path}: {what}; name a file to write")


def write_file(path: Path, content: bytes) -> None:
    """Write a file beside the named one, and put it in its place; links are followed.

    Raises:
        ConfigError: it cannot be written; what was there is kept.
    """
    target = path.resolve()
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            try:
                file.write(content)
                file.close()
                os.chmod(file.name, 0o666 & ~_umask())
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Plots:
    """Figures of a store in a notebook: `run.plot.layers()`, `run.plot.forest(layer="block.9")`.

    There is one method for each figure, and each returns an Altair chart. All take

        metric, layer, pooling    what to show; the first metric of `METRICS`, the last layer and
                                  the first pooling are shown if none is named
        models, languages         only these
        width                     pixels

    Altair shows charts with scripts from a network; `alt.renderers.enable("svg")` draws them here.
    """

    def __init__(self, run: "Run") -> None:
        """Of an open store; nothing is computed yet."""
        self._run = run
        self._results: dict[object, Results] = {}

    def __dir__(self) -> list[str]:
        """The figures."""
        return figures.names()

    def __repr__(self) -> str:
        """What can be drawn."""
        return f"<figures of {self._run.place}: {', '.join(figures.names())}>"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The method of a figure."""
        if name.startswith("_") or name not in figures.names():
            raise AttributeError(f"no figure {name!r}; there are {', '.join(figures.names())}")
        figure = figures.figure(name)

        def draw(
            *,
            metric: MetricName | None = None,
            layer: str | None = None,
            pooling: str | None = None,
            models: Any = None,
            languages: Any = None,
            width: int = 640,
        ) -> Any:
            require("altair")
            metrics: Metrics = METRICS if metric is None else (metric,)
            key = repr((metrics, models, languages))
            if key not in self._results:
                self._results[key] = Results(
                    self._run, models=models, languages=languages, metrics=metrics
                )
            results = self._results[key].showing(layer=layer, pooling=pooling)
            chart = figure.chart(figure.rows(results), width=width)
            return chart.configure(**theme.config())

        draw.__name__, draw.__doc__ = name, f"{figure.TITLE}. {figure.ABOUT}"
        return draw
