"""Many models, data sets, devices and machines: sweep files, workers, and what runs will cost."""

from .access import refuse_begun, refuse_missing, refuse_tiny_scratch
from .drive import run_sweep
from .events import RunBegun, RunEnded
from .file import Sweep, read_sweep
from .forecast import RunForecast, Truth, Truths, forecast
from .shared import SharedWork

__all__ = [
    "RunBegun",
    "RunEnded",
    "RunForecast",
    "SharedWork",
    "Sweep",
    "Truth",
    "Truths",
    "forecast",
    "read_sweep",
    "refuse_begun",
    "refuse_missing",
    "refuse_tiny_scratch",
    "run_sweep",
]
