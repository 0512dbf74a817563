"""How far states spread: scales, noise of the difference of class means, terms of length."""

import torch
from torch import Tensor


def robust_scale(x: Tensor) -> Tensor:
    """Scale of each dimension that a few extreme texts do not change: x [n, D] -> [D].

    The median absolute deviation, in standard deviations of a Gaussian; at least a tenth of the
    standard deviation, so that a dimension with rare peaks does not become the largest of all.
    Infinite for a dimension that does not vary.
    """
    scale = 1.4826 * _median((x - _median(x)).abs())
    wide = x.double()
    deviation = ((wide - wide.mean(0)).square_().sum(0) / (len(x) - 1)).sqrt()
    scale = torch.maximum(scale, deviation.to(x.dtype) / 10)
    return torch.where(scale > 1e-6 * x.abs().amax(0), scale, torch.inf)


def _median(x: Tensor) -> Tensor:
    """Lower median of each column: [n, D] -> [D]."""
    if x.is_cuda:
        return x.median(0).values
    middle, columns = (len(x) - 1) // 2, x.T.clone(memory_format=torch.contiguous_format)
    columns.numpy().partition(middle, axis=-1)  # NumPy selects with vector instructions
    return columns[:, middle]


def group_sums(values: Tensor, group: Tensor, number: int) -> Tensor:
    """Sums of the rows of each group, the same bits in every run.

    Args:
        values: [n, D] floating point; group: [n] int64, below `number`.

    Returns:
        [number, D], in the dtype of the values.
    """
    sums = values.new_zeros(number, values.shape[1])
    if values.is_cuda:  # `index_add_` would add in the order in which threads come
        return sums.index_put_((group,), values, accumulate=True)
    return sums.index_add_(0, group, values)


def shift_noise(x: Tensor, labels: Tensor, unit: Tensor) -> Tensor:
    """tr V^2 of the covariance V of d, the difference of class means.

    2 tr V^2 is the variance of |d|^2 where the classes do not differ. Sums over pairs of distinct
    units make it unbiased (Chen & Qin 2010).

    Args:
        x: [n, D] float64; labels: [n] int64, 0 or 1.
        unit: [n] int64, texts of one unit of evidence share a number.

    Returns:
        A float64 scalar, not negative.
    """
    count, units = torch.bincount(labels, minlength=2).to(x.dtype), int(unit.max()) + 1
    part = (group_sums(x, labels, 2) / count[:, None])[labels]
    torch.sub(x, part, out=part).mul_(((2.0 * labels - 1) / count[labels])[:, None])
    if units < len(x):
        part = group_sums(part, unit, units)
    scale = part.abs().max().clamp_min(1e-300)  # products must fit float32, which is enough
    noise = part.div_(scale).float()
    small = noise.T @ noise if len(noise) > x.shape[1] else noise @ noise.T
    own = noise.square().sum(1).double()
    both: Tensor = torch.linalg.vector_norm(small, dtype=torch.float64).square()
    pairs = both - own.square().sum()
    return pairs.clamp_min(0) * scale**4


def equal_units(labels: Tensor, unit: Tensor) -> Tensor:
    """Units of equal size in each class whose mean would vary as much (Kish 1965).

    n^2 / sum of m^2 over the units of a class, each with m texts of it.

    Args:
        labels: [n] int64, 0 or 1; unit: [n] int64, texts of one unit of evidence share a number.

    Returns:
        [2] float64.
    """
    sizes = [torch.bincount(unit[labels == c]).double() for c in (0, 1)]
    return torch.stack([size.sum() ** 2 / size.square().sum() for size in sizes])


def length_terms(tokens: Tensor) -> Tensor:
    """What states are regressed on to compare texts of equal length: [n, 2] float64.

    log t and 1/t, each less its mean, in standard deviations. tokens: [n], t of each text.
    """
    t = tokens.double().clamp_min(1)
    terms = torch.stack([t.log(), 1 / t], 1)
    return (terms - terms.mean(0)) / terms.std(0).clamp_min(1e-12)
