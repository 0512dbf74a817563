"""How fast this machine is, for models of one shape: a trial with a few blocks and one cell."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers

from ..data import Samples
from ..errors import ModelError
from ..extract.capture import Capture, seeded_projection
from ..extract.chance import Chance
from ..extract.finish import finish_language
from ..extract.plan import Batch
from ..extract.tune import USUAL
from ..models import LoadedModel, Tokenized, hookpoint_names
from ..models.backbone import find_backbone
from ..models.device import find_device, find_dtype
from ..models.fused import try_fusing
from ..models.layers import find_blocks
from ..models.quiet import quiet_transformers
from ..models.source import Source
from ..models.tokens import Template
from ..models.weights import random_weights
from .work import Work
from .writing import Writing, measure_writing

_BLOCKS, _BLOCK_BYTES = 4, 64 << 20
"""Blocks of a trial: few, but too many for the caches."""
MOST_TEXTS = 1024
"""Of a language that is finished in a trial; the time of a larger one follows from two sizes."""
_VOCABULARY = 1024
_READ_BYTES = 64 << 20
_ROUNDS = 3  # the first one warms up


@dataclass(frozen=True)
class Rates:
    """What a device takes, for models of one shape.

    start_s: to make a model of one block ready, without its weights.
    bytes_per_s: weights that are read, hashed and packed.
    flops: floating-point operations of forward passes in a second.
    finish: seconds to finish a cell for each of its texts, and for each pair of texts.
    writing: of a store, on the disk of temporary files.
    """

    start_s: float
    bytes_per_s: float
    flops: float
    finish: tuple[float, float]
    writing: Writing

    def finish_s(self, cells: int, n: int) -> float:
        """Seconds to finish the cells of a language of `n` texts."""
        text, pair = self.finish
        return cells * (text * n + pair * n * n)

    def language_s(self, cells: int, n: int) -> float:
        """Seconds to finish and write a language of `n` texts."""
        return self.finish_s(cells, n) + self.writing.language_s + self.writing.text_s * n


def measure_rates(work: Work, samples: Samples) -> Rates:
    """Run a few blocks of a model of the same shape, with random weights, and finish one cell.

    The trial takes about as long as `_ROUNDS` batches, four cells, and writing a language twice.

    Args:
        work: of one run.
        samples: its data.

    Raises:
        SafetySpaceError: the model cannot be made or run.
    """
    device = find_device(work.config.device)
    dtype = find_dtype(work.config.dtype, device)
    with quiet_transformers():
        began = time.perf_counter()
        model, pack_s = _few_blocks(work, device, dtype)
        start_s = max(0.0, time.perf_counter() - began - pack_s)
        rate = _tokens_per_s(model, work)
    del model
    share = _blocks(work) / work.shape.blocks
    packed_bytes = work.shape.active * share * dtype.itemsize
    rates = Rates(
        start_s,
        1 / (1 / _read_rate(work) + pack_s / packed_bytes),
        2 * work.shape.active * share * rate,
        _finish_rates(work, samples, device),
        measure_writing(work, _largest(work, samples)),
    )
    torch.cuda.empty_cache()  # workers may need it, while this process waits for them
    return rates


def _blocks(work: Work) -> int:
    block_bytes = 4 * work.shape.active / work.shape.blocks
    return min(work.shape.blocks, _BLOCKS, max(1, round(_BLOCK_BYTES / block_bytes)))


def _few_blocks(work: Work, device: torch.device, dtype: torch.dtype) -> tuple[LoadedModel, float]:
    """The first blocks of a model with random weights, and the seconds that packing them took."""
    with _small_source(work) as source:
        backbone = find_backbone(random_weights(source, work.config.trust_remote_code))
    backbone.to(device, dtype).eval().requires_grad_(False)
    blocks = find_blocks(backbone, _blocks(work), work.model)
    began = time.perf_counter()
    if device.type == "cpu":
        try_fusing(backbone)
    return LoadedModel(
        name=work.model,
        backbone=backbone,
        blocks=blocks.modules,
        causal=blocks.causal,
        hookpoints=hookpoint_names(len(blocks.modules)),
        hidden_size=blocks.width,
        tokenizer=None,
        max_tokens=work.config.max_tokens or _VOCABULARY,
        pad_token_id=0,
        device=device,
        dtype=dtype,
        identify=dict,
    ), time.perf_counter() - began


@contextmanager
def _small_source(work: Work) -> Iterator[Source]:
    """A folder with the configuration of a model, cut to a few blocks and a small vocabulary."""
    trusted = work.config.trust_remote_code
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
            setattr(text, name, value[: _blocks(work)])  # such as the kind of each block
    text.num_hidden_layers = _blocks(work)
    text.vocab_size = min(_VOCABULARY, text.vocab_size)  # a row is looked up for each token
    if getattr(text, "pad_token_id", None) is not None:
        text.pad_token_id = 0
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        yield Source(work.source.asked, Path(folder))


def _tokens_per_s(model: LoadedModel, work: Work) -> float:
    """Tokens in a second of forward passes over a batch of usual size, all layers captured."""
    length = max(2, round(work.tokens / max(1, sum(work.texts))))
    length = min(length, model.max_tokens)
    budget = work.config.token_budget or USUAL[model.device.type].token_budget
    size = max(1, budget // length)
    ids = np.random.default_rng(0).integers(1, _VOCABULARY // 2, size * length)
    ends = np.full((size, work.poolings, 2), length, np.int32)
    tokens = Tokenized(
        ids=ids.astype(np.int32),
        starts=length * np.arange(size + 1),
        spans=ends - np.array([1, 0], np.int32),
        n_text_tokens=np.full(size, length, np.int32),
        begins_with_text=np.zeros(size, np.bool_),
        truncated=np.zeros(size, np.bool_),
        poolings=tuple(work.config.poolings),
        template=Template("none"),
        prefix_length=0,
    )
    rows = np.arange(size)
    hookpoints = tuple(name for name in model.hookpoints if name.startswith("block."))
    projection = seeded_projection(model.hidden_size, work.config.proj_dim, 0).to(model.device)
    seconds = []
    with Capture(model, hookpoints, projection) as capture:
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            capture.run(tokens, Batch(rows, rows, rows, length)).sum().item()  # waits for a GPU
            seconds.append(time.perf_counter() - began)
    return size * length / min(seconds[1:])


def _finish_rates(work: Work, samples: Samples, device: torch.device) -> tuple[float, float]:
    """How the time to finish a cell grows with texts and pairs of texts, from two sizes."""
    few, many = (_largest(work, samples, part) for part in (0.5, 1.0))
    m, n = len(few), len(many)
    each_few, each = (_cell_s(work, some, device) / len(some) for some in (few, many))
    pair = min(max(0.0, (each - each_few) / max(1, n - m)), each / n)
    return each - pair * n, pair


def _largest(work: Work, samples: Samples, part: float = 1.0) -> Samples:
    """A part of the largest language, or of as many of its texts as a trial takes."""
    most = max(range(len(work.texts)), key=work.texts.__getitem__)
    share = min(1.0, MOST_TEXTS / work.texts[most])
    return _some(samples, work.languages[most], part * share)


def _some(samples: Samples, lang: str, share: float) -> Samples:
    """A share of a language's texts, spread over it; pairs stay whole."""
    rows = np.arange(len(samples))[samples.lang_range(lang)]
    pair = samples.pair[rows]
    of = np.where(pair >= 0, pair, -1 - rows)
    kinds = np.unique(of)
    kept = kinds[np.linspace(0, len(kinds) - 1, max(1, int(share * len(kinds)))).astype(int)]
    rows = rows[np.isin(of, kept)]
    columns = ("labels", "pair", "item", "cluster", "fold", "file_position", "text_sha256")
    return replace(
        samples,
        languages=(lang,),
        texts=[samples.texts[i] for i in rows],
        lang_index=np.zeros(len(rows), np.int16),
        **{name: getattr(samples, name)[rows] for name in columns},
    )


def _cell_s(work: Work, samples: Samples, device: torch.device) -> float:
    """Seconds to finish a cell of all texts, beside as many others as run at a time."""
    generator = torch.Generator().manual_seed(0)
    n, width = len(samples), work.shape.hidden_size
    rows = torch.randn(n, width + work.config.proj_dim, generator=generator)
    cells = torch.get_num_threads() if device.type == "cpu" else 2
    chance = Chance(samples, *samples.languages)
    seconds = []
    for _ in range(2):  # the first one warms up
        began = time.perf_counter()
        finish_language(
            lambda _layer, _pooling: rows,
            chance,
            (cells, 1),
            samples.labels,
            samples.fold,
            np.arange(1, n + 1, dtype=np.int32),
            width,
            [0],
            device,
        )
        seconds.append(time.perf_counter() - began)
    return seconds[-1] / cells


def _read_rate(work: Work) -> float:
    """Bytes of weights that are read and hashed in a second; a usual rate where there are none."""
    files = work.source.weight_files()
    if not files or not files[0].is_file():
        return 1e9
    began, total, digest = time.perf_counter(), 0, hashlib.sha256()
    with files[0].open("rb") as opened:
        while total < _READ_BYTES and (piece := os.read(opened.fileno(), 1 << 22)):
            total += len(piece)
            digest.update(piece)
    return total / max(time.perf_counter() - began, 1e-9)
