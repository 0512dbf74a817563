"""Data sets in, samples in canonical order out."""

from .describe import DataSummary, LanguageSummary, describe
from .lexical import lexical_scores
from .read import read_samples
from .samples import NUM_FOLDS, Exclusion, Samples
from .sets import describe_sets

__all__ = [
    "NUM_FOLDS",
    "DataSummary",
    "Exclusion",
    "LanguageSummary",
    "Samples",
    "describe",
    "describe_sets",
    "lexical_scores",
    "read_samples",
]
