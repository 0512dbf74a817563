"""Data sets in, samples in canonical order out."""

from safetyspace_fast.data.read import read_samples
from safetyspace_fast.data.samples import NUM_FOLDS, Exclusion, Samples

__all__ = ["NUM_FOLDS", "Exclusion", "Samples", "read_samples"]
