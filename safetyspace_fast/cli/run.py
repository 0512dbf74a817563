"""`run`: models over a data set, into a store; or a sweep file of many."""

import argparse
import signal
import threading
from dataclasses import fields, replace
from types import FrameType

from ..config import RunConfig, field_docs
from ..errors import ConfigError
from .options import (
    RUN_OPTIONS,
    Commands,
    add_data_options,
    add_options,
    add_preset,
    command,
    given,
)
from .workers import add_worker_options, events_of, show_done, show_events

RUN_EXAMPLES = """\
examples:
  safetyspace-fast run --model meta-llama/Llama-3.1-8B-Instruct \\
      --data textdetox/multilingual_toxicity_dataset --out llama.zarr
  safetyspace-fast run --model base=DIR/gemma --model aligned=DIR/gemma+DIR/adapter \\
      --data pairs.jsonl --template none --poolings last,mean --out pair.zarr
  safetyspace-fast run --model gpt2 --data sample:polite --out try.zarr
  safetyspace-fast run sweep.toml --dry-run

A data file is JSON, CSV, TSV or Parquet with the columns text, label (1 harmful, 0 harmless), lang
(optional) and pair (optional). For files with other columns see `safetyspace-fast data --help`.

An interrupted run keeps its work: repeat the command with --resume to finish it. --resume also adds
models, texts and languages to a finished store: give the complete data again, and only languages
with new texts are run.
"""


def add_run(commands: Commands) -> None:
    """The command `run`."""
    run = command(
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
    add_data_options(run)
    run.add_argument(
        "sweep",
        nargs="?",
        metavar="SWEEP.toml",
        help="a file of many models and data sets, in TOML or JSON, instead of the options below",
    )
    run.add_argument("--out", metavar="RUN.zarr", help=docs["out"])
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="of a sweep: say what would run, how long it takes and how much it writes, and stop",
    )
    add_options(run, RUN_OPTIONS)
    add_worker_options(run)
    add_preset(run)
    run.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(arguments: argparse.Namespace) -> None:
    options = given(arguments, (field.name for field in fields(RunConfig)))
    if arguments.sweep is not None:
        from .sweep import run_file

        interrupt_at_signals()
        run_file(arguments, options)
        return
    if arguments.dry_run:
        raise ConfigError("run: --dry-run is for a sweep; give a SWEEP.toml")
    if arguments.preset:
        from ..presets import preset

        chosen, pair = preset(arguments.preset)
        fill = {key: getattr(chosen, key) for key in ("layers", "poolings", "template")}
        if "models" not in options:
            fill["models"] = chosen.models(pair)
        if chosen.data:
            fill["data"] = chosen.data[0]
        options = fill | options
    for name, flag in (("models", "--model"), ("data", "--data"), ("out", "--out")):
        if name not in options:
            preset_has = ", or a --preset that has it" if name != "out" else ", or a SWEEP.toml"
            raise ConfigError(f"run: {flag} is missing; give it{preset_has}")
    config = RunConfig(**options)
    interrupt_at_signals()
    from .. import api

    single = [replace(config, models=(model,)) for model in config.models]
    if (workers := events_of(single, arguments)) is not None:
        from ..sweep import refuse_missing

        refuse_missing(single)  # a run in one process looks for all models before it loads one
    done = show_events(workers or api.iter_run(config))
    show_done(done, str(config.out), as_json=arguments.json)


def interrupt_at_signals() -> None:
    """Treat the signals that schedulers and terminals send before they stop a job like Ctrl-C."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no other may set them
        return
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, interrupt)
