"""Statistics that need every pair of samples, on top of `pairwise_reduce`."""

from collections.abc import Sequence

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
    classes, label, count = _classes(x, labels)
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


def energy_distance(
    x: Tensor,
    labels: Tensor,
    *,
    metric: str = "euclidean",
    biased: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Compare two classes: 2 E|X - Y| - E|X - X'| - E|Y - Y'|.

    x: [N, D] floating point; labels: [N] integers, two values. metric, impl: as in
    `pairwise_reduce`.
    biased: count the zero distances of samples to themselves (V-statistic, never negative).

    Returns a float64 scalar; without bias its mean is 0 for equal distributions (Szekely and Rizzo
    2013).
    Raises ConfigError unless there are two classes of at least two samples.
    """
    label, count = _two_classes(x, labels)
    total = pairwise_reduce(x, x, label, 2, metric=metric, impl=impl).sum
    within, between = _means(total, label, count, 0.0 if biased else None)
    return 2 * between - within.sum(0)


def mmd(
    x: Tensor,
    labels: Tensor,
    gammas: Sequence[float],
    *,
    biased: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Compare two classes by kernels: E k(X, X') + E k(Y, Y') - 2 E k(X, Y), k = exp(-gamma d^2).

    x: [N, D] floating point; labels: [N] integers, two values. gammas: G bandwidths. impl: as in
    `pairwise_reduce`.
    biased: count the kernel 1 of samples with themselves (V-statistic, never negative).

    Returns [G] float64, the squared maximum mean discrepancy (Gretton et al. 2012, equations 3 and
    5).
    Raises ConfigError unless there are two classes of at least two samples.
    """
    if not len(gammas):
        raise ConfigError("gammas: expected at least one bandwidth, got none")
    label, count = _two_classes(x, labels)
    total = pairwise_reduce(x, x, label, 2, gammas=gammas, impl=impl).kernel_sum
    assert total is not None
    within, between = _means(total, label, count, 1.0 if biased else None)
    return within.sum(0) - 2 * between


def dunn(
    x: Tensor, labels: Tensor, *, metric: str = "euclidean", impl: str | None = None
) -> Tensor:
    """Smallest distance between two classes, divided by the largest within one.

    x: [N, D] floating point; labels: [N] integers. metric, impl: as in `pairwise_reduce`.

    Returns a float64 scalar (Dunn 1974); one extreme pair decides it. inf if no class has two
    different samples.
    Raises ConfigError unless there are at least two classes.
    """
    classes, label, _ = _classes(x, labels)
    if len(classes) < 2:
        raise ConfigError(f"labels: expected at least 2 classes, got {len(classes)}")
    result = pairwise_reduce(x, x, label, len(classes), metric=metric, impl=impl)
    own = label[:, None]
    between = result.min.scatter(1, own, torch.inf).amin().double()
    return between / result.max.gather(1, own).amax().double().clamp(min=0)


def nn_accuracy(
    x: Tensor, labels: Tensor, *, metric: str = "euclidean", impl: str | None = None
) -> Tensor:
    """Share of samples whose nearest other sample is of their own class.

    x: [N, D] floating point; labels: [N] integers. metric, impl: as in `pairwise_reduce`.

    Returns a float64 scalar; a sample as near to another class as to its own counts one half.
    Raises ConfigError unless there are at least two classes.
    """
    classes, label, _ = _classes(x, labels)
    if len(classes) < 2:
        raise ConfigError(f"labels: expected at least 2 classes, got {len(classes)}")
    nearest = pairwise_reduce(x, x, label, len(classes), metric=metric, impl=impl).min
    own = label[:, None]
    other = nearest.scatter(1, own, torch.inf).amin(1)
    difference = other - nearest.gather(1, own)[:, 0]
    return (difference.sign().double() / 2 + 0.5).mean()


def _classes(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values of the labels, each sample's place among them, samples of each."""
    if labels.ndim != 1 or x.ndim != 2 or len(labels) != len(x):
        raise ConfigError(
            f"x, labels: expected [N, D] and [N], got {list(x.shape)} and {list(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ConfigError(f"labels: expected integers, got {labels.dtype}; use .long()")
    classes, label, count = torch.unique(labels, return_inverse=True, return_counts=True)
    return classes, label, count


def _two_classes(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    classes, label, count = _classes(x, labels)
    if len(classes) != 2 or int(count.min()) < 2:
        raise ConfigError(
            "labels: expected 2 classes of at least 2 samples, got classes of "
            f"{', '.join(map(str, count.tolist())) or 'no samples'}"
        )
    return label, count.double()


def _means(
    total: Tensor, label: Tensor, count: Tensor, with_itself: float | None
) -> tuple[Tensor, Tensor]:
    """Mean within each class [2, ...] and between them [...], of sums total: [N, 2, ...].

    with_itself: what a sample and itself add within a class, None to leave these pairs out.
    """
    sums = torch.stack([total[label == 0].sum(0), total[label == 1].sum(0)])
    within = torch.stack([sums[0, 0], sums[1, 1]])
    n = count.reshape(2, *[1] * (within.ndim - 1))
    if with_itself is None:
        within = within / (n * (n - 1))
    else:
        within = (within + n * with_itself) / n.square()
    return within, sums[0, 1] / (count[0] * count[1])
