"""Running a model over texts and reducing its hidden states while the forward pass runs."""

from .capture import Capture, seeded_projection
from .events import Event, LanguageDone, ModelDone, Note, Planned, Progressed, Verified
from .loop import Extraction
from .plan import Plan, make_plan
from .prefix import share_prefix
from .tune import compile_blocks, token_budget
from .verify import CellCheck, Verification, verify_model

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
    "make_plan",
    "seeded_projection",
    "share_prefix",
    "token_budget",
    "verify_model",
]
