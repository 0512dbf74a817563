"""How far apart the classes are, from the store alone: metrics, intervals, nulls, comparisons."""

from .between import compare
from .definitions import METRICS, explain, metric
from .languages import directions, parallel
from .separation import separation

__all__ = ["METRICS", "compare", "directions", "explain", "metric", "parallel", "separation"]
