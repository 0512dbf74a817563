"""`check` and `info`: the state of a store, and of the machine."""

import argparse
import json

from .. import terminal
from ..errors import StoreError
from .options import Commands, command


def add_check(commands: Commands) -> None:
    """The command `check`."""
    check = command(
        commands, "check", _check, "read every file of a store and list damaged or missing ones"
    )
    check.add_argument("run", metavar="RUN.zarr", help="a store that `run` wrote")
    check.add_argument(
        "--repair",
        action="store_true",
        help="delete damaged files, so that `run --resume` computes only these again",
    )


def _check(arguments: argparse.Namespace) -> None:
    from .. import api

    report = api.check(arguments.run, repair=arguments.repair)
    terminal.show_check(report)
    if report.damage and not arguments.repair:
        raise StoreError(
            f"{arguments.run}: {len(report.damage)} damaged files; repeat with --repair to prepare "
            "them for `run --resume`"
        )
    if report.damage:
        print("next: repeat the `run` command that made the store, with --resume")


def add_info(commands: Commands) -> None:
    """The command `info`."""
    info = command(
        commands,
        "info",
        _info,
        "show versions, devices, and which kernels run here and why the others do not",
    )
    info.add_argument("--json", action="store_true", help="print everything as JSON")


def _info(arguments: argparse.Namespace) -> None:
    from ..info import environment

    facts = environment()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    terminal.show_environment(facts)
