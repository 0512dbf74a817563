"""Run a model over texts, and reduce its hidden states while the forward pass runs.

`prepare` turns texts into batches; `capture` runs a batch and pools its hidden states; `loop` runs
all batches; `finish` computes what is kept of a language.
"""

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
from .loop import Extraction, Unit
from .plan import Batching, Plan, make_plan
from .tune import compile_blocks, find_batching, packing_pays

__all__ = [
    "Batching",
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
    "Unit",
    "Verification",
    "Verified",
    "compile_blocks",
    "find_batching",
    "make_plan",
    "packing_pays",
    "seeded_projection",
]
