"""`languages`, `power`, `curve`, `transfer`, `explain`: further questions to a store."""

import argparse
from functools import partial

from .options import Commands, add_selection, command, given, listed, with_bar

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


def add_languages(commands: Commands) -> None:
    """The command `languages`."""
    languages = command(
        commands,
        "languages",
        _languages,
        "do languages share one harm direction? Cosines, transfer, content against language",
        LANGUAGES_EXAMPLES,
    )
    add_selection(languages)
    languages.add_argument("--models", type=listed, metavar="A,B,..", help="only these models")


def _languages(arguments: argparse.Namespace) -> None:
    import xarray

    from .. import api
    from ..analysis import tables

    run = api.open_run(arguments.run)
    parts = [
        with_bar(function, arguments, run, models=arguments.models)
        for function in (api.directions, api.parallel)
    ]
    tables.write(xarray.merge(parts), arguments.format, arguments.output)


def add_power(commands: Commands) -> None:
    """The command `power`."""
    power = command(
        commands,
        "power",
        _power,
        "how many texts show a difference of a given size, from a pilot store",
        POWER_EXAMPLES,
    )
    add_selection(power)
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
    from .. import api
    from ..analysis import tables

    dataset = with_bar(
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


def add_curve(commands: Commands) -> None:
    """The command `curve`."""
    curve = command(
        commands,
        "curve",
        _curve,
        "what fewer texts would have given: metrics of sub-samples of 25, 50, 100, .. texts",
        CURVE_EXAMPLES,
    )
    add_selection(curve)
    curve.set_defaults(layers=("-1",))
    curve.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        metavar="NAME",
        help="a metric; repeat the option for several (default: rho_adjusted and auc_direction)",
    )
    curve.add_argument("--models", type=listed, metavar="A,B,..", help="only these models")


def _curve(arguments: argparse.Namespace) -> None:
    from .. import api
    from ..analysis import tables

    options = given(arguments, ("models", "metrics"))
    dataset = with_bar(api.curve, arguments, api.open_run(arguments.run), **options)
    tables.write(dataset, arguments.format, arguments.output)


def add_transfer(commands: Commands) -> None:
    """The command `transfer`."""
    transfer = command(
        commands,
        "transfer",
        _transfer,
        "does a harm direction hold on other data? Chosen on one store, tested on another",
        TRANSFER_EXAMPLES,
    )
    add_selection(transfer, other="OTHER.zarr")
    transfer.add_argument("--models", type=listed, metavar="A,B,..", help="only these models")


def _transfer(arguments: argparse.Namespace) -> None:
    from .. import api
    from ..analysis import tables

    stores = [api.open_run(path) for path in (arguments.run, arguments.other)]
    dataset = with_bar(
        partial(api.transfer, target=stores[1]), arguments, stores[0], models=arguments.models
    )
    tables.write(dataset, arguments.format, arguments.output)


def add_explain(commands: Commands) -> None:
    """The command `explain`."""
    explain = command(
        commands, "explain", _explain, "explain a metric: definition, source, pitfalls"
    )
    explain.add_argument(
        "metric", metavar="METRIC", help="a metric or a column; an unknown name lists all"
    )


def _explain(arguments: argparse.Namespace) -> None:
    from ..analysis import explain

    print(explain(arguments.metric))
