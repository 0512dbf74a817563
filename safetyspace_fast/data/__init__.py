"""Data sets in, samples in canonical order out."""

from .read import read_samples
from .samples import NUM_FOLDS, Exclusion, Samples

__all__ = ["NUM_FOLDS", "Exclusion", "Samples", "read_samples"]
