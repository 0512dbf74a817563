"""The texts of one language: classes, copies, pairs, units of evidence."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..ops import equal_units
from .resamples import Resamples
from .uncertainty import stretch, trials, unit_sums, variance_freedom

MIN_TEXTS = 10
"""Below this many texts in a class every number would be noise."""


class Refusal(Exception):  # noqa: N818 - not an error: an answer
    """A metric cannot be computed; results show the message instead of the number."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Texts:
    """n texts, and how often each is in every resample."""

    resamples: Resamples
    fold: Tensor
    """[n] int64."""
    lexical: Tensor | None = None
    """[n] float64, held-out scores of the texts' characters; None in stores of earlier versions."""

    @property
    def labels(self) -> Tensor:
        """[n] int64, 1 harmful, 0 harmless."""
        return self.resamples.labels

    @property
    def unit(self) -> Tensor:
        """[n] int64, texts that are one unit of evidence have the same number."""
        return self.resamples.unit

    @cached_property
    def count(self) -> Tensor:
        """[2] float64, texts in each class."""
        return torch.bincount(self.labels, minlength=2).double()

    @cached_property
    def units(self) -> Tensor:
        """[2] float64, see `ops.equal_units`."""
        return equal_units(self.labels, self.unit)

    @property
    def growth(self) -> Tensor:
        """[n] float64, factor for deviations from the mean of a class of few units."""
        return (self.units / (self.units - 1)).sqrt()[self.labels]

    @property
    def trials(self) -> float:
        """See `uncertainty.trials`."""
        return trials(self.units)

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of what is estimated from the spread inside both classes."""
        return max(float(self.units.min()) - 1, 1.0)

    def freedom_of(self, influence: Tensor, *, of_squares: bool = False) -> Tensor:
        """Degrees of freedom of a variance, see `variance_freedom`: influence [..., n] -> [...]."""
        return variance_freedom(influence, self.unit, self.freedom, of_squares=of_squares)

    @property
    def alone(self) -> bool:
        """Whether every text is a unit of its own, or with its copies."""
        return int(self.unit.max()) == int(self.resamples.copy.max())

    @cached_property
    def mixed(self) -> Tensor:
        """[n] bool, whether a text is in a unit that has texts of both labels."""
        ones, zeros = (torch.bincount(self.unit, (self.labels == c).double()) for c in (1, 0))
        return ((ones > 0) & (zeros > 0))[self.unit]

    # Copies ----------------------------------------------------------------------------------

    @cached_property
    def copy(self) -> Tensor | None:
        """[n] int64, equal texts of one label share a number; None if there are none."""
        copy = self.resamples.copy
        return copy if len(self.first) < len(copy) else None

    @cached_property
    def copies(self) -> Tensor | None:
        """[n] float64, how often each text is in its class; None if every text is there once."""
        return None if self.copy is None else torch.bincount(self.copy)[self.copy].double()

    @property
    def texts(self) -> str:
        """What is counted in messages: `texts`, or `different texts` where texts have copies."""
        return "texts" if self.copies is None else "different texts"

    @cached_property
    def first(self) -> Tensor:
        """[different texts] int64, index of the first copy of each text of each class."""
        return torch.from_numpy(np.unique(self.resamples.copy.numpy(), return_index=True)[1])

    @cached_property
    def different(self) -> Tensor:
        """[2] int64, different texts in each class."""
        return torch.bincount(self.labels[self.first], minlength=2)

    @cached_property
    def effective(self) -> Tensor:
        """[1 + permutations, 2] float64, texts without copies whose mean would vary as much.

        n^2 / sum of m_i over the n texts of a class, each there m_i times (Kish 1965).
        """
        count = self.resamples.class_counts(bootstrap=False)
        if self.copies is None:
            return count
        ones = self.resamples.labellings @ self.copies
        return count.square() / torch.stack([self.copies.sum() - ones, ones], -1)

    @cached_property
    def mean_counts(self) -> Tensor:
        """[1 + permutations, 2] float64, what S of a class is divided by for that of its mean."""
        count = self.resamples.class_counts(bootstrap=False)
        # S counts on n different texts: it is too small by (1 - 1/effective)/(1 - 1/n).
        return count if self.copies is None else (self.effective - 1) * count / (count - 1)

    @cached_property
    def stretch(self) -> Tensor:
        """[n] float64, see `uncertainty.stretch`, for deviations from the class means."""
        factor = torch.empty(len(self.labels), dtype=torch.float64)
        for label in (0, 1):
            inside = self.labels == label
            factor[inside] = stretch(self.resamples.copy[inside])
        return factor

    def noise_of_units(self, noise: Tensor) -> Tensor:
        """Sum over the copies of each text: noise [cell, n, k] -> [cell, unit, k]."""
        if self.copies is None:
            return noise
        return unit_sums(noise.transpose(-1, -2), self.unit).transpose(-1, -2)

    @cached_property
    def independent(self) -> Tensor:
        """[] float64, N without copies for which rho averages as much: 1/(N-1)."""
        if self.copies is None:
            return self.count.sum()
        noise = 1 / self.effective[0]
        between = self.count.prod() / self.count.sum() * noise.sum()
        return 1 + (between + (self.count * (1 - noise)).sum()) / between

    # Pairs -----------------------------------------------------------------------------------

    @cached_property
    def paired(self) -> bool:
        """Whether every text has a partner."""
        return bool((torch.bincount(self.resamples.pair) == 2).all())

    @cached_property
    def partners(self) -> Tensor:
        """[pairs, 2] int64, index of the harmless and of the harmful text of each pair."""
        order = torch.argsort(self.resamples.pair * 2 + self.labels)
        return order.reshape(-1, 2)

    @cached_property
    def flips(self) -> Tensor:
        """[1 + permutations, pairs], -1 where a permutation swaps a pair, else 1."""
        return 2 * self.resamples.labellings[:, self.partners[:, 1]] - 1

    def pair_differences(self, values: Tensor) -> Tensor:
        """Harmful minus harmless text of each pair: values [..., n] -> [..., pairs]."""
        return values[..., self.partners[:, 1]] - values[..., self.partners[:, 0]]
