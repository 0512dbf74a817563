"""What other front ends call: typed requests, events and results."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, overload

from .analysis import compare, curve, directions, parallel, power, sensitivity, separation, transfer
from .benchmark import Bench, bench_model
from .config import (
    Data,
    DataFields,
    DType,
    Implementation,
    Pooling,
    RunConfig,
    RunFields,
    TemplateMode,
    layers_of,
    names_of,
)
from .data import DataSummary, Samples, describe, read_samples
from .errors import ConfigError, SafetySpaceError
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
from .models import device_errors, load_model, parse_model
from .runner import run_models
from .store import Report, Run, check
from .store import save_results as store_results
from .tensor_parallel import run_ranks
from .verification import verify_model

if TYPE_CHECKING:
    import xarray

API_VERSION = 1
"""Grows when a name of this module changes its meaning."""

__all__ = [
    "API_VERSION",
    "Bench",
    "DataSummary",
    "Event",
    "LanguageDone",
    "ModelDone",
    "Note",
    "Planned",
    "Progressed",
    "Report",
    "Run",
    "RunConfig",
    "SafetySpaceError",
    "Verification",
    "Verified",
    "bench",
    "check",
    "compare",
    "curve",
    "describe_data",
    "directions",
    "iter_run",
    "open_run",
    "parallel",
    "power",
    "run",
    "save_results",
    "sensitivity",
    "separation",
    "transfer",
    "verify",
]

_AGAIN = "repeat the command, on another --device if need be"


@overload
def run(config: RunConfig, *, on_event: Callable[[Event], None] | None = None) -> Run: ...


@overload
def run(*, on_event: Callable[[Event], None] | None = None, **fields: Unpack[RunFields]) -> Run: ...


def run(
    config: RunConfig | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
    **fields: object,
) -> Run:
    """Run every model over the data, and return the finished store.

    Args:
        config: what to run; or give its fields: `run(models="gpt2", data="texts.jsonl",
            out="run.zarr")`.
        on_event: called with every event, in order.
        fields: of `RunConfig`.

    Raises:
        SafetySpaceError: the reason, in one line. Finished work is kept: run again with
            `resume=True`.
    """
    config = _config(config, fields)
    with closing(iter_run(config)) as events:  # also if `on_event` raises
        for event in events:
            if on_event is not None:
                on_event(event)
    return open_run(config.out)


@overload
def iter_run(config: RunConfig) -> Generator[Event, None, None]: ...


@overload
def iter_run(**fields: Unpack[RunFields]) -> Generator[Event, None, None]: ...


def iter_run(config: RunConfig | None = None, **fields: object) -> Generator[Event, None, None]:
    """The same as `run`, one event after the other.

    Closing the iterator stops the run; run again with `resume=True` to go on.
    """
    config = _config(config, fields)
    return run_ranks(config) if config.tensor_parallel > 1 else run_models(config)


def _config(config: RunConfig | None, fields: dict[str, object]) -> RunConfig:
    if config is None:
        missing = {"models", "data", "out"} - fields.keys()
        if missing:
            raise ConfigError(f"run: {', '.join(sorted(missing))} missing")
        if unknown := fields.keys() - RunConfig.__dataclass_fields__.keys():
            raise ConfigError(f"run: no argument {', '.join(sorted(unknown))}; see `RunConfig`")
        return RunConfig(**fields)  # type: ignore[arg-type]  # the overloads have the types
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"run: got {type(config).__name__}, expected a RunConfig, or its fields by name"
        )
    if fields:
        raise ConfigError(
            f"run: got a config and {', '.join(sorted(fields))}; give one or the other"
        )
    return config


def open_run(path: str | Path) -> Run:
    """Open a store for reading; arrays are read when they are used.

    Raises:
        StoreError: there is no store, or a newer version of this package wrote it.
    """
    return Run(path)


def save_results(run: Run, results: "xarray.Dataset") -> None:
    """Keep what `separation` returned in the store, in place of earlier results of these models.

    Raises:
        StoreError: the store cannot be written to, or is an object store.
    """
    store_results(run.place, results)


def describe_data(data: Data, **reading: Unpack[DataFields]) -> DataSummary:
    """Read data as a run would, and sum up what is read in counts, without a model.

    Args:
        data: as in `RunConfig`.
        on_note: called with notes of one line on the data and the model.
        reading: how the data are read, as in `RunConfig`: `text_column`, `languages` and others.

    Raises:
        SafetySpaceError: the data cannot be used.
    """
    notes: list[str] = []
    samples = read_samples(data, on_note=notes.append, **reading)
    return describe(samples, tuple(notes))


def verify(
    model: str | Path,
    data: Data,
    *,
    samples: int = 32,
    layers: str | Sequence[str] = "all",
    poolings: Sequence[Pooling] = ("mean", "last"),
    template: TemplateMode = "auto",
    device: str = "auto",
    dtype: DType = "auto",
    max_tokens: int | None = None,
    impl: Implementation = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    **reading: Unpack[DataFields],
) -> Verification:
    """Compare the engine's states of a few texts with transformers' `output_hidden_states`.

    Args:
        model: `[NAME=]BASE[+ADAPTER]...`.
        data: as in `RunConfig`.
        samples: how many texts, spread evenly over languages and lengths.
        layers, poolings, template, device, dtype, max_tokens, impl, allow_pickle,
            trust_remote_code: as in `RunConfig`.
        progress: called with the number of texts done and their total, over all passes.
        on_note: called with notes of one line on the data and the model.
        reading: how the data are read, as in `RunConfig`: `text_column`, `languages` and others.

    Raises:
        SafetySpaceError: the model or the data cannot be read. A wrong state raises nothing: see
            `Verification.verdict`.
    """
    spec = parse_model(model)
    with device_errors(spec.name, _AGAIN):
        return verify_model(
            spec,
            _texts_for(data, samples, reading, on_note),
            num_texts=samples,
            layers=layers_of(layers),
            poolings=names_of("poolings", poolings),
            template=template,
            device=device,
            dtype=dtype,
            max_tokens=max_tokens,
            impl=None if impl == "auto" else impl,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            progress=progress,
            on_note=on_note,
        )


def bench(
    model: str | Path,
    data: Data,
    *,
    samples: int = 128,
    template: TemplateMode = "auto",
    device: str = "auto",
    dtype: DType = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    **reading: Unpack[DataFields],
) -> Bench:
    """Time the engine on a few texts, in turn with `output_hidden_states` in padded batches.

    Args:
        model: `[NAME=]BASE[+ADAPTER]...`.
        data: as in `RunConfig`.
        samples: how many texts, spread evenly over languages and lengths.
        template, device, dtype, allow_pickle, trust_remote_code: as in `RunConfig`.
        progress: called with the number of rounds done and their total.
        on_note: called with notes of one line on the data and the model.
        reading: how the data are read, as in `RunConfig`: `text_column`, `languages` and others.

    Raises:
        SafetySpaceError: the model or the data cannot be read.
    """
    texts = _texts_for(data, samples, reading, on_note)
    spec = parse_model(model)
    with device_errors(spec.name, _AGAIN):
        loaded = load_model(
            spec,
            device=device,
            dtype=dtype,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            on_note=on_note,
        )
        return bench_model(loaded, texts, num_texts=samples, template=template, progress=progress)


def _texts_for(
    data: Data, number: int, reading: DataFields, on_note: Callable[[str], None] | None
) -> Samples:
    if not isinstance(number, int) or number < 1:
        raise ConfigError(f"samples: got {number!r}, expected a whole number from 1 on")
    return read_samples(data, on_note=on_note, **reading)
