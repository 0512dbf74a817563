"""Events: what a run reports while it runs."""

from dataclasses import dataclass, field

VERDICTS = ("supported", "unchecked", "degraded", "wrong")
"""From good to bad."""


@dataclass(frozen=True)
class Event:
    """Base of all events.

    model: its name in the store; empty: all models.
    out: the store, if a sweep has several runs; else empty.
    """

    model: str
    out: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class CellCheck:
    """The comparison with transformers for one hookpoint and pooling.

    error: largest relative error of this package's states over the texts.
    rounding: the same of transformers itself in the working dtype, plus float32's rounding.
    verdict: one of `VERDICTS`; `verification` says what separates them.

    A number is None where it is not finite; both are None where transformers has no such state.
    """

    hookpoint: str
    pooling: str
    error: float | None
    rounding: float | None
    verdict: str


@dataclass(frozen=True)
class Verification:
    """The comparison with transformers for one model.

    odd_tokens: the samples, as indices, whose token ids or spans differ from transformers'.
    """

    model: str
    texts: int
    template: str
    dtype: str
    exact_dtype: str
    odd_tokens: tuple[int, ...]
    cells: tuple[CellCheck, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict of all cells; `wrong` if the tokens of a text differ."""
        if self.odd_tokens:
            return "wrong"
        return max((cell.verdict for cell in self.cells), key=VERDICTS.index)

    @property
    def problem(self) -> str | None:
        """What is wrong, in one line; None: nothing is."""
        if self.verdict != "wrong":
            return None
        problems = []
        if self.odd_tokens:
            problems.append(f"the tokens of {len(self.odd_tokens)} of {self.texts} texts")
        wrong = dict.fromkeys(c.hookpoint for c in self.cells if c.verdict == "wrong")
        if wrong:
            problems.append(f"{len(wrong)} hookpoints (first: {next(iter(wrong))})")
        return (
            f"{self.model}: differs from transformers in {' and '.join(problems)}; do not use its "
            "numbers, and please report the model"
        )


@dataclass(frozen=True)
class Verified(Event):
    """A few texts were compared with transformers' own hidden states, and nothing was wrong."""

    verification: Verification


@dataclass(frozen=True)
class Planned(Event):
    """The model is loaded and its batches are planned; no batch has run yet."""

    hookpoints: int
    hidden_size: int
    texts: int
    unique_texts: int
    texts_done: int
    """Done already, by an earlier run that was interrupted."""
    prefix_tokens: int
    """Tokens that all prompts share; they run once."""
    tokens: int
    """Tokens of all different texts, without the shared ones and without padding."""
    padded_tokens: int
    batches: int
    truncated: int
    segment_bytes: int
    """Largest size on disk of the pooled states that wait for their language to be complete."""


@dataclass(frozen=True)
class Progressed(Event):
    """A batch has run."""

    texts: int
    tokens: int
    """Real tokens, without padding."""


@dataclass(frozen=True)
class LanguageDone(Event):
    """All arrays of one language are computed and written."""

    lang: str
    seconds: float


@dataclass(frozen=True)
class Note(Event):
    """A message for the user; a run gives each once."""

    message: str


@dataclass(frozen=True)
class ModelDone(Event):
    """The model is complete in the store."""

    texts: int
    tokens: int
    """Run in `forward_seconds`; a resumed run runs fewer than the texts have."""
    forward_seconds: float
    finish_seconds: float
    peak_device_bytes: int | None
