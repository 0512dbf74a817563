"""`data`: what a run would read."""

import argparse
import json
from dataclasses import asdict

from .. import terminal
from ..config import DataFields
from ..errors import ConfigError
from .options import Commands, add_data_options, command, given

DATA_EXAMPLES = """\
examples:
  safetyspace-fast data texts.jsonl
  safetyspace-fast data tweets.csv --text-column tweet --label-column class \\
      --harmful 0,1 --harmless 2 --lang en
  safetyspace-fast data scores.parquet --text-column comment --harmful 'toxicity>=0.5'
  safetyspace-fast data germeval.txt --text-column 1 --label-column 2 --harmful OFFENSE --lang de
  safetyspace-fast data --data harmful=advbench:behaviors.csv --data harmless=alpaca.json \\
      --text-column instruction --lang en
  safetyspace-fast data olid:olid-training-v1.0.tsv

`run`, `verify` and `bench` take the same options.
"""


def add_data(commands: Commands) -> None:
    """The command `data`."""
    data = command(
        commands,
        "data",
        _data,
        "show what a run would read of your data, in counts and without a model",
        DATA_EXAMPLES,
    )
    data.add_argument("files", nargs="*", metavar="FILE_OR_ID", help="the same as --data")
    add_data_options(data)
    data.add_argument(
        "--list-sets", action=_Sets, nargs=0, help="print the known data sets and exit"
    )
    data.add_argument("--json", action="store_true", help="print the result as JSON")


def _data(arguments: argparse.Namespace) -> None:
    from .. import api

    sources = (*arguments.files, *(arguments.data or ()))
    if not sources:
        raise ConfigError("data: no file is given; name a file, a directory or a hub id")
    summary = api.describe_data(sources, **given(arguments, DataFields.__annotations__))
    if arguments.json:
        print(json.dumps(asdict(summary)))
        return
    terminal.show_data(summary)


class _Sets(argparse.Action):
    """Print the known data sets and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ..data import describe_sets

        print(describe_sets())
        parser.exit()
