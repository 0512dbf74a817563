"""What a data set holds, in counts; no texts."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..notebook import Section, html
from .samples import Samples, Splits


class Lengths(NamedTuple):
    """Lengths of texts in characters; the median is of the lower middle."""

    shortest: int
    median: int
    longest: int


@dataclass(frozen=True)
class LanguageSummary:
    """The texts of one language.

    lang: its name, as the data write it.
    harmful, harmless: number of texts.
    pairs: number of pairs of a harmful and a harmless text.
    copies: texts that repeat an earlier one of the same label.
    harmful_chars, harmless_chars: lengths.
    """

    lang: str
    harmful: int
    harmless: int
    pairs: int
    copies: int
    harmful_chars: Lengths
    harmless_chars: Lengths


@dataclass(frozen=True)
class DataSummary:
    """What would be read of a data set.

    name: of the data set.
    sha256: hash of its content, by which a store knows it.
    texts: number of usable texts.
    languages: each in numbers.
    left_out: why rows cannot be used, and how many for each reason, the commonest first.
    splits: the splits of the files, before a limit.
    notes: what else a reader should know, a line each.
    """

    name: str
    sha256: str
    texts: int
    languages: tuple[LanguageSummary, ...]
    left_out: dict[str, int]
    splits: Splits
    notes: tuple[str, ...]

    def _repr_html_(self) -> str:
        """What notebooks show: texts of each language, and what was left out."""
        head = ("language", "harmless", "harmful", "pairs", "copies", "characters (median)")
        languages = []
        for one in self.languages:
            medians = f"{one.harmless_chars.median:,} + {one.harmful_chars.median:,}"
            counts = (one.harmless, one.harmful, one.pairs, one.copies)
            languages.append((one.lang, *counts, medians))
        sections = [
            Section(f"{len(languages)} languages", head, languages),
            Section("rows left out", ("reason", "rows"), list(self.left_out.items())),
            Section("notes", ("note",), [(note,) for note in self.notes]),
        ]
        title = f"DataSummary of {self.name}: {self.texts:,} texts"
        return html(repr(self), title, [section for section in sections if section.rows])


def describe(samples: Samples, notes: tuple[str, ...]) -> DataSummary:
    """Sum up a data set.

    Args:
        samples: as read.
        notes: of reading them.
    """
    reasons = Counter(exclusion.reason for exclusion in samples.excluded)
    return DataSummary(
        name=samples.name,
        sha256=samples.sha256,
        texts=len(samples),
        languages=tuple(_language(samples, lang) for lang in samples.languages),
        left_out=dict(reasons.most_common()),
        splits=samples.splits,
        notes=notes,
    )


def _language(samples: Samples, lang: str) -> LanguageSummary:
    rows = samples.lang_range(lang)
    labels = samples.labels[rows]
    pairs = samples.pair[rows]
    chars = np.array([len(text) for text in samples.texts[rows]])
    content = np.column_stack([samples.text_sha256[rows], labels])
    n_harmful = int(labels.sum())
    return LanguageSummary(
        lang,
        harmful=n_harmful,
        harmless=len(labels) - n_harmful,
        pairs=len(np.unique(pairs[pairs >= 0])),
        copies=len(labels) - len(np.unique(content, axis=0)),
        harmful_chars=_lengths(chars[labels == 1]),
        harmless_chars=_lengths(chars[labels == 0]),
    )


def _lengths(chars: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Lengths:
    ordered = np.sort(chars)
    return Lengths(int(ordered[0]), int(ordered[(len(ordered) - 1) // 2]), int(ordered[-1]))
