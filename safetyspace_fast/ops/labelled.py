"""Statistics of the same texts under many labellings at once: what label permutations need.

Labellings are rows of 0 and 1, [R, n]; the number of ones may differ from row to row. Sums over a
class are the product of a matrix with the labellings, so no text is copied and no distance matrix
exists. Statistics of a null are only compared with each other: float32 is exact enough.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._labels import label_sums, pack_labels

TIE_STEPS = 65536.0
"""Scores of a fold are ties if they are equal in steps of this part of the largest."""
TILE_BYTES = 5 << 19
"""Working memory of one tile of distances: small enough for a cache, large enough for products."""
DEVICE_TILE_BYTES = 1 << 26
"""The same on a GPU, where each step of a tile is a launch."""


class Labellings:
    """Labellings in the forms that sums need; R is rounded up where the kernels take more at once.

    labels: [R, n] float64; member: [n, R rounded up] float32; packed: result of `pack_labels`.
    """

    def __init__(self, labels: Tensor) -> None:
        """Take labellings [R, n], 0 or 1."""
        self.labels = labels.double()
        self.packed = pack_labels(labels)
        self.number = len(labels)
        width = self.packed.shape[1]
        padded = torch.nn.functional.pad(labels, (0, 0, 0, width - self.number))
        self.member = padded.T.float().contiguous()
        self.n1 = self.member.sum(0)
        self.n0 = len(self.member) - self.n1
        self.compiled = self.packed.dtype == torch.int32
        """Whether the compiled kernels can be used."""

    def sums(self, values: Tensor) -> Tensor:
        """Sums of each row of values [m, n] float64 over class 1: [m, R rounded up] float32."""
        return label_sums(values, self.packed)


class FoldLabellings(Labellings):
    """Labellings of texts in the order of their folds.

    order: [n] int64, sorts the texts; back: undoes it; folds: slices of the sorted texts.
    """

    def __init__(self, labels: Tensor, fold: Tensor) -> None:
        """Take labellings [R, n], 0 or 1, and the fold of each text, [n] int64."""
        self.order = torch.argsort(fold, stable=True)
        self.back = torch.argsort(self.order)
        ends = torch.bincount(fold).cumsum(0).tolist()
        self.folds = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False) if a < b]
        super().__init__(labels[:, self.order])


# Class means -----------------------------------------------------------------------------------


def welch_ratio(length: Tensor, norms: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Share of variance between the classes, and the ratio of |d|^2 to its noise.

    The ratio |d|^2 / (tr S0/n0 + tr S1/n1) is Welch's t^2 for distances (Alekseyenko 2016): classes
    of unequal size and spread, but of one mean, have a ratio near 1 under all labellings.

    Args:
        length: [R], squared length of the sum of the texts of class 1; texts are centred.
        norms: [n], squared length of each text; labels: [R, n]; all float64.

    Returns:
        rho, ratio: [R] float64.
    """
    n1 = labels.sum(-1)
    n0 = labels.shape[-1] - n1
    ones, total = labels @ norms, norms.sum()
    shift_sq = length * (1 / n0 + 1 / n1).square()  # class 0 sums to the same with another sign
    between = shift_sq * n0 * n1 / (n0 + n1)
    noise = (total - ones - length / n0) / (n0 * (n0 - 1)) + (ones - length / n1) / (n1 * (n1 - 1))
    return between / total, shift_sq / noise


# Distances -------------------------------------------------------------------------------------


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
        x: [n, k] float64, roughly centred.
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
    bandwidth: float | None = None,
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
        bandwidth: use minus the Gaussian kernel exp(-|x-y|^2/(2 bandwidth^2)) as the distance;
            `energy` is then the MMD^2.
    """
    sums = DistanceSums(
        Labellings(labels), copy=copy, neighbours=neighbours, silhouettes=bandwidth is None
    )
    # Scaled to fit float32; every statistic scales with the distances.
    scale = float(x.abs().max().clamp_min(1e-300)) if bandwidth is None else 1.0
    for rows, distance in distance_tiles(x / scale):
        if bandwidth is not None:
            distance.div_(bandwidth).square_().mul_(-0.5).exp_().neg_()
        sums.add(rows, distance)
    found = sums.result()
    return replace(found, pair_sum=found.pair_sum * scale, energy=found.energy * scale)


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


# Held-out scores -------------------------------------------------------------------------------


class CrossFit:
    """Held-out scores of the difference of class means under many labellings.

    Texts are known by their products with each other, which come in tiles: the direction of the
    other folds is never written out.
    """

    def __init__(self, x: Tensor, labellings: FoldLabellings) -> None:
        """Prepare the sums.

        Args:
            x: [n, D] floating point with zero column means, in the order of their folds.
            labellings: of the texts.
        """
        self._x, self._of = x, labellings
        self._rest = torch.empty_like(labellings.member)
        """Product of each text with the sum of class 1 in the other folds."""

    def add(self, rows: slice, product: Tensor) -> None:
        """Take products of some texts with all: [rows, n] float64; those of one fold change."""
        for i in self._of.folds:
            a, b = max(i.start, rows.start), min(i.stop, rows.stop)
            product[a - rows.start : max(a, b) - rows.start, i] = 0.0
        self._rest[rows] = self._of.sums(product)

    def result(self) -> tuple[Tensor, Tensor]:
        """The squared length of the sum of class 1, and scores, when all rows have come.

        Returns:
            length [R] float64; scores [n, R rounded up] float32, along the direction of the other
            folds, on some positive scale in each of them, from midway between their class means.
        """
        of, rest = self._of, self._rest
        inside = [((self._x[i] @ self._x[i].T).float() @ of.member[i]) for i in of.folds]
        own = [(of.member[i] * x).sum(0) for i, x in zip(of.folds, inside, strict=True)]
        other = [(of.member[i] * rest[i]).sum(0) for i in of.folds]
        length = torch.stack(own + other).sum(0)
        scores = torch.empty_like(rest)
        for f, i in enumerate(of.folds):
            n1 = of.n1 - of.member[i].sum(0)
            n0 = len(self._x) - (i.stop - i.start) - n1
            # All texts sum to zero, those of the other folds to minus the sum of this one.
            total = self._x[i].sum(0)
            toward = (self._x[i] @ total).float()[:, None]
            sum1 = length - 2 * other[f] - own[f]
            sum0 = total.square().sum() + 2 * rest[i].sum(0) + sum1
            middle = (sum1 / n1.square() - sum0 / n0.square()) / 2 * n0 * n1
            torch.mul(rest[i], n0 + n1, out=scores[i]).addcmul_(toward, n1).sub_(middle)
        return length[: of.number].double(), scores


def ridge_scores(x: Tensor, labellings: FoldLabellings, strength: float) -> Tensor:
    """Held-out scores of a ridge probe on standardised features, under many labellings.

    Args:
        x: [n, P] float64, one layer's texts, in the order of their folds.
        labellings: of the texts.
        strength: of the penalty.

    Returns:
        [n, R rounded up] float32, coordinate along the direction, 0 midway between the training
        class means.
    """
    labels = labellings.labels
    x = x - x.mean(0)
    spread = x.square().mean(0).sqrt()
    x = torch.where(spread > 0, x / spread, 0.0)
    inside = labellings.folds
    sums = torch.stack([labels[:, i] @ x[i] for i in inside])
    every1, number1 = sums.sum(0), labels.sum(-1, keepdim=True)
    gram = x.T @ x
    scores = torch.zeros_like(labellings.member)
    for f, i in enumerate(inside):
        n1 = number1 - labels[:, i].sum(-1, keepdim=True)
        n = x.shape[0] - (i.stop - i.start)
        rest = -x[i].sum(0)  # the sum over all texts is zero
        mean1 = (every1 - sums[f]) / n1
        mean0 = (rest - n1 * mean1) / (n - n1)
        scatter = gram - x[i].T @ x[i] - torch.outer(rest, rest) / n
        scatter = scatter + strength * torch.eye(x.shape[-1], dtype=x.dtype)
        factor = torch.linalg.cholesky(scatter)
        direction = torch.cholesky_solve((mean1 - mean0).T, factor)
        midpoint = (direction * (mean1 + mean0).T).sum(0) / 2
        scores[i, : labellings.number] = (x[i] @ direction - midpoint).float()
    return scores


def student_score(t: Tensor, freedom: Tensor) -> Tensor:
    """Normal deviate with the same two-sided p as |t| of Student's t (Hill 1970).

    Args:
        t, freedom: [...] float64, freedom at least 1.
    """
    a = freedom - 0.5
    b = 48 * a.square()
    y = a * (t.abs().clamp_max(1e100).square() / freedom).log1p()
    last = (((-0.4 * y - 3.3) * y - 24) * y - 85.5) / (0.8 * y.square() + 100 + b)
    return ((last + y + 3) / b + 1) * y.sqrt()


def labelled_auc(scores: Tensor, labellings: FoldLabellings) -> tuple[Tensor, Tensor]:
    """AUC within folds of many labellings, and its distance from 1/2 in standard deviations.

    The variance of a class comes from how many texts of the other class each of its texts wins over
    (DeLong et al. 1988), so that classes of unequal spread have the same null as equal ones
    (Neubert & Brunner 2007). The distance is the normal deviate of Student's t with the degrees of
    freedom of both variances (Satterthwaite 1946): few texts of a class do not widen one null more
    than another. Ties win half: scores of a fold are rounded to a 2^16th of the largest of them,
    because rounding tells equal texts apart.

    Args:
        scores: [n, R rounded up] float32, contiguous.
        labellings: of the texts.

    Returns:
        auc, score: [R] float64.
    """
    if labellings.compiled:
        ends = torch.tensor([i.stop for i in labellings.folds])
        sums = torch.ops.safetyspace_fast.label_wins(scores, labellings.packed, ends)
    else:
        sums = _wins(scores, labellings)
    wins, chances, *of_classes = sums[:, : labellings.number]
    auc = wins / chances
    parts, freedom = torch.zeros_like(auc), torch.zeros_like(auc)
    counts = (n[: labellings.number].double() for n in (labellings.n1, labellings.n0))
    for n, square, first, second in zip(
        counts, of_classes[:2], of_classes[2:4], of_classes[4:], strict=True
    ):
        part = (square - 2 * auc * first + auc.square() * second).clamp_min(0) * n / (n - 1)
        parts, freedom = parts + part, freedom + part.square() / (n - 1)
    freedom = torch.where(freedom > 0, parts.square() / freedom, len(scores) - 2).clamp_min(1)
    # A perfect order has no spread: half a win keeps the distance finite.
    t = (wins - chances / 2) / (parts + 0.25).sqrt()
    return auc, student_score(t, freedom).copysign(t)


def _wins(scores: Tensor, labellings: FoldLabellings) -> Tensor:
    """What `labelled_auc` needs of the sorted scores, added over folds: [8, R] float64.

    Wins of class 1, pairs; then of class 1 and of class 0: squares of the wins of each text, wins
    times texts of the other class, pairs times texts of the other class.
    """
    sums = torch.zeros(8, scores.shape[1], dtype=torch.float64, device=scores.device)
    for i in labellings.folds:
        keys, order = _ordered(scores[i].T.contiguous())
        here = labellings.member[i].T.gather(-1, order)
        ones = torch.nn.functional.pad(here.cumsum(-1), (1, 0)).double()
        zeros = torch.arange(ones.shape[-1], device=ones.device) - ones
        n1, n0 = ones[:, -1], zeros[:, -1]
        first, end = (torch.searchsorted(keys, keys, right=right) for right in (False, True))
        below0, below1 = ((x.gather(-1, first) + x.gather(-1, end)) / 2 for x in (zeros, ones))
        square1 = (here * below0.square()).sum(-1)
        square0 = ((1 - here) * (n1[:, None] - below1).square()).sum(-1)
        wins, pairs = (here * below0).sum(-1), n1 * n0
        sums += torch.stack(
            [wins, pairs, square1, square0, wins * n0, wins * n1, pairs * n0, pairs * n1]
        )
    return sums


def _ordered(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of scores, rounded and sorted, as int32, and the indices that sort it."""
    largest = scores.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    keys = (scores * (TIE_STEPS / largest)).round().int()
    if scores.is_cuda:
        return keys.sort(-1)
    order = torch.from_numpy(keys.numpy().argsort(-1))  # NumPy sorts with vector instructions
    return keys.gather(-1, order), order


# All of them at full width ---------------------------------------------------------------------

STATISTICS = (
    "rho", "welch", "rho_standardized", "welch_standardized",
    "silhouette", "silhouette_cosine", "energy_distance", "nn_accuracy",
    "auc_direction", "auc_direction_score", "accuracy_direction",
    "auc_standardized", "auc_standardized_score",
    "paired_accuracy", "paired_effect", "paired_shift",
)  # fmt: skip
"""Names of what `labelled_statistics` returns, in this order; pairs come last."""


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
    count = torch.bincount(labels, minlength=2).to(x.dtype)
    means = group_sums(x, labels, 2) / count[:, None]
    part = (x - means[labels]) * ((2.0 * labels - 1) / count[labels])[:, None]
    noise = group_sums(part, unit, int(unit.max()) + 1)
    small = noise.T @ noise if len(noise) > x.shape[1] else noise @ noise.T
    return (small.square().sum() - noise.square().sum(1).square().sum()).clamp_min(0)


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


def labelled_statistics(
    x: Tensor,
    scale: Tensor,
    labellings: FoldLabellings,
    *,
    copy: Tensor | None = None,
    partners: Tensor | None = None,
    pair_unit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`STATISTICS` of many labellings of the same texts, at full width.

    One pass over tiles of the products of all texts: 6 n^2 D flops for products and distances, and
    2 n^2 a labelling for each of four sums.

    Args:
        x: [n, D] floating point, states.
        scale: [D], of each dimension, for the statistics of standardised dimensions.
        labellings: of the texts, the true labels first; all cells of a language can share them.
        copy: [n] int64, equal texts of one label share a number; None if there are none.
        partners: [pairs, 2] int64, harmless and harmful text of each pair; None: not paired. A
            labelling then swaps labels inside pairs.
        pair_unit: [pairs] int64, pairs with a text in common share a number.

    Returns:
        [statistic, R] float64, NaN for statistics of pairs without pairs; and [n] int64, the
        nearest other text of each text.
    """
    of = labellings
    copy = None if copy is None else copy[of.order]
    wide = x[of.order].double()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    unit = torch.where(norm > 0, wide / norm, 0.0).to(x.dtype)
    wide = wide - wide.mean(0)
    thin = wide / scale
    size = wide.abs().max().clamp_min(1e-300)  # products must fit float32
    wide = wide / size
    norms = wide.square().sum(-1), thin.square().sum(-1)
    x, thin = wide.to(x.dtype), thin.to(x.dtype)
    del wide
    plain, standard = CrossFit(x, of), CrossFit(thin, of)
    euclidean, cosine = DistanceSums(of, copy=copy, neighbours=True), DistanceSums(of, copy=copy)
    for rows in tiles(x):
        product = (x[rows] @ x.T).double()
        distance = norms[0] + norms[0][rows, None] - 2 * product
        euclidean.add(rows, distance.clamp_min_(0).sqrt_())
        plain.add(rows, product)
        standard.add(rows, (thin[rows] @ thin.T).double())
        cosine.add(rows, (unit[rows] @ unit.T).double().neg_().add_(1).clamp_min_(0))
    apart = euclidean.result()
    near = apart.nearest
    length, scores = plain.result()
    thin_length, thin_scores = standard.result()
    alike = len(x) - (of.member - of.member[near]).abs().sum(0)[: of.number]
    found = {
        "silhouette": apart.silhouette,
        "energy_distance": apart.energy * size,
        "silhouette_cosine": cosine.result().silhouette,
        "nn_accuracy": alike.double() / len(x),
        "accuracy_direction": balanced_accuracy(scores, of),
    }
    found["rho"], found["welch"] = welch_ratio(length, norms[0], of.labels)
    found["rho_standardized"], found["welch_standardized"] = welch_ratio(
        thin_length, norms[1], of.labels
    )
    found["auc_direction"], found["auc_direction_score"] = labelled_auc(scores, of)
    found["auc_standardized"], found["auc_standardized_score"] = labelled_auc(thin_scores, of)
    if partners is not None:
        partners = of.back[partners]
        swaps = (2 * of.labels[:, partners[:, 1]] - 1).to(x.dtype)
        gap = (scores[partners[:, 1]] - scores[partners[:, 0]])[:, : of.number].T * swaps
        found["paired_accuracy"] = ((gap.sign() + 1) / 2).double().mean(-1)
        found["paired_effect"] = (gap.mean(-1) / gap.std(-1)).double()
        gaps = x[partners[:, 1]] - x[partners[:, 0]]
        found["paired_shift"] = paired_shift(gaps, swaps, pair_unit) * size.square()
    unknown = torch.full_like(length, torch.nan)
    return torch.stack([found.get(name, unknown) for name in STATISTICS]), of.order[near][of.back]


def balanced_accuracy(scores: Tensor, labellings: Labellings) -> Tensor:
    """Mean over the classes of the share of texts on their side of 0.

    Args:
        scores: [n, R rounded up]; labellings: of the texts.

    Returns:
        [R] float64.
    """
    above = (scores > 0).float()
    ones = (above * labellings.member).sum(0)
    zeros = labellings.n0 - (above.sum(0) - ones)
    share = (ones / labellings.n1 + zeros / labellings.n0) / 2
    return share[: labellings.number].double()


def paired_shift(gaps: Tensor, swaps: Tensor, unit: Tensor | None) -> Tensor:
    """|mean|^2 - tr S/n of differences inside pairs, under swaps of labels (Chen & Qin 2010).

    Args:
        gaps: [pairs, D]; swaps: [R, pairs], -1 where a labelling swaps a pair, else 1.
        unit: [pairs] int64, pairs with a text in common share a number, and n is that of pairs
            without whose mean would vary as much; None: none have.

    Returns:
        [R] float64.
    """
    n = float(len(gaps))
    mean_sq = ((swaps / n) @ gaps).square().sum(-1).double()
    square = gaps.double().square().sum()
    if unit is not None:
        sums = group_sums(gaps, unit, int(unit.max()) + 1)
        number = torch.bincount(unit).double()
        independent = float(number.sum() ** 2 / number.square().sum())
        square, n = sums.double().square().sum() * (independent / n) ** 2, independent
    return mean_sq - (square / n - mean_sq) / (n - 1)
