"""Options that several commands share, and what was typed."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .. import terminal
from ..config import (
    DTYPES,
    IMPLEMENTATIONS,
    POOLINGS,
    QUOTINGS,
    TEMPLATES,
    WEIGHTS,
    DataFields,
    RunConfig,
    field_docs,
)
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..api import Run

Result = TypeVar("Result")


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def command(
    commands: Commands,
    name: str,
    function: Callable[[argparse.Namespace], None],
    summary: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """Add a command; `function` runs it."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """`--data`, which may be repeated, and how the data are read."""
    parser.add_argument(
        "--data",
        action="append",
        metavar="[harmful=|harmless=][SET:]FILE_OR_ID",
        help=field_docs()["data"],
    )
    add_options(parser, DataFields.__annotations__)


def add_options(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add fields of `RunConfig`; None or False where one is not given."""
    docs = field_docs()
    for name in names:
        default = RunConfig.__dataclass_fields__[name].default
        value = ",".join(default) if isinstance(default, tuple) else default
        suffix = "" if default in (None, False, ()) else f" (default: {value})"
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, help=docs[name] + suffix, **(_DATA_OPTIONS | RUN_OPTIONS)[name])


def given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of these options that were typed; the others keep the defaults of the API."""
    typed = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in typed.items() if value is not None}


def add_preset(parser: argparse.ArgumentParser) -> None:
    """`--preset` and `--list-presets`."""
    parser.add_argument(
        "--preset",
        metavar="NAME[:PAIR]",
        help="fill in what you do not give from a published study's protocol; :PAIR takes one of "
        "its model pairs",
    )
    parser.add_argument(
        "--list-presets", action=_Presets, nargs=0, help="print all presets and exit"
    )


def up_to(high: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from 0 to `high`."""

    def number(text: str) -> int:
        if not 0 <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"got {value}, expected 0 to {high}")
        return value

    return number


def size(text: str) -> int:
    """The type of an option that takes bytes: a number, alone or with kB, MB, GB or TB."""
    units = {"tb": 10**12, "gb": 10**9, "mb": 10**6, "kb": 10**3, "": 1}
    for unit, factor in units.items():
        if text.lower().endswith(unit):
            try:
                return int(float(text[: len(text) - len(unit)]) * factor)
            except (ValueError, OverflowError):  # a word; infinity
                break
    raise argparse.ArgumentTypeError(f"got {text!r}, expected bytes such as 500000000 or 500MB")


def listed(text: str) -> tuple[str, ...]:
    """The type of an option that takes several names, with commas between them."""
    return tuple(part.strip() for part in text.split(","))


_SEVERAL: dict[str, Any] = {"type": listed, "action": "extend"}


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
    "languages": {"type": listed, "metavar": "en,de,.."},
    "limit": {"type": int, "metavar": "N"},
    "strict": {"action": "store_true"},
}


RUN_OPTIONS: dict[str, dict[str, Any]] = {
    "layers": {"metavar": "all|NAMES"},
    "poolings": {"type": listed, "metavar": ",".join(POOLINGS)},
    "template": {"choices": TEMPLATES},
    "proj_dim": {"type": int, "metavar": "P"},
    "seed": {"type": int, "metavar": "N"},
    "device": {"metavar": "auto|cpu|cuda[:N]"},
    "tensor_parallel": {"type": int, "metavar": "N"},
    "dtype": {"choices": DTYPES},
    "compile": {"action": "store_true"},
    "token_budget": {"type": int, "metavar": "N"},
    "max_tokens": {"type": int, "metavar": "N"},
    "impl": {"choices": IMPLEMENTATIONS},
    "weights": {"choices": WEIGHTS},
    "scratch": {"type": size, "metavar": "BYTES|50GB"},
    "verify": {"action": "store_true"},
    "resume": {"action": "store_true"},
    "overwrite": {"action": "store_true"},
    "basis": {"action": "append", "metavar": "STORE.zarr[:MODEL]"},
    "allow_pickle": {"action": "store_true"},
    "trust_remote_code": {"action": "store_true"},
}


def add_selection(parser: argparse.ArgumentParser, other: str | None = None) -> None:
    """Options that choose a part of a store and an output format; `other` stands for a second."""
    parser.add_argument("run", metavar="RUN.zarr", help="a store that `run` wrote")
    if other is not None:
        parser.add_argument("other", metavar=other, help="a store of other texts")
    names: dict[str, Any] = {"type": listed, "metavar": "A,B,.."}
    parser.add_argument("--layers", **names, help="only these hookpoints; --layers=-1: the last")
    parser.add_argument("--poolings", **names, help="only these poolings")
    parser.add_argument(
        "--languages", **names, help="only these languages; zh also means zh-CN or zho_Hans"
    )
    parser.add_argument(
        "--format",
        choices=("table", "json", "csv", "parquet", "markdown", "latex"),
        default="table",
        help="output format (default: table; parquet needs -o; latex: see its first lines)",
    )
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help="same as --format json"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write to a file (default: stdout)"
    )


def with_bar(
    function: Callable[..., Result], arguments: argparse.Namespace, run: "Run", **options: object
) -> Result:
    """Call a function of the API with the selection that was typed, and show a progress bar."""
    if arguments.format == "parquet" and arguments.output is None:
        raise ConfigError("--format parquet: Parquet is binary; name a file with -o")
    with terminal.bar("resampling", "step") as show:
        selection = {name: getattr(arguments, name) for name in ("layers", "poolings", "languages")}
        return function(run, progress=show, **(selection | options))


class _Presets(argparse.Action):
    """Print the presets and stop, even where required options are missing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ..presets import describe

        print(describe())
        parser.exit()
