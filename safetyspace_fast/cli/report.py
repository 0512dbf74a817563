"""`report`: a page of a store for people to look at."""

import argparse
import shlex
from pathlib import Path

from .. import terminal
from ..errors import ConfigError
from .options import Commands, command, given, listed

REPORT_EXAMPLES = """\
examples:
  safetyspace-fast report pair.zarr -o pair.html
  safetyspace-fast report pair.zarr --metric rho_adjusted --poolings last -o pair.html
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
    from ..report.write import report

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
    chosen = given(arguments, ("metrics", "models", "layers", "poolings", "languages"))
    with terminal.stages() as show:
        report(
            runs, arguments.output, texts=texts, command=_typed(arguments), progress=show, **chosen
        )
    print(f"page: {arguments.output}")


def _typed(arguments: argparse.Namespace) -> str:
    """The command again, with the names of files but not their folders."""
    words = ["safetyspace-fast", "report", *(Path(run).name for run in arguments.runs)]
    for metric in arguments.metrics or ():
        words += ["--metric", metric]
    for name in ("models", "layers", "poolings", "languages"):
        if chosen := getattr(arguments, name):
            words.append(f"--{name}={','.join(chosen)}")
    for path in arguments.texts or ():
        words += ["--texts", Path(path).name]
    words += ["--show-texts"] * arguments.show_texts
    return " ".join(map(shlex.quote, [*words, "-o", arguments.output.name]))
