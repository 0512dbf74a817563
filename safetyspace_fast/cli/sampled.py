"""`verify` and `bench`: a model over a few texts."""

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict

from .. import terminal
from ..config import DataFields
from ..errors import ConfigError, SafetySpaceError
from .options import Commands, Result, add_data_options, add_options, command, given

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


BENCH_EXAMPLES = """\
example:
  safetyspace-fast bench --model DIR/gemma --data texts.jsonl

Times forward passes in two ways on the same weights: this package with every layer captured, and
transformers with output_hidden_states=True in padded batches of 32, averaged in NumPy. The two
take turns; each time is the median of three rounds after one warm-up round. A run also computes
the statistics of each language and writes the store, which is not timed here.
"""


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


def add_verify(commands: Commands) -> None:
    """The command `verify`."""
    verify = command(
        commands,
        "verify",
        _verify,
        "compare a sample with transformers' own hidden states, layer by layer",
        VERIFY_EXAMPLES,
    )
    _add_sampled(verify, 32, _VERIFY_OPTIONS)


def _verify(arguments: argparse.Namespace) -> None:
    from .. import api

    verification = _sampled(api.verify, arguments, _VERIFY_OPTIONS, "verifying", "text")
    if arguments.json:
        print(json.dumps(asdict(verification) | {"verdict": verification.verdict}))
    else:
        terminal.show_verification(verification)
    if verification.problem is not None:
        raise SafetySpaceError(verification.problem)


def add_bench(commands: Commands) -> None:
    """The command `bench`."""
    bench = command(
        commands,
        "bench",
        _bench,
        "time this package and transformers' output_hidden_states on your model and texts",
        BENCH_EXAMPLES,
    )
    _add_sampled(bench, 128, _BENCH_OPTIONS)


def _bench(arguments: argparse.Namespace) -> None:
    from .. import api

    times = _sampled(api.bench, arguments, _BENCH_OPTIONS, "timing", "round")
    if arguments.json:
        print(json.dumps(asdict(times) | {"ratio": times.ratio, "all_s": times.all_s}))
        return
    terminal.show_bench(times)


def _add_sampled(parser: argparse.ArgumentParser, default: int, options: Iterable[str]) -> None:
    """Options of the commands that run a model over a few texts."""
    parser.add_argument("--model", required=True, metavar="[NAME=]BASE[+ADAPTER]...")
    add_data_options(parser)
    parser.add_argument(
        "--samples",
        type=int,
        default=default,
        metavar="N",
        help=f"how many texts (default: {default})",
    )
    add_options(parser, options)
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
            **given(arguments, (*DataFields.__annotations__, *options)),
        )
