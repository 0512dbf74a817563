"""Whether a text can be used: checks of one row, and of all rows together."""

import hashlib
from collections.abc import Collection, Sequence

from ..names import primary_language
from .labels import UnusableError
from .samples import Row
from .unpack import MAX_LINE_BYTES

ONE_CLASS = "all usable"
"""How the reason begins that a language has one label only."""
BOTH_LABELS = "the same text has both labels"


class NotUtf8Error(UnusableError):
    """A row holds bytes that are not UTF-8."""


def checked_text(value: object, column: str, joins_words: bool = False) -> tuple[str, bytes, int]:
    """Check a text; return it with its SHA-256 and its size in UTF-8."""
    if value is None:
        raise UnusableError(f"no {column}")
    if joins_words and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    if not isinstance(value, str):
        raise UnusableError(f"{column} is not a string but {type(value).__name__}")
    if not value or value.isspace():
        raise UnusableError(f"empty {column}")
    if "\0" in value:
        raise UnusableError(f"NUL character in {column}")
    data = _utf8(value, column)
    if len(data) > MAX_LINE_BYTES:
        raise UnusableError(f"{column} of more than {MAX_LINE_BYTES} bytes")
    return value, hashlib.sha256(data).digest(), len(data)


def _utf8(value: str, column: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        is_byte = "\udc80" <= value[error.start] <= "\udcff"  # as which it was decoded
        kind = NotUtf8Error if is_byte else UnusableError
        raise kind(f"broken UTF-8 or a lone surrogate in {column}") from None


def checked_name(value: object, column: str) -> str | None:
    """Check what joins rows, such as a pair; None if there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnusableError(f"{column} is not a string or integer but {type(value).__name__}")
    name = str(value)
    _utf8(name, column)
    return name


def label_conflicts(rows: Sequence[Row]) -> dict[int, str]:
    """Find texts that have both labels in one language."""
    labels: dict[tuple[str, bytes], int] = {}
    for row in rows:
        key = (row.lang, row.sha256)
        labels[key] = labels.get(key, 0) | (1 << row.label)
    both = {key for key, seen in labels.items() if seen == 0b11}
    return {i: BOTH_LABELS for i, row in enumerate(rows) if (row.lang, row.sha256) in both}


def broken_pairs(rows: Sequence[Row]) -> dict[int, str]:
    """Find pairs that are not one harmful and one harmless text of a language."""
    sides: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.pair is not None:
            sides.setdefault((row.lang, row.pair), [0, 0])[row.label] += 1
    broken = {
        key: f"its pair has {count[1]} harmful and {count[0]} harmless usable texts, not 1 and 1"
        for key, count in sides.items()
        if count != [1, 1]
    }
    return {
        i: broken[row.lang, row.pair]
        for i, row in enumerate(rows)
        if row.pair is not None and (row.lang, row.pair) in broken
    }


def one_class_languages(rows: Sequence[Row]) -> dict[int, str]:
    """Find languages whose texts all have the same label: there is nothing to separate."""
    labels: dict[str, set[int]] = {}
    for row in rows:
        labels.setdefault(row.lang, set()).add(row.label)
    hidden = may_be_texts(labels)
    reasons = {
        lang: f"{ONE_CLASS} {'' if hidden else lang + ' '}texts "
        f"{'of a language ' if hidden else ''}are {('harmless', 'harmful')[min(seen)]}"
        for lang, seen in labels.items()
        if len(seen) == 1
    }
    return {i: reasons[row.lang] for i, row in enumerate(rows) if row.lang in reasons}


def may_be_texts(languages: Collection[str]) -> bool:
    """Whether there are many languages whose names are not codes, as where texts are read as
    languages: messages then do not name them."""
    return len(languages) > 12 and any(len(primary_language(lang)) > 3 for lang in languages)
