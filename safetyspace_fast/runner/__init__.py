"""Runs: models over a data set, into a store; `run.py` alone, `one_model.py` for workers."""

from .one_model import OneModel
from .output import refuse_existing, sample_columns, start_afresh
from .run import run_models
from .steps import Steps, begin, specs_of

__all__ = [
    "OneModel",
    "Steps",
    "begin",
    "refuse_existing",
    "run_models",
    "sample_columns",
    "specs_of",
    "start_afresh",
]
