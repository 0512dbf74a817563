"""How fast this machine is, for models of one shape: a trial with few blocks, texts and layers."""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from ..config import RunConfig
from ..errors import ModelError
from ..extract import ModelDone, Planned
from ..models.quiet import quiet_transformers
from ..models.tokenizer import load_tokenizer
from ..runner import run_models
from .shared import SharedWork
from .work import Work

BLOCKS = 2
RUNS = ((8, BLOCKS), (48, 1), (24, BLOCKS), (64, BLOCKS))
"""Texts of each label, and layers that are read, in the runs of a trial."""
ENOUGH_S = 30.0
"""After this time no further run of a trial begins."""
_READ_BYTES = 64 << 20


@dataclass(frozen=True)
class Rates:
    """What a device takes, for models of one shape.

    start_s: to make a model ready, beside reading its weights.
    read_bytes_per_s: of weights.
    flops: floating-point operations of forward passes in a second.
    finish: seconds to finish a language: in any case, for each of its cells, and for each cell and
        text, and for each cell and pair of texts.
    """

    start_s: float
    read_bytes_per_s: float
    flops: float
    finish: tuple[float, float, float, float]

    def finish_s(self, cells: int, n: int) -> float:
        """Seconds to finish the cells of a language of `n` texts."""
        return sum(f * x for f, x in zip(self.finish, _finish_terms(cells, n), strict=True))


@dataclass(frozen=True)
class Measured:
    """One run of a trial, over one language.

    cells, texts: what was finished, in `finish_s`.
    rate: tokens in a second of forward passes.
    start_s: until its first batch.
    """

    cells: int
    texts: int
    finish_s: float
    rate: float
    start_s: float


def measure_rates(work: Work) -> Rates:
    """Run a model of the same shape, with few blocks and random weights, over some of the texts.

    Raises:
        SafetySpaceError: the model cannot be run.
    """
    runs: list[Measured] = []
    with _small_model(work) as folder:
        began = time.perf_counter()
        configs = [_config(work, folder, limit, layers) for limit, layers in RUNS]
        shared = SharedWork(configs)  # the model is made once
        for config in configs:
            runs.append(_run(config, shared))
            if time.perf_counter() - began > ENOUGH_S:
                break
        shared.forget_model()
    torch.cuda.empty_cache()  # workers may need it, while this process waits for them
    active = work.shape.active / work.shape.blocks * min(BLOCKS, work.shape.blocks)
    return Rates(
        runs[0].start_s,
        _read_rate(work),
        2 * active * runs[-1].rate,
        fit_finish(runs),
    )


def _run(config: RunConfig, shared: SharedWork) -> Measured:
    began = time.perf_counter()
    start_s = 0.0
    for event in run_models(config, shared.steps):
        if isinstance(event, Planned):
            start_s = time.perf_counter() - began
        elif isinstance(event, ModelDone):
            done = event
    rate = done.tokens / done.forward_seconds
    cells = len(config.layers) * len(config.poolings)
    return Measured(cells, done.texts, done.finish_seconds, rate, start_s)


def fit_finish(runs: Sequence[Measured]) -> tuple[float, float, float, float]:
    """How the time to finish a language grows: the factors of `Rates.finish`, none negative."""
    terms = np.array([_finish_terms(run.cells, run.texts) for run in runs], float)
    measured = np.array([run.finish_s for run in runs])
    fits = []
    for size in range(1, len(terms[0]) + 1):
        for chosen in combinations(range(len(terms[0])), size):
            factors = np.zeros(len(terms[0]))
            factors[[*chosen]] = np.linalg.lstsq(terms[:, chosen], measured, rcond=None)[0]
            if (factors >= 0).all():  # a negative one would grow far beyond what was measured
                missed = float(np.square(terms @ factors - measured).sum())
                fits.append((missed, factors.tolist()))
    _, (language, cell, text, pair) = min(fits)
    return language, cell, text, pair


def _finish_terms(cells: int, n: int) -> tuple[int, int, int, int]:
    return 1, cells, cells * n, cells * n * n


def _config(work: Work, folder: Path, limit: int, layers: int) -> RunConfig:
    last = min(BLOCKS, work.shape.blocks) - 1
    most = max(range(len(work.texts)), key=work.texts.__getitem__)
    return replace(
        work.config,
        models=f"trial=random:{folder}",
        out=folder.with_name(f"{limit}-{layers}.zarr"),
        layers=[f"block.{max(0, last - number)}" for number in range(layers)],
        languages=(work.languages[most],),
        limit=limit,
        resume=False,
        verify=False,
        basis=(),
    )


@contextmanager
def _small_model(work: Work) -> Iterator[Path]:
    """A folder with the configuration of a model, cut to a few blocks, and its tokenizer."""
    trusted = work.config.trust_remote_code
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        folder = Path(scratch) / "model"
        try:
            config = transformers.AutoConfig.from_pretrained(
                work.source.directory,
                gguf_file=work.source.gguf,
                trust_remote_code=trusted,
                local_files_only=True,
            )
        except Exception as error:  # whatever a configuration makes transformers raise
            raise ModelError(f"{work.model}: its configuration cannot be read: {error}") from error
        text = config.get_text_config()
        for name, value in vars(text).items():
            if isinstance(value, list) and len(value) == work.shape.blocks:
                setattr(text, name, value[:BLOCKS])  # such as the kind of each block
        text.num_hidden_layers = min(BLOCKS, work.shape.blocks)
        config.save_pretrained(folder)
        load_tokenizer(work.source, trusted).save_pretrained(folder)
        save_file({}, folder / "model.safetensors")  # none are read, but a model has some
        yield folder


def _read_rate(work: Work) -> float:
    """Bytes of weights that are read in a second; a usual rate where there are none yet."""
    files = work.source.weight_files()
    if not files or not files[0].is_file():
        return 1e9
    began, total = time.perf_counter(), 0
    with files[0].open("rb") as opened:
        while total < _READ_BYTES and (piece := os.read(opened.fileno(), 1 << 22)):
            total += len(piece)
    return total / max(time.perf_counter() - began, 1e-9)
