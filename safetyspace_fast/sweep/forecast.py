"""Time and disk of a sweep on this machine: before it starts, and beside the truth afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import RunConfig
from ..errors import SafetySpaceError, StoreError, first_line
from ..extract import Event, Note
from ..extract.loop import finishes_beside
from ..models import parse_model
from ..models.device import find_device
from ..store import Place, Run
from .events import RunBegun, RunEnded
from .shared import SharedWork
from .trial import Rates, measure_rates
from .work import Work, count_work


@dataclass(frozen=True)
class RunForecast:
    """What one run will take here.

    seconds, store_bytes: None where nothing can be said.
    why: the reason for that.
    """

    model: str
    out: str
    texts: int
    tokens: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    store_bytes: int | None = None
    why: str | None = None
    work: Work | None = None

    def record(self) -> dict[str, object]:
        """All but `work`, for JSON."""
        return {key: value for key, value in vars(self).items() if key != "work"}


@dataclass(frozen=True)
class Truth:
    """What one run took."""

    seconds: float
    store_bytes: int


def forecast(
    configs: Sequence[RunConfig],
    shared: SharedWork,
    *,
    timed: bool = True,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[RunForecast]:
    """What each run of a sweep will take, from a trial of each shape of model on this machine.

    Args:
        configs: the runs.
        shared: holds their data.
        timed: also say how long, from a trial of about a second for each shape of model.
        on_step: called with what is being measured.
    """
    forecasts: list[RunForecast] = []
    rates: dict[object, Rates] = {}
    for i, config in enumerate(configs):
        name, out = parse_model(*config.models).name, str(config.out)
        texts = len(shared.samples(config))
        earlier = [other for other in configs[:i] if other.out == config.out]
        if name in _complete(out):
            forecasts.append(RunForecast(name, out, texts, seconds=0.0, store_bytes=0))
            continue
        try:
            work = count_work(
                config,
                shared,
                bases=len(earlier),
                reloads=not i or configs[i - 1].models != config.models,
            )
            seconds = None
            if timed:
                shape = (work.shape, config.dtype, config.device, config.compile, config.impl)
                if shape not in rates:
                    on_step(f"{name}: a trial with a few blocks and random weights")
                    rates[shape] = measure_rates(work, shared.samples(config))
                seconds = seconds_of(work, rates[shape])
            forecasts.append(
                RunForecast(
                    name,
                    out,
                    texts,
                    work.tokens,
                    work.shape.parameters,
                    seconds,
                    work.store_bytes,
                    work=work,
                )
            )
        except Exception as error:  # the run itself will stop with it, alone
            why = str(error) if isinstance(error, SafetySpaceError) else first_line(error)
            forecasts.append(RunForecast(name, out, texts, why=why))
    return forecasts


def _complete(out: str) -> tuple[str, ...]:
    """The models that a store has already; none if there is no store."""
    try:
        return Run(out).models
    except StoreError:
        return ()


def seconds_of(work: Work, rates: Rates) -> float:
    """What a run takes with these rates."""
    load_s = rates.start_s + work.shape.weight_bytes / rates.bytes_per_s
    once_s = work.reloads * load_s + rates.writing.once_s(work)
    forward_s = work.flops / rates.flops
    language_s = [rates.language_s(work.cells, n) for n in work.texts]
    if finishes_beside(find_device(work.config.device)):  # all but the last language
        return once_s + max(forward_s, sum(language_s[:-1])) + language_s[-1]
    return once_s + forward_s + sum(language_s)


class Truths:
    """Collects what runs took from the events of a sweep."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start with nothing; `clock` gives seconds."""
        self._clock = clock
        self._since = 0.0
        self._spent: dict[tuple[str, str], float] = {}
        self._run_here: set[tuple[str, str]] = set()
        self.of_run: dict[tuple[str, str], Truth] = {}
        """By model and store; without runs that failed or had been complete before.

        Runs at the same time share the seconds that pass, so that their sum is that of the sweep.
        """

    def add(self, event: Event) -> None:
        """Take the next event."""
        run = event.model, event.out
        if isinstance(event, RunBegun | RunEnded):
            now = self._clock()
            for other in self._spent:
                self._spent[other] += (now - self._since) / len(self._spent)
            self._since = now
        if isinstance(event, RunBegun):
            self._spent[run] = 0.0
        elif isinstance(event, RunEnded):
            seconds = self._spent.pop(run, 0.0)
            if event.error is None and run in self._run_here:
                self.of_run[run] = Truth(seconds, written_bytes(*run))
        elif event.model and not isinstance(event, Note):
            self._run_here.add(run)


def written_bytes(model: str, out: str) -> int:
    """Bytes of a model's arrays in a store; 0 in an object store, where they are not counted."""
    path = Place(out).path
    if path is None:
        return 0
    folder: Path = path / "models" / model
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
