"""`plot`: what a store shows, as a figure."""

import argparse
from pathlib import Path

from .. import terminal
from ..errors import ConfigError
from ..report import figures
from .options import Commands, command, listed

PLOT_EXAMPLES = """\
examples:
  safetyspace-fast plot run.zarr --figure layers -o layers.pdf
  safetyspace-fast plot run.zarr --figure forest --layers block.12 --width page -o forest.svg
  safetyspace-fast plot pair.zarr --figure heatmap --metric rho_adjusted --poolings last -o heat.png

Needs `pip install 'safetyspace-fast[report]'`. A figure has the numbers that `separation`,
`compare` and `languages` print for the same selection.
"""


def add_plot(commands: Commands) -> None:
    """The command `plot`."""
    plot = command(
        commands,
        "plot",
        _plot,
        "draw one figure for a paper: SVG, PDF or PNG, as wide as a column or the page",
        PLOT_EXAMPLES,
    )
    plot.add_argument("run", metavar="RUN.zarr", help="a store that `run` wrote")
    plot.add_argument(
        "--figure",
        required=True,
        metavar="NAME",
        help=f"one of {', '.join(figures.names())}",
    )
    plot.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="ends with .svg, .pdf (with its fonts) or .png (300 dots an inch)",
    )
    plot.add_argument(
        "--width",
        default="column",
        metavar="column|page|MM",
        help="width: column (85 mm), page (170 mm), or millimetres (default: column)",
    )
    plot.add_argument(
        "--metric", metavar="NAME", help="the metric that is shown (default: auc_direction)"
    )
    for name, which in (
        ("models", ""),
        ("layers", "; a figure of one layer shows the last of them"),
        ("poolings", "; the first is shown"),
        ("languages", ""),
    ):
        plot.add_argument(
            f"--{name}", type=listed, metavar="A,B,..", help=f"only these {name}{which}"
        )
    plot.add_argument("--base", metavar="NAME", help="the model before tuning")
    plot.add_argument("--aligned", metavar="NAME", help="the model after tuning")


def _plot(arguments: argparse.Namespace) -> None:
    from .. import api
    from ..report import plot
    from ..report.results import METRICS, Results

    plot.format_of(arguments.output)
    plot.width_of(arguments.width)
    figures.figure(arguments.figure)
    if bool(arguments.base) != bool(arguments.aligned):
        raise ConfigError("plot: --base and --aligned belong together; name two models or none")
    plot.require("altair", "vl_convert")
    with terminal.bar("computing", "step") as show:
        results = Results(
            api.open_run(arguments.run),
            models=arguments.models,
            layers=arguments.layers,
            poolings=arguments.poolings,
            languages=arguments.languages,
            metrics=(arguments.metric,) if arguments.metric else METRICS,
            pairs_asked=[(arguments.base, arguments.aligned)] if arguments.base else None,
            progress=lambda _, done, total: show(done, total),
        )
        plot.save(results, arguments.figure, arguments.output, width=arguments.width)
