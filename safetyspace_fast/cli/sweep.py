"""`run SWEEP.toml`, many models over several data sets; and `estimate`, what that takes."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .. import terminal
from ..errors import ConfigError, SafetySpaceError
from .options import Commands, command
from .workers import events_of

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..sweep import SharedWork

_BESIDE_A_FILE = ("resume",)
"""Options of `run` that may be typed beside a sweep file."""


def run_file(arguments: argparse.Namespace, options: Mapping[str, Any]) -> None:
    """Run a sweep file.

    Args:
        arguments: of the command `run`.
        options: fields of `RunConfig` that were typed.

    Raises:
        SafetySpaceError: the file is wrong, or some of its runs failed.
    """
    _refuse_options(arguments, options)
    from ..sweep import (
        Truths,
        forecast,
        read_sweep,
        refuse_begun,
        refuse_missing,
        refuse_tiny_scratch,
        run_sweep,
    )
    from ..sweep.ranks import rank_of

    configs = read_sweep(arguments.sweep).configs()
    # Ray places workers itself, whatever Slurm says of the process that starts them.
    on_ray = arguments.ray is not None
    rank, world_size = (0, 1) if on_ray else rank_of(arguments.rank, arguments.world_size)
    if world_size == 1 and not (arguments.resume or arguments.dry_run):
        refuse_begun(configs)
    workers = events_of(configs, arguments)  # refuses at once; starts when it is asked for events
    refuse_missing(configs)
    if workers is None:  # workers stream no weights
        refuse_tiny_scratch(configs)
    shared = _with_data(configs)
    # Of several ranks one measures; the machines of a cluster are not this one.
    timed = arguments.dry_run or (rank == 0 and not arguments.ray)
    forecasts = forecast(configs, shared, timed=timed, on_step=terminal.say)
    if arguments.dry_run:
        if arguments.json:
            print(json.dumps({"runs": [run.record() for run in forecasts]}))
        else:
            terminal.show_forecast(forecasts)
        return
    in_one = " in one process" if workers is not None else ""
    terminal.say(terminal.forecast_line(forecasts, in_one))
    display = terminal.SweepDisplay([(run.model, run.out) for run in forecasts])
    truths = Truths(time.monotonic)
    with closing(workers if workers is not None else run_sweep(configs, shared)) as events:
        for event in events:
            truths.add(event)
            display.show(event)
    failed = display.failed
    if arguments.json:
        print(json.dumps({"runs": _records(forecasts, truths.of_run, failed)}))
    else:
        terminal.show_sweep(forecasts, truths.of_run, failed, in_one)
    if failed:
        raise SafetySpaceError(
            f"{len(failed)} of {len(configs)} runs failed; mend what they name, then repeat "
            f"`safetyspace-fast run {arguments.sweep} --resume`"
        )


def _refuse_options(arguments: argparse.Namespace, options: Mapping[str, Any]) -> None:
    typed = [
        name
        for name, value in options.items()
        if value is not False and name not in _BESIDE_A_FILE  # 0 was typed, a flag was not
    ]
    typed += ["preset"] if arguments.preset else []
    if typed == ["overwrite"]:
        raise ConfigError("run: --overwrite and a sweep file; remove the stores yourself")
    if typed:
        flag = "--model" if typed[0] == "models" else "--" + typed[0].replace("_", "-")
        raise ConfigError(f"run: {flag} and a sweep file; write it into {arguments.sweep}")


def _with_data(configs: "Sequence[RunConfig]") -> "SharedWork":
    """What the runs share, with all data read: what is wrong with these is said now."""
    from ..sweep import SharedWork

    shared = SharedWork(configs)
    for config in configs:
        shared.samples(config, terminal.say)
    return shared


def _records(
    forecasts: Sequence[Any], truths: Mapping[Any, Any], failed: Mapping[Any, str]
) -> list[dict[str, object]]:
    """A record for each run: forecast, truth, and why it failed."""
    return [
        run.record()
        | {"truth": asdict(truth) if (truth := truths.get((run.model, run.out))) else None}
        | {"error": failed.get((run.model, run.out))}
        for run in forecasts
    ]


def add_estimate(commands: Commands) -> None:
    """The command `estimate`."""
    parser = command(
        commands,
        "estimate",
        _estimate,
        "say what a sweep takes on this machine or on other hardware, without running it",
        ESTIMATE_EXAMPLES,
    )
    parser.add_argument("sweep", metavar="SWEEP.toml", help="a sweep file, as `run` takes it")
    parser.add_argument(
        "--hardware",
        default="this",
        metavar="this|KINDxN,..",
        help="`this` machine, measured now; or devices of a kind in each node, and as you need "
        "them nodes=N, read=5GB/s (file system), store=1GB/s, price=2.50USD/h (of one device), "
        "failure=24h (mean time until a worker fails) (default: this)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


ESTIMATE_EXAMPLES = """\
examples:
  safetyspace-fast estimate sweep.toml
  safetyspace-fast estimate sweep.toml --hardware h100x8,nodes=16,price=2.50USD/h
"""


def _estimate(arguments: argparse.Namespace) -> None:
    from ..sweep import forecast, read_sweep
    from ..sweep.hardware import parse_cluster

    cluster = None if arguments.hardware == "this" else parse_cluster(arguments.hardware)
    configs = read_sweep(arguments.sweep).configs()
    forecasts = forecast(configs, _with_data(configs), timed=cluster is None, on_step=terminal.say)
    if cluster is not None:
        from ..sweep.hardware import estimate

        known = [run.work for run in forecasts if run.work is not None]
        if not known:
            why = next((run.why for run in forecasts if run.why), "all runs are complete already")
            raise ConfigError(f"{arguments.sweep}: nothing to estimate: {why}")
        result = estimate(known, cluster)
        for run in forecasts:
            if run.why is not None:
                terminal.say(f"{run.model}: no estimate: {run.why}")
        if arguments.json:
            print(json.dumps(asdict(result)))
        else:
            terminal.show_estimate(result, cluster)
    elif arguments.json:
        print(json.dumps({"runs": [run.record() for run in forecasts]}))
    else:
        terminal.show_forecast(forecasts)
