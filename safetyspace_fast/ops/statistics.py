"""Statistics that need every pair of samples, on top of `pairwise_reduce`."""

import torch
from torch import Tensor

from safetyspace_fast.errors import ConfigError
from safetyspace_fast.ops._pairwise import pairwise_reduce


def silhouette_samples(
    x: Tensor, labels: Tensor, *, metric: str = "euclidean", impl: str | None = None
) -> Tensor:
    """How much nearer each sample is to its own class than to the nearest other one.

    x: [N, D] floating point; labels: [N] integers, any values. metric, impl: as in
    `pairwise_reduce`.

    Returns [N] float64 in -1 .. 1: (b - a) / max(a, b), with a the mean distance to the other
    samples of the class and b the smallest mean distance to another class; 0 for the only sample of
    a class and for a = b = 0, as in scikit-learn (Rousseeuw 1987). Raises ConfigError unless there
    are 2 to N - 1 classes."""
    if labels.ndim != 1 or x.ndim != 2 or len(labels) != len(x):
        raise ConfigError(
            f"x, labels: expected [N, D] and [N], got {list(x.shape)} and {list(labels.shape)}"
        )
    classes, label, count = torch.unique(labels, return_inverse=True, return_counts=True)
    C, N = len(classes), len(x)
    if not 2 <= C < N:
        raise ConfigError(f"labels: expected 2 to {N - 1} classes for {N} samples, got {C}")
    total = pairwise_reduce(x, x, label, C, metric=metric, impl=impl).sum
    own = label[:, None]
    a = (total.gather(1, own) / (count[own] - 1))[:, 0]
    b = (total / count).scatter(1, own, torch.inf).amin(1)
    score = (b - a) / torch.maximum(a, b)
    nothing = (count[label] == 1) | ((a == 0) & (b == 0))
    return torch.where(nothing, 0.0, score)
