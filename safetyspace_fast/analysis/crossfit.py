"""Cosines of harm directions, each direction from its own half of the texts."""

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .cells import Cells, once
from .intervals import t_reach

LEAST_RELIABILITY = 0.65
"""Below this mean cosine of the directions of two halves there is no cosine with another one.

In simulations without any difference between the classes (12 to 400 texts, one dominant dimension,
unbalanced classes, heavy tails) at most 5 % of the directions reach it.
"""


@dataclass(frozen=True)
class FoldMeans:
    """Class means of every fold of some cells, and how each half of the folds weighs them."""

    mean: Tensor
    """[cell, 2 F, D], of both classes in F folds, less the mean of all texts; 0 without texts."""
    weight: Tensor
    """[cell, 1 + F, S, 2, 2 F]: the product with `mean` is d of each half of S splits of the folds
    in two halves: of all folds, then without each of them."""

    def cell(self, i: int) -> "FoldMeans":
        """One of the cells."""
        return FoldMeans(self.mean[i : i + 1], self.weight[i : i + 1])


@once
def fold_means(cells: Cells) -> FoldMeans | None:
    """The fold means of some cells; None where the store has none."""
    if not cells.window.model.has("fold_mean"):
        return None
    mean = cells.stored("fold_mean")
    # A store of an earlier version that grew has languages without fold means.
    known = mean.isfinite().any(-1).any(-1).any(-1)
    mean = torch.where(known[:, None, None, None], mean.nan_to_num(0.0), torch.nan)
    return FoldMeans(mean.flatten(1, 2), weights_of_halves(cells.stored("count")))


def weights_of_halves(count: Tensor) -> Tensor:
    """`FoldMeans.weight` from the texts of each class in each fold: count [cell, 2, F] float64."""
    folds = count.shape[-1]
    chosen = [half for half in combinations(range(folds), folds // 2) if 0 in half]
    first = torch.zeros(len(chosen), folds, dtype=count.dtype)
    first[torch.arange(len(chosen))[:, None], torch.tensor(chosen)] = 1
    left = torch.cat([torch.ones(1, folds), 1 - torch.eye(folds)]).to(count)
    inside = torch.stack([first, 1 - first], 1) * left[:, None, None]
    texts = inside[..., None, :] * count[:, None, None, None]
    sign = torch.tensor([[-1.0], [1.0]], dtype=count.dtype)
    # A half without texts of a class has no direction: its split counts nowhere.
    weight = sign * texts / texts.sum(-1, keepdim=True)
    weight = weight.flatten(-2)
    return torch.where(weight.isnan().any(-1).any(-1)[..., None, None], 0.0, weight)


class Cosine(NamedTuple):
    """Cosine of two directions, [cell] each; NaN if one of them is not reliable enough."""

    value: Tensor
    low: Tensor
    high: Tensor
    reliability: Tensor
    """Of the less reliable direction."""


def direction_cosine(first: FoldMeans, second: FoldMeans) -> Cosine:
    """Cosine of two harm directions as it would be with infinitely many texts.

    Let a, a' be the directions of one model or language from both halves of the texts, and b, b'
    those of the other. Texts of one half have no noise in common with those of the other, also
    where both models saw the same texts, or both languages hold the same items. So the cosine is
    the sum of (a.b' + a'.b)/2 over all splits, over the root of those of a.a' and of b.b'
    (correction for attenuation, Spearman 1904). The reliability is the sum of a.a' over that of
    (a.a + a'.a')/2. The interval is the jackknife over folds (t with F - 1 degrees of freedom).
    Value and interval are cut at -1 and 1.
    """

    def product(x: FoldMeans, y: FoldMeans, swapped: bool) -> Tensor:
        """[cell, 1 + F], mean over splits of the products of the same halves, or of the others."""
        halves = y.weight.flip(-2) if swapped else y.weight
        form = torch.einsum("cjsha,cjshb->cjab", x.weight, halves)
        gram = x.mean @ y.mean.transpose(-1, -2)
        return (form * gram[:, None]).sum((-1, -2))

    shared = product(first, second, swapped=True)
    own = [product(one, one, swapped=True) for one in (first, second)]
    length = [product(one, one, swapped=False) for one in (first, second)]
    reliability = torch.stack([a / b for a, b in zip(own, length, strict=True)])[..., 0].amin(0)
    every = shared / (own[0] * own[1]).sqrt()
    every = torch.where(torch.stack(own).amin(0) > 0, every, torch.nan)
    value, left = every[:, 0], every[:, 1:]
    folds = left.shape[-1]
    centred = left - left.mean(-1, keepdim=True)
    deviation = ((folds - 1) / folds * centred.square().sum(-1)).sqrt()
    # Without one of the folds the other direction has no length: nothing is known but the value.
    reach = (t_reach(folds - 1) * deviation).nan_to_num(2.0)
    known = reliability >= LEAST_RELIABILITY
    value, low, high = (
        torch.where(known, x.clamp(-1, 1), torch.nan) for x in (value, value - reach, value + reach)
    )
    return Cosine(value, low, high, reliability)
