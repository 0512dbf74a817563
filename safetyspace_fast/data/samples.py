"""Samples in canonical order: the order of a data set that all models share."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_FOLDS = 10


class Exclusion(NamedTuple):
    """A row that was left out.

    file: name of the file within the data set.
    line: line (in Parquet, row) of that file, counted from 1.
    reason: why, without the text itself.
    """

    file: str
    line: int
    reason: str


class Splits(NamedTuple):
    """How usable texts lie in splits such as train and test, before a limit.

    texts: number of texts of each split; empty if the files' names do not say several.
    shared: number of different texts of a language that more than one split has.
    """

    texts: dict[str, int]
    shared: int


class Row(NamedTuple):
    """One usable text of a file.

    position: line (in Parquet, row) over all files in reading order, counted from 0.
    sha256: of the text in UTF-8.
    size_bytes: of the text in UTF-8.
    pair: joins a harmful and a harmless text of one language.
    item: joins the same content in several languages.
    cluster: joins texts that are not independent, as those of one topic, thread or author.
    """

    text: str
    label: int
    lang: str
    pair: str | None
    item: str | None
    cluster: str | None
    position: int
    sha256: bytes
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Samples:
    """A data set in canonical order: language, UTF-8 length, text hash, label, file position.

    Texts that differ only in their position are ordered by pair and item first, so the order of
    lines in a file affects `file_position` and nothing else. The arrays are read-only.

    name: of the data set.
    sha256: hash of the content (languages, text hashes, labels, pairs, items, clusters).
    languages: sorted.
    texts: N strings.
    labels: [N] int8, 1 harmful, 0 harmless.
    lang_index: [N] int16, into `languages`.
    pair: [N] int32, the same number for the two texts of a pair, -1 without a pair.
    item: [N] int32, the same number for the same content in several languages, -1 without.
    cluster: [N] int32, the same number for texts of one language that the data put into one
        cluster, or that differ only in capitals, spaces and punctuation; -1 for all others.
    fold: [N] int8, 0 .. NUM_FOLDS - 1; equal texts, pairs, items and clusters share a fold.
    file_position: [N] int64, line (in Parquet, row) from 0, counted over all files.
    text_sha256: [N, 32] uint8, of the text in UTF-8.
    excluded: the rows that were left out, in reading order.
    splits: the splits of the files.
    """

    name: str
    sha256: str
    languages: tuple[str, ...]
    texts: list[str]
    labels: NDArray[np.int8]
    lang_index: NDArray[np.int16]
    pair: NDArray[np.int32]
    item: NDArray[np.int32]
    cluster: NDArray[np.int32]
    fold: NDArray[np.int8]
    file_position: NDArray[np.int64]
    text_sha256: NDArray[np.uint8]
    excluded: tuple[Exclusion, ...]
    splits: Splits

    def __len__(self) -> int:
        """Number of samples: N."""
        return len(self.texts)

    def lang_range(self, lang: str) -> slice:
        """Indices of a language's samples; ValueError for a language without samples."""
        index = self.languages.index(lang)
        start, stop = np.searchsorted(self.lang_index, [index, index + 1])
        return slice(int(start), int(stop))

    @property
    def lang_ranges(self) -> list[slice]:
        """Indices of each language's samples."""
        return [self.lang_range(lang) for lang in self.languages]


def arrange(
    name: str,
    rows: Sequence[Row],
    excluded: Sequence[Exclusion],
    *,
    splits: Splits,
    limit: int | None,
    seed: int,
) -> Samples:
    """Put rows into canonical order and assign folds.

    Args:
        name: of the data set.
        rows: ordered by file position.
        excluded: rows that were left out.
        splits: how the rows lie in splits.
        limit: keep at most this many rows of each language and label.
        seed: of the folds and of the limit's draw.
    """
    rows = sorted(rows, key=_sort_key)  # stable, and rows come ordered by file position
    alike = _near_copies(rows)
    # Drawn before the limit, so that a text has the same fold with and without one.
    draws = _draws(rows, alike, seed)
    if limit is not None:
        kept = _within(limit, rows, draws)
        rows = [rows[i] for i in kept]
        draws = [draws[i] for i in kept]
        alike = [alike[i] for i in kept]

    languages = tuple(sorted({row.lang for row in rows}))
    index_of = {lang: i for i, lang in enumerate(languages)}
    labels = _frozen([row.label for row in rows], np.int8)
    lang_index = _frozen([index_of[row.lang] for row in rows], np.int16)
    pair = _numbered([row.pair and (row.lang, row.pair) for row in rows])
    item = _numbered([row.item for row in rows])
    text_sha256 = np.frombuffer(b"".join(row.sha256 for row in rows), np.uint8).reshape(-1, 32)

    content = hashlib.sha256("\n".join(("samples 1", *languages, "")).encode())
    cluster = _clusters(rows, alike)
    clusters = (cluster,) if (cluster >= 0).any() else ()  # the hash is that of earlier versions
    for array in (text_sha256, labels, lang_index, pair, item, *clusters):
        content.update(array.astype(array.dtype.newbyteorder("<")).tobytes())

    return Samples(
        name=name,
        sha256=content.hexdigest(),
        languages=languages,
        texts=[row.text for row in rows],
        labels=labels,
        lang_index=lang_index,
        pair=pair,
        item=item,
        cluster=cluster,
        fold=_frozen([draw % NUM_FOLDS for draw in draws], np.int8),
        file_position=_frozen([row.position for row in rows], np.int64),
        text_sha256=text_sha256,
        excluded=tuple(excluded),
        splits=splits,
    )


def _sort_key(row: Row) -> bytes:
    """The sort key of the canonical order, as bytes: they compare much faster than a tuple."""
    return b"\0".join(
        (
            row.lang.encode(),  # holds no zero byte
            row.size_bytes.to_bytes(8, "big") + row.sha256 + bytes([row.label]),
            (row.pair or "").encode(),
            (row.item or "").encode(),
        )
    )


def _near_copies(rows: Sequence[Row]) -> list[bytes]:
    """SHA-256 of the first text, by hash, that a text is like but for capitals and punctuation."""
    first: dict[bytes, bytes] = {}
    keys = []
    for row in rows:
        words = _NOT_WORDS.sub("", unicodedata.normalize("NFKC", row.text).casefold())
        key = hashlib.sha256(words.encode()).digest() if words else row.sha256
        first[key] = min(row.sha256, first.get(key, row.sha256))
        keys.append(key)
    return [first[key] for key in keys]


_NOT_WORDS = re.compile(r"[\W_]+")


def _clusters(rows: Sequence[Row], alike: Sequence[bytes]) -> NDArray[np.int32]:
    """`Samples.cluster`: of the data's clusters and near-copies of one language, joined."""
    parent: dict[object, object] = {}

    def root(node: object) -> object:
        while (above := parent.get(node, node)) != node:
            parent[node] = node = parent.get(above, above)
        return node

    texts: dict[object, set[bytes]] = {}
    nodes = []
    for row, text in zip(rows, alike, strict=True):
        node = (row.lang, text)
        texts.setdefault(node, set()).add(row.sha256)
        if row.cluster:
            parent[root(node)] = root((row.lang, row.cluster))
        nodes.append(node)
    named = {root(node) for node, row in zip(nodes, rows, strict=True) if row.cluster}
    return _numbered([root(n) if root(n) in named or len(texts[n]) > 1 else None for n in nodes])


def _draws(rows: Sequence[Row], alike: Sequence[bytes], seed: int) -> list[int]:
    """Draw one 64-bit number per row, the same for all rows of a group.

    Rows with equal or almost equal texts, pairs, items or clusters form a group. Its draw depends
    on its first cluster, else its first item, else its first pair, else its text, so leaving
    languages out does not change it.

    Args:
        rows: in canonical order.
        alike: of each row, `_near_copies`.
        seed: of the draws.
    """
    parent: dict[bytes, bytes] = {}

    def root(node: bytes) -> bytes:
        while (above := parent.get(node, node)) != node:
            parent[node] = node = parent.get(above, above)
        return node

    texts = [b"text " + row.sha256 for row in rows]
    for row, text, near in zip(rows, texts, alike, strict=True):
        joined = [] if near == row.sha256 else [b"text " + near]
        if row.cluster:
            joined.append(b"cluster " + row.cluster.encode())
        if row.pair:
            joined.append(b"pair " + f"{row.lang} {row.pair}".encode())
        if row.item:
            joined.append(b"item " + row.item.encode())
        for node in joined:
            # "cluster" < "item" < "pair" < "text"
            low, high = sorted((root(text), root(node)))
            parent[high] = low

    seeded = hashlib.sha256(f"draw {seed} ".encode())
    draws = []
    for text in texts:
        draw = seeded.copy()
        draw.update(root(text))
        draws.append(int.from_bytes(draw.digest()[:8], "little"))
    return draws


def _within(limit: int, rows: Sequence[Row], draws: Sequence[int]) -> list[int]:
    """Choose at most `limit` rows of a language and label by their draw; pairs stay together."""
    units: dict[object, list[int]] = {}
    for i, row in enumerate(rows):
        units.setdefault((row.lang, row.pair) if row.pair else i, []).append(i)

    taken: dict[tuple[str, int], int] = {}
    kept: list[int] = []
    for unit in sorted(units.values(), key=lambda unit: (draws[unit[0]], unit[0])):
        cells = [(rows[i].lang, rows[i].label) for i in unit]
        if all(taken.get(cell, 0) < limit for cell in cells):
            kept += unit
            for cell in cells:
                taken[cell] = taken.get(cell, 0) + 1
    return sorted(kept)


def _numbered(ids: Sequence[object]) -> NDArray[np.int32]:
    """Number ids by first appearance; -1 for None."""
    numbers: dict[object, int] = {}
    return _frozen(
        [-1 if x is None else numbers.setdefault(x, len(numbers)) for x in ids], np.int32
    )


def _frozen(values: list[int], dtype: type[Any]) -> NDArray[Any]:
    array = np.array(values, dtype)
    array.flags.writeable = False
    return array
