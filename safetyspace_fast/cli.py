"""The command line: parse, call the API, print. Progress on stderr, results on stdout."""

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import Any

from .config import (
    DTYPES,
    IMPLEMENTATIONS,
    MAX_RESAMPLES,
    MAX_SEED,
    POOLINGS,
    TEMPLATES,
    RunConfig,
    field_docs,
)
from .errors import ConfigError, SafetySpaceError, StoreError

RUN_EXAMPLES = """\
examples:
  safetyspace-fast run --model meta-llama/Llama-3.1-8B-Instruct \\
      --data textdetox/multilingual_toxicity_dataset --out llama.zarr
  safetyspace-fast run --model base=DIR/gemma --model aligned=DIR/gemma+DIR/adapter \\
      --data pairs.jsonl --template none --poolings last,mean --out pair.zarr
  safetyspace-fast run --model gpt2 --data sample:polite --out try.zarr

A data file has the columns text, label (1 harmful, 0 harmless), lang and, optionally, pair, as JSON
Lines, CSV, TSV or Parquet. An interrupted run keeps what it has; the same command with --resume
finishes it. With --resume a further model goes into the same store too, and so do further texts and
languages: give all the data, and only languages that changed are run.
"""

SEPARATION_EXAMPLES = """\
examples:
  safetyspace-fast separation run.zarr
  safetyspace-fast separation run.zarr --metric bhattacharyya_pc10 --layers=-1 --format csv
  safetyspace-fast separation run.zarr --format parquet -o separation.parquet
"""

COMPARE_EXAMPLES = """\
examples:
  safetyspace-fast compare pair.zarr --base base --aligned aligned --layers=-1
  safetyspace-fast compare study.zarr --preset hidden-space-of-safety
"""

LANGUAGES_EXAMPLES = """\
example:
  safetyspace-fast languages run.zarr --poolings last --layers=-1
"""


BENCH_EXAMPLES = """\
example:
  safetyspace-fast bench --model DIR/gemma --data texts.jsonl

Forward passes only, in turn, medians of three rounds after one to warm up: with every layer
captured by the engine, and in padded batches of 32 with output_hidden_states and NumPy means, both
on the same weights. Language statistics and the store come on top in a run.
"""

VERIFY_EXAMPLES = """\
example:
  safetyspace-fast verify --model DIR/gemma --data sample:polite --samples 16

Each text also runs alone, without padding, through transformers' output_hidden_states in float64.
error: the engine's largest relative distance from that, over the texts. rounding: transformers' own
distance from it in the working dtype, and float32's. supported: up to twice the rounding; degraded:
up to sqrt(D) times, which a bad order of summation could explain; wrong: more, exit code 1.
unchecked: transformers gives no such state, or none that is finite.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 a clear error, 2 wrong usage, 130 interrupted with everything so far saved.
    """
    warnings.showwarning = _warn
    try:
        arguments = _parser().parse_args(argv)
        arguments.command(arguments)
    except ConfigError as error:
        print(f"safetyspace-fast: {error}", file=sys.stderr)
        return 2
    except SafetySpaceError as error:
        print(f"safetyspace-fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("safetyspace-fast: interrupted; --resume goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has gone, as `| head` does
        sys.stderr.close()
        return 1
    return 0


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"safetyspace-fast: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safetyspace-fast",
        description="How far apart a language model holds harmful and harmless text, for every "
        "layer and language.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_separation(commands)
    _add_compare(commands)
    _add_languages(commands)
    _add_explain(commands)
    _add_verify(commands)
    _add_bench(commands)
    _add_check(commands)
    _add_info(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = _command(
        commands,
        "run",
        _run,
        "run models over a data set and keep compact statistics of every layer",
        RUN_EXAMPLES,
    )
    helps = field_docs()
    run.add_argument(
        "--model",
        dest="models",
        action="append",
        metavar="[NAME=]BASE[+ADAPTER]",
        help="directory, hub id or .gguf file, with a PEFT adapter after a plus; may be repeated",
    )
    run.add_argument("--data", metavar="FILE_OR_ID", help=helps["data"])
    run.add_argument("--out", required=True, metavar="RUN.zarr", help=helps["out"])
    _add_options(run, _RUN_OPTIONS)
    _add_preset(run)
    run.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_options(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add fields of `RunConfig`; None or False where one is not given."""
    helps = field_docs()
    for name in names:
        default = RunConfig.__dataclass_fields__[name].default
        shown = ",".join(default) if isinstance(default, tuple) else default
        suffix = "" if default in (None, False) else f" (default: {shown})"
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, help=helps[name] + suffix, **_RUN_OPTIONS[name])


def _given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """What was typed of these options; the rest has its defaults elsewhere."""
    typed = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in typed.items() if value is not None}


def _add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        metavar="NAME[:PAIR]",
        help="a published study's protocol, for whatever is not given; PAIR: only these two models",
    )
    parser.add_argument("--list-presets", action=_Presets, nargs=0, help="print them and exit")


def _up_to(high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not 0 <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"got {value}, expected 0 to {high}")
        return value

    return number


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


_RUN_OPTIONS: dict[str, dict[str, Any]] = {
    "layers": {"metavar": "all|NAMES"},
    "poolings": {"type": _names, "metavar": ",".join(POOLINGS)},
    "template": {"choices": TEMPLATES},
    "languages": {"type": _names, "metavar": "en,de,.."},
    "limit": {"type": int, "metavar": "N"},
    "proj_dim": {"type": int, "metavar": "P"},
    "seed": {"type": int, "metavar": "N"},
    "device": {"metavar": "auto|cpu|cuda[:N]"},
    "dtype": {"choices": DTYPES},
    "compile": {"action": "store_true"},
    "token_budget": {"type": int, "metavar": "N"},
    "max_tokens": {"type": int, "metavar": "N"},
    "impl": {"choices": IMPLEMENTATIONS},
    "verify": {"action": "store_true"},
    "strict": {"action": "store_true"},
    "resume": {"action": "store_true"},
    "overwrite": {"action": "store_true"},
    "allow_pickle": {"action": "store_true"},
    "trust_remote_code": {"action": "store_true"},
}

_BENCH_OPTIONS = (
    "template",
    "languages",
    "device",
    "dtype",
    "allow_pickle",
    "trust_remote_code",
)
_VERIFY_OPTIONS = (
    "layers",
    "poolings",
    "template",
    "languages",
    "device",
    "dtype",
    "allow_pickle",
    "trust_remote_code",
)


def _run(arguments: argparse.Namespace) -> None:
    options = _given(arguments, (field.name for field in fields(RunConfig)))
    if arguments.preset:
        from .presets import preset

        chosen, pair = preset(arguments.preset)
        fill = {key: getattr(chosen, key) for key in ("layers", "poolings", "template")}
        if "models" not in options:
            fill["models"] = chosen.models(pair)
        if chosen.data:
            fill["data"] = chosen.data[0]
        options = fill | options
    for name, flag in (("models", "--model"), ("data", "--data")):
        if name not in options:
            raise ConfigError(f"run: {flag} is missing; name it, or a --preset that does")
    options["models"] = tuple(options["models"])
    config = RunConfig(**options)
    from . import api

    signal.signal(signal.SIGTERM, _as_interrupt)
    done: list[api.ModelDone] = []
    with _Progress() as progress, closing(api.iter_run(config)) as events:
        for event in events:
            progress.show(event)
            if isinstance(event, api.ModelDone):
                done.append(event)
    if arguments.json:
        print(json.dumps({"out": str(config.out), "models": [asdict(event) for event in done]}))
        return
    for event in done:
        seconds = event.forward_seconds + event.finish_seconds
        print(
            f"{event.model}: {event.texts:,} texts, {event.tokens:,} tokens in {seconds:.1f} s "
            f"({event.tokens / max(event.forward_seconds, 1e-9):,.0f} tokens/s)"
        )
    print(f"store: {config.out}")
    print(f"next:  safetyspace-fast separation {config.out}")


class _Progress:
    """Shows events of a run on stderr: lines for news, a bar for tokens."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, event: Any) -> None:
        from tqdm import tqdm

        from . import api

        if isinstance(event, api.Planned):
            resumed = f", {event.texts_done:,} done before" if event.texts_done else ""
            padding = event.padded_tokens / max(event.tokens, 1) - 1
            truncated = f", {event.truncated:,} texts cut to fit" if event.truncated else ""
            prefix = f" behind {event.prefix_tokens} shared ones" if event.prefix_tokens else ""
            self._say(
                f"{event.model}: {event.texts:,} texts ({event.unique_texts:,} different{resumed}"
                f"{truncated}), {event.tokens:,} tokens{prefix} (+{padding:.1%} padding) in "
                f"{event.batches:,} batches, {event.hookpoints} hookpoints x {event.hidden_size}; "
                f"pooled states on disk until a language is done: {_size(event.segment_bytes)}"
            )
            self._bar = tqdm(
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
            self._tokens = 0
        elif isinstance(event, api.Progressed):
            self._tokens += event.tokens
            self._bar.update(event.texts)
            elapsed = self._bar.format_dict["elapsed"]
            if elapsed:
                rate = f"{self._tokens / elapsed:,.0f} tokens/s"
                self._bar.set_postfix_str(rate, refresh=False)
        elif isinstance(event, api.ModelDone):
            self._bar.close()
        elif isinstance(event, api.Verified):
            self._say(f"{event.model}: {_verdict_line(event.verification)}")
        elif isinstance(event, api.Note):
            self._say(f"{event.model}: {event.message}" if event.model else event.message)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(line, file=sys.stderr)


def _add_separation(commands: Any) -> None:
    separation = _command(
        commands,
        "separation",
        _separation,
        "how far apart the classes are, from a store alone",
        SEPARATION_EXAMPLES,
    )
    _add_selection(separation)
    _add_metrics(separation)
    separation.add_argument("--models", type=_names, metavar="A,B,..", help="only these models")


def _separation(arguments: argparse.Namespace) -> None:
    from . import api
    from .analysis import tables
    from .errors import StoreError

    run = api.open_run(arguments.run)
    options = _statistics(arguments)
    dataset = _with_bar(api.separation, arguments, run, models=arguments.models, **options)
    try:
        api.save_results(run, dataset)
    except StoreError as error:  # a store that others own is still worth a table
        print(f"safetyspace-fast: not kept: {error}", file=sys.stderr)
    tables.write(dataset, arguments.format, arguments.output)


def _add_compare(commands: Any) -> None:
    compare = _command(
        commands,
        "compare",
        _compare,
        "what a model's tuning changed: two models of one store on the same texts",
        COMPARE_EXAMPLES,
    )
    _add_selection(compare)
    _add_metrics(compare)
    compare.add_argument("--base", metavar="NAME", help="the model before")
    compare.add_argument("--aligned", metavar="NAME", help="the model after")
    compare.add_argument(
        "--reference",
        default="en",
        metavar="LANG",
        help="language for the difference of differences (default: en)",
    )


def _compare(arguments: argparse.Namespace) -> None:
    from . import api
    from .analysis import tables

    run = api.open_run(arguments.run)
    options = _statistics(arguments)
    pairs = {arguments.preset: (arguments.base, arguments.aligned)}
    if arguments.preset and not (arguments.base or arguments.aligned):
        pairs = _preset_pairs(arguments, run)
    if None in next(iter(pairs.values())):
        raise ConfigError("compare: --base and --aligned are missing; name two models of the store")
    if len(pairs) > 1 and arguments.format != "table":
        raise ConfigError(f"--format {arguments.format}: of one pair; choose it with NAME:PAIR")
    for name, (base, aligned) in pairs.items():
        dataset = _with_bar(
            api.compare,
            arguments,
            run,
            base=base,
            aligned=aligned,
            reference=arguments.reference,
            **options,
        )
        tables.write(dataset, arguments.format, arguments.output)
        if arguments.preset and arguments.format == "table" and arguments.output is None:
            from .presets import preset

            chosen, only = preset(arguments.preset)
            known = [x for x in chosen.published if x["pair"] in (name, only)]
            print(tables.beside_published(dataset, known, chosen.source))


def _preset_pairs(arguments: argparse.Namespace, run: Any) -> dict[str, tuple[str, str]]:
    """The preset's pairs whose models are both in the store."""
    from .presets import preset

    chosen, only = preset(arguments.preset)
    names = [name for name in chosen.pairs or {} if only in (None, name)]
    pairs = {name: (f"{name}.base", f"{name}.aligned") for name in names}
    found = {name: pair for name, pair in pairs.items() if set(pair) <= set(run.models)}
    if not found:
        raise ConfigError(
            f"preset: {arguments.run} holds no pair of {arguments.preset}; write one with "
            "`run --preset`, or name --base and --aligned"
        )
    return found


def _add_languages(commands: Any) -> None:
    languages = _command(
        commands,
        "languages",
        _languages,
        "do languages share one harm direction: cosines, transfer, content against language",
        LANGUAGES_EXAMPLES,
    )
    _add_selection(languages)
    languages.add_argument("--models", type=_names, metavar="A,B,..", help="only these models")


def _languages(arguments: argparse.Namespace) -> None:
    import xarray

    from . import api
    from .analysis import tables

    run = api.open_run(arguments.run)
    found = [
        _with_bar(function, arguments, run, models=arguments.models)
        for function in (api.directions, api.parallel)
    ]
    tables.write(xarray.merge(found), arguments.format, arguments.output)


def _add_explain(commands: Any) -> None:
    explain = _command(
        commands, "explain", _explain, "what a metric is: definition, source, space, pitfalls"
    )
    explain.add_argument("metric", metavar="METRIC", help="a wrong name lists them")


def _explain(arguments: argparse.Namespace) -> None:
    from .analysis import explain

    print(explain(arguments.metric))


def _add_selection(parser: argparse.ArgumentParser) -> None:
    """Which part of a store, and in which form the numbers come."""
    parser.add_argument("run", metavar="RUN.zarr", help="a store that `run` wrote")
    names: dict[str, Any] = {"type": _names, "metavar": "A,B,.."}
    parser.add_argument("--layers", **names, help="only these hookpoints; --layers=-1 is the last")
    parser.add_argument("--poolings", **names, help="only these poolings")
    parser.add_argument("--languages", **names, help="only these languages")
    parser.add_argument(
        "--format",
        choices=("table", "json", "csv", "parquet"),
        default="table",
        help="(default: table; parquet needs -o)",
    )
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help="same as --format json"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: stdout")


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    """What `separation` and `compare` have in common: which metrics, and how sure they are."""
    parser.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        metavar="NAME",
        help="one metric, or `all`; may be repeated (default: the main ones; a wrong name lists "
        "them)",
    )
    for name in ("bootstraps", "permutations"):
        parser.add_argument(
            f"--{name}",
            type=_up_to(MAX_RESAMPLES),
            default=200,
            metavar="N",
            help="how many (default: 200)",
        )
    parser.add_argument(
        "--seed",
        type=_up_to(MAX_SEED),
        default=0,
        metavar="N",
        help="of the resampling (default: 0)",
    )
    parser.add_argument(
        "--unpaired",
        action="store_true",
        help="take paired texts for unpaired, which is wrong: to see how wrong",
    )
    for name, other in (("high", "high-resource"), ("low", "low-resource")):
        parser.add_argument(
            f"--{name}",
            type=_names,
            metavar="A,B,..",
            help=f"the {other} languages (default: see `explain groups`)",
        )
    _add_preset(parser)


def _statistics(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of `separation` and `compare`; a preset stands in for what is not given."""
    metrics = "all" if arguments.metrics == ["all"] else arguments.metrics
    if arguments.preset:
        from .presets import preset

        chosen, _ = preset(arguments.preset)
        metrics = metrics or chosen.metrics
        arguments.layers = arguments.layers or (chosen.layers,)
        arguments.poolings = arguments.poolings or chosen.poolings
    groups = {"high": arguments.high, "low": arguments.low}
    return {
        "metrics": metrics,
        "groups": {name: langs for name, langs in groups.items() if langs},
        "bootstraps": arguments.bootstraps,
        "permutations": arguments.permutations,
        "seed": arguments.seed,
        "paired": False if arguments.unpaired else None,
    }


def _with_bar(
    function: Callable[..., Any], arguments: argparse.Namespace, run: Any, **options: Any
) -> Any:
    """Call a function of a store with the selection that was typed, behind a progress bar."""
    if arguments.format == "parquet" and arguments.output is None:
        raise ConfigError("--format parquet: is binary; name a file with -o")
    with _bar("resampling", "step") as show:
        return function(
            run,
            layers=arguments.layers,
            poolings=arguments.poolings,
            languages=arguments.languages,
            progress=show,
            **options,
        )


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, as a function of what is done and how much there is."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, file=sys.stderr, disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _add_sampled(parser: argparse.ArgumentParser, default: int, options: Iterable[str]) -> None:
    """Add what a command on a few texts takes."""
    parser.add_argument("--model", required=True, metavar="[NAME=]BASE[+ADAPTER]")
    parser.add_argument("--data", required=True, metavar="FILE_OR_ID", help=field_docs()["data"])
    parser.add_argument(
        "--samples",
        type=int,
        default=default,
        metavar="N",
        help=f"how many texts (default: {default})",
    )
    _add_options(parser, options)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _sampled(
    function: Callable[..., Any],
    arguments: argparse.Namespace,
    options: Iterable[str],
    what: str,
    unit: str,
) -> Any:
    """Call a function on a few texts with what was typed, behind a progress bar."""
    with _bar(what, unit) as show:
        return function(
            arguments.model,
            arguments.data,
            samples=arguments.samples,
            progress=show,
            **_given(arguments, options),
        )


def _add_verify(commands: Any) -> None:
    verify = _command(
        commands,
        "verify",
        _verify,
        "hold a sample against transformers' own hidden states, layer by layer",
        VERIFY_EXAMPLES,
    )
    _add_sampled(verify, 32, _VERIFY_OPTIONS)


def _verify(arguments: argparse.Namespace) -> None:
    from . import api

    found = _sampled(api.verify, arguments, _VERIFY_OPTIONS, "verifying", "text")
    if arguments.json:
        print(json.dumps(asdict(found) | {"verdict": found.verdict}))
    else:
        print(f"{found.model}: {_verdict_line(found)}")
        print(f"{'hookpoint':12} {'pooling':10} {'error':>9} {'rounding':>9}  verdict")
        for cell in found.cells:
            error, rounding = (
                f"{'-' if value is None else format(value, '.1e'):>9}"
                for value in (cell.error, cell.rounding)
            )
            print(f"{cell.hookpoint:12} {cell.pooling:10} {error} {rounding}  {cell.verdict}")
    if found.problem is not None:
        raise SafetySpaceError(found.problem)


def _verdict_line(found: Any) -> str:
    cells: dict[str, int] = {}
    for cell in found.cells:
        cells[cell.verdict] = cells.get(cell.verdict, 0) + 1
    counts = ", ".join(f"{number} {verdict}" for verdict, number in cells.items())
    odd = f"; tokens of {len(found.odd_tokens)} texts differ" if found.odd_tokens else ""
    return (
        f"{found.verdict}: {counts}{odd} ({found.texts} texts, template {found.template}; engine "
        f"in {found.dtype} against transformers in {found.exact_dtype})"
    )


def _add_bench(commands: Any) -> None:
    bench = _command(
        commands,
        "bench",
        _bench,
        "time the engine on your model and texts, beside transformers' output_hidden_states",
        BENCH_EXAMPLES,
    )
    _add_sampled(bench, 128, _BENCH_OPTIONS)


def _bench(arguments: argparse.Namespace) -> None:
    from . import api

    found = _sampled(api.bench, arguments, _BENCH_OPTIONS, "timing", "round")
    if arguments.json:
        print(json.dumps(asdict(found) | {"ratio": found.ratio, "all_s": found.all_s}))
        return
    rate = found.share_of_matrix_rate
    share = f", {rate:.0%} of the rate of its matrix products alone" if rate is not None else ""
    print(
        f"{found.model}: {found.texts:,} texts, template {found.template}, {found.dtype} on "
        f"{found.device}\n"
        f"output_hidden_states  {found.usual_s:8.2f} s {found.texts / found.usual_s:9.1f} texts/s\n"
        f"safetyspace-fast      {found.ours_s:8.2f} s {found.texts / found.ours_s:9.1f} texts/s  "
        f"{found.ratio:.2f}x, {found.tokens / found.ours_s:,.0f} tokens/s{share}\n"
        f"all {found.all_texts:,} texts ({found.all_tokens:,} tokens): about {found.all_s:,.0f} s "
        "of forward passes"
    )


def _add_check(commands: Any) -> None:
    check = _command(
        commands, "check", _check, "read every file of a store and name what is damaged or missing"
    )
    check.add_argument("run", metavar="RUN.zarr", help="a store that `run` wrote")
    check.add_argument(
        "--repair",
        action="store_true",
        help="delete what is damaged, so that `run --resume` does that part again and no other",
    )


def _check(arguments: argparse.Namespace) -> None:
    from . import api

    report = api.check(arguments.run, repair=arguments.repair)
    for name in report.complete:
        print(f"{name}: complete")
    for name, state in report.incomplete.items():
        print(f"{name}: not complete: {state}")
    for damage in report.damage:
        print(f"{damage.file}: {damage.reason}")
    if report.damage and not arguments.repair:
        raise StoreError(f"{arguments.run}: {len(report.damage)} damaged; --repair marks them")
    if report.damage:
        print("marked; the `run` command that made the store, with --resume, does the rest")


def _add_info(commands: Any) -> None:
    info = _command(
        commands,
        "info",
        _info,
        "versions, devices, how the kernels were built, which are used here and why not the others",
    )
    info.add_argument("--json", action="store_true", help="print everything as JSON")


def _info(arguments: argparse.Namespace) -> None:
    from .info import environment

    facts = environment()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    for name, version in facts["versions"].items():
        print(f"{name:18} {version or 'not installed'}")
    print(f"{'python':18} {facts['python']} on {facts['system']}")
    print(f"{'threads':18} {facts['threads']} ({facts['cpu_capability']})")
    for device in facts["cuda_devices"]:
        print(f"{'cuda':18} {device['name']}, {_size(device['memory_bytes'])}")
    if not facts["cuda_devices"]:
        print(f"{'cuda':18} no device")
    for key, value in (facts["build"] or {"build": "no record: run from a source tree"}).items():
        print(f"{key:18} {value}")
    for op, implementations in facts["implementations"].items():
        print(f"\n{op}")
        for name, reasons in implementations.items():
            print(f"  {name:16} {'; '.join(reasons) or 'usable'}")
    fused = "fused, on our kernels" if facts["fused_layers"] else "torch's own"
    print(f"\nnorms, gates and linear layers of float32 models on the CPU: {fused}")


def _command(
    commands: Any,
    name: str,
    function: Callable[[argparse.Namespace], None],
    summary: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


class _Presets(argparse.Action):
    """Lists the presets, whatever else was typed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .presets import describe

        print(describe())
        parser.exit()


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"safetyspace-fast {version('safetyspace-fast')}")
        parser.exit()


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    """A scheduler that stops a job sends SIGTERM: save as for Ctrl-C."""
    raise KeyboardInterrupt


def _size(n_bytes: int) -> str:
    power = min(len(str(n_bytes)) - 1, 14) // 3
    return f"{n_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


if __name__ == "__main__":
    sys.exit(main())
