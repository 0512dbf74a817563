"""How far apart the classes are, from the store alone: metrics, intervals, nulls, comparisons."""

from .compare import compare
from .glossary import GROUPS, explain
from .groups import with_groups
from .languages import directions, parallel
from .separation import separation

__all__ = [
    "GROUPS",
    "compare",
    "directions",
    "explain",
    "parallel",
    "separation",
    "with_groups",
]
