"""Running a model over texts and reducing its hidden states while the forward pass runs."""

from .capture import Capture, seeded_projection
from .events import (
    CellCheck,
    Event,
    LanguageDone,
    ModelDone,
    Note,
    Planned,
    Progressed,
    Verification,
    Verified,
)
from .loop import Extraction
from .plan import Plan, make_plan
from .tune import compile_blocks, find_token_budget

__all__ = [
    "Capture",
    "CellCheck",
    "Event",
    "Extraction",
    "LanguageDone",
    "ModelDone",
    "Note",
    "Plan",
    "Planned",
    "Progressed",
    "Verification",
    "Verified",
    "compile_blocks",
    "find_token_budget",
    "make_plan",
    "seeded_projection",
]
