"""What a sweep reports beside the events of its runs."""

from dataclasses import dataclass

from ..extract import Event


@dataclass(frozen=True)
class RunBegun(Event):
    """The run of one model over one data set begins; events of the model that follow are its."""

    out: str
    """The store."""


@dataclass(frozen=True)
class RunEnded(Event):
    """The run has ended, and the sweep goes on."""

    out: str
    error: Exception | None
    """Why it failed; None: the model is complete in the store."""
