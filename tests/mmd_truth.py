"""MMD^2 with a Gaussian kernel from all pairs of texts, in float64 NumPy.

Nothing here uses the package, so that a mistake there cannot hide here.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def gaussian(
    z: Floats, same: NDArray[np.bool_], width: float | None = None
) -> tuple[Floats, Floats]:
    """The kernel, 0 with a text itself and its copies, and its derivative by log width, [n, n].

    Args:
        z: [n, D]; same: [n, n], whether two texts are copies or one text.
        width: None takes the mean distance of different texts.
    """
    centred = z - z.mean(0)
    norm = (centred**2).sum(1)
    square = np.maximum(norm[:, None] + norm - 2 * centred @ centred.T, 0)
    np.fill_diagonal(square, 0)
    with np.errstate(all="ignore"):
        wide = np.sqrt(square).sum() / (~same).sum() if width is None else width
        square = square / wide**2
    kernel = np.exp(-square / 2) * ~same
    return kernel, kernel * square


def mmd(kernel: Floats, y: Floats, same: NDArray[np.bool_]) -> float:
    """MMD^2 over distinct texts of a kernel [n, n], 0 for copies: y [n] is 0 or 1."""
    ones, n1 = kernel @ y, y.sum()
    zeros, n0 = kernel.sum(1) - ones, (1 - y).sum()
    copies = same.sum(1)
    with np.errstate(all="ignore"):
        own = (y * ones / (n1 - copies)).sum() / n1
        own += ((1 - y) * zeros / (n0 - copies)).sum() / n0
        return float(own - 2 * y @ zeros / (n0 * n1))
