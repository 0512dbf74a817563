"""The on-disk format, its writer, its reader, and what an unfinished run keeps beside it."""

from .check import Damage, Report, check
from .growth import Growth, Kept, discard, settle
from .lock import Claim, alone
from .place import Place
from .reader import ModelStore, Run, SampleTable
from .results import load_results, save_results
from .session import Journal, Session, clear
from .writer import ModelWriter, consolidate, create_run, half_made, resume_run

__all__ = [
    "Claim",
    "Damage",
    "Growth",
    "Journal",
    "Kept",
    "ModelStore",
    "ModelWriter",
    "Place",
    "Report",
    "Run",
    "SampleTable",
    "Session",
    "alone",
    "check",
    "clear",
    "consolidate",
    "create_run",
    "discard",
    "half_made",
    "load_results",
    "resume_run",
    "save_results",
    "settle",
]
