"""Kernels: tensors in, tensors out, no gradients.

Each function checks its arguments and calls the fastest implementation that supports them: `cuda`
and `cpu` are compiled C++, `triton` is Triton, `reference` is plain torch and runs everywhere. All
give the same numbers up to the rounding of float32. `implementations()` lists them, each with the
reasons why it cannot run on this machine. README.md beside this file explains the rest.
"""

from ._labels import label_sums, pack_labels
from ._linear import (
    ACTIVATIONS,
    PANEL,
    can_pack,
    gated_linear,
    linear,
    pack_gated,
    pack_linear,
    rms_norm,
    rotary_attention,
    unpack_linear,
)
from ._native import simd_level
from ._pairwise import (
    METRICS,
    PairwiseResult,
    pairwise_empty,
    pairwise_reduce,
    pairwise_update,
)
from ._pool import PoolProject, pool_project, project_averages
from ._select import implementations, written
from .kernel_sums import KernelSums
from .labelled import STATISTICS, labelled_statistics
from .labellings import FoldLabellings
from .moments import ClassMoments, class_moments
from .reference import PAIRWISE_BLOCK
from .spread import equal_units, group_sums, length_terms, robust_scale, shift_noise
from .statistics import (
    dunn,
    energy_distance,
    mmd,
    nn_accuracy,
    silhouette_samples,
)

__all__ = [
    "ACTIVATIONS",
    "METRICS",
    "PAIRWISE_BLOCK",
    "PANEL",
    "STATISTICS",
    "ClassMoments",
    "FoldLabellings",
    "KernelSums",
    "PairwiseResult",
    "PoolProject",
    "can_pack",
    "class_moments",
    "dunn",
    "energy_distance",
    "equal_units",
    "gated_linear",
    "group_sums",
    "implementations",
    "label_sums",
    "labelled_statistics",
    "length_terms",
    "linear",
    "mmd",
    "nn_accuracy",
    "pack_gated",
    "pack_labels",
    "pack_linear",
    "pairwise_empty",
    "pairwise_reduce",
    "pairwise_update",
    "pool_project",
    "project_averages",
    "rms_norm",
    "robust_scale",
    "rotary_attention",
    "shift_noise",
    "silhouette_samples",
    "simd_level",
    "unpack_linear",
    "written",
]
