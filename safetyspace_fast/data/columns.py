"""Which columns of a file hold the text, label and language of each record."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import ConfigError, DataError
from ..names import nearest
from .labels import LABEL_WORDS, Labels, UnusableError, rules, shown_label, word

RECOGNISED = (
    "text",
    "label",
    "toxic",
    "lang",
    "pair",
    "item",
    "cluster",
    "toxic_sentence",
    "neutral_sentence",
)
"""The columns that are read where none is named, in any format; others are ignored."""

_EXPECTED = "expected text, label and lang (or toxic_sentence and neutral_sentence)"
_BINARY = {"0": 0, "false": 0, "1": 1, "true": 1}
_MISSING = frozenset({"nan", "na", "n/a", "<na>", "null"})
"""Words that tables write where there is no label, in lower case."""
_SAFE = re.compile(
    r"(.*[._-])?(is[._-]?)?(safe|harmless|benign|clean|neutral|non[._-]?toxic)", re.IGNORECASE
)
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,39}", re.ASCII)
_KNOWN_NAMES = frozenset(
    [
        "answer",
        "body",
        "category",
        "class",
        "cluster",
        "comment",
        "comment_text",
        "content",
        "goal",
        "id",
        "index",
        "instruction",
        "is_safe",
        "item",
        "label",
        "labels",
        "lang",
        "language",
        "message",
        "pair",
        "post",
        "prompt",
        "question",
        "response",
        "score",
        "sentence",
        "split",
        "subtask_a",
        "target",
        "test_case",
        "text",
        "toxic",
        "toxicity",
        "tweet",
        "user_input",
    ]
)


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; an empty field leaves it to be recognised.

    text: the text, in the first of these that a file has; a path such as `a.b` leads into objects,
        and a list of words is joined.
    other_text: the text of a file that has none of these.
    label: one or more; a text is harmful if any of them says so.
    lang_column, lang: the language of a row, or of all texts.
    harmful, harmless: label values or thresholds (`>=0.5`, `toxicity>=0.5`). With only one of them
        given, every other value means the other.
    every: `harmful` or `harmless` if all texts are.
    item: joins the same content in several languages.
    languages: language of each word that a language column or a file's name uses for it.
    wide: languages whose texts stand in columns of that name.
    """

    text: tuple[str, ...] = ()
    other_text: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    lang_column: str = ""
    lang: str = ""
    harmful: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    every: str = ""
    item: str = ""
    languages: Mapping[str, str] = field(default_factory=dict)
    wide: tuple[str, ...] = ()

    def overridden(self, typed: "Columns") -> "Columns":
        """These columns, with what was typed in place of what they say."""
        base = self
        if typed.label or typed.harmful or typed.harmless:
            base = replace(base, harmful=(), harmless=(), every="")
        if typed.text:
            base = replace(base, other_text=base.text, wide=())
        if typed.lang or typed.lang_column:
            base = replace(base, lang="", lang_column="")
        given = {f.name: getattr(typed, f.name) for f in fields(typed) if getattr(typed, f.name)}
        return replace(base, **given)

    def names(self) -> tuple[str, ...]:
        """All columns that are named, without those of thresholds."""
        named = (*self.text, *self.other_text, *self.label, self.lang_column, self.item, *self.wide)
        return tuple(dict.fromkeys(filter(None, named)))


def lookup(record: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of a path such as `a.b` into objects and lists of objects."""
    if path in record or "." not in path:
        return record.get(path)
    head, _, rest = path.partition(".")
    value = record.get(head)
    if isinstance(value, Mapping):
        return lookup(value, rest)
    if isinstance(value, list):
        return [lookup(entry, rest) for entry in value if isinstance(entry, Mapping)]
    return None


def _are_names(names: Iterable[str]) -> bool:
    """Whether all are names of columns, and not the fields of a row or texts."""
    folded = {name.casefold() for name in names if name}
    if not all(map(_NAME.fullmatch, folded)):
        return False
    return not folded.isdisjoint(_KNOWN_NAMES) or (
        len(folded) > 1 and folded.isdisjoint(LABEL_WORDS)
    )


def shown_names(names: Iterable[str]) -> str:
    """The names of columns for a message; none if they may be texts."""
    listed = [name for name in names if name]
    if not listed:
        return "no columns are named"
    if all(map(str.isdecimal, listed)):
        return f"the columns are numbered from 1 to {len(listed)}"
    if not _are_names(listed):
        return "the first row does not look like column names"
    rest = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return "the columns are " + ", ".join(map(ascii, listed[:8])) + rest


class Layout:
    """The columns of one file, found by its first record.

    texts: columns that hold texts, each with the language that it says, if any.
    is_pair: each row is a pair of `toxic_sentence` and `neutral_sentence` instead.
    joins_words: the text may be a list of words.
    has_named_text: the text is in a column of `Columns.text`.
    every: the label of all texts, if they have one.
    unread_labels: a label column that is not read, as `every` is known.

    Args:
        columns: what was named.
        by_name: the label that the file's name says, used if no column holds one.
        record: the first one.
        where: file and line, for messages.
        labels: counts label values.

    Raises:
        DataError: the columns are not there, or none can be recognised.
    """

    def __init__(
        self,
        columns: Columns,
        by_name: int | None,
        record: Mapping[str, Any],
        where: str,
        labels: Labels,
    ) -> None:
        """Find the columns."""
        self._labels = labels
        self._harmful, self._harmless = rules(columns.harmful), rules(columns.harmless)
        typed = (*self._harmful, *self._harmless)
        scores = [rule.column for rule in typed if rule.column]
        named_text = next((name for name in columns.text if _holds(record, name)), "")
        others = (name for name in columns.other_text if _holds(record, name))
        text = named_text or next(others, "")
        self.has_named_text = bool(named_text)
        needed = [*columns.label, columns.lang_column, columns.item, *scores]
        needed += [] if text or not columns.text else [columns.text[0]]
        for name in filter(None, needed):
            if not _holds(record, name):
                names = columns.text if name in columns.text else (name,)
                raise DataError(no_column(where, names, record))
        self.lang_column = columns.lang_column or "lang"
        self.item_column = columns.item or "item"
        self.joins_words = bool(text)
        self._named = bool(columns.label)
        self._columns = columns.label
        if not columns.label and (not scores or any(not rule.column for rule in typed)):
            self._columns = tuple(name for name in ("label", "toxic") if name in record)[:1]
        self._is_binary = not (columns.label or columns.harmful or columns.harmless)
        safe = [name for name in self._columns if _SAFE.fullmatch(name)]
        if safe and not (columns.every or columns.harmful or columns.harmless):
            raise ConfigError(
                f"{where}: label column {safe[0]!a}: by its name 1 or true means harmless: say "
                "what its values mean, as in --harmless true,1"
            )
        self._scores = tuple(dict.fromkeys(name for name in scores if name not in self._columns))
        self.every = {"harmful": 1, "harmless": 0}.get(columns.every)
        self.unread_labels = self._columns[0] if self._columns and self.every is not None else ""
        if self.every is None and not (self._columns or scores):
            self.every = by_name
        labelled = self.every is not None or bool(self._columns or scores)
        self.texts: tuple[tuple[str, str], ...] = ()
        if not record.keys().isdisjoint(columns.wide):
            self.texts = tuple((lang, lang) for lang in columns.wide)
        elif text or "text" in record:
            self.texts = ((text or "text", ""),)
        self.is_pair = (
            not self.texts
            and not columns.label
            and "toxic_sentence" in record
            and "neutral_sentence" in record
        )
        if not self.is_pair and not (self.texts and labelled):
            raise DataError(
                f"{where}: {shown_names(record)}: {_EXPECTED}: name them with --text-column and "
                "--label-column (by number, from 1, if the file has no header)"
            )

    def label(self, record: Mapping[str, Any], where: str) -> int:
        """1 harmful, 0 harmless.

        Raises:
            UnusableError: the row has no label, or one in neither list.
            DataError: the label cannot be understood.
        """
        if self.every is not None:
            return self.every
        if self._is_binary:
            value = record.get(self._columns[0])
            if _is_empty(value) or word(value) in _MISSING:
                raise UnusableError(f"no {self._columns[0]}")
            return _binary(value, self._columns[0], where)
        states = [self._state(name, lookup(record, name), where) for name in self._columns]
        states += [
            self._state(name, lookup(record, name), where, score=True) for name in self._scores
        ]
        if 1 in states:
            return 1
        for state in states:
            if isinstance(state, str):
                raise UnusableError(state)
        return 0

    def _state(self, column: str, value: object, where: str, *, score: bool = False) -> int | str:
        """What one column says: 1, 0, or why it says nothing."""
        if isinstance(value, list) and self._named:
            value = _majority(value)
            if value is None:
                return f"no majority in {column}"
        if _is_empty(value):
            return f"no {column}"
        if not self._harmful and not self._harmless:
            if word(value) in _MISSING:
                return f"no {column}"
            return _binary(value, column, where)
        harmful, harmless = (
            [rule for rule in typed if rule.column == column or not (rule.column or score)]
            for typed in (self._harmful, self._harmless)
        )
        try:
            if any(rule.operator for rule in (*harmful, *harmless)):
                self._labels.count_score(value)
            held = [[rule for rule in side if rule.holds(value)] for side in (harmless, harmful)]
        except UnusableError:
            return f"{column} is not a number"
        self._labels.used.update(held[0], held[1])
        if held[0] and held[1]:
            raise DataError(
                f"{where}: {column} is {shown_label(value)}: both harmful "
                f"({held[1][0].typed}) and harmless ({held[0][0].typed}): let only one hold"
            )
        if not (held[0] or held[1]) and word(value) in _MISSING:
            return f"no {column}"
        exact = any(not rule.operator for rule in (*harmful, *harmless))
        other = None if held[0] or held[1] else -1 if harmful and harmless else int(not harmful)
        if exact:
            self._labels.count(value, other)
        if other == -1:
            return f"{column} is {'in neither list' if exact else 'between harmful and harmless'}"
        return int(bool(held[1])) if other is None else other


def _holds(record: Mapping[str, Any], path: str) -> bool:
    return path in record or ("." in path and path.partition(".")[0] in record)


def no_column(where: str, names: Sequence[str], record: Mapping[str, Any]) -> str:
    """The message that a record has none of these columns; the nearest name is offered."""
    near = nearest(names[0], filter(None, record)) if _are_names(record) else ""
    return f"{where}: no column {' or '.join(map(ascii, names))}: {shown_names(record)}{near}"


def _is_empty(value: object) -> bool:
    """Whether there is no value; a number that is none is how tables write that."""
    return value is None or value == "" or value != value


def _majority(values: Sequence[object]) -> object:
    """The value of more than half; None without one."""
    counts = Counter(word(value) for value in values if value is not None)
    most = counts.most_common(1)
    return most[0][0] if most and 2 * most[0][1] > len(values) else None


def _binary(value: object, column: str, where: str) -> int:
    label = None
    if isinstance(value, str):
        label = _BINARY.get(word(value))
    elif isinstance(value, int | float) and value in (0, 1):
        label = int(value)
    if label is None:
        raise DataError(
            f"{where}: {column} is {shown_label(value)}: expected 1 (harmful) or 0 (harmless), "
            "true and false are understood: name its values with --harmful and --harmless"
        )
    return label


def words_of(name: str) -> Iterator[str]:
    """The words of a file's or folder's name, in lower case."""
    return (part for part in re.split(r"[^\w]|_", name.casefold()) if part)
