"""Many models, data sets, devices and machines: sweep files, workers, and what runs will cost."""

from .access import refuse_existing, refuse_missing
from .drive import run_sweep
from .events import RunBegun, RunEnded
from .file import Sweep, read_sweep
from .shared import SharedWork

__all__ = [
    "RunBegun",
    "RunEnded",
    "SharedWork",
    "Sweep",
    "read_sweep",
    "refuse_existing",
    "refuse_missing",
    "run_sweep",
]
