"""How far apart the classes are, from the store alone: metrics, intervals, nulls, comparisons."""

from .compare import compare
from .glossary import explain
from .languages import directions, parallel
from .separation import separation

__all__ = ["compare", "directions", "explain", "parallel", "separation"]
