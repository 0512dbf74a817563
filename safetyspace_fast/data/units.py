"""Units of evidence, and labellings that are as likely as the true one if the classes are alike.

Texts that are not independent are one unit: a pair, equal texts of one label with all pairs that
they are in, and a cluster (near-duplicates, or texts of one topic, thread or author). Whatever
resamples texts takes or leaves a unit as a whole.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
PAIRED_SHARE = 0.9
"""A language is one of pairs if at least this share of its texts have a partner."""


@dataclass(frozen=True)
class Units:
    """Which texts of one language belong together; arrays are [n] int64.

    labels: 1 harmful, 0 harmless.
    unit, partner, copy: texts of one unit, of one pair, and equal texts of one label share a
        number; a text without partner or without copies has its own.
    """

    labels: Ints
    unit: Ints
    partner: Ints
    copy: Ints

    @property
    def of_pairs(self) -> bool:
        """Whether at least `PAIRED_SHARE` of the texts have a partner: others are then left out."""
        joined = np.bincount(self.partner)[self.partner] == 2
        return bool(len(joined)) and float(joined.mean()) >= PAIRED_SHARE


def find_units(labels: Ints, pair: Ints, text: Ints, cluster: Ints | None = None) -> Units:
    """Find the units of one language.

    Args:
        labels: [n], 1 harmful, 0 harmless.
        pair: [n], the same number for both texts of a pair, negative for no pair; a number that
            only one text has counts as no pair.
        text: [n], the same number for equal texts.
        cluster: [n], the same number for texts of one cluster, negative for none.
    """
    n = len(labels)
    _, inverse, sizes = np.unique(pair, return_inverse=True, return_counts=True)
    joined = (pair >= 0) & (sizes[inverse] == 2)
    partner = numbered(np.where(joined, pair, pair.max(initial=0) + 1 + np.arange(n)))
    copy = numbered(2 * text + labels)
    unit = connected(partner, copy)
    if cluster is not None:
        alone = cluster.max(initial=0) + 1 + np.arange(n)
        unit = connected(unit, numbered(np.where(cluster >= 0, cluster, alone)))
    return Units(labels, unit, partner, copy)


def equal_rows(digests: NDArray[np.uint8]) -> Ints:
    """[n], the same number for equal rows of [n, byte]."""
    whole = np.ascontiguousarray(digests).view(np.dtype((np.void, digests.shape[1]))).ravel()
    return numbered(whole)


def numbered(values: NDArray[Any]) -> Ints:
    """Numbers 0, 1, .. in place of the values, in their order."""
    return np.unique(values, return_inverse=True)[1]


def connected(first: Ints, second: Ints) -> Ints:
    """Number the groups of what is linked, over any number of steps, by equal `first` or `second`.

    Args:
        first, second: [n], numbers 0, 1, ..

    Returns:
        [n]; the same as `first` if no two values of `second` are equal.
    """
    group = first
    while True:
        before = group
        for link in (second, first):
            least = np.full(len(group), len(group))
            np.minimum.at(least, link, group)
            group = least[link]
        if np.array_equal(group, before):
            return numbered(group)


def kinds(labels: NDArray[Any], group: Ints) -> Ints:
    """[groups], 0: all texts of a group are harmless, 1: all harmful, 2: both; [n] each."""
    size, harmful = np.bincount(group), np.bincount(group, weights=labels)
    return np.where(harmful == 0, 0, np.where(harmful == size, 1, 2))


def permuted_labels(units: Units, number: int, key: str, seed: int = 0) -> NDArray[np.uint8]:
    """Labellings that are as likely as the true one if the classes do not differ.

    Units of one label exchange their labels, whole. A unit with as many harmful as harmless texts,
    such as a pair, swaps them all or none. In any other unit, the texts of one label that belong
    together (pairs, copies) exchange labels among each other, or swap, inside the unit.

    Args:
        units: of the texts.
        number: of labellings, R.
        key: name of the language; it goes into the seed.
        seed: of the random numbers.

    Returns:
        [R, n] uint8.
    """
    rng = np.random.Generator(np.random.PCG64([seed, *key.encode()]))
    labels = units.labels.astype(np.uint8)
    labellings = np.tile(labels, (number, 1))
    unit, size = units.unit, np.bincount(units.unit)
    harmful = np.bincount(unit, weights=units.labels).astype(np.int64)
    first = np.unique(unit, return_index=True)[1]
    pure = (harmful == 0) | (harmful == size)
    of_unit = labellings[:, first]
    of_unit[:, pure] = rng.permuted(of_unit[:, pure], axis=1)
    labellings[:, pure[unit]] = of_unit[:, unit[pure[unit]]]
    balanced = 2 * harmful == size
    swap = np.zeros((number, len(size)), np.uint8)
    swap[:, balanced] = rng.integers(0, 2, (number, int(balanced.sum())), np.uint8)
    labellings ^= swap[:, unit]
    for mixed in np.flatnonzero(~pure & ~balanced):
        inside = np.flatnonzero(unit == mixed)
        partner, copy = numbered(units.partner[inside]), numbered(units.copy[inside])
        parts = Units(units.labels[inside], connected(partner, copy), partner, copy)
        if parts.unit.max() > 0:
            own = int(rng.integers(1 << 31))
            labellings[:, inside] = permuted_labels(parts, number, key, own)
    return labellings
