"""The contract of every operator, in one place: schema, shapes of the results, default kernel.

`safetyspace_fast::NAME` runs the compiled kernel for the tensors' device if one is loaded, else the
plain-torch reference. `safetyspace_fast::NAME_triton` has the same contract and runs the Triton
kernel; `torch.compile` sees it as one opaque call. The public functions of `ops` check arguments:
in eager mode the fakes below do not run.

Operators are registered with `define` and `impl`: a call costs 3 to 5 us; with the `custom_op`
decorator it costs 22 to 40.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from . import reference

NAMESPACE = "safetyspace_fast"

SCHEMAS = {
    # hidden_states [B,T,D], spans [B,S,2] int32, projection [D,P] | None
    # -> pooled [B,S,D] f32, projected [B,S,P] f32, P = 0 without a projection
    "pool_project": "(Tensor hidden_states, Tensor spans, Tensor? projection) -> (Tensor, Tensor)",
    # the averages alone, into out [B,S,D] f32 of any strides but the last; no sample has more than
    # `longest` tokens from the first to the last of its spans
    "pool_into": "(Tensor hidden_states, Tensor spans, Tensor(a!) out, int longest) -> ()",
    # rows [L,M,D], cols [L,N,D] | None (the rows themselves, without the diagonal),
    # center [L,D] f64 (`reference.center_of`), col_labels [N] int64, metric of `ops.METRICS`
    # -> sum [L,M,C] f64, min [L,M,C] f32, max [L,M,C] f32, kernel_sum [L,M,C,G] f64
    "pairwise_reduce": "(Tensor rows, Tensor? cols, Tensor center, Tensor col_labels, "
    "int num_classes, str metric, float[] gammas) -> (Tensor, Tensor, Tensor, Tensor)",
    # x [L,N,D], center [L,D] f64, labels [N] int64, results of pairwise_reduce for N rows:
    # adds, in place, all pairs that have a row in [start, N)
    "pairwise_update": "(Tensor x, Tensor center, Tensor labels, int start, str metric, "
    "float[] gammas, Tensor(a!) sum, Tensor(b!) min, Tensor(c!) max, Tensor(d!) kernel_sum) -> ()",
    # x [L,N,D], center [L,D] f64, masks [N,R] f32 of 0 and 1, shift [L] f32; v is the distance, or
    # with gamma [L] f64 the kernel -> total [L,N] f64: sums over all other samples; within [L,R]
    # f64: sums of v - shift over the pairs i < j in the mask
    "pairwise_within": "(Tensor x, Tensor center, Tensor masks, str metric, Tensor? gamma, "
    "Tensor shift) -> (Tensor, Tensor)",
}


def _fake_pool_project(
    hidden_states: Tensor, spans: Tensor, projection: Tensor | None
) -> tuple[Tensor, Tensor]:
    B, S, _ = spans.shape
    D = hidden_states.shape[2]
    P = 0 if projection is None else projection.shape[1]
    empty = hidden_states.new_empty
    return empty((B, S, D), dtype=torch.float32), empty((B, S, P), dtype=torch.float32)


def _fake_pairwise_reduce(
    rows: Tensor,
    cols: Tensor | None,
    center: Tensor,
    col_labels: Tensor,
    num_classes: int,
    metric: str,
    gammas: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (rows.shape[0], rows.shape[1], num_classes)
    return (
        rows.new_empty(shape, dtype=torch.float64),
        rows.new_empty(shape, dtype=torch.float32),
        rows.new_empty(shape, dtype=torch.float32),
        rows.new_empty((*shape, len(gammas)), dtype=torch.float64),
    )


def _fake_in_place(*args: Any) -> None:
    return None


def _fake_pairwise_within(
    x: Tensor, center: Tensor, masks: Tensor, metric: str, gamma: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor]:
    L, N = x.shape[:2]
    empty = x.new_empty
    return empty((L, N), dtype=torch.float64), empty((L, masks.shape[1]), dtype=torch.float64)


_FAKES: dict[str, Callable[..., Any]] = {
    "pool_project": _fake_pool_project,
    "pool_into": _fake_in_place,
    "pairwise_reduce": _fake_pairwise_reduce,
    "pairwise_update": _fake_in_place,
    "pairwise_within": _fake_pairwise_within,
}


def _register(name: str, op: str, kernel: Any) -> None:
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, SCHEMAS[op], tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, "CompositeExplicitAutograd", kernel)
    torch.library.register_fake(qualified, _FAKES[op])


TRITON_MODULES = {op: op for op in SCHEMAS} | {"pool_into": "pool_project"}
"""The file of each operator's Triton kernels."""


def _triton_kernel(op: str) -> Any:
    def kernel(*args: Any) -> Any:
        module = import_module(f"safetyspace_fast.ops.triton.{TRITON_MODULES[op]}")
        return getattr(module, op)(*args)

    return kernel


for _op in SCHEMAS:
    _register(_op, _op, getattr(reference, _op))
    _register(f"{_op}_triton", _op, _triton_kernel(_op))

# Operators without a reference; `_native`, `_labels` and `_linear` call them.
torch.library.define(f"{NAMESPACE}::simd_level", "() -> str")
torch.library.define(f"{NAMESPACE}::label_sums", "(Tensor values, Tensor bits) -> Tensor")
torch.library.define(
    f"{NAMESPACE}::label_silhouettes",
    "(Tensor to1, Tensor row_sum, Tensor bits, int first, Tensor in0, Tensor in1, "
    "Tensor(a!) silhouette, Tensor(b!) within) -> ()",
)
torch.library.define(
    f"{NAMESPACE}::label_wins", "(Tensor scores, Tensor bits, Tensor ends) -> Tensor"
)
_LAYERS: dict[str, tuple[str, Callable[..., Any]]] = {
    # x [..., K] f32, panels [N / 32, K, 32] f32 (`pack_linear`), bias [N] -> [..., N]
    "linear": (
        "(Tensor x, Tensor panels, Tensor? bias, int features) -> Tensor",
        lambda x, panels, bias, features: x.new_empty((*x.shape[:-1], features)),
    ),
    # panels [2 N / 32, K, 32] f32 (`pack_gated`) -> [..., N]
    "gated_linear": (
        "(Tensor x, Tensor panels, int features, str activation) -> Tensor",
        lambda x, panels, features, activation: x.new_empty((*x.shape[:-1], features)),
    ),
    # x [..., D] f32, weight [D] f32 -> [..., D]
    "rms_norm": (
        "(Tensor x, Tensor weight, float epsilon) -> Tensor",
        lambda x, weight, epsilon: x.new_empty(x.shape),
    ),
    # qkv [B, T, (H + 2 K) dim] f32, cos, sin [1 or B, T, dim], norms [dim], past [K, P, dim]
    # -> [B, T, H dim]
    "rotary_attention": (
        "(Tensor qkv, Tensor cos, Tensor sin, int num_heads, int num_kv_heads, float scaling, "
        "Tensor? q_norm, Tensor? k_norm, float epsilon, "
        "Tensor? past_keys, Tensor? past_values) -> Tensor",
        lambda qkv, cos, sin, num_heads, *rest: qkv.new_empty(
            (*qkv.shape[:2], num_heads * cos.shape[2])
        ),
    ),
}
for _op, (_schema, _fake) in _LAYERS.items():
    torch.library.define(f"{NAMESPACE}::{_op}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{NAMESPACE}::{_op}", _fake)
