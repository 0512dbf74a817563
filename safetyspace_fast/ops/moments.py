"""Count, mean and second moment of every cell (label and fold, for example), in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True)
class ClassMoments:
    """Moments of the samples of each of C cells.

    count: [C] int64.
    mean: [..., C, P] float64, 0 for an empty cell.
    moment2: [..., C, P, P] float64, sum of (x - mean)(x - mean)^T; divided by count - 1 it is the
        covariance.
    """

    count: Tensor
    mean: Tensor
    moment2: Tensor

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Moments of both sets of samples together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        share = (other.count.double() / count.clamp(min=1))[:, None]
        delta = other.mean - self.mean
        weight = (self.count[:, None] * share)[..., None]
        moment2 = self.moment2 + other.moment2 + weight * delta[..., :, None] * delta[..., None, :]
        return ClassMoments(count, self.mean + share * delta, moment2)


def class_moments(projected: Tensor, cells: Tensor, num_cells: int) -> ClassMoments:
    """Count, mean and second moment of every cell, in two passes over the samples in float64.

    Args:
        projected: [..., N, P] floating point.
        cells: [N] int64 in 0 .. num_cells - 1, the same for all leading dimensions.
        num_cells: C.

    Raises:
        ConfigError: wrong tensors.
    """
    if projected.ndim < 2 or not projected.is_floating_point():
        raise ConfigError(
            f"projected: expected [..., N, P] floating point, "
            f"got {list(projected.shape)} {projected.dtype}"
        )
    if num_cells < 1:
        raise ConfigError(f"num_cells: expected at least 1, got {num_cells}")
    *lead, N, P = projected.shape
    if cells.dtype != torch.int64 or list(cells.shape) != [N]:
        raise ConfigError(f"cells: expected [{N}] int64, got {list(cells.shape)} {cells.dtype}")
    if N and (cells.min() < 0 or cells.max() >= num_cells):
        raise ConfigError(
            f"cells: expected 0 .. {num_cells - 1}, got {cells.min()} .. {cells.max()}"
        )
    count = torch.bincount(cells, minlength=num_cells)
    mean = projected.new_zeros((*lead, num_cells, P), dtype=torch.float64)
    moment2 = projected.new_zeros((*lead, num_cells, P, P), dtype=torch.float64)
    by_cell = torch.split(cells.argsort(stable=True), count.tolist())
    for cell, members in enumerate(by_cell):
        if not len(members):
            continue
        x = projected[..., members, :].double()
        mean[..., cell, :] = x.mean(-2)
        x -= mean[..., None, cell, :]
        moment2[..., cell, :, :] = x.mT @ x
    return ClassMoments(count, mean, moment2)
