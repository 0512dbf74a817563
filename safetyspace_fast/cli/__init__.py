"""The command line: parse, call the API, print. Progress on stderr, results on stdout."""

import argparse
import errno
import sys
import warnings
from collections.abc import Sequence

from .. import terminal
from ..errors import ConfigError, SafetySpaceError
from .data import add_data
from .questions import add_curve, add_explain, add_languages, add_power, add_transfer
from .run import add_run
from .sampled import add_bench, add_verify
from .statistics import add_compare, add_separation
from .upkeep import add_check, add_info
from .workers import add_merge

GUIDE = """\
safetyspace-fast measures how far apart a language model holds harmful and harmless text, for every
layer and language. Three commands to begin with:

  safetyspace-fast run --model gpt2 --data sample:polite --out try.zarr   run a model, fill a store
  safetyspace-fast separation try.zarr                                    read the numbers
  safetyspace-fast explain rho                                            what a number means

Then: `run --help` for your own data and models, `compare --help` for a model before and after
tuning, `--help` for all commands.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 an error in one line, 2 wrong usage, 130 interrupted with everything so far saved.
    """
    warnings.showwarning = terminal.warn
    try:
        arguments = _parser().parse_args(argv)
        if arguments.command is None:
            print(GUIDE, end="")
        else:
            arguments.command(arguments)
    except ConfigError as error:
        print(f"safetyspace-fast: {error}", file=sys.stderr)
        return 2
    except SafetySpaceError as error:
        print(f"safetyspace-fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("safetyspace-fast: interrupted; repeat a run with --resume to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has gone, as `| head` does
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            line = f"the output cannot be written: {error.strerror}"
        else:
            line = terminal.unforeseen(error)
        print(f"safetyspace-fast: {line}", file=sys.stderr)
        return 1
    except Exception as error:  # what nobody foresaw
        print(f"safetyspace-fast: {terminal.unforeseen(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safetyspace-fast",
        description="How far apart a language model holds harmful and harmless text, for every "
        "layer and language.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    add_run(commands)
    add_data(commands)
    add_separation(commands)
    add_compare(commands)
    add_languages(commands)
    add_power(commands)
    add_curve(commands)
    add_transfer(commands)
    add_explain(commands)
    add_verify(commands)
    add_bench(commands)
    add_check(commands)
    add_merge(commands)
    add_info(commands)
    return parser


class _Version(argparse.Action):
    """Print the version, which is looked up only now, and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"safetyspace-fast {version('safetyspace-fast')}")
        parser.exit()
