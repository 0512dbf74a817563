"""`separation` and `compare`: the two tables that most people want."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..config import LABELLINGS, MAX_RESAMPLES, MAX_SEED
from ..errors import ConfigError, StoreError
from .options import Commands, add_preset, add_selection, command, listed, up_to, with_bar

if TYPE_CHECKING:
    from ..api import Run

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


def add_separation(commands: Commands) -> None:
    """The command `separation`."""
    separation = command(
        commands,
        "separation",
        _separation,
        "measure how far apart harmful and harmless texts are, from a store",
        SEPARATION_EXAMPLES,
    )
    add_selection(separation)
    _add_metrics(separation)
    separation.add_argument("--models", type=listed, metavar="A,B,..", help="only these models")


def _separation(arguments: argparse.Namespace) -> None:
    from .. import api
    from ..analysis import tables

    run = api.open_run(arguments.run)
    options = _statistics(arguments)
    dataset = with_bar(api.separation, arguments, run, models=arguments.models, **options)
    try:
        api.save_results(run, dataset)
    except StoreError as error:  # a read-only store can still be read
        print(f"safetyspace-fast: results not saved in the store: {error}", file=sys.stderr)
    if arguments.sensitivity:
        dataset = api.sensitivity(dataset)
    tables.write(dataset, arguments.format, arguments.output)


def add_compare(commands: Commands) -> None:
    """The command `compare`."""
    compare = command(
        commands,
        "compare",
        _compare,
        "measure what tuning changed: two models of one store, on the same texts",
        COMPARE_EXAMPLES,
    )
    add_selection(compare)
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
    from .. import api
    from ..analysis import tables

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
        dataset = with_bar(
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
            from ..presets import preset

            chosen, only = preset(arguments.preset)
            known = [x for x in chosen.published if x["pair"] in (name, only)]
            print(tables.beside_published(dataset, known, chosen.source))


def _preset_pairs(arguments: argparse.Namespace, run: "Run") -> dict[str, tuple[str, str]]:
    """The preset's pairs whose models are both in the store."""
    from ..presets import preset

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
            type=up_to(most),
            default=default,
            metavar="N",
            help=f"resamples for {purpose} (default: {default})",
        )
    parser.add_argument(
        "--seed",
        type=up_to(MAX_SEED),
        default=0,
        metavar="N",
        help="seed of the resampling (default: 0)",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="D",
        help="cpu, cuda or cuda:N: where the matrix products of the resampling run; they are a few "
        "percent of the time (default: cpu)",
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
            type=listed,
            metavar="A,B,..",
            help=f"languages that count as {other} (default: see `explain groups`)",
        )
    add_preset(parser)


def _statistics(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `api.separation` and `api.compare`; a preset fills in what was not typed."""
    from ..models.device import find_device

    metrics = "all" if arguments.metrics == ["all"] else arguments.metrics
    layers, poolings = arguments.layers, arguments.poolings
    if arguments.preset:
        from ..presets import preset

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
        "device": str(find_device(arguments.device)),
        "paired": False if arguments.unpaired else None,
    }
