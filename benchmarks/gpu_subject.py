"""What `gpu-run` measures with: a model of random weights on the device, and batches for it."""

import sys
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import harness


class _StandIn(MetaPathFinder, Loader):
    """Lets the engine be imported where zarr is missing, as on a bare machine with a GPU.

    Whoever imports this module before the engine gets it.
    """

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        replaced = name.partition(".")[0] in ("zarr", "numcodecs")
        return ModuleSpec(name, self, is_package=True) if replaced else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module: ModuleType = MagicMock(name=spec.name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: whatever is asked of the module is there, and does nothing."""


HAS_STORE = all(find_spec(name) for name in ("zarr", "numcodecs"))
if not HAS_STORE:
    sys.meta_path.insert(0, _StandIn())

# Below the stand-in (hence E402), which these imports need.
from safetyspace_fast.benchmark import matrix_products  # noqa: E402
from safetyspace_fast.extract import Capture, seeded_projection  # noqa: E402
from safetyspace_fast.extract.capture import padded  # noqa: E402
from safetyspace_fast.extract.plan import Batch  # noqa: E402
from safetyspace_fast.models import (  # noqa: E402
    LoadedModel,
    Tokenized,
    attention_kernels,
    layers,
)
from safetyspace_fast.models.prefix import NoCache  # noqa: E402
from safetyspace_fast.models.tokens import Template  # noqa: E402

PROJ_DIM = 64
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "8b": (
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
    "0.6b": (
        "qwen3",
        {
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
    "tiny": (
        "llama",
        {
            "vocab_size": 500,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
    ),
}
"""Sizes of Llama 3.1 8B, of Qwen3 0.6B, and of a model for tests."""
SHAPES = {False: [(256, 64), (64, 256), (8, 2048), (16, 64), (4, 256)], True: [(8, 16), (2, 64)]}
"""Texts and tokens in a batch, by whether the model is tiny: first the large batches of a run."""
FULL_BATCH = 16_384
"""Tokens in a batch from which on the device and not the host is the limit."""


@dataclass(frozen=True)
class Subject:
    """A model with random weights, made on the device.

    model: without a tokenizer.
    projection: `[D, P] float32`, on the device.
    cache: what forward passes get on a GPU, so that they never wait for it; see `models.prefix`.
    token_flops: of the matrix products of all blocks, for one token.
    peaks: what the device reaches; see `harness.measured_peaks`.
    out: the folder for large results.
    """

    name: str
    model: LoadedModel
    projection: Tensor
    cache: Any
    token_flops: float
    peaks: dict[str, float]
    out: Path

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Batches to measure: texts, and tokens in each."""
        return SHAPES[self.name == "tiny"]

    def capture(self, impl: str | None = None, *, packed: bool = False) -> Capture:
        """All hookpoints of the model."""
        hookpoints = self.model.hookpoints
        return Capture(self.model, hookpoints, self.projection, impl, self.cache, packed=packed)

    def bare(self, tokens: Tokenized, batch: Batch, **options: Any) -> Any:
        """A forward pass without hooks: `Capture.run`'s input, kernels of attention and cache."""
        return self.forward(self.ids(tokens, batch), **options)

    @torch.inference_mode()
    def forward(self, ids: Tensor, **options: Any) -> Any:
        """`bare` on token ids that are on the device."""
        if self.cache is not None:
            options |= {"use_cache": True, "past_key_values": self.cache}
        with attention_kernels(self.device):
            return self.model.backbone(input_ids=ids, **{"use_cache": False} | options)

    @torch.inference_mode()
    def usual(self, tokens: Tokenized, batch: Batch, **options: Any) -> Any:
        """A forward pass as scripts call it: no cache, and the kernels of attention torch takes."""
        ids = self.ids(tokens, batch)
        return self.model.backbone(input_ids=ids, use_cache=False, **options)

    def ids(self, tokens: Tokenized, batch: Batch) -> Tensor:
        """Token ids of a batch, `[B, T] int64` on the device; causal models need no mask."""
        return padded(self.model, tokens, batch)[0]

    def flops(self, num_texts: int, length: int) -> float:
        """Floating-point operations of a forward pass: matrix products, and causal attention."""
        sizes = MODELS[self.name][1]
        heads = sizes["num_attention_heads"] * sizes["head_dim"] * sizes["num_hidden_layers"]
        return num_texts * (length * self.token_flops + 2 * length**2 * heads)


def make_subject(name: str, device: torch.device, out: Path) -> Subject:
    """Make a model of the sizes in `MODELS`: in bfloat16 on a GPU, in float32 on a CPU."""
    import transformers

    kind, sizes = MODELS[name]
    config = transformers.AutoConfig.for_model(
        kind, pad_token_id=0, max_position_embeddings=8192, **sizes
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        backbone = transformers.AutoModel.from_config(config, dtype=dtype)
    backbone.eval().requires_grad_(False)
    blocks = layers.find_blocks(backbone, sizes["num_hidden_layers"], name)
    model = LoadedModel(
        name=name,
        backbone=backbone,
        blocks=blocks.modules,
        causal=blocks.causal,
        hookpoints=layers.hookpoint_names(len(blocks.modules)),
        hidden_size=blocks.width,
        tokenizer=None,
        max_tokens=8192,
        pad_token_id=1,
        device=device,
        dtype=dtype,
        identify=dict,
    )
    projection = seeded_projection(blocks.width, PROJ_DIM, 0).to(device)
    cache = NoCache.of(backbone, device) if device.type == "cuda" else None
    _, token_flops = matrix_products(model, 1)
    peaks = harness.measured_peaks(device)
    return Subject(name, model, projection, cache, token_flops, peaks, out)


def tokens_of(lengths: list[int] | NDArray[np.int64]) -> Tokenized:
    """Prompts of random tokens, pooled over all tokens and at the last one."""
    ends = np.concatenate([[0], np.cumsum(lengths)])
    length = np.diff(ends)
    begin, none = np.zeros_like(length), np.zeros(len(length), np.bool_)
    spans = np.stack([np.stack([begin, length], 1), np.stack([length - 1, length], 1)], 1)
    ids = np.random.default_rng(0).integers(10, 400, ends[-1]).astype(np.int32)
    return Tokenized(
        ids=ids,
        starts=ends,
        spans=spans.astype(np.int32),
        n_text_tokens=length.astype(np.int32),
        begins_with_text=none,
        truncated=none,
        poolings=("mean", "last"),
        template=Template("none"),
        prefix_length=0,
    )


def even(num_texts: int, length: int) -> tuple[Tokenized, Batch]:
    """One batch of texts of the same length."""
    rows = np.arange(num_texts)
    return tokens_of([length] * num_texts), Batch(rows, rows, rows, length)


def usual_lengths(number: int) -> NDArray[np.int64]:
    """Lengths as texts have them: log-normal, 64 tokens in the mean, at most 1,000."""
    draws = np.random.default_rng(0).normal(np.log(64) - 0.3, 0.8, number)
    return np.clip(np.exp(draws), 3, 1000).astype(np.int64)
