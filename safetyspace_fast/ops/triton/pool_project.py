"""Means over token spans of every sample, and their projection, in one read of the hidden states.

    pooled[b, s]    = mean of hidden_states[b, t] over spans[b, s, 0] <= t < spans[b, s, 1]
    projected[b, s] = pooled[b, s] @ projection

Bytes and flops, for one layer with B samples, T tokens, S spans, D hidden and P projected
dimensions, hidden states of `w` bytes (B=64, T=64, S=2, D=4096, P=64, bfloat16 in brackets):

    hidden states, read once       B T D w                            [33.6 MB]
    pooled, written                4 B S D                            [ 2.1 MB]
    projection, read per row tile  4 D P ceil(B S / BR), from L2      [ 4.2 MB]
    partial products               8 B S P ceil(D / CHUNK), in L2     [ 0.5 MB]
    additions                      S B T D                            [34 Mflop]
    projection                     2 B S D P                          [67 Mflop]

The first line decides: 17 us on an A100, 10 us on an H100, against 4 us of float32 arithmetic. To
share the projection between 16 samples inside the pooling kernel, each program would have to walk
16 samples one after the other, which leaves 32 programs on 132 multiprocessors for the shape above.
So pooling runs one program per sample and slice of D, and the product is a second kernel that finds
the pooled rows in L2 and shares each tile of the projection among at least 16 samples. It is cut
along D into chunks of fixed length, whose partial products a third kernel adds in order: enough
programs for few samples, and an error that grows with CHUNK + D / CHUNK additions rather than D.
Tensor cores would take a twentieth of the time and give up float32; `input_precision="ieee"` keeps
it.

`pool_into` averages alone, into rows that may lie apart. Few long texts would leave most of a GPU
idle, so programs also share the tokens of texts longer than `TOKENS`: each sums so many, counted
from the sample's first, and a second kernel adds the sums in order (8 B S D T / TOKENS bytes more,
3 % of bfloat16 states).

No result depends on the batch around a sample: sums start at the sample's first span, pieces of
tokens are counted from there, and chunks are cut by D alone.
"""

# A kernel's arguments have the types that its launch gives them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, var-annotated"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget

from safetyspace_fast.ops.triton import TRITON, current_target, device_reasons, launch_options

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_SPANS = 8
LOAD_BYTES = 16
# Partial products of a chunk start on a multiple of this many values, so that any number is read
# with wide loads.
PITCH = tl.constexpr(16)


@triton.jit
def load_spans(spans_ptr, i_b, T, S: tl.constexpr):
    """Starts and ends of one sample's spans, cut to it, and the range that holds them all.

    Cut, because a wrong span may give a wrong mean, never a read out of bounds.
    """
    starts = ()
    ends = ()
    first = T
    last = T * 0
    for s in tl.static_range(S):
        start = tl.maximum(tl.load(spans_ptr + (i_b * S + s) * 2), 0)
        end = tl.minimum(tl.load(spans_ptr + (i_b * S + s) * 2 + 1), T)
        first = tl.where(start < end, tl.minimum(first, start), first)
        last = tl.where(start < end, tl.maximum(last, end), last)
        starts += (start,)
        ends += (end,)
    return starts, ends, first, last


@triton.jit
def mean_of(b_sum, length):
    """The mean of a sum over `length` tokens; NaN over none."""
    b_mean = b_sum / tl.maximum(length, 1).to(tl.float32)
    return tl.where(length > 0, b_mean, float("nan"))


_VARYING = ["T", "stride_b", "num_pieces", "stride_piece", "stride_out_b", "stride_out_s"]
"""They differ from batch to batch: specialised, they would compile a kernel again and again."""


@triton.jit(do_not_specialize=_VARYING)
def pool_kernel(
    hidden_ptr,  # [B, T, D]
    spans_ptr,  # [B, S, 2] int32, contiguous
    out_ptr,  # [B, S, D] float32, rows of adjacent values; or sums [num_pieces, B, S, D]
    T,
    D,
    num_pieces,
    stride_b,
    stride_t,
    stride_d,
    stride_piece,
    stride_out_b,
    stride_out_s,
    S: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    TOKENS: tl.constexpr,
    ALIGNED: tl.constexpr,  # stride_b is a multiple of 16
    ALIGNED_OUT: tl.constexpr,  # so are the strides of out
    SUMS: tl.constexpr,  # texts have several pieces of TOKENS
):
    """Average, or sum over one piece of its tokens, one sample's spans over one slice of D."""
    num_slices = tl.cdiv(D, BD)
    i_tile = tl.program_id(0) // num_pieces
    i_piece = tl.program_id(0) % num_pieces
    i_b = (i_tile // num_slices).to(tl.int64)
    o_d = i_tile % num_slices * BD + tl.arange(0, BD)
    m_d = o_d < D
    o_sample = i_b * stride_b
    if ALIGNED:
        o_sample = tl.multiple_of(o_sample, 16)
    p_hidden = hidden_ptr + o_sample + o_d[None, :].to(tl.int64) * stride_d
    starts, ends, first, last = load_spans(spans_ptr, i_b, T, S)
    if SUMS:
        first += i_piece * TOKENS
        last = tl.minimum(last, first + TOKENS)
        m_d = o_d < tl.where(first < last, D, 0)

    sums = ()
    for _s in tl.static_range(S):
        sums += (tl.zeros([BT, BD], tl.float32),)
    for t in range(first, last, BT):
        i_t = t + tl.arange(0, BT)
        m_hidden = (i_t < last)[:, None] & m_d[None, :]
        p_rows = p_hidden + i_t[:, None].to(tl.int64) * stride_t
        b_hidden = tl.load(p_rows, mask=m_hidden, other=0.0).to(tl.float32)
        grown = ()
        for s in tl.static_range(S):
            # A choice, not a product: what lies outside a span may be infinite.
            m_span = (i_t >= starts[s]) & (i_t < ends[s])
            grown += (sums[s] + tl.where(m_span[:, None], b_hidden, 0.0),)
        sums = grown

    o_out = i_b * stride_out_b
    if SUMS:
        o_out += i_piece.to(tl.int64) * stride_piece
    for s in tl.static_range(S):
        b_sum = tl.sum(sums[s], axis=0)
        if not SUMS:
            b_sum = mean_of(b_sum, ends[s] - starts[s])
        o_row = o_out + s * stride_out_s.to(tl.int64)
        if ALIGNED_OUT:
            o_row = tl.multiple_of(o_row, 16)
        tl.store(out_ptr + o_row + o_d, b_sum, mask=m_d)


@triton.jit(do_not_specialize=_VARYING)
def add_pieces_kernel(
    sums_ptr,  # [num_pieces, B, S, D] float32, contiguous
    spans_ptr,  # [B, S, 2] int32, contiguous
    out_ptr,  # [B, S, D] float32, rows of adjacent values
    T,
    D,
    num_pieces,
    stride_piece,
    stride_out_b,
    stride_out_s,
    S: tl.constexpr,
    BD: tl.constexpr,
    TOKENS: tl.constexpr,
    ALIGNED: tl.constexpr,  # D is a multiple of 16
    ALIGNED_OUT: tl.constexpr,  # the strides of out are
):
    """Average one sample's spans over one slice of D, from the sums of its pieces in order."""
    num_slices = tl.cdiv(D, BD)
    i_b = (tl.program_id(0) // num_slices).to(tl.int64)
    o_d = tl.program_id(0) % num_slices * BD + tl.arange(0, BD)
    m_d = o_d < D
    starts, ends, first, last = load_spans(spans_ptr, i_b, T, S)
    stop = tl.minimum(num_pieces, tl.cdiv(tl.maximum(last - first, 0), TOKENS))
    for s in tl.static_range(S):
        b_sum = tl.zeros([BD], tl.float32)
        for i_piece in range(stop):
            o_sums = i_piece * stride_piece.to(tl.int64) + (i_b * S + s) * D
            if ALIGNED:
                o_sums = tl.multiple_of(o_sums, 16)
            b_sum += tl.load(sums_ptr + o_sums + o_d, mask=m_d, other=0.0)
        b_mean = mean_of(b_sum, ends[s] - starts[s])
        o_row = i_b * stride_out_b + s * stride_out_s.to(tl.int64)
        if ALIGNED_OUT:
            o_row = tl.multiple_of(o_row, 16)
        tl.store(out_ptr + o_row + o_d, b_mean, mask=m_d)


@triton.jit(do_not_specialize=["R"])
def project_kernel(
    pooled_ptr,  # [R, D] float32, contiguous
    projection_ptr,  # [D, P] float32, contiguous
    partial_ptr,  # [ceil(D / CHUNK), R P rounded up to PITCH] float32, contiguous
    R,
    D,
    P,
    BR: tl.constexpr,
    BD: tl.constexpr,
    BP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Multiply one tile of rows with one chunk of the projection."""
    i_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    i_p = tl.program_id(1) * BP + tl.arange(0, BP)
    i_chunk = tl.program_id(2)
    m_r = i_r < R
    m_p = i_p < P
    b_product = tl.zeros([BR, BP], tl.float32)
    for o_d in range(0, CHUNK, BD):
        i_d = i_chunk * CHUNK + o_d + tl.arange(0, BD)
        m_d = i_d < D
        p_pooled = pooled_ptr + i_r[:, None] * D + i_d[None, :]
        b_pooled = tl.load(p_pooled, mask=m_r[:, None] & m_d[None, :], other=0.0)
        p_projection = projection_ptr + i_d[:, None].to(tl.int64) * P + i_p[None, :]
        b_projection = tl.load(p_projection, mask=m_d[:, None] & m_p[None, :], other=0.0)
        b_product = tl.dot(b_pooled, b_projection, b_product, input_precision="ieee")
    o_chunk = i_chunk.to(tl.int64) * (tl.cdiv(R * P, PITCH) * PITCH)
    p_partial = partial_ptr + o_chunk + i_r[:, None] * P + i_p[None, :]
    tl.store(p_partial, b_product, mask=m_r[:, None] & m_p[None, :])


@triton.jit(do_not_specialize=["num_values"])
def add_chunks_kernel(
    partial_ptr,  # [num_chunks, num_values rounded up to PITCH] float32, contiguous
    projected_ptr,  # [num_values] float32, contiguous
    num_values,
    num_chunks,
    BLOCK: tl.constexpr,
):
    """Add the partial products, always in the order of the chunks."""
    pitch = tl.cdiv(num_values, PITCH) * PITCH
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    p_partial = partial_ptr + i
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(num_chunks):
        total += tl.load(p_partial, mask=i < pitch, other=0.0)
        p_partial += pitch
    tl.store(projected_ptr + i, total, mask=i < num_values)


class PoolConfig(NamedTuple):
    """Block sizes of `pool_kernel`."""

    BT: int
    BD: int
    num_warps: int


class ProjectConfig(NamedTuple):
    """Block sizes of `project_kernel`."""

    BR: int
    BD: int
    BP: int
    num_warps: int


TOKENS = 256
CHUNK = 512
ADD_BLOCK = 1024
ADD_WARPS = 2


def pool_config(itemsize: int, num_spans: int, warp_size: int = 32) -> PoolConfig:
    """Block sizes for hidden states of `itemsize` bytes.

    A warp reads one row of BD with 16 bytes a thread, so all sums stay in the thread until the end;
    the rows of BT over four warps are the loads in flight. Each span costs a register per element,
    hence fewer rows for more spans.
    """
    rows_per_warp = 4 if num_spans <= 2 else 2 if num_spans <= 4 else 1
    return PoolConfig(4 * rows_per_warp, warp_size * LOAD_BYTES // itemsize, 4)


def project_config(num_spans: int, P: int, target: GPUTarget) -> ProjectConfig:
    """Block sizes that hold the spans of at least 16 samples, rounded up to a power of two.

    On sm_100 Triton 3.7 spills in 4 warps, of 8 to 16 sums a thread.
    """
    rows = min(triton.next_power_of_2(16 * num_spans), 128)
    columns = min(max(triton.next_power_of_2(P), 16), 64)
    num_warps = max(4, rows // 16)
    if target.arch == 100 and TRITON == (3, 7) and rows > 16 and rows * columns <= 2048:
        num_warps = 8
    return ProjectConfig(rows, 32, columns, num_warps)


def supports(hidden_states: Tensor, spans: Tensor, *_: object) -> list[str]:
    """Reasons why this file cannot take these tensors; empty when it can."""
    reasons = device_reasons("hidden_states", hidden_states)
    if hidden_states.dtype not in DTYPES:
        reasons.append(f"hidden_states are {hidden_states.dtype}, not float32, bfloat16 or float16")
    if spans.shape[1] > MAX_SPANS:
        reasons.append(
            f"{spans.shape[1]} spans a sample, and sums of only {MAX_SPANS} fit in registers"
        )
    return reasons


def pool_project(
    hidden_states: Tensor, spans: Tensor, projection: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Average token spans and project the means, on the current stream and without synchronisation.

    hidden_states: [B, T, D] float32, bfloat16 or float16, any strides.
    spans: [B, S, 2] int32, half-open token ranges; an empty one gives NaN.
    projection: [D, P] float32, or None.
    Returns pooled [B, S, D] float32 and projected [B, S, P] float32 (P = 0 without a projection).
    """
    B, T, D = hidden_states.shape
    S = spans.shape[1]
    pooled = hidden_states.new_empty((B, S, D), dtype=torch.float32)
    with torch.accelerator.device_index(hidden_states.device.index):
        _pool(hidden_states, spans, pooled, T)
        if projection is None:
            return pooled, pooled.new_empty((B, S, 0))
        return pooled, _project(pooled, projection.contiguous())


def pool_into(hidden_states: Tensor, spans: Tensor, out: Tensor, longest: int) -> None:
    """The averages alone, into `out`.

    hidden_states, spans: as for `pool_project`.
    out: [B, S, D] float32 of any strides but the last, which is 1.
    longest: no sample has more tokens from the first to the last of its spans.
    """
    with torch.accelerator.device_index(hidden_states.device.index):
        _pool(hidden_states, spans, out, longest)


def _pool(hidden_states: Tensor, spans: Tensor, pooled: Tensor, longest: int) -> None:
    if not pooled.numel():
        return
    (B, S, D), T = pooled.shape, hidden_states.shape[1]
    spans = spans.contiguous()
    itemsize = hidden_states.element_size()
    stride_b, stride_t, stride_d = hidden_states.stride()
    warp_size = current_target().warp_size
    config = pool_config(itemsize, S, warp_size)
    num_slices = triton.cdiv(D, config.BD)
    num_pieces = max(1, triton.cdiv(min(longest, T), TOKENS))
    out = pooled if num_pieces == 1 else pooled.new_empty((num_pieces, B, S, D))
    stride_piece = out.stride(0) if num_pieces > 1 else 0
    aligned_out = D % 16 == 0 if num_pieces > 1 else _aligned(pooled)
    pool_kernel[(B * num_slices * num_pieces,)](
        hidden_states,
        spans,
        out,
        T,
        D,
        num_pieces,
        stride_b,
        stride_t,
        stride_d,
        stride_piece,
        out.stride(-3),
        out.stride(-2),
        S=S,
        BT=config.BT,
        BD=config.BD,
        TOKENS=TOKENS,
        ALIGNED=stride_b % 16 == stride_t % 16 == 0,
        ALIGNED_OUT=aligned_out,
        SUMS=num_pieces > 1,
        **launch_options(config.num_warps),
    )
    if num_pieces > 1:
        width = 4 * ADD_WARPS * warp_size
        add_pieces_kernel[(B * triton.cdiv(D, width),)](
            out,
            spans,
            pooled,
            T,
            D,
            num_pieces,
            stride_piece,
            pooled.stride(0),
            pooled.stride(1),
            S=S,
            BD=width,
            TOKENS=TOKENS,
            ALIGNED=D % 16 == 0,
            ALIGNED_OUT=_aligned(pooled),
            **launch_options(ADD_WARPS),
        )


def _aligned(out: Tensor) -> bool:
    """Whether every row starts on a multiple of 16 values, counted from the first."""
    return out.stride(0) % 16 == out.stride(1) % 16 == 0


def _project(pooled: Tensor, projection: Tensor) -> Tensor:
    B, S, D = pooled.shape
    P = projection.shape[1]
    projected = pooled.new_empty((B, S, P))
    if not projected.numel():
        return projected
    if not D:
        return projected.zero_()
    config = project_config(S, P, current_target())
    R = B * S
    num_chunks = triton.cdiv(D, CHUNK)
    partial = pooled.new_empty((num_chunks, triton.cdiv(R * P, PITCH.value) * PITCH.value))
    project_kernel[(triton.cdiv(R, config.BR), triton.cdiv(P, config.BP), num_chunks)](
        pooled,
        projection,
        partial,
        R,
        D,
        P,
        BR=config.BR,
        BD=config.BD,
        BP=config.BP,
        CHUNK=CHUNK,
        **launch_options(config.num_warps),
    )
    add_chunks_kernel[(triton.cdiv(R * P, ADD_BLOCK),)](
        partial, projected, R * P, num_chunks, BLOCK=ADD_BLOCK, **launch_options(4)
    )
    return projected
