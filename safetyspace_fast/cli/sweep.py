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
    from ..sweep import RunEnded, Truths, forecast, refuse_existing, run_sweep

    configs, shared = _read(arguments.sweep)
    if not (arguments.resume or arguments.dry_run):
        refuse_existing(configs)
    forecasts = forecast(configs, shared, on_step=terminal.say)
    if arguments.dry_run:
        if arguments.json:
            print(json.dumps({"runs": [asdict(run) for run in forecasts]}))
        else:
            terminal.show_forecast(forecasts)
        return
    terminal.say(terminal.forecast_line(forecasts))
    display = terminal.SweepDisplay([(run.model, run.out) for run in forecasts])
    truths = Truths(time.monotonic)
    failed: dict[tuple[str, str], str] = {}
    with closing(run_sweep(configs, shared)) as events:
        for event in events:
            truths.add(event)
            if isinstance(event, RunEnded) and event.error is not None:
                failed[event.model, event.out] = terminal.reason(event.error)
            display.show(event)
    if arguments.json:
        print(json.dumps({"runs": _records(forecasts, truths.of_run, failed)}))
    else:
        terminal.show_sweep(forecasts, truths.of_run, failed)
    if failed:
        raise SafetySpaceError(
            f"{len(failed)} of {len(configs)} runs failed; mend what they name, then repeat "
            f"`safetyspace-fast run {arguments.sweep} --resume`"
        )


def _refuse_options(arguments: argparse.Namespace, options: Mapping[str, Any]) -> None:
    typed = [name for name, value in options.items() if value and name not in _BESIDE_A_FILE]
    typed += ["preset"] if arguments.preset else []
    if typed == ["overwrite"]:
        raise ConfigError("run: --overwrite and a sweep file; remove the stores yourself")
    if typed:
        flag = "--model" if typed[0] == "models" else "--" + typed[0].replace("_", "-")
        raise ConfigError(f"run: {flag} and a sweep file; write it into {arguments.sweep}")


def _read(path: str) -> "tuple[Sequence[RunConfig], SharedWork]":
    """The runs of a sweep file, and their data; all that can be wrong with them is said now."""
    from ..sweep import SharedWork, read_sweep, refuse_missing

    configs = read_sweep(path).configs()
    refuse_missing(configs)
    shared = SharedWork(configs)
    for config in configs:
        shared.samples(config, terminal.say)
    return configs, shared


def _records(
    forecasts: Sequence[Any], truths: Mapping[Any, Any], failed: Mapping[Any, str]
) -> list[dict[str, object]]:
    """A record for each run: forecast, truth, and why it failed."""
    return [
        asdict(run)
        | {"truth": asdict(truth) if (truth := truths.get((run.model, run.out))) else None}
        | {"error": failed.get((run.model, run.out))}
        for run in forecasts
    ]
