"""Which texts run together: a deterministic plan, which a resumed run makes again."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

from ..models import Tokenized


@dataclass(frozen=True)
class Batching:
    """How texts are cut into batches. It decides the plan, so a resumed run must have the same."""

    token_budget: int
    """Largest number of padded tokens in a batch; a longer text runs alone."""
    batch_cost: int = 16
    """Cost of one more batch, in tokens of forward pass."""
    part_samples: int = 512
    """Samples that are planned, stored and resumed together."""


@dataclass(frozen=True)
class Batch:
    """Texts that run in one forward pass; samples with the same text share a row of its input."""

    rows: NDArray[np.int64]
    """`[n]`, the samples."""
    source: NDArray[np.int64]
    """`[n]`, for each of them its row of the input."""
    unique: NDArray[np.int64]
    """`[B]`, for each row of the input a sample with its text."""
    length: int
    """Tokens in a row of the input, padding included."""

    @property
    def padded_tokens(self) -> int:
        """Tokens in the forward pass, padding included."""
        return len(self.unique) * self.length

    def for_rows(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Results by sample, `[L, S, n, ..]`, from results by row of input, `[L, S, B, ..]`."""
        return values if len(self.rows) == len(self.unique) else values[:, :, self.source]

    def halves(self) -> "tuple[Batch, Batch]":
        """Split the batch into two, the shorter texts first."""
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
    """A stretch of one language's samples, which are planned, stored and resumed together."""

    number: int
    """Counted over all languages."""
    rows: slice
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Plan:
    """All batches. The parts of a language are the same whatever the other languages are."""

    languages: tuple[tuple[Part, ...], ...]
    tokens: int
    """Tokens of all different texts, without padding."""
    padded_tokens: int
    unique_texts: int
    sha256: tuple[str, ...]
    """A hash for each language, of its batches; rows are counted from its first sample."""

    def __iter__(self) -> Iterator[Batch]:
        """Every batch in order."""
        for parts in self.languages:
            for part in parts:
                yield from part.batches


def make_plan(
    tokens: Tokenized,
    languages: Sequence[slice] | None = None,
    *,
    batching: Batching,
    padding: bool = True,
) -> Plan:
    """Cut each language into parts, and each part into batches of texts of similar length.

    The texts of a part are sorted by length and cut where padding plus the cost of each batch is
    least (by dynamic programming). Texts of a part with the same tokens and spans run once.

    Args:
        tokens: prompts and spans of all samples, in canonical order.
        languages: the samples of each language, in order; None: all are one language.
        batching: sizes and costs.
        padding: False: all texts of a batch have the same length.
    """
    lengths = tokens.lengths
    planned, hashes = [], []
    numbers = count()
    real = padded = unique_texts = 0
    for samples in languages or [slice(0, len(lengths))]:
        digest = hashlib.sha256(f"{batching.part_samples}".encode())
        parts = []
        for low in range(samples.start, samples.stop, batching.part_samples):
            part = slice(low, min(low + batching.part_samples, samples.stop))
            rows_of: dict[bytes, list[int]] = {}
            for row in range(part.start, part.stop):
                key = tokens.prompt(row).tobytes() + tokens.spans[row].tobytes()
                rows_of.setdefault(key, []).append(row)
            groups = sorted(rows_of.values(), key=lambda rows: (lengths[rows[0]], rows[0]))
            batches = tuple(_batches(groups, lengths, batching, padding))
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
    groups: list[list[int]], lengths: NDArray[np.int64], batching: Batching, padding: bool
) -> Iterator[Batch]:
    """Cut groups of samples with the same text, sorted by length, at the least cost."""
    tokens = [max(1, int(lengths[rows[0]])) for rows in groups]
    cost = np.zeros(len(groups) + 1, np.int64)  # of the first i groups
    cut = [0]  # where their last batch begins
    for stop in range(1, len(groups) + 1):
        length = tokens[stop - 1]
        first = max(0, stop - max(1, batching.token_budget // length))
        if not padding:
            first = max(first, bisect_left(tokens, length))
        costs = cost[first:stop] + length * np.arange(stop - first, 0, -1)
        best = int(costs.argmin())
        cost[stop] = costs[best] + batching.batch_cost
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
