"""How alike two models see the same texts: linear CKA at full width, with an interval."""

from typing import NamedTuple

import torch
from torch import Tensor

from .cells import Cells
from .intervals import t_interval
from .uncertainty import influence_variance


class Alignment(NamedTuple):
    """Debiased linear CKA, [cell] each; NaN if the HSIC of a model with itself is not above 0."""

    value: Tensor
    low: Tensor
    high: Tensor


class _Kernel(NamedTuple):
    """A linear kernel between n texts, as the sum of an exact part and a projected rest.

    exact: [cell, n, K], rest: [cell, n, P], both float64 with zero column means.
    """

    exact: Tensor
    rest: Tensor


def debiased_cka(base: Cells, aligned: Cells) -> Alignment:
    """Linear CKA of two models from unbiased HSIC (Song et al. 2012; Kornblith et al. 2019).

    The kernel between texts is exact in the principal components that the store keeps. The states
    less these components are seen in the random projection: their kernel is unbiased there, and so
    is the HSIC of two of them (see `_rest`).

    The interval is first-order, from the influence of each text on the three HSICs, with Student's
    t for the degrees of freedom of their variance.
    """
    first, second = _kernel(base), _kernel(aligned)
    shared, one, other = (
        _shares(x, y) for x, y in ((first, second), (first, first), (second, second))
    )
    total, by_one, by_other = (part.sum(-1) for part in (shared, one, other))
    known = (by_one > 0) & (by_other > 0)  # not so for a few texts that are only noise
    value = torch.where(known, total / (by_one * by_other).sqrt(), torch.nan)
    relative = shared / total[:, None] - (one / by_one[:, None] + other / by_other[:, None]) / 2
    # Each text is in both places of every pair of texts.
    influence = 2 * value[:, None] * (relative - relative.mean(-1, keepdim=True))
    deviation = influence_variance(influence, base.unit).sqrt()
    return Alignment(value, *t_interval(value, deviation, base.freedom_of(influence)))


def _kernel(cells: Cells) -> _Kernel:
    exact = cells.stored("pca_coords").nan_to_num(0.0)
    exact = exact - exact.mean(-2, keepdim=True)
    # Components do not correlate with the rest: the slopes on them are the components, projected.
    slopes = torch.linalg.pinv(exact, rtol=1e-6) @ cells.projected
    return _Kernel(exact, cells.projected - exact @ slopes)


def _shares(first: _Kernel, second: _Kernel) -> Tensor:
    """Unbiased HSIC of two kernels as a sum over texts: [cell, n]."""
    mixed = hsic_shares(first.exact, second.rest) + hsic_shares(first.rest, second.exact)
    return hsic_shares(first.exact, second.exact) + mixed + _rest(first.rest, second.rest)


def _rest(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased HSIC of two projected kernels: x [cell, n, P], y [cell, n, Q] -> [cell, n].

    Each column of a projection gives an unbiased kernel. Two of the same projection that meet in
    one column are correlated, so these products are left out.
    """
    both = hsic_shares(x, y)
    if x.shape[-1] != y.shape[-1]:
        return both
    columns = zip(x.unbind(-1), y.unbind(-1), strict=True)
    each = (hsic_shares(a[..., None], b[..., None]) for a, b in columns)
    alike = sum(each, torch.zeros_like(both))
    width = x.shape[-1]
    return (both - alike) * width / (width - 1)


def hsic_shares(x: Tensor, y: Tensor) -> Tensor:
    """The parts of each text in unbiased HSIC (Song et al. 2012, equation 5): [cell, n].

    K = X X' is written out in features: no n x n matrix.

    Args:
        x: [..., n, p] float64, y: [..., n, q] float64, the same texts.
    """
    n = x.shape[-2]
    x_sq, y_sq = x.square().sum(-1), y.square().sum(-1)
    x_row = (x @ x.sum(-2)[..., None]).squeeze(-1) - x_sq
    y_row = (y @ y.sum(-2)[..., None]).squeeze(-1) - y_sq
    trace = ((x @ (x.transpose(-1, -2) @ y)) * y).sum(-1) - x_sq * y_sq
    sums = (x_row * y_row.sum(-1, keepdim=True) + y_row * x_row.sum(-1, keepdim=True)) / 2
    sums = sums / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * x_row * y_row) / (n * (n - 3))
