"""How fast this package runs a model on a user's own texts, beside the usual way."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from .data import Samples
from .extract import Capture
from .extract.prepare import prepare
from .models import (
    GatedLinear,
    LoadedModel,
    PackedLinear,
    Tokenized,
    fuse,
    unfuse,
)
from .notebook import Section, html

USUAL_BATCH = 32


@dataclass(frozen=True)
class Bench:
    """The result of `bench`.

    texts: number of texts that ran, spread evenly over languages and lengths.
    tokens: their tokens, without padding and without the shared prefix.
    usual_s: median seconds of the usual way: transformers with `output_hidden_states=True`, padded
        batches of 32, and the mean of each layer in NumPy.
    ours_s: median seconds of this package's forward passes, with all hookpoints captured.
    share_of_matrix_rate: of ours, counted over `tokens`: the share of the rate at which the matrix
        products of all blocks run alone. None: the model has no linear layers.
    all_texts, all_tokens: of the whole data set.
    """

    model: str
    device: str
    dtype: str
    template: str
    texts: int
    tokens: int
    usual_s: float
    ours_s: float
    share_of_matrix_rate: float | None
    all_texts: int
    all_tokens: int

    def _repr_html_(self) -> str:
        """What notebooks show."""
        share = self.share_of_matrix_rate
        rows = [
            ("texts", self.texts),
            ("tokens", self.tokens),
            ("the usual way", f"{self.usual_s:.2f} s"),
            ("this package", f"{self.ours_s:.2f} s"),
            ("share of the matrix rate", "-" if share is None else f"{share:.0%}"),
            ("all texts", self.all_texts),
            ("forward passes over all texts", f"{self.all_s:.0f} s"),
            ("template", self.template),
            ("dtype", self.dtype),
            ("device", self.device),
        ]
        title = f"Bench of {self.model}: {self.ratio:.1f} times as fast as the usual way"
        return html(repr(self), title, [Section("about", ("what", "value"), rows)])

    @property
    def ratio(self) -> float:
        """How many times as fast as the usual way."""
        return self.usual_s / self.ours_s

    @property
    def all_s(self) -> float:
        """Expected seconds of the forward passes over the whole data set."""
        return self.ours_s * self.all_tokens / self.tokens


def bench_model(
    model: LoadedModel,
    samples: Samples,
    *,
    num_texts: int = 128,
    template: str = "auto",
    repeats: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Bench:
    """Time both ways in turn on texts that are spread evenly over the canonical order.

    Args:
        model: the loaded model.
        samples: the texts to choose from.
        num_texts: how many to choose.
        template: as in `RunConfig`.
        repeats: timed rounds, after one that warms up.
        progress: called with the number of steps done and their total.
    """
    everything = prepare(model, samples.texts, template=template)
    picks = np.linspace(0, len(samples) - 1, min(num_texts, len(samples))).round().astype(int)
    texts = [samples.texts[i] for i in picks]
    work = prepare(model, texts, template=template, batching=everything.batching)
    products, flops = matrix_products(model, 512)

    def ours() -> None:
        with Capture(model, work.hookpoints, work.projection, cache=work.cache) as capture:
            for batch in work.plan:
                capture.run(work.tokens, batch).cpu()

    fused = any(isinstance(module, PackedLinear) for module in model.blocks.modules())

    cases = [lambda: _usual_way(model, work.prompts), ours, products]
    seconds: list[list[float]] = [[] for _ in cases]
    for i_round in range(repeats + 1):
        for i_case, case in enumerate(cases):
            if fused and i_case == 0:  # the usual way has plain layers
                unfuse(model.backbone)
            started = time.perf_counter()
            case()
            if i_round:
                seconds[i_case].append(time.perf_counter() - started)
            if fused and i_case == 0:
                fuse(model.backbone)
            if progress is not None:
                progress(i_round * len(cases) + i_case + 1, (repeats + 1) * len(cases))
    usual_s, ours_s, products_s = map(median, seconds)
    share = flops / 512 * work.plan.tokens / ours_s / (flops / products_s) if flops else None
    return Bench(
        model=model.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        template=work.tokens.template.kind,
        texts=len(texts),
        tokens=work.plan.tokens,
        usual_s=usual_s,
        ours_s=ours_s,
        share_of_matrix_rate=share,
        all_texts=len(samples),
        all_tokens=len(everything.tokens.ids),
    )


@torch.inference_mode()
def _usual_way(model: LoadedModel, tokens: Tokenized) -> None:
    order = np.random.default_rng(0).permutation(len(tokens))  # files are not sorted by length
    for start in range(0, len(order), USUAL_BATCH):
        rows = order[start : start + USUAL_BATCH]
        length = int(tokens.lengths[rows].max())
        ids = torch.full((len(rows), length), model.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            prompt = torch.from_numpy(tokens.prompt(row))
            ids[i, : len(prompt)], mask[i, : len(prompt)] = prompt, 1
        states = model.backbone(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        weights = mask.numpy()[:, :, None]
        for state in states:
            (state.float().cpu().numpy() * weights).sum(1) / weights.sum(1)


def matrix_products(model: LoadedModel, n_tokens: int) -> tuple[Callable[[], None], float]:
    """The matrix products of all blocks, and nothing else.

    Args:
        model: the loaded model.
        n_tokens: rows of their input.

    Returns:
        A function that runs all linear layers once, and the number of floating-point operations.
    """

    def linears() -> list[Any]:
        kinds = (torch.nn.Linear, PackedLinear, GatedLinear)
        return [module for module in model.blocks.modules() if isinstance(module, kinds)]

    inputs = {
        width: torch.randn(n_tokens, width, dtype=model.dtype, device=model.device)
        for width in {linear.in_features for linear in linears()}
    }

    @torch.inference_mode()
    def products() -> None:
        for linear in linears():
            linear(inputs[linear.in_features])
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    flops = sum(2.0 * linear.in_features * linear.out_features for linear in linears())
    return products, flops * n_tokens
