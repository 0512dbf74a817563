"""Which texts run together: a plan that is deterministic and cheap to make again."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

from ..models import Tokenized

PART_SAMPLES = 512
"""Samples that are planned, kept on disk and resumed together."""
BATCH_COST_TOKENS = 16
"""What starting one more batch costs, in tokens of forward pass."""


@dataclass(frozen=True)
class Batch:
    """Texts that run in one forward pass.

    `rows [n]` are samples; those with the same text have the same `source [n]`, the row of the
    input that stands for them. The input has `len(unique)` rows, padded to `length` tokens.
    """

    rows: NDArray[np.int64]
    source: NDArray[np.int64]
    unique: NDArray[np.int64]
    length: int

    @property
    def padded_tokens(self) -> int:
        """Tokens that the forward pass computes, padding included."""
        return len(self.unique) * self.length

    def for_rows(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give every sample what its text gave: `[L, S, len(unique), ...]` by `rows`."""
        return values if len(self.rows) == len(self.unique) else values[:, :, self.source]

    def halves(self) -> "tuple[Batch, Batch]":
        """The same texts as two batches, shorter ones first."""
        middle = len(self.unique) // 2
        first = self.source < middle
        return (
            Batch(self.rows[first], self.source[first], self.unique[:middle], self.length),
            Batch(
                self.rows[~first], self.source[~first] - middle, self.unique[middle:], self.length
            ),
        )


@dataclass(frozen=True)
class Part:
    """A stretch of one language's samples: the unit of work and of resume."""

    number: int
    """Among the parts of all languages."""
    rows: slice
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Plan:
    """All batches, part by part; the parts of a language do not depend on other languages."""

    languages: tuple[tuple[Part, ...], ...]
    tokens: int
    """Tokens of the texts that run, without padding."""
    padded_tokens: int
    unique_texts: int
    sha256: tuple[str, ...]
    """One hash a language, of its rows counted from its first."""

    def __iter__(self) -> Iterator[Batch]:
        """Every batch in order."""
        for parts in self.languages:
            for part in parts:
                yield from part.batches


def make_plan(
    tokens: Tokenized,
    languages: Sequence[slice] | None = None,
    *,
    token_budget: int,
    part_samples: int = PART_SAMPLES,
) -> Plan:
    """Cut every language into parts and every part into batches of similar length.

    A batch holds at most `token_budget` padded tokens, or one text. Among all ways to cut a part,
    sorted by length, into such batches the one with the least padding is taken, where a further
    batch counts as `BATCH_COST_TOKENS`. Texts of one part with the same tokens and the same spans
    run once.

    Args:
        tokens: the prompts and spans of all samples, in canonical order.
        languages: the samples of each language, in order; None takes all as one.
        token_budget: padded tokens in a batch.
        part_samples: samples in a part.
    """
    lengths = tokens.lengths
    planned, hashes = [], []
    numbers = count()
    real = padded = unique_texts = 0
    for samples in languages or [slice(0, len(lengths))]:
        digest = hashlib.sha256(f"{part_samples}".encode())
        parts = []
        for low in range(samples.start, samples.stop, part_samples):
            part = slice(low, min(low + part_samples, samples.stop))
            rows_of: dict[bytes, list[int]] = {}
            for row in range(part.start, part.stop):
                key = tokens.prompt(row).tobytes() + tokens.spans[row].tobytes()
                rows_of.setdefault(key, []).append(row)
            groups = sorted(rows_of.values(), key=lambda rows: (lengths[rows[0]], rows[0]))
            batches = tuple(_batches(groups, lengths, token_budget))
            for batch in batches:
                digest.update((batch.rows - samples.start).tobytes() + batch.source.tobytes())
                digest.update(batch.length.to_bytes(4, "little"))
                padded += batch.padded_tokens
            real += sum(int(lengths[rows[0]]) for rows in groups)
            unique_texts += len(groups)
            parts.append(Part(next(numbers), part, batches))
        planned.append(tuple(parts))
        hashes.append(digest.hexdigest())
    return Plan(tuple(planned), real, padded, unique_texts, tuple(hashes))


def _batches(
    groups: list[list[int]], lengths: NDArray[np.int64], token_budget: int
) -> Iterator[Batch]:
    """Cut groups, sorted by length, where the padding and the batches cost least together."""
    tokens = [max(1, int(lengths[rows[0]])) for rows in groups]
    cost = [0.0]  # of the first i groups
    cut = [0]  # where the last batch among them starts
    for stop in range(1, len(groups) + 1):
        length = tokens[stop - 1]
        first = max(0, stop - max(1, token_budget // length))
        costs = [cost[i] + (stop - i) * length + BATCH_COST_TOKENS for i in range(first, stop)]
        best = min(range(len(costs)), key=costs.__getitem__)
        cost.append(costs[best])
        cut.append(first + best)
    bounds = [len(groups)]
    while bounds[-1]:
        bounds.append(cut[bounds[-1]])
    for start, stop in pairwise(reversed(bounds)):
        chosen = groups[start:stop]
        yield Batch(
            rows=np.array([row for rows in chosen for row in rows], np.int64),
            source=np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen]),
            unique=np.array([rows[0] for rows in chosen], np.int64),
            length=tokens[stop - 1],
        )
