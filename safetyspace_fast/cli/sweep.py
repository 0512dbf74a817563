"""`run SWEEP.toml`: many models over several data sets."""

import argparse
import json
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from .. import terminal
from ..errors import ConfigError, SafetySpaceError

_ALLOWED = ("resume",)


def run_file(arguments: argparse.Namespace, options: Mapping[str, Any]) -> None:
    """Run a sweep file.

    Args:
        arguments: of the command `run`.
        options: fields of `RunConfig` that were typed.

    Raises:
        SafetySpaceError: the file is wrong, or some of its runs failed.
    """
    typed = [name for name, value in options.items() if value and name not in _ALLOWED]
    typed += ["preset"] if arguments.preset else []
    if typed:
        flag = "--model" if typed[0] == "models" else "--" + typed[0].replace("_", "-")
        raise ConfigError(f"run: {flag} and a sweep file; write it into {arguments.sweep}")
    from ..models import parse_model
    from ..sweep import (
        RunEnded,
        SharedWork,
        read_sweep,
        refuse_existing,
        refuse_missing,
        run_sweep,
    )

    configs = read_sweep(arguments.sweep).configs()
    refuse_missing(configs)
    if not arguments.resume:
        refuse_existing(configs)
    shared = SharedWork(configs)
    for config in configs:
        shared.samples(config, terminal.say)
    runs = [(parse_model(*config.models).name, str(config.out)) for config in configs]
    if arguments.dry_run:
        return
    display = terminal.SweepDisplay(runs)
    failed: dict[tuple[str, str], str] = {}
    with closing(run_sweep(configs, shared)) as events:
        for event in events:
            display.show(event)
            if isinstance(event, RunEnded) and event.error is not None:
                failed[event.model, event.out] = terminal.reason(event.error)
    if arguments.json:
        print(json.dumps({}))
    if failed:
        raise SafetySpaceError(
            f"{len(failed)} of {len(runs)} runs failed; mend what they name, then repeat "
            f"`safetyspace-fast run {arguments.sweep} --resume`"
        )
