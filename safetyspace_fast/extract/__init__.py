"""Running a model over texts and reducing its hidden states while the forward pass runs."""

from ..models import share_prefix
from .capture import Capture, seeded_projection
from .events import Event, LanguageDone, ModelDone, Note, Planned, Progressed, Verified
from .finish import COMPONENTS
from .loop import Extraction
from .plan import Plan, make_plan
from .tune import compile_blocks, token_budget
from .verify import CellCheck, Verification, verify_model

__all__ = [
    "COMPONENTS",
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
