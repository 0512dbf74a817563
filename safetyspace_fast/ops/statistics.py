"""Statistics that need every pair of samples, on top of `pairwise_reduce`."""

import torch
from torch import Tensor

from ..errors import ConfigError
from . import _pairwise, _select
from ._pairwise import pairwise_reduce


def silhouette_samples(
    x: Tensor, labels: Tensor, *, metric: str = "euclidean", impl: str | None = None
) -> Tensor:
    """How much nearer each sample is to its own class than to the nearest other class.

    The score is (b - a) / max(a, b), with a the mean distance to the other samples of the class
    and b the smallest mean distance to another class; 0 for the only sample of a class and for
    a = b = 0, as in scikit-learn (Rousseeuw 1987).

    Args:
        x: [N, D] floating point.
        labels: [N] integers, any values.
        metric, impl: as in `pairwise_reduce`.

    Returns:
        [N] float64 in -1 .. 1.

    Raises:
        ConfigError: there are not 2 to N - 1 classes.
    """
    classes, label, count = _classes(x, labels)
    C, N = len(classes), len(x)
    if not 2 <= C < N:
        raise ConfigError(f"labels: expected 2 to {N - 1} classes for {N} samples, got {C}")
    total = pairwise_reduce(x, x, label, C, metric=metric, impl=impl).sum
    own_class = label[:, None]
    a = (total.gather(1, own_class) / (count[own_class] - 1))[:, 0]
    b = (total / count).scatter(1, own_class, torch.inf).amin(1)
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
    """Energy distance of two classes: 2 E|X - Y| - E|X - X'| - E|Y - Y'|.

    X and X' are samples of one class, Y and Y' of the other (Szekely and Rizzo 2013). The unbiased
    estimate has mean 0 for equal distributions.

    Args:
        x: [N, D] or [L, N, D] floating point.
        labels: [N] of 0 and 1, or [R, N] for R labellings (permutations) in one pass, the same in
            all layers.
        metric, impl: as in `pairwise_reduce`.
        biased: include the zero distances of samples to themselves (V-statistic, never negative).

    Returns:
        float64: a scalar, or [R]; with a leading L for L layers.

    Raises:
        ConfigError: a labelling has fewer than two samples of a class.
    """
    within, between = _two_class_means(x, labels, metric, None, biased, impl)
    return 2 * between - within


def mmd(
    x: Tensor,
    labels: Tensor,
    gamma: float | Tensor,
    *,
    biased: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy: E k(X, X') + E k(Y, Y') - 2 E k(X, Y), k = exp(-gamma d^2).

    X and X' are samples of one class, Y and Y' of the other, d their Euclidean distance (Gretton et
    al. 2012, equations 3 and 5).

    Args:
        x: [N, D] or [L, N, D] floating point.
        labels: [N] of 0 and 1, or [R, N] for R labellings (permutations) in one pass, the same in
            all layers.
        gamma: of the kernel: a number, or [L] floating point, one for each layer.
        impl: as in `pairwise_reduce`.
        biased: include the kernel of samples with themselves, 1 (V-statistic, never negative).

    Returns:
        float64: a scalar, or [R]; with a leading L for L layers.

    Raises:
        ConfigError: a labelling has fewer than two samples of a class, or gamma is out of range.
    """
    gamma = torch.as_tensor(gamma, dtype=torch.float64, device=x.device)
    if not ((gamma >= 0) & gamma.isfinite()).all():
        raise ConfigError(f"gamma: expected finite numbers >= 0, got {gamma.tolist()}")
    if gamma.ndim and list(gamma.shape) != list(x.shape[:-2]):
        raise ConfigError(
            f"gamma: expected a number, or one for each layer of x, got shape {list(gamma.shape)}"
        )
    within, between = _two_class_means(x, labels, "euclidean", gamma, biased, impl)
    return within - 2 * between


def _two_class_means(
    x: Tensor, labels: Tensor, metric: str, gamma: Tensor | None, biased: bool, impl: str | None
) -> tuple[Tensor, Tensor]:
    """Mean value of pairs within a class, summed over both classes, and of pairs between them."""
    N = x.shape[-2] if x.ndim in (2, 3) else 0
    if N == 0 or labels.ndim not in (1, 2) or labels.shape[-1] != N:
        raise ConfigError(
            f"x, labels: expected [N, D] or [L, N, D] and [N] or [R, N], "
            f"got {list(x.shape)} and {list(labels.shape)}"
        )
    one_class = torch.zeros(N, dtype=torch.int64, device=labels.device)
    _pairwise.validate(x, x, one_class, 1, metric, None)
    masks = labels.reshape(-1, N).T
    n1 = (masks == 1).sum(0).double()
    n0 = (masks == 0).sum(0).double()
    if (n0 + n1 != N).any() or (n0 < 2).any() or (n1 < 2).any():
        raise ConfigError("labels: expected 0 and 1, each at least twice in every labelling")
    lead = x.shape[:-2]
    x = x if lead else x[None]
    if gamma is not None:
        gamma = gamma.expand(len(x)).contiguous()
    shift = _typical_value(x, metric, gamma)
    members = masks.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    args = (x, _pairwise.center(x, metric), members, metric, gamma, shift)
    total, pairs = _select.choose("pairwise_within", impl, *args)(*args)
    # Ordered pairs: within class 1, between, within class 0, from the totals of class 1's rows.
    ones = 2 * pairs + shift[:, None].double() * n1 * (n1 - 1)
    between = total @ masks.double() - ones
    zeros = total.sum(1, keepdim=True) - ones - 2 * between
    if biased:
        with_itself = 0.0 if gamma is None else 1.0
        within = zeros / n0.square() + ones / n1.square() + with_itself * (1 / n0 + 1 / n1)
    else:
        within = zeros / (n0 * (n0 - 1)) + ones / (n1 * (n1 - 1))
    shape = (*lead, *labels.shape[:-1])
    return within.reshape(shape), (between / (n0 * n1)).reshape(shape)


def _typical_value(x: Tensor, metric: str, gamma: Tensor | None) -> Tensor:
    """A value near those of most pairs of a layer: [L] float32."""
    sample = x[:, :: max(1, x.shape[1] // 32)].double()
    distance = (sample[:, :1] - sample).norm(dim=2).nanmedian(1).values
    if gamma is not None:
        value = (-gamma * distance.square()).exp()
    elif metric == "cosine":
        value = torch.ones_like(distance)
    else:
        value = distance if metric == "euclidean" else distance.square()
    return torch.where(value.float().isfinite(), value, 0.0).float()


def dunn(
    x: Tensor, labels: Tensor, *, metric: str = "euclidean", impl: str | None = None
) -> Tensor:
    """Dunn index: smallest distance between two classes over the largest within one (Dunn 1974).

    A single extreme pair decides it.

    Args:
        x: [N, D] floating point.
        labels: [N] integers.
        metric, impl: as in `pairwise_reduce`.

    Returns:
        A float64 scalar; inf if no class has two different samples.

    Raises:
        ConfigError: there are fewer than two classes.
    """
    classes, label, _ = _classes(x, labels)
    if len(classes) < 2:
        raise ConfigError(f"labels: expected at least 2 classes, got {len(classes)}")
    result = pairwise_reduce(x, x, label, len(classes), metric=metric, impl=impl)
    own_class = label[:, None]
    between = result.min.scatter(1, own_class, torch.inf).amin().double()
    return between / result.max.gather(1, own_class).amax().double().clamp(min=0)


def nn_accuracy(
    x: Tensor, labels: Tensor, *, metric: str = "euclidean", impl: str | None = None
) -> Tensor:
    """Share of samples whose nearest neighbour is of their own class.

    A sample as near to another class as to its own counts one half.

    Args:
        x: [N, D] floating point.
        labels: [N] integers.
        metric, impl: as in `pairwise_reduce`.

    Returns:
        A float64 scalar.

    Raises:
        ConfigError: there are fewer than two classes.
    """
    classes, label, _ = _classes(x, labels)
    if len(classes) < 2:
        raise ConfigError(f"labels: expected at least 2 classes, got {len(classes)}")
    nearest = pairwise_reduce(x, x, label, len(classes), metric=metric, impl=impl).min
    own_class = label[:, None]
    other_class = nearest.scatter(1, own_class, torch.inf).amin(1)
    difference = other_class - nearest.gather(1, own_class)[:, 0]
    return (difference.sign().double() / 2 + 0.5).mean()


def _classes(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different labels, each sample's index into them, and how many samples each has."""
    if labels.ndim != 1 or x.ndim != 2 or len(labels) != len(x):
        raise ConfigError(
            f"x, labels: expected [N, D] and [N], got {list(x.shape)} and {list(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ConfigError(f"labels: expected integers, got {labels.dtype}; use .long()")
    classes, label, count = torch.unique(labels, return_inverse=True, return_counts=True)
    return classes, label, count
