"""The command line: parse, call the API, print. Progress on stderr, results on stdout."""

import argparse
import errno
import json
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from . import terminal
from .config import (
    DTYPES,
    IMPLEMENTATIONS,
    LABELLINGS,
    MAX_RESAMPLES,
    MAX_SEED,
    POOLINGS,
    QUOTINGS,
    TEMPLATES,
    DataFields,
    RunConfig,
    field_docs,
)
from .errors import ConfigError, SafetySpaceError, StoreError

if TYPE_CHECKING:
    from .api import Run

Result = TypeVar("Result")
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

RUN_EXAMPLES = """\
examples:
  safetyspace-fast run --model meta-llama/Llama-3.1-8B-Instruct \\
      --data textdetox/multilingual_toxicity_dataset --out llama.zarr
  safetyspace-fast run --model base=DIR/gemma --model aligned=DIR/gemma+DIR/adapter \\
      --data pairs.jsonl --template none --poolings last,mean --out pair.zarr
  safetyspace-fast run --model gpt2 --data sample:polite --out try.zarr

A data file is JSON, CSV, TSV or Parquet with the columns text, label (1 harmful, 0 harmless), lang
(optional) and pair (optional). For files with other columns see `safetyspace-fast data --help`.

An interrupted run keeps its work: repeat the command with --resume to finish it. --resume also adds
models, texts and languages to a finished store: give the complete data again, and only languages
with new texts are run.
"""

DATA_EXAMPLES = """\
examples:
  safetyspace-fast data texts.jsonl
  safetyspace-fast data tweets.csv --text-column tweet --label-column class \\
      --harmful 0,1 --harmless 2 --lang en
  safetyspace-fast data scores.parquet --text-column comment --harmful 'toxicity>=0.5'
  safetyspace-fast data germeval.txt --text-column 1 --label-column 2 --harmful OFFENSE --lang de
  safetyspace-fast data --data harmful=advbench:behaviors.csv --data harmless=alpaca.json \\
      --text-column instruction --lang en
  safetyspace-fast data olid:olid-training-v1.0.tsv

`run`, `verify` and `bench` take the same options.
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
  safetyspace-fast compare pair.zarr --base base --aligned aligned --sensitivity
  safetyspace-fast compare study.zarr --preset hidden-space-of-safety
"""

LANGUAGES_EXAMPLES = """\
example:
  safetyspace-fast languages run.zarr --poolings last --layers=-1
"""


POWER_EXAMPLES = """\
examples:
  safetyspace-fast power pilot.zarr --metric rho_adjusted --difference 0.02 --layers=-1
  safetyspace-fast power pilot.zarr --metric auc_direction --difference 0.05 --model aligned \\
      --versus base

Of one model: how many texts make the interval of its value exclude a number that is the difference
away, such as its floor. With --versus: how many texts make `compare` show that the two models
differ by it. `explain needed0` says what is assumed.
"""

CURVE_EXAMPLES = """\
example:
  safetyspace-fast curve run.zarr --metric rho_adjusted --poolings last --layers=-1

Without --layers it is that of the last layer. A curve that is level has converged. Metrics of
held-out texts rise until their direction is known.
"""

TRANSFER_EXAMPLES = """\
example:
  safetyspace-fast run --model gpt2 --data FIRST --out first.zarr
  safetyspace-fast run --model gpt2 --data OTHER --out other.zarr --basis first.zarr
  safetyspace-fast transfer first.zarr other.zarr

In each language the layer and the harm direction are chosen on the first store and tested on the
texts of the second that the first does not have. Without --basis the texts are seen in the random
projection, which is approximate.
"""

BENCH_EXAMPLES = """\
example:
  safetyspace-fast bench --model DIR/gemma --data texts.jsonl

Times forward passes in two ways on the same weights: this package with every layer captured, and
transformers with output_hidden_states=True in padded batches of 32, averaged in NumPy. The two
take turns; each time is the median of three rounds after one warm-up round. A run also computes
the statistics of each language and writes the store, which is not timed here.
"""

VERIFY_EXAMPLES = """\
example:
  safetyspace-fast verify --model DIR/gemma --data sample:polite --samples 16

The reference is transformers with output_hidden_states=True in float64, one text at a time, without
padding.

  error      largest relative distance of this package's states from the reference, over all texts
  rounding   the same for transformers itself in the working dtype, plus float32's own rounding
  supported  error is at most 2 x rounding
  degraded   error is at most sqrt(hidden size) x rounding: an inexact order of summation
  wrong      error is larger: do not use the model's numbers; exit code 1
  unchecked  transformers gives no such state, or one that is not finite
"""


GUIDE = """\
safetyspace-fast measures how far apart a language model holds harmful and harmless text, for every
layer and language. Three commands to begin with:

  safetyspace-fast run --model gpt2 --data sample:polite --out try.zarr   run a model, fill a store
  safetyspace-fast separation try.zarr                                    read the numbers
  safetyspace-fast explain rho                                            what a number means

Then: `run --help` for your own data and models, `compare --help` for a model before and after
tuning, `--help` for all commands.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 an error in one line, 2 wrong usage, 130 interrupted with everything so far saved.
    """
    warnings.showwarning = terminal.warn
    try:
        arguments = _parser().parse_args(argv)
        if arguments.command is None:
            print(GUIDE, end="")
        else:
            arguments.command(arguments)
    except ConfigError as error:
        print(f"safetyspace-fast: {error}", file=sys.stderr)
        return 2
    except SafetySpaceError as error:
        print(f"safetyspace-fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("safetyspace-fast: interrupted; repeat a run with --resume to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has gone, as `| head` does
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            line = f"the output cannot be written: {error.strerror}"
        else:
            line = terminal.unforeseen(error)
        print(f"safetyspace-fast: {line}", file=sys.stderr)
        return 1
    except Exception as error:  # what nobody foresaw
        print(f"safetyspace-fast: {terminal.unforeseen(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safetyspace-fast",
        description="How far apart a language model holds harmful and harmless text, for every "
        "layer and language.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_run(commands)
    _add_data(commands)
    _add_separation(commands)
    _add_compare(commands)
    _add_languages(commands)
    _add_power(commands)
    _add_curve(commands)
    _add_transfer(commands)
    _add_explain(commands)
    _add_verify(commands)
    _add_bench(commands)
    _add_check(commands)
    _add_info(commands)
    return parser


def _add_run(commands: _Commands) -> None:
    run = _command(
        commands,
        "run",
        _run,
        "run models over a data set and store compact statistics of every layer",
        RUN_EXAMPLES,
    )
    docs = field_docs()
    run.add_argument(
        "--model",
        dest="models",
        action="append",
        metavar="[NAME=]BASE[+ADAPTER]...",
        help="directory, hub id or .gguf file; +ADAPTER merges a PEFT adapter, +A+B two of them in "
        "this order; repeat the option for several models",
    )
    _add_data_options(run)
    run.add_argument("--out", required=True, metavar="RUN.zarr", help=docs["out"])
    _add_options(run, _RUN_OPTIONS)
    _add_preset(run)
    run.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    """`--data`, which may be repeated, and how the data are read."""
    parser.add_argument(
        "--data",
        action="append",
        metavar="[harmful=|harmless=][SET:]FILE_OR_ID",
        help=field_docs()["data"],
    )
    _add_options(parser, DataFields.__annotations__)


def _add_options(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add fields of `RunConfig`; None or False where one is not given."""
    docs = field_docs()
    for name in names:
        default = RunConfig.__dataclass_fields__[name].default
        value = ",".join(default) if isinstance(default, tuple) else default
        suffix = "" if default in (None, False, ()) else f" (default: {value})"
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, help=docs[name] + suffix, **(_DATA_OPTIONS | _RUN_OPTIONS)[name])


def _given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of these options that were typed; the others keep the defaults of the API."""
    typed = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in typed.items() if value is not None}


def _add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        metavar="NAME[:PAIR]",
        help="fill in what you do not give from a published study's protocol; :PAIR takes one of "
        "its model pairs",
    )
    parser.add_argument(
        "--list-presets", action=_Presets, nargs=0, help="print all presets and exit"
    )


def _up_to(high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not 0 <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"got {value}, expected 0 to {high}")
        return value

    return number


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


_SEVERAL: dict[str, Any] = {"type": _names, "action": "extend"}
_DATA_OPTIONS: dict[str, dict[str, Any]] = {
    "text_column": {**_SEVERAL, "metavar": "NAME,.."},
    "label_column": {**_SEVERAL, "metavar": "NAME,.."},
    "harmful": {**_SEVERAL, "metavar": "VALUE,.."},
    "harmless": {**_SEVERAL, "metavar": "VALUE,.."},
    "lang_column": {"metavar": "NAME"},
    "lang": {"metavar": "LANG"},
    "split": {"metavar": "NAME"},
    "delimiter": {"metavar": "NAME"},
    "quoting": {"choices": QUOTINGS},
    "languages": {"type": _names, "metavar": "en,de,.."},
    "limit": {"type": int, "metavar": "N"},
    "strict": {"action": "store_true"},
}
_RUN_OPTIONS: dict[str, dict[str, Any]] = {
    "layers": {"metavar": "all|NAMES"},
    "poolings": {"type": _names, "metavar": ",".join(POOLINGS)},
    "template": {"choices": TEMPLATES},
    "proj_dim": {"type": int, "metavar": "P"},
    "seed": {"type": int, "metavar": "N"},
    "device": {"metavar": "auto|cpu|cuda[:N]"},
    "dtype": {"choices": DTYPES},
    "compile": {"action": "store_true"},
    "token_budget": {"type": int, "metavar": "N"},
    "max_tokens": {"type": int, "metavar": "N"},
    "impl": {"choices": IMPLEMENTATIONS},
    "verify": {"action": "store_true"},
    "resume": {"action": "store_true"},
    "overwrite": {"action": "store_true"},
    "basis": {"action": "append", "metavar": "STORE.zarr[:MODEL]"},
    "allow_pickle": {"action": "store_true"},
    "trust_remote_code": {"action": "store_true"},
}

_BENCH_OPTIONS = (
    "template",
    "device",
    "dtype",
    "allow_pickle",
    "trust_remote_code",
)
_VERIFY_OPTIONS = (
    "layers",
    "poolings",
    "template",
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
            raise ConfigError(f"run: {flag} is missing; give it, or a --preset that has it")
    config = RunConfig(**options)
    _interrupt_at_signals()
    from . import api

    done: list[api.ModelDone] = []
    with terminal.RunDisplay() as progress, closing(api.iter_run(config)) as events:
        for event in events:
            progress.show(event)
            if isinstance(event, api.ModelDone):
                done.append(event)
    if arguments.json:
        print(json.dumps({"out": str(config.out), "models": [asdict(event) for event in done]}))
        return
    terminal.show_done(done, config.out)


def _add_data(commands: _Commands) -> None:
    data = _command(
        commands,
        "data",
        _data,
        "show what a run would read of your data, in counts and without a model",
        DATA_EXAMPLES,
    )
    data.add_argument("files", nargs="*", metavar="FILE_OR_ID", help="the same as --data")
    _add_data_options(data)
    data.add_argument(
        "--list-sets", action=_Sets, nargs=0, help="print the known data sets and exit"
    )
    data.add_argument("--json", action="store_true", help="print the result as JSON")


def _data(arguments: argparse.Namespace) -> None:
    from . import api

    sources = (*arguments.files, *(arguments.data or ()))
    if not sources:
        raise ConfigError("data: no file is given; name a file, a directory or a hub id")
    summary = api.describe_data(sources, **_given(arguments, DataFields.__annotations__))
    if arguments.json:
        print(json.dumps(asdict(summary)))
        return
    terminal.show_data(summary)


def _add_separation(commands: _Commands) -> None:
    separation = _command(
        commands,
        "separation",
        _separation,
        "measure how far apart harmful and harmless texts are, from a store",
        SEPARATION_EXAMPLES,
    )
    _add_selection(separation)
    _add_metrics(separation)
    separation.add_argument("--models", type=_names, metavar="A,B,..", help="only these models")


def _separation(arguments: argparse.Namespace) -> None:
    from . import api
    from .analysis import tables

    run = api.open_run(arguments.run)
    options = _statistics(arguments)
    dataset = _with_bar(api.separation, arguments, run, models=arguments.models, **options)
    try:
        api.save_results(run, dataset)
    except StoreError as error:  # a read-only store can still be read
        print(f"safetyspace-fast: results not saved in the store: {error}", file=sys.stderr)
    if arguments.sensitivity:
        dataset = api.sensitivity(dataset)
    tables.write(dataset, arguments.format, arguments.output)


def _add_compare(commands: _Commands) -> None:
    compare = _command(
        commands,
        "compare",
        _compare,
        "measure what tuning changed: two models of one store, on the same texts",
        COMPARE_EXAMPLES,
    )
    _add_selection(compare)
    _add_metrics(compare)
    compare.add_argument("--base", metavar="NAME", help="the model before tuning")
    compare.add_argument("--aligned", metavar="NAME", help="the model after tuning")
    compare.add_argument(
        "--reference",
        default="en",
        metavar="LANG",
        help="language that every other language's change is compared with (default: en)",
    )
    compare.add_argument(
        "--different-templates",
        action="store_true",
        help="compare models that were run with different templates, and say so in the results",
    )
    compare.add_argument(
        "--components",
        choices=("own", "base", "union"),
        default="own",
        help="principal components of each model itself, of the base model, or of both models "
        "together (default: own)",
    )
    compare.add_argument(
        "--equivalence",
        type=float,
        metavar="D",
        help="say of each difference: changed, no change larger than D, or undecided",
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
        raise ConfigError(
            f"--format {arguments.format}: holds one pair of models; choose it with "
            f"--preset {arguments.preset}:PAIR, of {', '.join(pairs)}"
        )
    for name, (base, aligned) in pairs.items():
        dataset = _with_bar(
            api.compare,
            arguments,
            run,
            base=base,
            aligned=aligned,
            reference=arguments.reference,
            different_templates=arguments.different_templates,
            components=arguments.components,
            equivalence=arguments.equivalence,
            **options,
        )
        if arguments.sensitivity:
            tables.write(api.sensitivity(dataset), arguments.format, arguments.output)
            continue
        tables.write(dataset, arguments.format, arguments.output)
        if arguments.preset and arguments.format == "table" and arguments.output is None:
            from .presets import preset

            chosen, only = preset(arguments.preset)
            known = [x for x in chosen.published if x["pair"] in (name, only)]
            print(tables.beside_published(dataset, known, chosen.source))


def _preset_pairs(arguments: argparse.Namespace, run: "Run") -> dict[str, tuple[str, str]]:
    """The preset's pairs whose models are both in the store."""
    from .presets import preset

    chosen, only = preset(arguments.preset)
    if chosen.pairs:
        chosen.models(only)  # an unknown pair is an error
    names = [name for name in chosen.pairs or {} if only in (None, name)]
    pairs = {name: (f"{name}.base", f"{name}.aligned") for name in names}
    in_store = {name: pair for name, pair in pairs.items() if set(pair) <= set(run.models)}
    if not in_store:
        raise ConfigError(
            f"preset: {arguments.run} holds no model pair of {arguments.preset}; run one with "
            f"`run --preset {arguments.preset}`, or name --base and --aligned"
        )
    return in_store


def _add_languages(commands: _Commands) -> None:
    languages = _command(
        commands,
        "languages",
        _languages,
        "do languages share one harm direction? Cosines, transfer, content against language",
        LANGUAGES_EXAMPLES,
    )
    _add_selection(languages)
    languages.add_argument("--models", type=_names, metavar="A,B,..", help="only these models")


def _languages(arguments: argparse.Namespace) -> None:
    import xarray

    from . import api
    from .analysis import tables

    run = api.open_run(arguments.run)
    parts = [
        _with_bar(function, arguments, run, models=arguments.models)
        for function in (api.directions, api.parallel)
    ]
    tables.write(xarray.merge(parts), arguments.format, arguments.output)


def _add_power(commands: _Commands) -> None:
    power = _command(
        commands,
        "power",
        _power,
        "how many texts show a difference of a given size, from a pilot store",
        POWER_EXAMPLES,
    )
    _add_selection(power)
    power.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        required=True,
        metavar="NAME",
        help="a metric; repeat the option for several",
    )
    power.add_argument(
        "--difference", type=float, required=True, metavar="D", help="the difference to be shown"
    )
    power.add_argument("--model", metavar="A", help="this model (default: every one)")
    power.add_argument("--versus", metavar="B", help="another model, to differ from")
    for name, default, what in (
        ("level", 0.05, "largest two-sided p that counts as shown"),
        ("power", 0.8, "share of studies that are to show it"),
    ):
        power.add_argument(
            f"--{name}",
            type=float,
            default=default,
            metavar="P",
            help=f"{what} (default: {default})",
        )


def _power(arguments: argparse.Namespace) -> None:
    from . import api
    from .analysis import tables

    dataset = _with_bar(
        api.power,
        arguments,
        api.open_run(arguments.run),
        models=arguments.model,
        **{
            name: getattr(arguments, name)
            for name in ("metrics", "difference", "versus", "level", "power")
        },
    )
    tables.write(dataset, arguments.format, arguments.output)


def _add_curve(commands: _Commands) -> None:
    curve = _command(
        commands,
        "curve",
        _curve,
        "what fewer texts would have given: metrics of sub-samples of 25, 50, 100, .. texts",
        CURVE_EXAMPLES,
    )
    _add_selection(curve)
    curve.set_defaults(layers=("-1",))
    curve.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        metavar="NAME",
        help="a metric; repeat the option for several (default: rho_adjusted and auc_direction)",
    )
    curve.add_argument("--models", type=_names, metavar="A,B,..", help="only these models")


def _curve(arguments: argparse.Namespace) -> None:
    from . import api
    from .analysis import tables

    options = _given(arguments, ("models", "metrics"))
    dataset = _with_bar(api.curve, arguments, api.open_run(arguments.run), **options)
    tables.write(dataset, arguments.format, arguments.output)


def _add_transfer(commands: _Commands) -> None:
    transfer = _command(
        commands,
        "transfer",
        _transfer,
        "does a harm direction hold on other data? Chosen on one store, tested on another",
        TRANSFER_EXAMPLES,
    )
    _add_selection(transfer, other="OTHER.zarr")
    transfer.add_argument("--models", type=_names, metavar="A,B,..", help="only these models")


def _transfer(arguments: argparse.Namespace) -> None:
    from . import api
    from .analysis import tables

    stores = [api.open_run(path) for path in (arguments.run, arguments.other)]
    dataset = _with_bar(
        partial(api.transfer, target=stores[1]), arguments, stores[0], models=arguments.models
    )
    tables.write(dataset, arguments.format, arguments.output)


def _add_explain(commands: _Commands) -> None:
    explain = _command(
        commands, "explain", _explain, "explain a metric: definition, source, pitfalls"
    )
    explain.add_argument(
        "metric", metavar="METRIC", help="a metric or a column; an unknown name lists all"
    )


def _explain(arguments: argparse.Namespace) -> None:
    from .analysis import explain

    print(explain(arguments.metric))


def _add_selection(parser: argparse.ArgumentParser, other: str | None = None) -> None:
    """Options that choose a part of a store and an output format; `other` stands for a second."""
    parser.add_argument("run", metavar="RUN.zarr", help="a store that `run` wrote")
    if other is not None:
        parser.add_argument("other", metavar=other, help="a store of other texts")
    names: dict[str, Any] = {"type": _names, "metavar": "A,B,.."}
    parser.add_argument("--layers", **names, help="only these hookpoints; --layers=-1: the last")
    parser.add_argument("--poolings", **names, help="only these poolings")
    parser.add_argument(
        "--languages", **names, help="only these languages; zh also means zh-CN or zho_Hans"
    )
    parser.add_argument(
        "--format",
        choices=("table", "json", "csv", "parquet"),
        default="table",
        help="output format (default: table; parquet needs -o)",
    )
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help="same as --format json"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write to a file (default: stdout)"
    )


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    """Options of both `separation` and `compare`: the metrics and their uncertainty."""
    parser.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        metavar="NAME",
        help="one metric, or `all`; repeat the option for several (default: the main ones; an "
        "unknown name lists all)",
    )
    for name, purpose, most, default in (
        ("bootstraps", "intervals of metrics in components", MAX_RESAMPLES, 200),
        ("permutations", "p and floors", LABELLINGS, LABELLINGS),
    ):
        parser.add_argument(
            f"--{name}",
            type=_up_to(most),
            default=default,
            metavar="N",
            help=f"resamples for {purpose} (default: {default})",
        )
    parser.add_argument(
        "--seed",
        type=_up_to(MAX_SEED),
        default=0,
        metavar="N",
        help="seed of the resampling (default: 0)",
    )
    parser.add_argument(
        "--unpaired",
        action="store_true",
        help="ignore pairing (invalid; for comparison only)",
    )
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="show in how many choices of metric, layer and pooling the result has the same sign, "
        "and in how many its interval says so",
    )
    for name, other in (("high", "high-resource"), ("low", "low-resource")):
        parser.add_argument(
            f"--{name}",
            type=_names,
            metavar="A,B,..",
            help=f"languages that count as {other} (default: see `explain groups`)",
        )
    _add_preset(parser)


def _statistics(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `api.separation` and `api.compare`; a preset fills in what was not typed."""
    metrics = "all" if arguments.metrics == ["all"] else arguments.metrics
    layers, poolings = arguments.layers, arguments.poolings
    if arguments.preset:
        from .presets import preset

        chosen, _ = preset(arguments.preset)
        metrics = metrics or chosen.metrics
        layers, poolings = layers or (chosen.layers,), poolings or chosen.poolings
    groups = {"high": arguments.high, "low": arguments.low}
    return {
        "metrics": metrics,
        "layers": layers,
        "poolings": poolings,
        "groups": {name: langs for name, langs in groups.items() if langs},
        "bootstraps": arguments.bootstraps,
        "permutations": arguments.permutations,
        "seed": arguments.seed,
        "paired": False if arguments.unpaired else None,
    }


def _with_bar(
    function: Callable[..., Result], arguments: argparse.Namespace, run: "Run", **options: object
) -> Result:
    """Call a function of the API with the selection that was typed, and show a progress bar."""
    if arguments.format == "parquet" and arguments.output is None:
        raise ConfigError("--format parquet: Parquet is binary; name a file with -o")
    with terminal.bar("resampling", "step") as show:
        selection = {name: getattr(arguments, name) for name in ("layers", "poolings", "languages")}
        return function(run, progress=show, **(selection | options))


def _add_sampled(parser: argparse.ArgumentParser, default: int, options: Iterable[str]) -> None:
    """Options of the commands that run a model over a few texts."""
    parser.add_argument("--model", required=True, metavar="[NAME=]BASE[+ADAPTER]...")
    _add_data_options(parser)
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
    function: Callable[..., Result],
    arguments: argparse.Namespace,
    options: Iterable[str],
    what: str,
    unit: str,
) -> Result:
    """Call a function of the API on a few texts, and show a progress bar."""
    if arguments.data is None:
        raise ConfigError("--data is missing: name a file, a directory or a hub id")
    with terminal.bar(what, unit) as show:
        return function(
            arguments.model,
            arguments.data,
            samples=arguments.samples,
            progress=show,
            on_note=terminal.say,
            **_given(arguments, (*DataFields.__annotations__, *options)),
        )


def _add_verify(commands: _Commands) -> None:
    verify = _command(
        commands,
        "verify",
        _verify,
        "compare a sample with transformers' own hidden states, layer by layer",
        VERIFY_EXAMPLES,
    )
    _add_sampled(verify, 32, _VERIFY_OPTIONS)


def _verify(arguments: argparse.Namespace) -> None:
    from . import api

    verification = _sampled(api.verify, arguments, _VERIFY_OPTIONS, "verifying", "text")
    if arguments.json:
        print(json.dumps(asdict(verification) | {"verdict": verification.verdict}))
    else:
        terminal.show_verification(verification)
    if verification.problem is not None:
        raise SafetySpaceError(verification.problem)


def _add_bench(commands: _Commands) -> None:
    bench = _command(
        commands,
        "bench",
        _bench,
        "time this package and transformers' output_hidden_states on your model and texts",
        BENCH_EXAMPLES,
    )
    _add_sampled(bench, 128, _BENCH_OPTIONS)


def _bench(arguments: argparse.Namespace) -> None:
    from . import api

    times = _sampled(api.bench, arguments, _BENCH_OPTIONS, "timing", "round")
    if arguments.json:
        print(json.dumps(asdict(times) | {"ratio": times.ratio, "all_s": times.all_s}))
        return
    terminal.show_bench(times)


def _add_check(commands: _Commands) -> None:
    check = _command(
        commands, "check", _check, "read every file of a store and list damaged or missing ones"
    )
    check.add_argument("run", metavar="RUN.zarr", help="a store that `run` wrote")
    check.add_argument(
        "--repair",
        action="store_true",
        help="delete damaged files, so that `run --resume` computes only these again",
    )


def _check(arguments: argparse.Namespace) -> None:
    from . import api

    report = api.check(arguments.run, repair=arguments.repair)
    terminal.show_check(report)
    if report.damage and not arguments.repair:
        raise StoreError(
            f"{arguments.run}: {len(report.damage)} damaged files; repeat with --repair to prepare "
            "them for `run --resume`"
        )
    if report.damage:
        print("next: repeat the `run` command that made the store, with --resume")


def _add_info(commands: _Commands) -> None:
    info = _command(
        commands,
        "info",
        _info,
        "show versions, devices, and which kernels run here and why the others do not",
    )
    info.add_argument("--json", action="store_true", help="print everything as JSON")


def _info(arguments: argparse.Namespace) -> None:
    from .info import environment

    facts = environment()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    terminal.show_environment(facts)


def _command(
    commands: _Commands,
    name: str,
    function: Callable[[argparse.Namespace], None],
    summary: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


class _Presets(argparse.Action):
    """Print the presets and stop, even where required options are missing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .presets import describe

        print(describe())
        parser.exit()


class _Sets(argparse.Action):
    """Print the known data sets and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .data import describe_sets

        print(describe_sets())
        parser.exit()


class _Version(argparse.Action):
    """Print the version, which is looked up only now, and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"safetyspace-fast {version('safetyspace-fast')}")
        parser.exit()


def _interrupt_at_signals() -> None:
    """Treat the signals that schedulers and terminals send before they stop a job like Ctrl-C."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no other may set them
        return
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, interrupt)


if __name__ == "__main__":
    sys.exit(main())
