"""Resamples: bootstrap counts, permuted labels and random signs of the texts of one language.

Texts are resampled in units of evidence, see `data.units`. Draws depend on the language and the
seed, not on the model: all models of a store see the same resamples, so that the difference of two
models has an interval of its own.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import LABELLINGS
from ..data import Units, kinds, permuted_labels


@dataclass(frozen=True)
class Resamples:
    """Bootstrap counts and permuted labels of the texts of one language.

    labels: [n] int64;
    unit, pair, copy: [n] int64, texts of one unit, of one pair, and equal texts of one label share
        a number; a text without partner or without copies has its own;
    counts: [bootstraps, n] uint8, how often each text is in a resample;
    permuted: [permutations, n] uint8, labels of every permutation;
    device: where sums over resamples are computed; everything else is on the CPU.
    """

    labels: Tensor
    unit: Tensor
    pair: Tensor
    copy: Tensor
    counts: Tensor
    permuted: Tensor
    device: str = "cpu"

    def keep(self, kept: Tensor) -> "Resamples":
        """The same draws, of some of the texts only: kept [n] bool."""
        unit, pair, copy = (
            torch.unique(number[kept], return_inverse=True)[1]
            for number in (self.unit, self.pair, self.copy)
        )
        labels, counts, permuted = self.labels[kept], self.counts[:, kept], self.permuted[:, kept]
        return Resamples(labels, unit, pair, copy, counts, permuted, self.device)

    @cached_property
    def labellings(self) -> Tensor:
        """The true labels, then every permutation: [1 + permutations, n] float64."""
        return torch.cat([self.labels[None].to(torch.uint8), self.permuted]).double()

    @cached_property
    def _on_device(self) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """`labellings`; bootstrap counts of each class's texts, float64; and `labels`."""
        drawn0, drawn1 = (self._of_class(c).double().to(self.device) for c in (0, 1))
        labels = self.labels.to(self.device)
        return self.labellings.to(self.device), (drawn0, drawn1), labels

    def _of_class(self, label: int) -> Tensor:
        return self.counts[:, self.labels == label]

    def class_counts(self, *, bootstrap: bool = True) -> Tensor:
        """Texts in each class of every resample: [R, 2] float64, in the order of `class_sums`."""
        ones = self.permuted.sum(-1)
        counts = [
            torch.bincount(self.labels, minlength=2)[None],
            torch.stack([self._of_class(label).sum(-1) for label in (0, 1)], -1),
            torch.stack([len(self.labels) - ones, ones], -1),
        ]
        return torch.cat(counts if bootstrap else counts[::2]).double()

    def class_sums(self, x: Tensor, *, bootstrap: bool = True) -> Tensor:
        """Sums of rows over each class: of the texts themselves, of bootstraps, of permutations.

        A bootstrap draws inside a class, and what a permutation takes from one class it adds to
        the other: each needs one matrix product with half of the weights.

        Args:
            x: [..., n, k] float64, roughly centred.
            bootstrap: False leaves the bootstraps out.

        Returns:
            [..., R, 2, k] float64.
        """
        x = x.to(self.device)
        labellings, counts, labels = self._on_device
        ones = labellings @ x
        swapped = torch.stack([x.sum(-2, keepdim=True) - ones, ones], -2)
        if not bootstrap:
            return swapped.cpu()
        drawn = torch.stack([counts[c] @ x[..., labels == c, :] for c in (0, 1)], -2)
        return torch.cat([swapped[..., :1, :, :], drawn, swapped[..., 1:, :, :]], -3).cpu()


@dataclass(frozen=True)
class SharedUnits:
    """Units of several languages with one content, such as translations of one text.

    group: [n] int64, of each text of a language: the number of its content, -1 if no other language
        has it;
    kind: [contents] int64, 0: all its texts are harmless, 1: all harmful, 2: both.
    """

    group: NDArray[np.int64]
    kind: NDArray[np.int64]


def draw(
    units: Units,
    *,
    bootstraps: int,
    permutations: int,
    seed: int,
    key: str,
    shared: SharedUnits | None = None,
    device: str = "cpu",
) -> Resamples:
    """Draw the resamples of one language.

    A bootstrap draws units: those with texts of both labels among each other, all others within
    their class. Permutations are those of `data.permuted_labels`; they do not depend on `seed`.

    Args:
        units: of the texts.
        bootstraps, permutations: how many; at most `LABELLINGS` permutations.
        seed: of the bootstraps.
        key: name of the language; it goes into the seed.
        shared: contents that are in several languages: their bootstrap counts are the same in all.
        device: see `Resamples`.
    """
    labels, unit = units.labels, units.unit
    drawn = _drawn(kinds(labels, unit), bootstraps, [seed, *key.encode()])
    if shared is not None:
        everywhere = _drawn(shared.kind, bootstraps, [seed, 2])
        inside = shared.group >= 0
        drawn[:, unit[inside]] = everywhere[:, shared.group[inside]]
    number = LABELLINGS if permutations else 0  # the first ones depend on how many there are
    permuted = permuted_labels(units, number, key)[:permutations]
    return Resamples(
        labels=torch.from_numpy(labels),
        unit=torch.from_numpy(unit),
        pair=torch.from_numpy(units.partner),
        copy=torch.from_numpy(units.copy),
        counts=torch.from_numpy(drawn[:, unit]),
        permuted=torch.from_numpy(permuted),
        device=device,
    )


def _drawn(kind: NDArray[np.int64], bootstraps: int, seeds: list[int]) -> NDArray[np.uint8]:
    """How often each bootstrap draws each unit, among those of its kind: [bootstraps, U]."""
    rng = np.random.Generator(np.random.PCG64(seeds))
    drawn = np.zeros((bootstraps, len(kind)), np.uint8)
    for number in range(3):
        alike = kind == number
        if many := int(alike.sum()):
            drawn[:, alike] = rng.multinomial(many, np.full(many, 1 / many), size=bootstraps)
    return drawn


def random_signs(unit: Tensor, number: int, *, seed: int, key: str) -> Tensor:
    """`number` random signs (1 or -1) of every unit: unit [n] int64 -> [number, U] float64."""
    rng = np.random.Generator(np.random.PCG64([seed, 1, *key.encode()]))
    drawn = rng.integers(0, 2, size=(number, int(unit.max()) + 1), dtype=np.int8)
    return torch.from_numpy(2 * drawn - 1).double()
