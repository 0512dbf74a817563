"""What the values of label columns mean, how often they occur, and which messages may show."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from operator import eq, ge, gt, le, lt
from typing import NamedTuple

from ..errors import ConfigError, DataError
from ..names import nearest

_OPERATORS = {">=": ge, "<=": le, "==": eq, ">": gt, "<": lt}
_THRESHOLD = re.compile(r"([^<>=≥≤]*)(>=|<=|==|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")
_LIKE_THRESHOLD = re.compile(
    r".*(>=|<=|==|=>|=<|[≥≤]|[<>=]\s*[-+]?[\d.,]).*|[\d.,]+\s*%", re.DOTALL
)
_WHOLE_THRESHOLD = re.compile(r".*[<>=]\s*[-+]?\d+")
LABEL_WORDS = frozenset(
    [
        "0",
        "1",
        "abusive",
        "bad",
        "benign",
        "clean",
        "false",
        "good",
        "harmful",
        "harmless",
        "hate",
        "hateful",
        "hatespeech",
        "neg",
        "negative",
        "neutral",
        "neither",
        "no",
        "non-hateful",
        "non-toxic",
        "none",
        "normal",
        "not",
        "offense",
        "offensive",
        "other",
        "off",
        "pos",
        "positive",
        "safe",
        "spam",
        "toxic",
        "true",
        "unsafe",
        "yes",
    ]
)
"""Words that are usual as labels, in lower case; others may be texts."""
_MAX_VALUES = 1000
"""Different labels that are counted; more are not labels."""


class UnusableError(ValueError):
    """One row cannot be used; the message is the reason."""


class Rule(NamedTuple):
    """One label value or threshold, as it was typed."""

    typed: str
    column: str = ""
    operator: str = ""
    number: float = 0.0

    def holds(self, value: object) -> bool:
        """Whether a value is this one, or lies on this side of the threshold."""
        if not self.operator:
            return word(value) == word(self.typed)
        return bool(_OPERATORS[self.operator](number(value), self.number))


def rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """Parse label values and thresholds.

    Raises:
        ConfigError: one is empty, or its threshold is not a number.
    """
    parsed = []
    for text, following in zip_longest(texts, texts[1:], fillvalue=""):
        match = _THRESHOLD.fullmatch(text)
        if not text.strip():
            raise ConfigError("a label value is empty: give the values of the label column")
        if _WHOLE_THRESHOLD.fullmatch(text.strip()) and following.strip().isdecimal():
            text, match = f"{text},{following}", None  # a decimal comma also separates values
        if match is None and _LIKE_THRESHOLD.fullmatch(text.strip()):
            raise ConfigError(
                f"threshold {text.strip()!a}: expected >=, >, <=, < or == and a number with a "
                "decimal point, as in >=0.5"
            )
        if match is None:
            parsed.append(Rule(text.strip()))
            continue
        try:
            parsed.append(Rule(text.strip(), match[1].strip(), match[2], float(match[3])))
        except ValueError as error:
            raise ConfigError(f"threshold {text!a}: expected a number at its end") from error
    return tuple(parsed)


def word(value: object) -> str:
    """A label value as it is compared: `1`, `1.0` and " 1 " are equal, so are `OFF` and `off`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip().casefold()
    whole = text.removesuffix(".0")
    return whole if whole.removeprefix("-").isdecimal() else text


def number(value: object) -> float:
    """A score as a number.

    Raises:
        UnusableError: it is none.
    """
    try:
        result = float(value) if isinstance(value, str | int | float) else float("nan")
    except (ValueError, OverflowError):
        result = float("nan")
    if result != result:
        raise UnusableError("a score is not a number")
    return result


def shown(value: object) -> str:
    """A value as messages show it: only a short word of ASCII; a text is never shown."""
    return ascii(value) if _is_word(value) else f"a value of {len(str(value))} characters"


def shown_label(value: object) -> str:
    """A single label value as messages show it: only a usual one, as a text may be one word."""
    return shown(value) if _is_usual_label(value) else f"a value of {len(str(value))} characters"


def _is_word(value: object) -> bool:
    text = str(value)
    return text.isascii() and len(text) <= 24 and not any(map(str.isspace, text))


def _is_usual_label(value: object) -> bool:
    try:
        float(word(value))
    except ValueError:
        return word(value) in LABEL_WORDS
    return _is_word(value)


class Labels:
    """What the labels of a whole data set were found to be.

    values: how often each label value occurs, as it is compared.
    other: of these, values that no list names; they count as harmless (0) or harmful (1), or leave
        their text out (-1).
    used: rules that held for a text.
    lowest, highest: of the scores that thresholds were compared with.
    not_numbers: values that thresholds could not be compared with.
    """

    def __init__(self) -> None:
        """Start without labels."""
        self.values: Counter[str] = Counter()
        self.other: dict[int, Counter[str]] = {-1: Counter(), 0: Counter(), 1: Counter()}
        self.used: set[Rule] = set()
        self.lowest, self.highest = float("inf"), float("-inf")
        self.not_numbers = 0

    def count(self, value: object, other: int | None) -> None:
        """Count a label value; `other` says what it means if no list names it."""
        for counts in (self.values, *([] if other is None else [self.other[other]])):
            if len(counts) < _MAX_VALUES:
                counts[word(value)] += 1

    def count_score(self, value: object) -> None:
        """Count a value that a threshold is compared with.

        Raises:
            UnusableError: it is not a number.
        """
        try:
            score = number(value)
        except UnusableError:
            self.not_numbers += 1
            raise
        self.lowest, self.highest = min(self.lowest, score), max(self.highest, score)

    def _scores(self) -> str:
        """The scores that were found, in words."""
        bad = f"{self.not_numbers} x not a number" if self.not_numbers else ""
        span = f"from {self.lowest:g} to {self.highest:g}" if self.lowest <= self.highest else ""
        return f"the scores are {', '.join(filter(None, [span, bad])) or 'missing'}"

    def notes(
        self, harmful: Sequence[str], harmless: Sequence[str], data_name: str
    ) -> Iterator[str]:
        """What a reader of the data should know about the label values that were typed.

        Raises:
            DataError: the values of one option hold for no text.
        """
        for option, texts in (("harmful", harmful), ("harmless", harmless)):
            unused = [rule for rule in rules(texts) if rule not in self.used]
            names = ", ".join(ascii(rule.typed) for rule in unused)
            if unused and len(unused) == len(texts):
                if all(rule.operator for rule in unused):
                    raise DataError(
                        f"{data_name}: {option}: no score is {names}: {self._scores()}: give a "
                        "threshold between them"
                    )
                near = nearest(unused[0].typed, self.values) if _can_be_shown(self.values) else ""
                raise DataError(
                    f"{data_name}: {option}: no label is {names}: the labels are "
                    f"{listed(self.values)}{near}"
                )
            if unused:
                yield f"{data_name}: {option}: no label is {names}"
        for label, what in (
            (-1, "labels in neither list leave their texts out"),
            (0, "all other labels count as harmless"),
            (1, "all other labels count as harmful"),
        ):
            if self.other[label]:
                yield f"{data_name}: {what}: {listed(self.other[label])}"


def listed(values: Counter[str]) -> str:
    """Values with their counts in one line; only how many they are if they may be texts."""
    return counted(values) if _can_be_shown(values) else f"{len(values)} different ones"


def counted(values: Counter[str]) -> str:
    """Values with their counts in one line."""
    return ", ".join(f"{v!a} ({n})" for v, n in sorted(values.items())) or "none"


def _can_be_shown(values: Counter[str]) -> bool:
    """Whether they are labels: short words, few, and repeated, as texts are not."""
    if len(values) == 1 and all(map(_is_usual_label, values)):
        return True
    repeat = values.total() > 2 * len(values) or not values
    return repeat and len(values) <= 12 and all(map(_is_word, values))
