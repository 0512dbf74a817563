"""What a person sees: progress bars and news on stderr, results on stdout."""

import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import SafetySpaceError, first_line

if TYPE_CHECKING:
    from .api import Bench, DataSummary, Event, ModelDone, Report, Verification
    from .info import Environment
    from .sweep import RunForecast, Truth
    from .sweep.hardware import Cluster, Estimate


def warn(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line; takes the place of `warnings.showwarning`."""
    print(f"safetyspace-fast: warning: {message}", file=sys.stderr)


def unforeseen(error: Exception) -> str:
    """Write the traceback of an error that nobody foresaw to a file; returns a line that names it.

    The file is in the folder for temporary files.
    """
    said = f"{type(error).__name__}: {first_line(error)[:200]}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="safetyspace-fast-", suffix=".log", encoding="utf-8", delete=False
        ) as log:
            log.write("".join(traceback.format_exception(error)))
    except OSError as reason:
        log_name = f"cannot be written ({reason.strerror})"
    else:
        log_name = f"is in {log.name}"
    line = (
        f"unforeseen error: {said}; the traceback {log_name}; please report it with that file and "
        "what `safetyspace-fast info` prints"
    )
    return str(SafetySpaceError(line))  # without what no terminal should get


def say(line: str) -> None:
    """Print a line on stderr, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


class RunDisplay:
    """Shows the events of a run on stderr: one progress bar a model, and lines for notes."""

    def __init__(self) -> None:
        """Start without a bar."""
        self._bars: dict[str, Any] = {}  # by model; tqdm has no types
        self._tokens: dict[str, int] = {}

    def __enter__(self) -> "RunDisplay":
        """Show nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bars."""
        for shown in self._bars.values():
            shown.close()

    def show(self, event: "Event") -> None:
        """Show one event."""
        from tqdm import tqdm

        from . import api

        if isinstance(event, api.Planned):
            resumed = f", {event.texts_done:,} done before" if event.texts_done else ""
            padding = event.padded_tokens / max(event.tokens, 1) - 1
            truncated = f", {event.truncated:,} cut to fit" if event.truncated else ""
            prefix = (
                f" after {event.prefix_tokens} shared tokens that run once"
                if event.prefix_tokens
                else ""
            )
            say(
                f"{event.model}: {event.texts:,} texts ({event.unique_texts:,} distinct{resumed}"
                f"{truncated}), {event.tokens:,} tokens{prefix} (+{padding:.1%} padding) in "
                f"{event.batches:,} batches; {event.hookpoints} hookpoints x {event.hidden_size} "
                f"dimensions; up to {size(event.segment_bytes)} of temporary files"
            )
            self._bars[event.model] = tqdm(
                total=event.texts,
                initial=event.texts_done,
                unit="text",
                desc=event.model,
                file=sys.stderr,
                mininterval=0.5,
                smoothing=0.1,
                dynamic_ncols=True,
                disable=None,
            )
            self._tokens[event.model] = 0
        elif isinstance(event, api.Progressed):
            # Of several workers, one may tell its last batch after another has merged the model.
            if (shown := self._bars.get(event.model)) is None:
                return
            self._tokens[event.model] += event.tokens
            shown.update(event.texts)
            if elapsed := shown.format_dict["elapsed"]:
                rate = f"{self._tokens[event.model] / elapsed:,.0f} tokens/s"
                shown.set_postfix_str(rate, refresh=False)
        elif isinstance(event, api.ModelDone) and event.model in self._bars:
            self._bars.pop(event.model).close()
        elif isinstance(event, api.Verified):
            say(f"{event.model}: {verdict_line(event.verification)}")
        elif isinstance(event, api.Note):
            say(f"{event.model}: {event.message}" if event.model else event.message)


class SweepDisplay:
    """Shows a sweep on stderr: a table of its runs that is redrawn, or plain lines in a file."""

    REDRAWN_EVERY_S = 0.2

    def __init__(self, runs: Sequence[tuple[str, str]]) -> None:
        """Show nothing yet.

        Args:
            runs: the model and the store of each run, in order.
        """
        self.failed: dict[tuple[str, str], str] = {}
        """Why runs failed, by model and store."""
        self._runs = list(runs)
        self._states = ["waiting"] * len(runs)
        self._details = [""] * len(runs)
        self._texts: dict[int, list[int]] = {}  # done and all, of a run
        self._live = sys.stderr.isatty()
        self._lines = 0  # of the table on the screen
        self._drawn = 0.0

    def show(self, event: "Event") -> None:
        """Show one event."""
        from . import api
        from .sweep import RunBegun, RunEnded

        if isinstance(event, api.Note):
            self._say(f"{event.model}: {event.message}" if event.model else event.message)
            return
        if isinstance(event, api.Verified):
            self._say(f"{event.model}: {verdict_line(event.verification)}")
            return
        row = self._runs.index((event.model, event.out))
        if isinstance(event, RunBegun):
            self._set(row, "running", "loads")
        elif isinstance(event, RunEnded) and event.error is not None:
            self.failed[event.model, event.out] = reason(event.error)
            self._set(row, "failed", self.failed[event.model, event.out])
        elif isinstance(event, RunEnded | api.ModelDone):
            self._set(row, "done", "")
        elif isinstance(event, api.Planned):
            self._texts[row] = [event.texts_done, event.texts]
            self._set(row, "running", f"{event.texts:,} texts, {event.tokens:,} tokens")
        elif isinstance(event, api.Progressed) and self._states[row] == "running":
            texts = self._texts[row]  # a worker may tell its last batch when all is done
            texts[0] += event.texts
            self._details[row] = f"{texts[0]:,} of {texts[1]:,} texts"
            if self._live and time.monotonic() - self._drawn > self.REDRAWN_EVERY_S:
                self._draw()

    def _set(self, row: int, state: str, details: str) -> None:
        if (self._states[row], self._details[row]) == (state, details):
            return
        self._states[row], self._details[row] = state, details
        if self._live:
            self._draw()
        else:
            model, out = self._runs[row]
            behind = f": {details}" if details else ""
            print(
                f"[{row + 1}/{len(self._runs)}] {model} -> {out}: {state}{behind}", file=sys.stderr
            )

    def _say(self, line: str) -> None:
        self._erase()
        print(line, file=sys.stderr)
        if self._live:
            self._draw()

    def _erase(self) -> None:
        if self._lines:
            print(f"\x1b[{self._lines}A\x1b[J", end="", file=sys.stderr)
            self._lines = 0

    def _draw(self) -> None:
        """Write the table over the last one; rows are cut, as a broken line could not be erased."""
        self._erase()
        columns, screen = shutil.get_terminal_size()
        counts = [f"{self._states.count(state)} {state}" for state in SWEEP_STATES]
        lines = [", ".join(counts), *self._rows(max(1, screen - 3))]
        print(*(line[: columns - 1] for line in lines), sep="\n", file=sys.stderr, flush=True)
        self._lines, self._drawn = len(lines), time.monotonic()

    def _rows(self, most: int) -> list[str]:
        """The rows, those that wait or are done left out first if there are too many."""
        order = ("running", "failed", "waiting", "done")
        rows = range(len(self._runs))
        kept = sorted(sorted(rows, key=lambda row: order.index(self._states[row]))[:most])
        width = max(len(model) for model, _ in self._runs)
        store = max(len(out) for _, out in self._runs)
        return [
            f"  {self._states[row]:8} {self._runs[row][0]:{width}}  {self._runs[row][1]:{store}}  "
            f"{self._details[row]}"
            for row in kept
        ]


def show_forecast(forecasts: "Sequence[RunForecast]") -> None:
    """Print a row for each run of a sweep, and their sum."""
    rows: list[tuple[str, ...]] = [
        ("model", "store", "parameters", "texts", "tokens", "time", "disk")
    ]
    for run in forecasts:
        if run.why is not None:
            print(f"{run.model}: no estimate: {run.why}")
            continue
        counts = (run.parameters, run.texts, run.tokens)
        numbers = ("-" if count is None else f"{count:,}" for count in counts)
        took = (duration(run.seconds), size(run.store_bytes or 0))
        rows.append((run.model, run.out, *numbers, *took))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left, right = row[:2], row[2:]
        cells = [f"{cell:{n}}" for cell, n in zip(left, widths, strict=False)]
        cells += [f"{cell:>{n}}" for cell, n in zip(right, widths[2:], strict=True)]
        print("  ".join(cells))
    print(forecast_line(forecasts))


def forecast_line(forecasts: "Sequence[RunForecast]", where: str = "") -> str:
    """One line: what a sweep will take; `where` follows the time."""
    seconds = [run.seconds for run in forecasts if run.why is None]
    disk = sum(run.store_bytes or 0 for run in forecasts)
    without = len(forecasts) - len(seconds)
    missing = f"; no estimate for {without} of them" if without else ""
    known = [s for s in seconds if s is not None]  # of several ranks one measures
    took = f"{duration(sum(known))}{where} and " if known and len(known) == len(seconds) else ""
    return f"{len(forecasts)} runs: about {took}{size(disk)} of disk{missing}"


def show_estimate(result: "Estimate", cluster: "Cluster") -> None:
    """Print what a sweep takes on a cluster, and what was assumed."""
    from .sweep.hardware import ASSUMPTIONS

    schedule = result.schedule
    print(f"hardware     {cluster.name}: {cluster.devices:,} devices")
    print(
        f"time         {duration(result.seconds)} ({duration(result.seconds_without_failures)} "
        "without failures)"
    )
    cost = f", {result.cost(cluster.price)}" if cluster.price else ""
    print(f"devices      {result.device_hours:,.1f} hours{cost}")
    print(f"read         {size(result.read_bytes)} of weights, by each device that needs them")
    print(f"written      {size(result.store_bytes)}")
    shares = ("useful", "loading", "writing", "lost", "away", "idle")
    print("their time   " + ", ".join(f"{getattr(schedule, s):.0%} {s}" for s in shares))
    print(f"bottleneck   {result.bottleneck}")
    for assumption in ASSUMPTIONS:
        print(f"assumed      {assumption}")


def show_sweep(
    forecasts: "Sequence[RunForecast]",
    truths: "Mapping[tuple[str, str], Truth]",
    failed: Mapping[tuple[str, str], str],
    where: str = "",
) -> None:
    """Print how a sweep ended: counts, estimate beside truth, failures, and what to type next.

    Args:
        forecasts: of all runs.
        truths, failed: by model and store.
        where: follows the time that was estimated, if that is not where the sweep has run.
    """
    took = [
        (run, truths[run.model, run.out]) for run in forecasts if (run.model, run.out) in truths
    ]
    before = len(forecasts) - len(truths) - len(failed)
    already = f", {before} complete already" if before else ""
    print(f"{len(truths)} runs done{already}, {len(failed)} failed")
    if timed := [(run.seconds, truth.seconds) for run, truth in took if run.seconds is not None]:
        expected_s, seconds = map(sum, zip(*timed, strict=True))
        by = "" if where else f" ({seconds / expected_s - 1:+.0%})"  # elsewhere: no error of it
        print(f"time: estimated {duration(expected_s)}{where}, took {duration(seconds)}{by}")
    if sized := [
        (run.store_bytes, t.store_bytes) for run, t in took if run.store_bytes is not None
    ]:
        expected, disk = map(sum, zip(*sized, strict=True))
        print(f"disk: estimated {size(expected)}, wrote {size(disk)} ({disk / expected - 1:+.0%})")
    for (model, out), why in failed.items():
        print(f"failed: {model} -> {out}: {why}")
    for out in dict.fromkeys(run.out for run in forecasts if (run.model, run.out) not in failed):
        print(f"next:  safetyspace-fast separation {out}")


def duration(seconds: float | None) -> str:
    """A time in words of its size; `-`: not known."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours / 24:.1f} days"


SWEEP_STATES = ("done", "running", "failed", "waiting")


def reason(error: Exception) -> str:
    """An error in one line; of one that nobody foresaw, the traceback goes to a file."""
    return str(error) if isinstance(error, SafetySpaceError) else unforeseen(error)


@contextmanager
def bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; call what this yields with the steps done and their total."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, file=sys.stderr, disable=None, leave=False) as tqdm_bar:

        def show(done: int, total: int) -> None:
            tqdm_bar.total = total
            tqdm_bar.update(done - tqdm_bar.n)

        yield show


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for one stage after the other: what is done, its steps, and all."""
    from tqdm import tqdm

    with tqdm(unit="step", file=sys.stderr, disable=None, leave=False) as tqdm_bar:

        def show(what: str, done: int, total: int) -> None:
            tqdm_bar.set_description(what, refresh=False)
            tqdm_bar.total = total
            tqdm_bar.n = done
            tqdm_bar.refresh()

        yield show


def show_done(done: Iterable["ModelDone"], out: object) -> None:
    """Print a line for every model, the store, and what to type next."""
    for event in done:
        seconds = event.forward_seconds + event.finish_seconds
        print(
            f"{event.model}: {event.texts:,} texts, {event.tokens:,} tokens in {seconds:.1f} s "
            f"({event.tokens / max(event.forward_seconds, 1e-9):,.0f} tokens/s)"
        )
    print(f"store: {out}")
    print(f"next:  safetyspace-fast separation {out}")


def verdict_line(verification: "Verification") -> str:
    """One line: the verdict, and how many cells have each."""
    cells: dict[str, int] = {}
    for cell in verification.cells:
        cells[cell.verdict] = cells.get(cell.verdict, 0) + 1
    counts = ", ".join(f"{number} {verdict}" for verdict, number in cells.items())
    n_odd = len(verification.odd_tokens)
    odd = f"; tokens of {n_odd} texts differ" if n_odd else ""
    return (
        f"{verification.verdict}: {counts}{odd} ({verification.texts} texts, template "
        f"{verification.template}; engine in {verification.dtype} against transformers in "
        f"{verification.exact_dtype})"
    )


def show_verification(verification: "Verification") -> None:
    """Print the verdict, then a line for every hookpoint and pooling."""
    print(f"{verification.model}: {verdict_line(verification)}")
    print(f"{'hookpoint':12} {'pooling':10} {'error':>9} {'rounding':>9}  verdict")
    for cell in verification.cells:
        error, rounding = (
            f"{'-' if value is None else format(value, '.1e'):>9}"
            for value in (cell.error, cell.rounding)
        )
        print(f"{cell.hookpoint:12} {cell.pooling:10} {error} {rounding}  {cell.verdict}")


def show_bench(bench: "Bench") -> None:
    """Print both times, their ratio, and how long all texts will take."""
    rate = bench.share_of_matrix_rate
    share = f", {rate:.0%} of its matrix products' own rate" if rate is not None else ""
    print(
        f"{bench.model}: {bench.texts:,} texts, template {bench.template}, {bench.dtype} on "
        f"{bench.device}\n"
        f"output_hidden_states  {bench.usual_s:8.2f} s {bench.texts / bench.usual_s:9.1f} texts/s\n"
        f"safetyspace-fast      {bench.ours_s:8.2f} s {bench.texts / bench.ours_s:9.1f} texts/s  "
        f"{bench.ratio:.2f}x as fast, {bench.tokens / bench.ours_s:,.0f} tokens/s{share}\n"
        f"all {bench.all_texts:,} texts ({bench.all_tokens:,} tokens) would take about "
        f"{bench.all_s:,.0f} s of forward passes"
    )


def show_data(summary: "DataSummary") -> None:
    """Print what would be read of a data set: a row a language, then what else there is to say."""
    print(f"{summary.name}: {summary.texts:,} texts, sha256 {summary.sha256}")
    heads = ("harmful", "harmless", "pairs", "copies", "harmful characters", "harmless characters")
    rows: list[tuple[str, ...]] = [("language", *heads)]
    for lang in summary.languages:
        counts = (lang.harmful, lang.harmless, lang.pairs, lang.copies)
        lengths = (
            f"{chars.shortest:,} / {chars.median:,} / {chars.longest:,}"
            for chars in (lang.harmful_chars, lang.harmless_chars)
        )
        rows.append((lang.lang, *(f"{count:,}" for count in counts), *lengths))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{row[0]:{widths[0]}}"]
        cells += [f"{cell:>{n}}" for cell, n in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells))
    print(
        "characters: shortest / median / longest; copies: texts that repeat one of the same label"
    )
    if summary.left_out:
        print(f"left out: {sum(summary.left_out.values()):,} texts")
        for reason, count in summary.left_out.items():
            print(f"  {count:,} x {reason}")
    for note in summary.notes:
        print(f"note: {note}")


def show_check(report: "Report") -> None:
    """Print how far every model is, then every damaged file."""
    for name in report.complete:
        print(f"{name}: complete")
    for name, state in report.incomplete.items():
        print(f"{name}: not complete: {state}")
    for damage in report.damage:
        print(f"{damage.file}: {damage.reason}")


def show_environment(facts: "Environment") -> None:
    """Print versions, devices, the build, and which kernels can be used."""
    for name, version in facts["versions"].items():
        print(f"{name:18} {version or 'not installed'}")
    print(f"{'python':18} {facts['python']} on {facts['system']}")
    print(f"{'threads':18} {facts['threads']} ({facts['cpu_capability']})")
    for device in facts["cuda_devices"]:
        about = f"compute capability {device['capability']}, {size(device['memory_bytes'])}"
        print(f"{'gpu':18} {device['name']}, {about}")
    if facts["no_cuda"] is not None:
        print(f"{'gpu':18} none: {facts['no_cuda']}")
    for key, value in (
        facts["build"] or {"build": "not recorded (run from a source tree)"}
    ).items():
        print(f"{key:18} {value}")
    for op, implementations in facts["implementations"].items():
        print(f"\n{op}")
        for name, reasons in implementations.items():
            print(f"  {name:16} {'; '.join(reasons) or 'usable'}")
    fused = "this package's fused kernels" if facts["fused_layers"] else "torch's own"
    print(f"\nlinear layers, gates and norms of float32 models on the CPU: {fused}")


def size(n_bytes: int) -> str:
    """A size in three digits with its unit."""
    power = min(len(str(n_bytes)) - 1, 14) // 3
    return f"{n_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
