"""The format on disk: writing it, reading it, and the work folder of an unfinished run."""

from .check import Damage, Report, check
from .growth import Growth, Kept, discard, settle
from .leases import Leases
from .lock import Claim, alone
from .place import Place
from .reader import ModelStore, Run, SampleTable
from .results import save_results
from .session import Journal, Session, clear
from .shared import Shared
from .writer import Contents, ModelWriter, consolidate, create_run, half_made, resume_run

__all__ = [
    "Claim",
    "Contents",
    "Damage",
    "Growth",
    "Journal",
    "Kept",
    "Leases",
    "ModelStore",
    "ModelWriter",
    "Place",
    "Report",
    "Run",
    "SampleTable",
    "Session",
    "Shared",
    "alone",
    "check",
    "clear",
    "consolidate",
    "create_run",
    "discard",
    "half_made",
    "resume_run",
    "save_results",
    "settle",
]
