"""Reading a data set: columns are recognised, rows checked, unusable rows counted and listed."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from .formats import MAX_LINE_BYTES, MAX_ROWS, read_records
from .samples import Exclusion, Row, Samples, arrange
from .sources import DataFile, find_source, is_language, printable

MAX_TOTAL_BYTES = 4 << 30
"""Of all texts together, which are kept in memory."""
MAX_LANGUAGES = 10_000
"""More than ISO 639-3 names; a store numbers languages in 16 bits."""

_EXPECTED = "expected text, label and lang (or toxic_sentence and neutral_sentence)"
_LANGUAGE_ADVICE = "expected a BCP 47 name such as en, pt-BR or zh-Hans"
_LABELS = {"0": 0, "false": 0, "0.0": 0, "1": 1, "true": 1, "1.0": 1}


def read_samples(
    source: str | Path,
    *,
    strict: bool = False,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Samples:
    """Read a data set into samples in canonical order.

    Columns: `text`, `label` (or `toxic`) and `lang`; optionally `pair` (joins a harmful and a
    harmless text) and `item` (the same for the same content in several languages). Or
    `toxic_sentence` and `neutral_sentence`, which make two samples joined as a pair. A row's `lang`
    takes precedence over the language in the file's name.

    Args:
        source: a file (JSON Lines, CSV or TSV, each also as .gz, or Parquet), a directory with one
            file or folder per language, a hub data set (owner/name or owner/name@revision), or
            the packaged `sample:polite`.
        strict: raise on the first unusable row instead of listing it in `excluded`.
        languages: keep only these.
        limit: at most this many samples of each language and label, drawn by text hash and seed;
            both texts of a pair are drawn or neither.
        seed: of the folds and of the limit's draw.
        revision: of a hub data set.
        on_note: called with one-line notes (the hub revision, how many rows were left out).

    Raises:
        DataError: the data cannot be used; the message names file and line.
        ConfigError: a wrong argument.
    """
    wanted = _check_arguments(languages, limit)
    note = on_note or _ignore
    data = find_source(source, revision, note)
    reader = _Reader(data.files, strict, wanted)
    for file in data.files:
        reader.read(file)
    if wanted and (missing := sorted(wanted - reader.seen_languages)):
        seen = ", ".join(sorted(reader.seen_languages)) or "none"
        raise DataError(f"{data.name}: no texts in {', '.join(missing)}: its languages are {seen}")
    for find_unusable in (_label_conflicts, _broken_pairs, _one_class_languages):
        reader.drop(find_unusable(reader.rows))

    excluded = reader.exclusions()
    if not reader.rows:
        raise DataError(f"{data.name}: no usable texts: {_summary(excluded) or 'it is empty'}")
    if excluded:
        note(f"{data.name}: {_summary(excluded)}")
    return arrange(data.name, reader.rows, excluded, limit=limit, seed=seed)


def _ignore(note: str) -> None:
    pass


def _check_arguments(languages: Sequence[str] | None, limit: int | None) -> set[str]:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit}: expected at least 1 sample of a language and label")
    if isinstance(languages, str):
        raise ConfigError(f"languages {languages!r}: expected several names, as in ('en', 'de')")
    if languages is not None and not languages:
        raise ConfigError("languages: none named: name at least one, or leave the argument out")
    wanted = set(languages or ())
    for lang in sorted(wanted):
        if not is_language(lang):
            raise ConfigError(f"language {_quoted(lang)}: {_LANGUAGE_ADVICE}")
    return wanted


def _summary(excluded: Sequence[Exclusion]) -> str:
    """Sum up exclusions in one line, with the first file and line of the commonest reasons."""
    if not excluded:
        return ""
    first: dict[str, Exclusion] = {}
    for exclusion in excluded:
        first.setdefault(exclusion.reason, exclusion)
    common = Counter(exclusion.reason for exclusion in excluded).most_common(3)
    parts = [f"{n} x {reason} ({first[reason].file}:{first[reason].line})" for reason, n in common]
    more = f", {len(first) - len(common)} more reasons" if len(first) > len(common) else ""
    return f"{len(excluded)} texts left out: {', '.join(parts)}{more}"


class _UnusableError(ValueError):
    """One row cannot be used; the message is the reason."""


class _Reader:
    """Usable rows and exclusions, collected over the files of one data set."""

    def __init__(self, files: Sequence[DataFile], strict: bool, languages: set[str]) -> None:
        self.rows: list[Row] = []
        self.seen_languages: set[str] = set()
        self._spellings: dict[str, str] = {}
        self._strict = strict
        self._languages = languages
        self._excluded: list[tuple[int, str]] = []  # position, reason
        self._files = files
        self._starts: list[int] = []  # position of each file's first line
        self._next_position = 0
        self._pair_uses: Counter[str] = Counter()
        self._total_bytes = 0

    def read(self, file: DataFile) -> None:
        start = self._next_position
        self._starts.append(start)
        label_column: str | None = None
        for line, record in read_records(file.path, file.name):
            position = start + line - 1
            self._next_position = position + 1
            try:
                if isinstance(record, str):
                    raise _UnusableError(record)
                if label_column is None:
                    label_column = _label_column(record, file, line)
                self._add(record, label_column, file, line, position)
            except _UnusableError as reason:
                self._exclude(position, str(reason))
            if len(self.rows) + len(self._excluded) > MAX_ROWS:
                raise DataError(f"{file.name}:{line}: more than {MAX_ROWS} rows: split the data")
            if self._total_bytes > MAX_TOTAL_BYTES:
                raise DataError(
                    f"{file.name}:{line}: over {MAX_TOTAL_BYTES} bytes of text: split the data"
                )

    def _add(
        self, record: dict[str, Any], label_column: str, file: DataFile, line: int, position: int
    ) -> None:
        lang = _language(record.get("lang"), file, line)
        if lang not in self.seen_languages:
            self._see(lang, file, line)
        if self._languages and lang not in self._languages:
            return
        pair = _identifier(record.get("pair"), "pair")
        item = _identifier(record.get("item"), "item")
        if label_column:
            label = _label(record.get(label_column), label_column, file, line)
            sides = [(label, *_text(record.get("text"), "text"))]
        else:
            sides = [
                (1, *_text(record.get("toxic_sentence"), "toxic_sentence")),
                (0, *_text(record.get("neutral_sentence"), "neutral_sentence")),
            ]
            pair = pair or self._pair_of(lang, sides[0][2] + sides[1][2])
        for label, text, sha256, size_bytes in sides:
            self.rows.append(Row(text, label, lang, pair, item, position, sha256, size_bytes))
            self._total_bytes += size_bytes

    def _see(self, lang: str, file: DataFile, line: int) -> None:
        """Record a new language; refuse another spelling of a known one, which would split it."""
        self.seen_languages.add(lang)
        other = self._spellings.setdefault(lang.replace("_", "-").casefold(), lang)
        if other != lang:
            raise DataError(f"{file.name}:{line}: lang is {lang!r}, earlier {other!r}: use one")
        if len(self.seen_languages) > MAX_LANGUAGES:
            raise DataError(f"{file.name}:{line}: more than {MAX_LANGUAGES} languages")

    def _pair_of(self, lang: str, content: bytes) -> str:
        """Name a pair by its content, so that the file's order does not matter."""
        name = f"{lang} {content.hex()}"
        self._pair_uses[name] += 1
        return f"{name} {self._pair_uses[name]}"

    def _exclude(self, position: int, reason: str) -> None:
        if self._strict:
            file, line = self._file_and_line(position)
            raise DataError(f"{file}:{line}: {reason} (strict: no row may be left out)")
        self._excluded.append((position, reason))

    def drop(self, reasons: dict[int, str]) -> None:
        """Exclude rows by their index."""
        for i, reason in reasons.items():
            self._exclude(self.rows[i].position, reason)
        if reasons:
            self.rows = [row for i, row in enumerate(self.rows) if i not in reasons]

    def exclusions(self) -> list[Exclusion]:
        ordered = sorted(self._excluded)
        return [Exclusion(*self._file_and_line(position), reason) for position, reason in ordered]

    def _file_and_line(self, position: int) -> tuple[str, int]:
        i_file = bisect_right(self._starts, position) - 1
        return self._files[i_file].name, position - self._starts[i_file] + 1


def _label_column(record: dict[str, Any], file: DataFile, line: int) -> str:
    """The name of a file's label column, by its first record; "" if each row holds a pair."""
    if "text" in record:
        for name in ("label", "toxic"):
            if name in record:
                return name
    elif "toxic_sentence" in record and "neutral_sentence" in record:
        return ""
    names = ", ".join(_quoted(name) for name in list(record)[:8]) or "none"
    raise DataError(f"{file.name}:{line}: the columns are {names}: {_EXPECTED}: rename them")


def _language(value: object, file: DataFile, line: int) -> str:
    if value is None or value == "":
        if file.lang is None:
            raise DataError(
                f"{file.name}:{line}: no language: add a lang column, or name the file or its "
                "folder after the language (en.jsonl, en/train.csv)"
            )
        return file.lang
    if not isinstance(value, str) or not is_language(value):
        raise DataError(f"{file.name}:{line}: lang is {_quoted(value)}: {_LANGUAGE_ADVICE}")
    return value


def _text(value: object, column: str) -> tuple[str, bytes, int]:
    """Check a text; return it with its SHA-256 and its size in UTF-8."""
    if value is None:
        raise _UnusableError(f"no {column}")
    if not isinstance(value, str):
        raise _UnusableError(f"{column} is not a string but {type(value).__name__}")
    if not value or value.isspace():
        raise _UnusableError(f"empty {column}")
    if "\0" in value:
        raise _UnusableError(f"NUL character in {column}")
    data = _utf8(value, column)
    if len(data) > MAX_LINE_BYTES:
        raise _UnusableError(f"{column} of more than {MAX_LINE_BYTES} bytes")
    return value, hashlib.sha256(data).digest(), len(data)


def _utf8(value: str, column: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise _UnusableError(f"broken UTF-8 or a lone surrogate in {column}") from None


def _label(value: object, column: str, file: DataFile, line: int) -> int:
    if value is None or value == "":
        raise _UnusableError(f"no {column}")
    label = None
    if isinstance(value, str):
        label = _LABELS.get(value.strip().lower())
    elif isinstance(value, int | float) and value in (0, 1):
        label = int(value)
    if label is None:
        raise DataError(
            f"{file.name}:{line}: {column} is {_quoted(value)}: expected 1 (harmful) or "
            "0 (harmless); true and false are understood"
        )
    return label


def _identifier(value: object, column: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _UnusableError(f"{column} is not a string or integer but {type(value).__name__}")
    name = str(value)
    _utf8(name, column)
    return name


def _quoted(value: object) -> str:
    """A value as it appears in a one-line message."""
    return printable(ascii(value)[:60])


def _label_conflicts(rows: Sequence[Row]) -> dict[int, str]:
    """Find texts that have both labels in one language."""
    labels: dict[tuple[str, bytes], int] = {}
    for row in rows:
        key = (row.lang, row.sha256)
        labels[key] = labels.get(key, 0) | (1 << row.label)
    both = {key for key, seen in labels.items() if seen == 0b11}
    return {
        i: "the same text has both labels"
        for i, row in enumerate(rows)
        if (row.lang, row.sha256) in both
    }


def _broken_pairs(rows: Sequence[Row]) -> dict[int, str]:
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


def _one_class_languages(rows: Sequence[Row]) -> dict[int, str]:
    """Find languages whose texts all have the same label: there is nothing to separate."""
    labels: dict[str, set[int]] = {}
    for row in rows:
        labels.setdefault(row.lang, set()).add(row.label)
    reasons = {
        lang: f"all usable {lang} texts are {('harmless', 'harmful')[min(seen)]}"
        for lang, seen in labels.items()
        if len(seen) == 1
    }
    return {i: reasons[row.lang] for i, row in enumerate(rows) if row.lang in reasons}
