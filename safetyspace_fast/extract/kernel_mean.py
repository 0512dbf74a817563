"""Mean Gaussian kernel of every text to each class, at full width: what MMD^2 is made of."""

import torch

from ..ops.distance_sums import DistanceSums, distance_tiles
from ..ops.labellings import Labellings


def kernel_means(
    states: torch.Tensor,
    mean_distance: float,
    labellings: Labellings,
    copy: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Sums of the kernel k = exp(-|x-y|^2 / (2 h^2)), and MMD^2 of all labellings.

    One pass over tiles of distances: 2 n^2 (D + R) flops, and n^2 exponentials.

    Args:
        states: `[n, D]` floating point, in the order of the labellings.
        mean_distance: h, the mean distance of two texts.
        labellings: R of the texts, the true labels first.
        copy: `[n] int64`, equal texts of one label share a number; None if there are none.

    Returns:
        `kernel_sum [n, 2]`, float64, sums over the other texts of each class, without copies;
        `kernel_slope []`, float64, derivative of MMD^2 by log h; `kernel_null [R]`, float32, MMD^2
        of each labelling, over distinct texts (Gretton et al. 2012).
    """
    x = states.double()
    x = (x - x.mean(0)) / mean_distance
    # With minus a kernel as the distance, the energy distance is the MMD^2.
    every = DistanceSums(labellings, copy=copy, silhouettes=False)
    slope = DistanceSums(Labellings(labellings.labels[:1]), copy=copy, silhouettes=False)
    for rows, distance in distance_tiles(x):
        square = distance.square()
        kernel = (square / -2).exp_().neg_()
        slope.add(rows, square.mul_(kernel))
        every.add(rows, kernel)
    found = every.result()
    return {
        "kernel_sum": -found.pair_sum,
        "kernel_slope": slope.result().energy[0],
        "kernel_null": found.energy.float(),
    }
