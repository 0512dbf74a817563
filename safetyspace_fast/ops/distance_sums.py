"""Silhouettes and energy distances of many labellings, from one pass over all distances.

The distances come in tiles of rows; no distance matrix exists.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .labellings import Labellings

TILE_BYTES = 5 << 19
"""Working memory of one tile of distances: small enough for a cache, large enough for products."""

DEVICE_TILE_BYTES = 1 << 26
"""The same on a GPU, where each step of a tile is a launch."""


def tiles(x: Tensor) -> Iterator[slice]:
    """Rows of the n x n matrix of distances in float64 of x [n, k], as many as fit in a tile."""
    n = len(x)
    size = max(1, (TILE_BYTES if x.device.type == "cpu" else DEVICE_TILE_BYTES) // (8 * n))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def distance_tiles(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the Euclidean distance matrix, one of `tiles` at a time.

    The product of [x, |x|^2, 1] with [-2y, 1, |y|^2] is |x - y|^2. Each tile overwrites the one
    before.

    Args:
        x: [n, k] float64, or float32 where rounding may move small distances; roughly centred.
    """
    norm_sq = x.square().sum(-1, keepdim=True)
    one = torch.ones_like(norm_sq)
    left, right = torch.cat([x, norm_sq, one], -1), torch.cat([-2 * x, one, norm_sq], -1).T
    space: Tensor | None = None
    for rows in tiles(x):
        space = x.new_empty(rows.stop, len(x)) if space is None else space
        distance = space[: rows.stop - rows.start]
        torch.mm(left[rows], right, out=distance).clamp_min_(0).sqrt_()
        distance.diagonal(rows.start).zero_()
        yield rows, distance


@dataclass(frozen=True)
class LabelledDistances:
    """Results of one pass over all distances, for R labellings.

    pair_sum: [n, 2] float64, sums of distances to each class under the first labelling;
    silhouette, energy: [R] float64, of each labelling, from sums in float32;
    nearest: [n] int64, nearest other text of each text, no copy; empty unless it was asked for.
    """

    pair_sum: Tensor
    silhouette: Tensor
    energy: Tensor
    nearest: Tensor


class DistanceSums:
    """Sums over the classes of many labellings, of a distance matrix that comes in tiles."""

    def __init__(
        self,
        labellings: Labellings,
        *,
        copy: Tensor | None = None,
        neighbours: bool = False,
        silhouettes: bool = True,
    ) -> None:
        """Prepare the sums.

        Args:
            labellings: of the texts.
            copy: [n] int64, the same number for copies of a text, which have one label in each
                labelling; None if there are none.
            neighbours: also find `nearest`.
            silhouettes: compute them; they need distances, not kernels.
        """
        labels = labellings.labels
        n, width = labellings.member.shape
        self._of, self._copy, self._silhouettes = labellings, copy, silhouettes
        self._copies = None if copy is None else torch.bincount(copy)[copy][:, None].float()
        self._first = torch.stack([1 - labels[0], labels[0]], -1)
        self._pair_sum = labels.new_empty(n, 2)
        self._near = torch.empty(n if neighbours else 0, dtype=torch.int64, device=labels.device)
        self._silhouette, self._within1, self._more0, self._more1 = (
            labels.new_zeros(width) for _ in range(4)
        )

    def add(self, rows: slice, distance: Tensor) -> None:
        """Take rows of the matrix, `[rows, n] float64`; entries of a text with itself change."""
        _fill_equal(distance, rows, self._copy, 0.0)
        self._pair_sum[rows] = distance @ self._first
        if len(self._near):
            _fill_equal(distance, rows, self._copy, torch.inf)
            self._near[rows] = distance.argmin(-1)
            _fill_equal(distance, rows, self._copy, 0.0)
        to1, row_sum = self._of.sums(distance), self._pair_sum[rows].sum(-1)
        n0, n1 = self._of.n0, self._of.n1
        if self._of.compiled and self._copies is None and self._silhouettes:
            torch.ops.safetyspace_fast.label_silhouettes(
                to1, row_sum, self._of.packed, rows.start, (n0 - 1) / n1, n0 / (n1 - 1),
                self._silhouette, self._within1,
            )  # fmt: skip
            return
        member = self._of.member[rows]
        self._within1 += (to1 * member).sum(0)
        same: Tensor | float = 1.0
        if self._copies is not None:  # means over n - same other texts instead of n - 1
            same = self._copies[rows]
            to0 = row_sum[:, None].float() - to1
            self._more0 += (to0 * (1 - member) * ((same - 1) / (n0 - same))).sum(0)
            self._more1 += (to1 * member * ((same - 1) / (n1 - same))).sum(0)
        if self._silhouettes:
            to0 = row_sum[:, None].float() - to1
            self._silhouette += _signed_silhouettes(to0, to1, member, n0, n1, same).sum(0)

    def result(self) -> LabelledDistances:
        """The statistics, when all rows have come."""
        kept = slice(self._of.number)
        row_sum = self._pair_sum.sum(-1)
        n0, n1 = (n[kept].double() for n in (self._of.n0, self._of.n1))
        across = self._of.labels @ row_sum - self._within1[kept]
        within0 = row_sum.sum() - 2 * across - self._within1[kept] + self._more0[kept]
        within1 = self._within1[kept] + self._more1[kept]
        energy = 2 * across / (n0 * n1) - within1 / (n1 * (n1 - 1)) - within0 / (n0 * (n0 - 1))
        silhouette = self._silhouette[kept] / len(row_sum)
        return LabelledDistances(self._pair_sum, silhouette, energy, self._near)


def labelled_distances(
    x: Tensor,
    labels: Tensor,
    *,
    neighbours: bool = False,
    copy: Tensor | None = None,
) -> LabelledDistances:
    """Silhouette and energy distance of many labellings, from one pass over all distances.

    Sums over a class are the product of distances and labellings, one tile of rows at a time. Its
    2 n^2 R flops are nearly all of the work.

    Args:
        x: [n, k] float64, roughly centred.
        labels: [R, n], one labelling a row.
        neighbours, copy: as in `DistanceSums`.
    """
    sums = DistanceSums(Labellings(labels), copy=copy, neighbours=neighbours)
    # Scaled to fit float32; every statistic scales with the distances.
    scale = float(x.abs().max().clamp_min(1e-300))
    for rows, distance in distance_tiles(x / scale):
        sums.add(rows, distance)
    result = sums.result()
    return replace(result, pair_sum=result.pair_sum * scale, energy=result.energy * scale)


def _fill_equal(distance: Tensor, rows: slice, copy: Tensor | None, value: float) -> None:
    """Set the entries of each text of a tile, its `rows`, with itself and with its copies."""
    if copy is None:
        distance.diagonal(rows.start).fill_(value)
    else:
        distance.masked_fill_(copy[rows, None] == copy, value)


def _signed_silhouettes(
    to0: Tensor,
    to1: Tensor,
    member: Tensor,
    n0: Tensor,
    n1: Tensor,
    copies: Tensor | float = 1.0,
) -> Tensor:
    """Silhouettes from sums of distances to both classes; overwrites `to0` and `to1`.

    With q = a/b, (b - a)/max(a, b) = min(1/q, 1) - min(q, 1). Swapping the classes turns q into 1/q
    and changes only the sign: one formula serves both classes without a branch.

    Args:
        to0, to1: [n, R] float32; member: [n, R] float32, 1 where a text is in class 1.
        n0, n1: [R] float32, texts in each class.
        copies: [n, 1] float32, how often each text is in its class.
    """
    in1, in0 = n0 / (n1 - copies), (n0 - copies) / n1
    weight = member.mul(in1 - in0).add_(in0)
    ratio = to1.div_(to0).mul_(weight)
    toward = torch.reciprocal(ratio, out=to0).clamp_max_(1).sub_(ratio.clamp_max_(1))
    return toward.nan_to_num_(0.0).mul_(torch.mul(member, 2, out=weight).sub_(1))
