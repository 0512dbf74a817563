"""`run`: models over a data set, into a store."""

import argparse
import json
import signal
import threading
from contextlib import closing
from dataclasses import asdict, fields
from types import FrameType

from .. import terminal
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
from .workers import add_worker_options, events_of

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
    run.add_argument("--out", required=True, metavar="RUN.zarr", help=docs["out"])
    add_options(run, RUN_OPTIONS)
    add_worker_options(run)
    add_preset(run)
    run.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(arguments: argparse.Namespace) -> None:
    options = given(arguments, (field.name for field in fields(RunConfig)))
    if arguments.preset:
        from ..presets import preset

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
    interrupt_at_signals()
    from .. import api

    done: list[api.ModelDone] = []
    running = events_of([config], arguments) or api.iter_run(config)
    with terminal.RunDisplay() as progress, closing(running) as events:
        for event in events:
            progress.show(event)
            if isinstance(event, api.ModelDone):
                done.append(event)
    if arguments.json:
        print(json.dumps({"out": str(config.out), "models": [asdict(event) for event in done]}))
        return
    terminal.show_done(done, config.out)


def interrupt_at_signals() -> None:
    """Treat the signals that schedulers and terminals send before they stop a job like Ctrl-C."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no other may set them
        return
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, interrupt)
