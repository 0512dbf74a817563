"""The on-disk format, its writer, its reader, and what an unfinished run keeps beside it."""

from .lock import Claim, alone
from .place import Place
from .progress import Progress, Record, clear
from .reader import ModelStore, Run, SampleTable
from .writer import ModelWriter, consolidate, create_run, half_made, resume_run

__all__ = [
    "Claim",
    "ModelStore",
    "ModelWriter",
    "Place",
    "Progress",
    "Record",
    "Run",
    "SampleTable",
    "alone",
    "clear",
    "consolidate",
    "create_run",
    "half_made",
    "resume_run",
]
