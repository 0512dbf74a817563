"""Several workers on one store: the options of `run` that start or join them, and `merge`."""

import argparse
import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from .. import terminal
from ..config import RunConfig
from ..errors import ConfigError
from .options import Commands, command

if TYPE_CHECKING:
    from ..api import Event, ModelDone


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """`--devices`, `--ray`, `--workers`, `--rank` and `--world-size`."""
    parser.add_argument(
        "--devices",
        metavar="all|0-7|cpu:N",
        help="run one worker process on each of these GPUs, or N on the CPU; they share the work",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="share the work on a Ray cluster, one worker a GPU (or, without GPUs, a node); "
        "without ADDRESS the one that RAY_ADDRESS names, or else Ray is started here",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="with --ray: workers, for a cluster that grows"
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
    """What `--devices`, `--ray` and `--rank` ask for; None: a run in this process alone.

    Args:
        configs: each with one model.
        arguments: that were typed.

    Raises:
        SafetySpaceError: an option is wrong, two exclude each other, or workers cannot do what
            `configs` ask for; said now, before anything starts.
    """
    from ..sweep.devices import devices_of, run_on_devices
    from ..sweep.ranks import rank_of, run_as_rank

    if arguments.ray is not None:
        return _on_ray(configs, arguments)
    if arguments.workers is not None:
        raise ConfigError("run: --workers is for --ray; --devices cpu:N starts N workers here")
    rank, world_size = rank_of(arguments.rank, arguments.world_size)
    if arguments.devices is None and world_size == 1:
        return None
    if arguments.devices is None:
        return run_as_rank(configs, rank, world_size)
    if arguments.device is not None:
        raise ConfigError("run: --device and --devices exclude each other; give one of them")
    return run_on_devices(configs, devices_of(arguments.devices), rank, world_size)


def _on_ray(
    configs: Sequence[RunConfig], arguments: argparse.Namespace
) -> "Generator[Event, None, None]":
    from ..sweep.ray_cluster import run_on_ray

    for other in ("devices", "rank", "world_size"):
        if getattr(arguments, other) is not None:
            flag = other.replace("_", "-")
            raise ConfigError(f"run: --ray and --{flag} exclude each other; give one of them")
    address: str = arguments.ray
    if address.endswith((".toml", ".json")):
        raise ConfigError(f"run: --ray takes an address, got {address!r}; name the sweep before it")
    return run_on_ray(configs, address or None, workers=arguments.workers)


def show_events(events: "Generator[Event, None, None]") -> "list[ModelDone]":
    """Run to the end and show what happens; returns the models that are complete now."""
    from .. import api
    from ..sweep.events import raising

    done: list[api.ModelDone] = []
    with terminal.RunDisplay() as progress, closing(raising(events)) as running:
        for event in running:
            progress.show(event)
            if isinstance(event, api.ModelDone):
                done.append(event)
    return done


def show_done(done: "Sequence[ModelDone]", out: str, *, as_json: bool) -> None:
    """Print which models of a store are complete now."""
    if as_json:
        print(json.dumps({"out": out, "models": [asdict(event) | {"out": out} for event in done]}))
    else:
        terminal.show_done(done, out)


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
    from ..sweep.merge import merge

    done = show_events(merge(arguments.run))
    if done or arguments.json:
        show_done(done, arguments.run, as_json=arguments.json)
