"""Data sets in, samples in canonical order out."""

from .describe import DataSummary, LanguageSummary, describe
from .lexical import lexical_scores
from .read import read_samples
from .samples import NUM_FOLDS, Exclusion, Samples
from .sets import describe_sets
from .units import (
    PAIRED_SHARE,
    Units,
    connected,
    equal_rows,
    find_units,
    kinds,
    numbered,
    permuted_labels,
)

__all__ = [
    "NUM_FOLDS",
    "PAIRED_SHARE",
    "DataSummary",
    "Exclusion",
    "LanguageSummary",
    "Samples",
    "Units",
    "connected",
    "describe",
    "describe_sets",
    "equal_rows",
    "find_units",
    "kinds",
    "lexical_scores",
    "numbered",
    "permuted_labels",
    "read_samples",
]
