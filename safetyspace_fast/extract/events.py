"""What a run tells its caller while it runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verify import Verification


@dataclass(frozen=True)
class Event:
    """Base of all events; `model` is the model's name in the store."""

    model: str


@dataclass(frozen=True)
class Verified(Event):
    """A sample was held against transformers' own hidden states, and nothing was wrong."""

    verification: "Verification"


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
