"""All statistics of the same texts under many labellings at once: what label permutations need."""

import torch
from torch import Tensor

from .distance_sums import DistanceSums, tiles
from .kernel_sums import KernelSums
from .labellings import FoldLabellings
from .scores import CrossFit, balanced_accuracy, labelled_auc
from .spread import group_sums

STATISTICS = (
    "rho", "welch", "rho_standardized", "welch_standardized",
    "silhouette", "silhouette_cosine", "energy_distance", "nn_accuracy",
    "auc_direction", "auc_direction_score", "accuracy_direction",
    "auc_standardized", "auc_standardized_score",
    "paired_accuracy", "paired_effect", "paired_shift",
)  # fmt: skip
"""Names of what `labelled_statistics` returns, in this order; pairs come last."""


def labelled_statistics(
    x: Tensor,
    scale: Tensor,
    labellings: FoldLabellings,
    *,
    copy: Tensor | None = None,
    partners: Tensor | None = None,
    pair_unit: Tensor | None = None,
    kernels: KernelSums | None = None,
) -> tuple[Tensor, Tensor]:
    """`STATISTICS` of many labellings of the same texts, at full width.

    One pass over tiles of the products of all texts: 4 n^2 D flops for products and distances, and
    2 n^2 a labelling for each of four sums. Cosines come from the same products as Euclidean
    distances: with the mean m of all texts, x . y = (x - m) . (y - m) + m . x + m . y - |m|^2.

    Args:
        x: [n, D] floating point, states.
        scale: [D], of each dimension, for the statistics of standardised dimensions.
        labellings: of the texts, the true labels first; all cells of a language can share them.
        copy: [n] int64, equal texts of one label share a number; None if there are none.
        partners: [pairs, 2] int64, harmless and harmful text of each pair; None: not paired. A
            labelling then swaps labels inside pairs.
        pair_unit: [pairs] int64, pairs with a text in common share a number.
        kernels: of the same labellings; also gets all squared distances, which are here anyway.

    Returns:
        [statistic, R] float64, NaN for statistics of pairs without pairs; and [n] int64, the
        nearest other text of each text.
    """
    of = labellings
    copy = None if copy is None else copy[of.order]
    wide = x[of.order].double()
    length = torch.linalg.vector_norm(wide, dim=-1)
    inverse = torch.where(length > 0, 1 / length, 0.0)
    mean = wide.mean(0)
    toward = wide @ mean - mean.square().sum() / 2
    wide = wide - mean
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
        alike = (product * size.square()).add_(toward).add_(toward[rows, None])
        square = (norms[0] + norms[0][rows, None] - 2 * product).clamp_min_(0)
        if kernels is not None:
            kernels.add(rows, square * size.square())
        euclidean.add(rows, square.sqrt_())
        plain.add(rows, product)
        standard.add(rows, (thin[rows] @ thin.T).double())
        alike.mul_(inverse).mul_(inverse[rows, None])
        cosine.add(rows, alike.neg_().add_(1).clamp_min_(0))
    apart = euclidean.result()
    near = apart.nearest
    length, scores = plain.result()
    thin_length, thin_scores = standard.result()
    alike = len(x) - (of.member - of.member[near]).abs().sum(0)[: of.number]
    values = {
        "silhouette": apart.silhouette,
        "energy_distance": apart.energy * size,
        "silhouette_cosine": cosine.result().silhouette,
        "nn_accuracy": alike.double() / len(x),
        "accuracy_direction": balanced_accuracy(scores, of),
    }
    values["rho"], values["welch"] = welch_ratio(length, norms[0], of.labels)
    values["rho_standardized"], values["welch_standardized"] = welch_ratio(
        thin_length, norms[1], of.labels
    )
    values["auc_direction"], values["auc_direction_score"] = labelled_auc(scores, of)
    values["auc_standardized"], values["auc_standardized_score"] = labelled_auc(thin_scores, of)
    if partners is not None:
        partners = of.back[partners]
        swaps = (2 * of.labels[:, partners[:, 1]] - 1).to(x.dtype)
        gap = (scores[partners[:, 1]] - scores[partners[:, 0]])[:, : of.number].T * swaps
        values["paired_accuracy"] = ((gap.sign() + 1) / 2).double().mean(-1)
        values["paired_effect"] = (gap.mean(-1) / gap.std(-1)).double()
        gaps = x[partners[:, 1]] - x[partners[:, 0]]
        values["paired_shift"] = paired_shift(gaps, swaps, pair_unit) * size.square()
    unknown = torch.full_like(length, torch.nan)
    return torch.stack([values.get(name, unknown) for name in STATISTICS]), of.order[near][of.back]


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
