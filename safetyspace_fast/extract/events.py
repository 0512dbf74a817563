"""What a run tells its caller while it runs."""

from dataclasses import dataclass

VERDICTS = ("supported", "unchecked", "degraded", "wrong")
"""From good to bad."""


@dataclass(frozen=True)
class Event:
    """Base of all events; `model` is the model's name in the store."""

    model: str


@dataclass(frozen=True)
class CellCheck:
    """One hookpoint and pooling.

    error: of the engine, relative, the largest over the texts.
    rounding: of transformers itself in the working dtype, and of float32, in the same measure.
    Both are None where transformers gives no such state, either where it is not finite.
    """

    hookpoint: str
    pooling: str
    error: float | None
    rounding: float | None
    verdict: str


@dataclass(frozen=True)
class Verification:
    """What the comparison found for one model.

    odd_tokens: positions, among all samples, of texts whose token ids or spans differ.
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
        """The worst of all cells; other tokens than transformers' are wrong."""
        if self.odd_tokens:
            return "wrong"
        return max((cell.verdict for cell in self.cells), key=VERDICTS.index)

    @property
    def problem(self) -> str | None:
        """What is wrong, in one line, or None."""
        if self.verdict != "wrong":
            return None
        found = []
        if self.odd_tokens:
            found.append(f"the tokens of {len(self.odd_tokens)} of {self.texts} texts")
        wrong = dict.fromkeys(c.hookpoint for c in self.cells if c.verdict == "wrong")
        if wrong:
            found.append(f"{len(wrong)} hookpoints (first: {next(iter(wrong))})")
        return (
            f"{self.model}: not what transformers gives: {' and '.join(found)}; its numbers would "
            "be wrong, so do not use them; please report the model"
        )


@dataclass(frozen=True)
class Verified(Event):
    """A sample was held against transformers' own hidden states, and nothing was wrong."""

    verification: Verification


@dataclass(frozen=True)
class Planned(Event):
    """The model is loaded and the work is known; comes before the first forward pass."""

    hookpoints: int
    hidden_size: int
    texts: int
    unique_texts: int
    texts_done: int
    """Already in the store or its work folder, from an interrupted run."""
    prefix_tokens: int
    """Tokens that all prompts begin with and that run once."""
    tokens: int
    """What there is to run behind them, each different text once, without padding."""
    padded_tokens: int
    batches: int
    truncated: int
    segment_bytes: int
    """Largest size of the pooled states kept on disk at a time, until their language is done."""


@dataclass(frozen=True)
class Progressed(Event):
    """A batch went through the model."""

    texts: int
    tokens: int
    """Real tokens, without padding."""


@dataclass(frozen=True)
class LanguageDone(Event):
    """Everything about one language is in the store."""

    lang: str
    seconds: float


@dataclass(frozen=True)
class Note(Event):
    """Something a person should know; a run says the same thing once."""

    message: str


@dataclass(frozen=True)
class ModelDone(Event):
    """The model is complete in the store."""

    texts: int
    tokens: int
    """Run in `forward_seconds`; after a resume fewer than the model's texts have."""
    forward_seconds: float
    finish_seconds: float
    peak_device_bytes: int | None
