"""Running a model over texts and reducing its hidden states while the forward pass runs."""

from .capture import Capture, seeded_projection
from .events import Event, LanguageDone, ModelDone, Note, Planned, Progressed
from .finish import COMPONENTS
from .loop import Extraction
from .plan import Plan, make_plan

__all__ = [
    "COMPONENTS",
    "Capture",
    "Event",
    "Extraction",
    "LanguageDone",
    "ModelDone",
    "Note",
    "Plan",
    "Planned",
    "Progressed",
    "make_plan",
    "seeded_projection",
]
