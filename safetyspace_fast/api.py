"""What other front ends call: typed requests, events and results."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .analysis import compare, directions, parallel, separation
from .bench import Bench, bench_model
from .config import RunConfig
from .data import Samples, read_samples
from .errors import ConfigError
from .extract import (
    Event,
    LanguageDone,
    ModelDone,
    Note,
    Planned,
    Progressed,
    Verification,
    Verified,
)
from .models import load_model, parse_model
from .runner import run_models
from .store import Report, Run, check
from .store import save_results as store_results
from .verify import verify_model

if TYPE_CHECKING:
    import xarray

API_VERSION = 1
"""Grows when a name of this module changes its meaning."""

__all__ = [
    "API_VERSION",
    "Bench",
    "Event",
    "LanguageDone",
    "ModelDone",
    "Note",
    "Planned",
    "Progressed",
    "Report",
    "Run",
    "RunConfig",
    "Verification",
    "Verified",
    "bench",
    "check",
    "compare",
    "directions",
    "iter_run",
    "open_run",
    "parallel",
    "run",
    "save_results",
    "separation",
    "verify",
]


def run(config: RunConfig, on_event: Callable[[Event], None] | None = None) -> Run:
    """Run every model over the data and return the finished store.

    Args:
        config: what to run.
        on_event: called with every event, in order.

    Raises:
        SafetySpaceError: a clear reason; what was written before it is kept for `resume`.
    """
    for event in iter_run(config):
        if on_event is not None:
            on_event(event)
    return open_run(config.out)


def iter_run(config: RunConfig) -> Generator[Event, None, None]:
    """The same as `run`, event by event; closing the iterator stops cleanly, to be resumed."""
    return run_models(config)


def open_run(path: str | Path) -> Run:
    """Open a store, lazily and read-only.

    Raises:
        StoreError: no store is there, or its format is newer than this package.
    """
    return Run(path)


def save_results(run: Run, results: "xarray.Dataset") -> None:
    """Keep what `separation` returned in the store, in place of what is there of these models.

    Raises:
        StoreError: the store cannot be written to, or is an object store.
    """
    store_results(run.place, results)


def verify(
    model: str,
    data: str,
    *,
    samples: int = 32,
    languages: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Verification:
    """Hold the engine against transformers' own `output_hidden_states` on a few texts.

    Args:
        model: `[NAME=]BASE[+ADAPTER]`.
        data: data file, directory, hub id or `sample:polite`.
        samples: how many texts, taken evenly over languages and lengths.
        languages: only these.
        progress: called with the texts done and their number, over all passes.
        options: `layers`, `poolings`, `template`, `device`, `dtype` and others of
            `verify.verify_model`.

    Raises:
        SafetySpaceError: the model or the data cannot be read. What is found wrong is no error
            here: see `Verification.verdict`.
    """
    texts = _texts_for(data, samples, languages)
    return verify_model(parse_model(model), texts, num_texts=samples, progress=progress, **options)


def bench(
    model: str,
    data: str,
    *,
    samples: int = 128,
    languages: Sequence[str] | None = None,
    template: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    **loading: Any,
) -> Bench:
    """Time the engine on a few of the texts, beside `output_hidden_states` in padded batches.

    Args:
        model: `[NAME=]BASE[+ADAPTER]`.
        data: data file, directory, hub id or `sample:polite`.
        samples: how many texts, taken evenly over languages and lengths.
        languages: only these.
        template: as in a run.
        progress: called with the steps done and their number.
        loading: `device`, `dtype` and others of `models.load_model`.

    Raises:
        SafetySpaceError: the model or the data cannot be read.
    """
    texts = _texts_for(data, samples, languages)
    loaded = load_model(parse_model(model), **({"device": "auto"} | loading))
    return bench_model(loaded, texts, num_texts=samples, template=template, progress=progress)


def _texts_for(data: str, number: int, languages: Sequence[str] | None) -> Samples:
    if number < 1:
        raise ConfigError(f"samples: got {number}, expected at least 1")
    return read_samples(data, languages=tuple(languages) if languages is not None else None)
