"""The on-disk format, its writer, its reader, and what an unfinished run keeps beside it."""

from .progress import Progress, Record, work_folder
from .reader import ModelStore, Run, SampleTable
from .writer import ModelWriter, create_run, resume_run

__all__ = [
    "ModelStore",
    "ModelWriter",
    "Progress",
    "Record",
    "Run",
    "SampleTable",
    "create_run",
    "resume_run",
    "work_folder",
]
