"""`report` and `plot`: a store as a page to look at, and its figures for papers."""

import argparse
from pathlib import Path

from .. import terminal
from ..errors import ConfigError
from ..report import figures
from .options import Commands, command, given, listed

REPORT_EXAMPLES = """\
examples:
  safetyspace-fast report pair.zarr -o pair.html
  safetyspace-fast report pair.zarr --metric rho_adjusted --poolings last -o pair.html
  safetyspace-fast report many.zarr --base base --aligned dpo --aligned sft -o tuned.html
  safetyspace-fast report pair.zarr --texts texts.jsonl --show-texts -o with-texts.html

The page is one file that loads nothing from a network. It holds no texts unless you ask for them.
"""


def add_report(commands: Commands) -> None:
    """The command `report`."""
    report = command(
        commands,
        "report",
        _report,
        "write one page with the answer in words, figures and their tables",
        REPORT_EXAMPLES,
    )
    report.add_argument("runs", nargs="+", metavar="RUN.zarr", help="a store, or several")
    report.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: report.html)",
    )
    report.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        metavar="NAME",
        help="a metric; repeat the option for several, the first one leads "
        "(default: auc_direction and rho_adjusted)",
    )
    for name, when in (("base", "before"), ("aligned", "after")):
        report.add_argument(
            f"--{name}",
            action="append",
            metavar="NAME",
            help=f"the model {when} tuning; repeat both options for several pairs (default: each "
            "model and the first of its architecture and layers that was run before it)",
        )
    for name in ("models", "layers", "poolings", "languages"):
        report.add_argument(
            f"--{name}", type=listed, metavar="A,B,..", help=f"only these {name}; the first leads"
        )
    report.add_argument(
        "--texts", action="append", metavar="FILE", help="data whose texts the page shows"
    )
    report.add_argument(
        "--show-texts",
        action="store_true",
        help="confirm --texts: whoever has the page can read them, and they may be offensive",
    )


def _report(arguments: argparse.Namespace) -> None:
    from ..api import open_run
    from ..report.write import command_of, report

    if bool(arguments.texts) != arguments.show_texts:
        raise ConfigError(
            "report: --texts puts the texts themselves into the page; confirm it with --show-texts"
            if arguments.texts
            else "report: --show-texts needs --texts FILE, as a store has no texts"
        )
    runs = [open_run(path) for path in arguments.runs]
    texts = None
    if arguments.texts:
        from ..data import read_samples

        texts = read_samples(arguments.texts, on_note=terminal.say).texts
    names = ("metrics", "base", "aligned", "models", "layers", "poolings", "languages")
    chosen = given(arguments, names)
    stores, files = (
        [Path(x).name for x in paths or ()] for paths in (arguments.runs, arguments.texts)
    )
    command = command_of(stores, arguments.output, texts=files, **chosen)
    with terminal.stages() as show:
        report(runs, arguments.output, texts=texts, command=command, progress=show, **chosen)
    print(f"page: {arguments.output}")


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
        help="ends with .svg or .pdf (both with the letters that they use) or .png (300 dots "
        "an inch)",
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
    from ..report.results import METRICS, Results, named_pairs

    plot.format_of(arguments.output)
    plot.width_of(arguments.width)
    figures.figure(arguments.figure)
    pairs = named_pairs(arguments.base, arguments.aligned)
    plot.require("altair", "vl_convert")
    with terminal.bar("computing", "step") as show:
        results = Results(
            api.open_run(arguments.run),
            models=arguments.models,
            layers=arguments.layers,
            poolings=arguments.poolings,
            languages=arguments.languages,
            metrics=(arguments.metric,) if arguments.metric else METRICS,
            pairs_asked=pairs,
            progress=lambda _, done, total: show(done, total),
        )
        plot.save(results, arguments.figure, arguments.output, width=arguments.width)
    print(f"figure: {arguments.output}")
