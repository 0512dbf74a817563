"""Several workers on one store: the options of `run` that start or join them, and `merge`."""

import argparse
import json
from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from .. import terminal
from ..config import RunConfig
from ..errors import ConfigError
from .options import Commands, command

if TYPE_CHECKING:
    from ..api import Event


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """`--devices`, `--rank` and `--world-size`."""
    parser.add_argument(
        "--devices",
        metavar="all|0-7|cpu:N",
        help="run one worker process on each of these GPUs, or N on the CPU; they share the work",
    )
    parser.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="join other processes on one store, also of other machines: this one's number, from "
        "0; without it, what Slurm or torchrun says",
    )
    parser.add_argument(
        "--world-size", type=int, metavar="W", help="number of ranks that are meant to run"
    )


def events_of(
    configs: Sequence[RunConfig], arguments: argparse.Namespace
) -> "Generator[Event, None, None] | None":
    """What `--devices` and `--rank` ask for; None: a run in this process alone.

    Args:
        configs: of the run, each with one model or several.
        arguments: that were typed.

    Raises:
        ConfigError: an option is wrong, or two exclude each other.
    """
    from ..sweep.devices import devices_of, run_on_devices
    from ..sweep.ranks import rank_of, refuse_unseen, run_as_rank

    rank, world_size = rank_of(arguments.rank, arguments.world_size)
    if arguments.devices is None and world_size == 1:
        return None
    single = [replace(config, models=(model,)) for config in configs for model in config.models]
    if arguments.devices is None:
        return run_as_rank(single, rank, world_size)
    if arguments.device is not None:
        raise ConfigError("run: --device and --devices exclude each other; give one of them")
    if world_size > 1:
        refuse_unseen(single)
    return run_on_devices(single, devices_of(arguments.devices), rank, world_size)


def add_merge(commands: Commands) -> None:
    """The command `merge`."""
    merge = command(
        commands,
        "merge",
        _merge,
        "put together what the workers on a store have computed, if the last one could not",
    )
    merge.add_argument("run", metavar="RUN.zarr", help="the store of `run --devices` or --rank")
    merge.add_argument("--json", action="store_true", help="print the result as JSON")


def _merge(arguments: argparse.Namespace) -> None:
    from .. import api
    from ..sweep.units import merge

    done: list[api.ModelDone] = []
    with terminal.RunDisplay() as progress:
        for event in merge(arguments.run):
            progress.show(event)
            if isinstance(event, api.ModelDone):
                done.append(event)
    if arguments.json:
        print(json.dumps({"out": arguments.run, "models": [asdict(event) for event in done]}))
    elif done:
        terminal.show_done(done, arguments.run)
