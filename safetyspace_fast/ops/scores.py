"""Held-out scores of texts under many labellings, and the AUC and accuracy that they give."""

import torch
from torch import Tensor

from .labellings import FoldLabellings, Labellings

TIE_STEPS = 65536.0
"""Scores of a fold are ties if they are equal in steps of this part of the largest."""


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
        self._inside = [
            torch.empty(len(x[i]), len(x[i]), device=x.device) for i in labellings.folds
        ]
        """Products of the texts of each fold with each other, float32."""

    def add(self, rows: slice, product: Tensor) -> None:
        """Take products of some texts with all: [rows, n] float64; those of one fold change."""
        for i, inside in zip(self._of.folds, self._inside, strict=True):
            a, b = max(i.start, rows.start), min(i.stop, rows.stop)
            if a < b:
                own = product[a - rows.start : b - rows.start, i]
                inside[a - i.start : b - i.start] = own
                own.zero_()
        self._rest[rows] = self._of.sums(product)

    def result(self) -> tuple[Tensor, Tensor]:
        """The squared length of the sum of class 1, and scores, when all rows have come.

        Returns:
            length [R] float64; scores [n, R rounded up] float32, along the direction of the other
            folds, on some positive scale in each of them, from midway between their class means.
        """
        of, rest, x = self._of, self._rest, self._x
        inside = torch.empty_like(rest)  # product with the sum of class 1 in the own fold
        for i, products in zip(of.folds, self._inside, strict=True):
            torch.mm(products, of.member[i], out=inside[i])
        own, other = (of.of_fold @ (of.member * sums) for sums in (inside, rest))
        length = own.sum(0) + other.sum(0)
        n1 = of.n1 - of.n1_of_fold
        n0 = len(x) - of.of_fold.sum(1, keepdim=True) - n1
        # All texts sum to zero, those of the other folds to minus the sum of this one.
        total = of.of_fold.to(x.dtype) @ x
        toward = (x * total[of.fold]).sum(1).float()
        sum1 = length - 2 * other - own
        sum0 = total.square().sum(1, keepdim=True) + 2 * (of.of_fold @ rest) + sum1
        middle = ((sum1 / n1.square() - sum0 / n0.square()) / 2 * n0 * n1).float()
        scores = inside
        for f, i in enumerate(of.folds):
            torch.mul(rest[i], n0[f] + n1[f], out=scores[i])
            scores[i].addcmul_(toward[i, None], n1[f]).sub_(middle[f])
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
        sums = torch.ops.safetyspace_fast.label_wins(
            scores, labellings.packed, labellings.limits[1:]
        )
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


def _wins(scores: Tensor, labellings: FoldLabellings) -> Tensor:
    """What `labelled_auc` needs of the sorted scores, added over folds: [8, R] float64.

    Wins of class 1, pairs; then of class 1 and of class 0: squares of the wins of each text, wins
    times texts of the other class, pairs times texts of the other class.

    One sort serves all folds: with few texts a GPU's time is the number of launches. All numbers
    are multiples of 1/4 below 2^53, so no sum is rounded.
    """
    limits, fold = labellings.limits, labellings.fold
    keys, order = _ordered(scores, labellings)
    here = labellings.member.T.gather(-1, order)
    ones = torch.nn.functional.pad(here.cumsum(-1), (1, 0)).double()
    zeros = torch.arange(ones.shape[-1], device=ones.device) - ones
    before0, before1 = zeros[:, limits], ones[:, limits]
    n0, n1 = before0.diff(), before1.diff()
    first, end = (torch.searchsorted(keys, keys, right=right) for right in (False, True))
    below0, below1 = (
        (x.gather(-1, first) + x.gather(-1, end)) / 2 - before[:, fold]
        for x, before in ((zeros, before0), (ones, before1))
    )
    won = here * below0
    square1 = (won * below0).sum(-1)
    square0 = ((1 - here) * (n1[:, fold] - below1).square()).sum(-1)
    wins = torch.nn.functional.pad(won.cumsum(-1), (1, 0))[:, limits].diff()
    pairs = n1 * n0
    of_folds = (wins, pairs, wins * n0, wins * n1, pairs * n0, pairs * n1)
    won_all, pairs_all, *others = torch.stack(of_folds).sum(-1)
    return torch.stack([won_all, pairs_all, square1, square0, *others])


def _ordered(scores: Tensor, labellings: FoldLabellings) -> tuple[Tensor, Tensor]:
    """Scores [n, R] rounded and sorted inside folds: [R, n] int32; and the indices that sort them.

    The scores of each fold stand behind those of the fold before it.
    """
    largest = torch.stack([scores[i].abs().amax(0) for i in labellings.folds])
    steps = TIE_STEPS / largest.clamp_min(torch.finfo(scores.dtype).tiny)
    apart = 4 * int(TIE_STEPS) * labellings.fold.int()
    keys = ((scores * steps[labellings.fold]).round().int() + apart[:, None]).T.contiguous()
    if scores.is_cuda:
        return keys.sort(-1)
    order = torch.from_numpy(keys.numpy().argsort(-1))  # NumPy sorts with vector instructions
    return keys.gather(-1, order), order
