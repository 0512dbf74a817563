"""Mean Gaussian kernel of every text to each class, at full width: what MMD^2 is made of."""

from torch import Tensor

from .distance_sums import DistanceSums
from .labellings import FoldLabellings, Labellings


class KernelSums:
    """Sums of k = exp(-|x-y|^2 / (2 h^2)), from squared distances that come in tiles.

    n^2 exponentials, and 2 n^2 flops a labelling. Tiles have the texts in the order of their folds;
    what goes in and comes out beside them has the order in which the labellings were given.
    """

    def __init__(
        self, labellings: FoldLabellings, mean_distance: float, copy: Tensor | None = None
    ) -> None:
        """Prepare the sums.

        Args:
            labellings: R of the texts, the true labels first.
            mean_distance: h, the mean distance of two texts.
            copy: [n] int64, equal texts of one label share a number; None if there are none.
        """
        copy = None if copy is None else copy[labellings.order]
        self._back, self._width_sq = labellings.back, mean_distance**2
        # With minus a kernel as the distance, the energy distance is the MMD^2.
        self._every = DistanceSums(labellings, copy=copy, silhouettes=False)
        true = Labellings(labellings.labels[:1])
        self._slope = DistanceSums(true, copy=copy, silhouettes=False)

    def add(self, rows: slice, square: Tensor) -> None:
        """Take squared distances of some texts to all, [rows, n] float64; they change."""
        square.div_(self._width_sq)
        kernel = (square / -2).exp_().neg_()
        self._slope.add(rows, square.mul_(kernel))
        self._every.add(rows, kernel)

    def result(self) -> dict[str, Tensor]:
        """What the store keeps, when all rows have come.

        Returns:
            `kernel_sum [n, 2]`, float64, sums over the other texts of each class, without copies;
            `kernel_slope []`, float64, derivative of MMD^2 by log h; `kernel_null [R]`, float32,
            MMD^2 of each labelling, over distinct texts (Gretton et al. 2012).
        """
        sums = self._every.result()
        return {
            "kernel_sum": -sums.pair_sum[self._back],
            "kernel_slope": self._slope.result().energy[0],
            "kernel_null": sums.energy.float(),
        }
