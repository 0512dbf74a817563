"""Texts in one row without padding, and the other ways in which a GPU reads batches.

`varlen_attn` runs on GPUs only; its stand-in here computes the same text by text.
"""

import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from test_states import TEXTS, assert_close_states, pooled_states
from tiny_models import ARCHITECTURES, save_tiny
from torch.utils._python_dispatch import TorchDispatchMode

from safetyspace_fast.errors import ImplementationError, ModelError
from safetyspace_fast.extract import Capture, seeded_projection, tune
from safetyspace_fast.extract import prepare as preparing
from safetyspace_fast.extract.plan import Batching, make_plan
from safetyspace_fast.extract.prepare import prepare
from safetyspace_fast.models import LoadedModel, load_model, packed, parse_model, tokenize
from safetyspace_fast.models.prefix import NoCache

ONE_BATCH = Batching(10_000, batch_cost=10_000)
A_GPU = torch.device("cuda", 0)


def text_by_text(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    limits: torch.Tensor,
    key_limits: torch.Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What `varlen_attn` computes, [T, H, dim]."""
    assert limits.dtype == torch.int32
    assert int(limits.diff().max()) == longest == longest_key
    assert window_size[1] == 0
    out = []
    for start, stop in zip(limits[:-1].tolist(), limits[1:].tolist(), strict=True):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        seen = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        if window_size[0] >= 0:
            seen = seen.triu(-window_size[0])
        part = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        out.append(part.transpose(0, 1))
    return torch.cat(out)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "varlen_attn", text_by_text)


def load(architecture: str, folder: Path) -> LoadedModel:
    """A model whose layers are transformers' own, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safetyspace_fast.models.loading.try_fusing", lambda _: None)
        return load_model(parse_model(str(save_tiny(architecture, folder / architecture))))


REFUSED = ("gemma2", "bloom", "falcon")
"""Capped scores, distances instead of positions, and attention outside transformers' interface."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_states_are_those_of_padded_batches(architecture: str, tmp_path: Path) -> None:
    model = load(architecture, tmp_path)
    reason = packed.why_not_packed(model)
    assert (reason is None) == (architecture not in REFUSED), reason
    if reason is not None:
        return
    alone = pooled_states(model, "none", 1, shared=False)
    together = pooled_states(model, "none", 1000, shared=False, packed=True)
    assert_close_states(together, alone)


def test_no_token_is_padding_and_the_model_is_as_before(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    tokens = tokenize(model, TEXTS, template="none")
    seen = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    (batch,) = make_plan(tokens, batching=ONE_BATCH)
    before = model.backbone.config._attn_implementation
    projection = seeded_projection(model.hidden_size, 4, 0)
    with Capture(model, model.hookpoints, projection, packed=True) as capture:
        capture.run(tokens, batch)
    handle.remove()
    assert seen == [(1, int(tokens.lengths[batch.unique].sum()), 32)]
    assert model.backbone.config._attn_implementation == before


@pytest.mark.parametrize(
    "wrong", [{"softcap": 30.0}, {"s_aux": torch.ones(2)}, {"is_causal": False}]
)
def test_attention_of_another_kind_is_refused(wrong: dict[str, Any]) -> None:
    x = torch.ones(1, 2, 3, 4)
    limits = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ModelError, match="its attention needs"):
        packed.attend(
            torch.nn.Module(), x, x, x, None, cu_seq_lens_q=limits, max_length_q=3, **wrong
        )


def test_texts_that_saw_each_other_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed(query: Any, key: Any, value: Any, *_: object, **options: Any) -> torch.Tensor:
        whole = torch.tensor([0, len(query)], dtype=torch.int32)
        return text_by_text(query, key, value, whole, whole, len(query), len(query), **options)

    model = load("llama", tmp_path)
    assert packed.why_not_packed(model) is None
    monkeypatch.setattr(packed, "varlen_attn", mixed)
    assert packed.why_not_packed(model) == "its states would change"


def test_a_cpu_never_packs(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    tokens = tokenize(model, TEXTS, template="none")
    plan = make_plan(tokens, batching=Batching(10_000))
    assert not tune.packing_pays(model, tokens, plan)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "mistral"])
def test_a_cache_that_keeps_nothing_changes_no_bit(architecture: str, tmp_path: Path) -> None:
    model = load(architecture, tmp_path)
    cache = NoCache.of(model.backbone, model.device)
    assert cache is not None
    alone = pooled_states(model, "none", 40, shared=False)
    cached = pooled_states(model, "none", 40, shared=False, cache=cache)
    assert (alone == cached).all()


@pytest.mark.parametrize(("wrong_from", "used"), [(1, False), (2, False), (3, True)])
def test_a_cache_that_changes_one_bit_is_not_used(wrong_from: int, used: bool) -> None:
    """At once, or in the batch that finds what the one before has left."""
    calls = []

    class Backbone(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, *, use_cache: bool, **_: object) -> Any:
            states = 1.0 + input_ids[..., None]
            if use_cache:
                calls.append(states)
            if len(calls) >= wrong_from:
                states[1, 2] += 1e-6
            return SimpleNamespace(last_hidden_state=states)

    assert (NoCache.of(Backbone(), torch.device("cpu")) is not None) == used


def test_a_gpu_is_never_asked_whether_texts_share_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That question is a wait for the device in every batch."""
    asked: list[int] = []
    question = transformers.masking_utils.find_packed_sequence_indices

    def counted(positions: torch.Tensor) -> Any:
        asked.append(1)
        return question(positions)

    model = load("gemma3_text", tmp_path)
    cache = NoCache.of(model.backbone, model.device)
    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", counted)
    pooled_states(model, "none", 1000, shared=False, cache=cache)
    pooled_states(model, "none", 1000, shared=False, packed=True)
    assert not asked
    pooled_states(model, "none", 1000, shared=False)
    assert asked


def test_every_run_on_a_gpu_reads_with_such_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama", tmp_path)
    made = NoCache.of(model.backbone, model.device)
    options: dict[str, Any] = {"template": "none", "batching": ONE_BATCH, "packed": False}
    assert prepare(model, TEXTS, **options).cache is None
    asked: list[torch.device] = []

    def of(_backbone: object, device: torch.device) -> NoCache | None:
        asked.append(device)
        return made

    monkeypatch.setattr(NoCache, "of", of)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(preparing, "_try_kernels", lambda *_: None)
    assert prepare(replace(model, device=A_GPU), TEXTS, **options).cache is made
    assert asked == [A_GPU]


def test_an_implementation_that_cannot_be_used_is_refused_before_any_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama", tmp_path)
    monkeypatch.setattr(model.backbone, "forward", pytest.fail)
    with pytest.raises(ImplementationError, match="impl='cuda' cannot be used"):
        prepare(model, TEXTS, template="none", batching=ONE_BATCH, packed=False, impl="cuda")


def test_on_a_gpu_kernels_are_tried_before_any_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama", tmp_path)
    monkeypatch.setattr(model.backbone, "forward", pytest.fail)

    def tried(model: LoadedModel, _projection: torch.Tensor, impl: str | None) -> None:
        raise ImplementationError(f"{model.device}, {impl}")

    monkeypatch.setattr(preparing, "_try_kernels", tried)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    with pytest.raises(ImplementationError, match=r"^cuda:0, None$"):
        prepare(replace(model, device=A_GPU), TEXTS, template="none")


NOT_COMPILED = [
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable ..."),
    PermissionError(13, "Permission denied", "/home/you/.triton"),
    subprocess.CalledProcessError(1, ["gcc", "cuda_utils.c"]),
    RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
]
"""A machine without a compiler, a home that cannot be written to, no Python.h, an old driver."""


@pytest.mark.parametrize("error", NOT_COMPILED, ids=str)
def test_what_compiling_kernels_needs_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(preparing, "pairwise_reduce", fail)
    line = r"^kernels cannot be compiled here \(.*\); Triton needs a C compiler, .* reference,"
    with pytest.raises(ImplementationError, match=line) as caught:
        prepare(load("llama", tmp_path), TEXTS, template="none", impl="reference")
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_lost_while_kernels_are_tried_is_not_blamed_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: unknown error")

    monkeypatch.setattr(preparing, "pairwise_reduce", lost)
    with pytest.raises(torch.AcceleratorError):
        prepare(load("llama", tmp_path), TEXTS, template="none", impl="reference")


def test_on_a_gpu_attention_never_takes_kernels_that_plan_for_every_shape(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    projection = seeded_projection(model.hidden_size, 4, 0)
    enabled = torch.backends.cuda.cudnn_sdp_enabled
    before = enabled()
    with Capture(replace(model, device=A_GPU), model.hookpoints, projection):
        assert not enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    assert enabled() == before
    with Capture(model, model.hookpoints, projection):
        assert enabled() == before


class Operations(TorchDispatchMode):
    """Counts the operations that torch issues."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("in_one_row", [False, True])
def test_a_captured_layer_costs_the_host_one_operation(tmp_path: Path, in_one_row: bool) -> None:
    """Beside the forward pass itself: the pooling; packed, also a view of the row."""
    model = load("llama", tmp_path)
    tokens = tokenize(model, TEXTS, template="none")
    (batch,) = make_plan(tokens, batching=ONE_BATCH)
    projection = seeded_projection(model.hidden_size, 4, 0)

    def operations(hookpoints: tuple[str, ...]) -> int:
        seen = Operations()
        with Capture(model, hookpoints, projection, packed=in_one_row) as capture, seen:
            capture.run(tokens, batch)
        return seen.count.total()

    one = operations(("final_norm",))
    all_layers = operations(model.hookpoints)
    layers = len(model.hookpoints) - 1
    assert all_layers - one <= (2 if in_one_row else 1) * layers


def test_a_batch_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its results would stand on the device beside those of the next try."""
    model = load("llama", tmp_path)
    tokens = tokenize(model, TEXTS, template="none")
    (batch,) = make_plan(tokens, batching=ONE_BATCH)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    projection = seeded_projection(model.hidden_size, 4, 0)
    with Capture(model, model.hookpoints, projection) as capture:
        handle = model.blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            capture.run(tokens, batch)
        assert capture._pool is None
        handle.remove()
        capture.run(tokens, batch)
        assert capture._pool is None
