"""Ranks: workers that a launcher such as Slurm or torchrun starts, on any number of machines."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from ..config import RunConfig
from ..errors import ConfigError
from ..extract import Event
from .events import together
from .units import refuse_unshared, work

_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
"""Variables of a process's number and the number of processes in a job, of torchrun and of srun."""
_ARRAY = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP"))
"""Variables of a job array: this task's number, and those of all tasks."""


def rank_of(
    rank: int | None, world_size: int | None, environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """This process's rank and the number of ranks; `(0, 1)` if there is no other.

    Args:
        rank, world_size: as the user gave them; None: what the launcher says. That is `RANK` and
            `WORLD_SIZE` (torchrun) or else `SLURM_PROCID` and `SLURM_NTASKS` (srun). In a job
            array, each task of the array has so many ranks. Of an array with gaps, such as 0,3,7,
            the ranks have gaps.
        environment: where the launcher says it.

    Raises:
        ConfigError: the rank is not below the number of ranks; or one of the two is missing.
    """
    if (rank is None) != (world_size is None):
        missing = "--rank" if rank is None else "--world-size"
        raise ConfigError(f"run: {missing} is missing; give both, or none under Slurm or torchrun")
    if rank is None or world_size is None:
        rank, world_size = _of_launcher(environment)
    if world_size < 1:
        raise ConfigError(f"world-size: got {world_size}, expected at least 1")
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"rank: got {rank}, expected 0 to {world_size - 1} for a world-size of {world_size}"
        )
    return rank, world_size


def _of_launcher(environment: Mapping[str, str]) -> tuple[int, int]:
    def number(name: str) -> int:
        try:
            return int(environment[name])
        except ValueError as error:
            raise ConfigError(
                f"{name}: got {environment[name]!r} from the launcher, expected a whole number; "
                "give --rank and --world-size"
            ) from error

    rank, world_size = 0, 1
    for name, total in _LAUNCHERS:
        if name in environment and total in environment and number(total) != 1:
            rank, world_size = number(name), number(total)
            break
    if set(_ARRAY) <= environment.keys():
        task, first, last, step = map(number, _ARRAY)
        step = max(1, step)
        # Not SLURM_ARRAY_TASK_COUNT: it is 3 for the array 0,3,7, whose last task is number 7.
        rank += (task - first) // step * world_size
        world_size *= (last - first) // step + 1
    return rank, world_size


def run_as_rank(
    configs: Sequence[RunConfig], rank: int, world_size: int
) -> Generator[Event, None, None]:
    """Be one rank of several, each started by itself; see `units.work`.

    What cannot be done is refused at once; the work starts with the first event that is asked for.

    Raises:
        ConfigError: a store cannot be overwritten by ranks, or its folder is not on this machine,
            or another rank has other settings.
    """
    refuse_apart(configs)
    return _run_as_rank(configs, rank, world_size)


def _run_as_rank(
    configs: Sequence[RunConfig], rank: int, world_size: int
) -> Generator[Event, None, None]:
    with closing(work(configs, rank, world_size)) as events:
        yield from together(events, configs, ())


def refuse_apart(configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError if ranks cannot share these models, or the stores of these configs."""
    refuse_unshared(configs)
    for config in configs:
        if config.overwrite:
            raise ConfigError(
                "run: ranks cannot overwrite a store, as they do not start together; delete "
                f"{config.out} before, or give --rank 0 --world-size 1 if this is the only one"
            )
        if isinstance(config.out, Path) and not (folder := config.out.expanduser().parent).is_dir():
            raise ConfigError(
                f"{config.out}: this machine has no folder {folder}; ranks share a store: make the "
                "folder once, on a file system that all of them see"
            )
