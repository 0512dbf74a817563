"""Distances of every row to the columns of each class, reduced tile by tile and never stored.

    squared[m, n] = |a_m|^2 + |b_n|^2 - 2 a_m b_n        a, b: rows and columns less a common center
    sum[m, c] = sum of distance(squared[m, n]) over the columns n of class c; min, max likewise
    kernel_sum[m, c, g] = sum of exp(-gamma_g squared[m, n])

Precision. |a|^2 + |b|^2 - 2ab cancels, so the product must be as good as float32's. Every centred
float32 number is written as three bfloat16 numbers, x = x1 + x2 + x3 (8 bits each, 24 in all, and
bfloat16 has float32's exponents: exact), and six of their nine products are formed on the tensor
cores, smallest first:

    ab ~ a3 b1 + a1 b3 + a2 b2 + a2 b1 + a1 b2 + a1 b1

What is left out is below 2^-25 |a||b|. Two terms and three products would leave out 2^-17, tf32 in
three products costs the same as this and leaves out 2^-21. Tensor cores cut their running sums off
instead of rounding them, an error that grows along D: so each step of BK dimensions starts from
zero and is added to a rounded float32 sum. Norms are summed in float64 and rounded once. All this
stays within about 4e-7 (|a|^2 + |b|^2). Where squared is below NEAR times that sum, in equal and
nearly equal rows, the pair is computed again from the rows as they came, in float64. Bfloat16 input
takes the same path: centred, it is no longer bfloat16.

Bytes and flops, for L layers, N rows against themselves, D dimensions, C classes, tiles of BT
(N=5000, D=4096, C=2, one layer, in brackets):

    rows in, planes out     4 L N D + 6 L N D                                     [205 MB]
    products                6 * 2 L D N^2 / 2, on tensor cores                    [614 Gflop]
    planes read by tiles    6 L D N^2 / BT, nearly all from L2                    [ 4.8 GB]
    partial sums            2 * 12 L N N / BT, written and read                   [ 4.7 MB]
    reduction               about 20 L N^2 / 2                                [0.3 Gflop]

The products decide: 2.0 ms on an A100, 0.62 ms on an H100, where float32 without tensor cores needs
5.2 and 1.5 ms. 4.8 GB at an L2's 5 TB/s would take longer than that on an H100 if every tile waited
for its own loads, hence BT = 128, and an order of tiles in squares of GROUP, whose programs share
what they read.

No atomics and a fixed order. Columns are sorted by class, so a tile of columns holds a run of
classes, and the pair (tile t, class c) gets slot t + c: unique, because along the sorted columns t
and c only grow. Every tile writes its rows' partial results into its own slots; a last kernel adds
each row's slots of a class in ascending order, in float64. With rows and columns the same, one
product serves the tile and its mirror image. Partial results take 12 + 4 G bytes for each of
N (N / BT + C) slots, the planes 6 bytes for each of N D numbers.
"""

# A kernel's arguments have the types that its launch gives them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, var-annotated"

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from safetyspace_fast.ops import reference
from safetyspace_fast.ops.triton import current_target, device_reasons, launch_options

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EUCLIDEAN = tl.constexpr(0)
SQEUCLIDEAN = tl.constexpr(1)
COSINE = tl.constexpr(2)
METRICS = {"euclidean": EUCLIDEAN, "sqeuclidean": SQEUCLIDEAN, "cosine": COSINE}
NEAR = tl.constexpr(2 * reference.NEAR)
GROUP = tl.constexpr(8)
SUM = tl.constexpr(0)
MIN = tl.constexpr(1)
MAX = tl.constexpr(2)
NEAR_MARK = tl.constexpr(-1.0)  # the minimum of a segment that `mend_kernel` has to look at
NONE = tl.constexpr(2**30)


@triton.jit
def _layer(i_l, stride_l, ALIGNED: tl.constexpr):
    """Return where a layer starts. stride_l grows with N: specialised, it would compile anew."""
    o_layer = i_l * stride_l
    if ALIGNED:
        o_layer = tl.multiple_of(o_layer, 16)
    return o_layer


@triton.jit(do_not_specialize=["num_layers", "N", "num_padded", "stride_l"])
def split_kernel(
    rows_ptr,  # [L, N, D]
    center_ptr,  # [L, D] float64, contiguous
    order_ptr,  # [N] int64: which row goes to each place
    planes_ptr,  # [3, L, num_padded, num_steps BK] bfloat16, contiguous
    norms_ptr,  # [L, num_padded] float32, contiguous
    scales_ptr,  # [L, num_padded] float64, contiguous, 1 / length; only with UNIT
    num_layers,
    N,
    num_padded,
    D,
    num_steps,
    stride_l,
    stride_n,
    stride_d,
    UNIT: tl.constexpr,  # divide rows by their length first
    ALIGNED: tl.constexpr,  # stride_l is a multiple of 16
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """Centre one row, split it into three terms, and take its squared norm."""
    i_l = (tl.program_id(0) // num_padded).to(tl.int64)
    i_n = tl.program_id(0) % num_padded
    filled = tl.where(i_n < N, D, 0)  # rows of padding are zeros
    source = tl.load(order_ptr + tl.minimum(i_n, N - 1))
    o_layer = _layer(i_l, stride_l, ALIGNED)
    p_row = rows_ptr + o_layer + source * stride_n
    width = num_steps * BK
    scale = 1.0
    if UNIT:
        squared = tl.zeros([BD], tl.float64)
        for o_d in range(0, D, BD):
            i_d = o_d + tl.arange(0, BD)
            x = tl.load(p_row + i_d.to(tl.int64) * stride_d, mask=i_d < filled, other=0.0)
            squared += x.to(tl.float64) * x.to(tl.float64)
        scale = 1.0 / tl.sqrt(tl.sum(squared, axis=0))
        tl.store(scales_ptr + i_l * num_padded + i_n, scale)
    total = tl.zeros([BD], tl.float64)
    p_out = planes_ptr + (i_l * num_padded + i_n) * width
    plane = num_layers.to(tl.int64) * num_padded * width
    for o_d in range(0, width, BD):
        i_d = o_d + tl.arange(0, BD)
        m_d = i_d < filled
        x = tl.load(p_row + i_d.to(tl.int64) * stride_d, mask=m_d, other=0.0).to(tl.float64)
        if UNIT:
            x = x * scale
        x = x - tl.load(center_ptr + i_l * D + i_d, mask=m_d, other=0.0)
        x = tl.where(m_d, x, 0.0).to(tl.float32)
        total += x.to(tl.float64) * x.to(tl.float64)
        first = x.to(tl.bfloat16)
        x -= first.to(tl.float32)
        second = x.to(tl.bfloat16)
        x -= second.to(tl.float32)
        m_out = i_d < width
        tl.store(p_out + i_d, first, mask=m_out)
        tl.store(p_out + plane + i_d, second, mask=m_out)
        tl.store(p_out + 2 * plane + i_d, x.to(tl.bfloat16), mask=m_out)
    norm = tl.sum(total, axis=0)
    norm = tl.where(norm < float("inf"), norm, float("nan"))
    tl.store(norms_ptr + i_l * num_padded + i_n, norm.to(tl.float32))


@triton.jit
def _place(pid, num_row_tiles, num_col_tiles, SYMMETRIC: tl.constexpr):
    """Return row and column of the pid-th tile, square after square of GROUP x GROUP tiles."""
    square = pid // (GROUP * GROUP)
    within = pid % (GROUP * GROUP)
    if SYMMETRIC:
        # The squares on and below the diagonal, row by row: u (u + 1) / 2 come before row u.
        u = ((tl.sqrt(8.0 * square + 1.0) - 1.0) / 2.0).to(tl.int32)
        u = tl.where(u * (u + 1) // 2 > square, u - 1, u)
        u = tl.where((u + 1) * (u + 2) // 2 <= square, u + 1, u)
        v = square - u * (u + 1) // 2
    else:
        across = tl.cdiv(num_col_tiles, GROUP)
        u = square // across
        v = square % across
    return u * GROUP + within // GROUP, v * GROUP + within % GROUP


@triton.jit
def _dot(a, b, accumulator, UPCAST: tl.constexpr):
    """Product of bfloat16 blocks, exact, with float32 sums."""
    if UPCAST:  # Triton's interpreter gets bfloat16 wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, tl.trans(b), accumulator, input_precision="ieee")


@triton.jit
def _original(x, i, num_rows, o_layer, o_scales, i_d, D, UNIT: tl.constexpr):
    """Load rows as they came, of length 1 with UNIT, in float64."""
    p_x, p_order, p_scales, stride_n, stride_d = x
    source = tl.load(p_order + i, mask=i < num_rows, other=0)
    p_rows = p_x + o_layer + source[:, None] * stride_n
    p_values = p_rows + i_d[None, :].to(tl.int64) * stride_d
    values = tl.load(p_values, mask=(i_d < D)[None, :], other=0.0).to(tl.float64)
    if UNIT:
        values = values * tl.load(p_scales + o_scales + i)[:, None]
    return values


@triton.jit
def _distance(squared, METRIC: tl.constexpr):
    if METRIC == EUCLIDEAN:
        squared = tl.sqrt(squared)
    if METRIC == COSINE:
        squared = squared * 0.5
    return squared


@triton.jit
def _identity(KIND: tl.constexpr):
    """Return what changes nothing in a reduction."""
    if KIND == MIN:
        return float("inf")
    elif KIND == MAX:
        return float("-inf")
    else:
        return 0.0


@triton.jit
def _reduce(values, axis: tl.constexpr, KIND: tl.constexpr):
    if KIND == MIN:
        return tl.min(values, axis=axis)
    elif KIND == MAX:
        return tl.max(values, axis=axis)
    else:
        return tl.sum(values, axis=axis)


@triton.jit
def _classes(labels_ptr, tile, num_labels, C, BT: tl.constexpr):
    """Return the first and the last class of a tile."""
    low = tl.load(labels_ptr + tile * BT)
    high = tl.load(labels_ptr + tl.minimum(tile * BT + BT, num_labels) - 1)
    return tl.maximum(low, 0).to(tl.int32), tl.minimum(high, C - 1).to(tl.int32)


@triton.jit
def _store_slots(
    p_out, pitch, values, starts_ptr, classes, tile, i, AXIS: tl.constexpr, KIND: tl.constexpr
):
    """Reduce a tile along AXIS, one class after the other, into the classes' slots."""
    for c in range(classes[0], classes[1] + 1):
        # The class is a range of the sorted places `i`: comparing with it takes no registers.
        start = tl.load(starts_ptr + c).to(tl.int32)
        end = tl.load(starts_ptr + c + 1).to(tl.int32)
        m_class = tl.expand_dims((i >= start) & (i < end), 1 - AXIS)
        kept = tl.where(m_class, values, _identity(KIND))
        tl.store(p_out + (tile + c).to(tl.int64) * pitch, _reduce(kept, AXIS, KIND))


@triton.jit
def _store_tile(
    p_out, pitch, values, starts_ptr, rows, cols, SYMMETRIC: tl.constexpr, KIND: tl.constexpr
):
    """Reduce a tile for its rows and, where rows and columns are the same, for its columns."""
    i_tile, i_row, row_classes = rows
    j_tile, i_col, col_classes = cols
    if SYMMETRIC:
        m_diagonal = i_row[:, None] == i_col[None, :]
        values = tl.where(m_diagonal, _identity(KIND), values)
    _store_slots(p_out + i_row, pitch, values, starts_ptr, col_classes, j_tile, i_col, 1, KIND)
    if SYMMETRIC and i_tile != j_tile:
        _store_slots(p_out + i_col, pitch, values, starts_ptr, row_classes, i_tile, i_row, 0, KIND)


@triton.jit(
    do_not_specialize=[
        "num_layers",
        "N",
        "num_row_tiles",
        "num_col_tiles",
        "num_steps",
        "num_slots",
    ]
)
def tile_kernel(
    row_planes_ptr,  # [3, L, num_row_tiles BT, num_steps BK] bfloat16
    col_planes_ptr,
    row_norms_ptr,  # [L, num_row_tiles BT] float32
    col_norms_ptr,
    labels_ptr,  # [N] int64, ascending
    starts_ptr,  # [C + 1] int64: where each class starts among the labels
    sum_ptr,  # [L, num_slots, num_row_tiles BT] float32
    min_ptr,
    max_ptr,
    kernel_ptr,  # [G, L, num_slots, num_row_tiles BT] float32
    decays,  # G times -gamma / ln 2
    num_layers,
    N,
    C,
    num_row_tiles,
    num_col_tiles,
    num_steps,
    num_slots,
    METRIC: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    G: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Multiply a tile of rows with a tile of columns and reduce the distances."""
    i_l = tl.program_id(1).to(tl.int64)
    i_tile, j_tile = _place(tl.program_id(0), num_row_tiles, num_col_tiles, SYMMETRIC)
    if (i_tile >= num_row_tiles) | (j_tile >= num_col_tiles):
        return
    if SYMMETRIC and i_tile < j_tile:
        return
    width = num_steps * BK
    rows_padded = num_row_tiles * BT
    cols_padded = num_col_tiles * BT
    i_row = i_tile * BT + tl.arange(0, BT)
    i_col = j_tile * BT + tl.arange(0, BT)
    row_plane = num_layers.to(tl.int64) * rows_padded * width
    col_plane = num_layers.to(tl.int64) * cols_padded * width
    p_rows = row_planes_ptr + (i_l * rows_padded + i_row)[:, None] * width + tl.arange(0, BK)
    p_cols = col_planes_ptr + (i_l * cols_padded + i_col)[:, None] * width + tl.arange(0, BK)

    product = tl.zeros([BT, BT], tl.float32)
    for _ in range(num_steps):
        a1 = tl.load(p_rows)
        a2 = tl.load(p_rows + row_plane)
        a3 = tl.load(p_rows + 2 * row_plane)
        b1 = tl.load(p_cols)
        b2 = tl.load(p_cols + col_plane)
        b3 = tl.load(p_cols + 2 * col_plane)
        step = _dot(a3, b1, tl.zeros([BT, BT], tl.float32), UPCAST)
        step = _dot(a1, b3, step, UPCAST)
        step = _dot(a2, b2, step, UPCAST)
        step = _dot(a2, b1, step, UPCAST)
        step = _dot(a1, b2, step, UPCAST)
        step = _dot(a1, b1, step, UPCAST)
        product += step
        p_rows += BK
        p_cols += BK

    row_norms = tl.load(row_norms_ptr + i_l * rows_padded + i_row)
    col_norms = tl.load(col_norms_ptr + i_l * cols_padded + i_col)
    norms = row_norms[:, None] + col_norms[None, :]
    squared = norms - 2.0 * product
    # Not maximum(): that would turn NaN into 0.
    squared = tl.where(squared < 0.0, 0.0, squared)
    squared = tl.where(squared < NEAR * norms, NEAR_MARK, squared)

    # Without symmetry rows have no classes, and none are asked for.
    rows = (i_tile, i_row, _classes(labels_ptr, i_tile if SYMMETRIC else j_tile, N, C, BT))
    cols = (j_tile, i_col, _classes(labels_ptr, j_tile, N, C, BT))
    o_layer = i_l * num_slots * rows_padded
    pitch = rows_padded
    for g in tl.static_range(G):
        p_kernel = kernel_ptr + g * num_layers.to(tl.int64) * num_slots * rows_padded + o_layer
        kernel = tl.exp2(squared * decays[g])
        _store_tile(p_kernel, pitch, kernel, starts_ptr, rows, cols, SYMMETRIC, SUM)
    distance = tl.where(squared < 0.0, NEAR_MARK, _distance(squared, METRIC))
    _store_tile(sum_ptr + o_layer, pitch, distance, starts_ptr, rows, cols, SYMMETRIC, SUM)
    _store_tile(min_ptr + o_layer, pitch, distance, starts_ptr, rows, cols, SYMMETRIC, MIN)
    _store_tile(max_ptr + o_layer, pitch, distance, starts_ptr, rows, cols, SYMMETRIC, MAX)


@triton.jit(
    do_not_specialize=[
        "row_stride_l",
        "col_stride_l",
        "num_layers",
        "M",
        "N",
        "num_row_tiles",
        "num_col_tiles",
        "num_slots",
    ]
)
def mend_kernel(
    rows,  # pointers to rows [L, M, D], order and scales as in split_kernel; strides of M and D
    cols,  # the same of cols [L, N, D]
    row_stride_l,
    col_stride_l,
    labels_ptr,  # from here as in tile_kernel
    starts_ptr,
    sum_ptr,
    min_ptr,
    max_ptr,
    kernel_ptr,
    decays,
    num_layers,
    M,
    N,
    C,
    num_row_tiles,
    num_col_tiles,
    D,
    num_slots,
    METRIC: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ALIGNED: tl.constexpr,  # the strides over layers are multiples of 16
    G: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Compute the marked segments of one tile again, from differences.

    A segment is one row and the columns of one class in one tile.
    """
    i_tile = tl.program_id(0) % num_row_tiles
    j_tile = tl.program_id(0) // num_row_tiles
    i_l = tl.program_id(1).to(tl.int64)
    rows_padded = num_row_tiles * BT
    cols_padded = num_col_tiles * BT
    i_row = i_tile * BT + tl.arange(0, BT)
    i_col = j_tile * BT + tl.arange(0, BT)
    o_rows = _layer(i_l, row_stride_l, ALIGNED)
    o_cols = _layer(i_l, col_stride_l, ALIGNED)
    UNIT: tl.constexpr = METRIC == COSINE
    low, high = _classes(labels_ptr, j_tile, N, C, BT)
    for c in range(low, high + 1):
        start = tl.load(starts_ptr + c)
        end = tl.load(starts_ptr + c + 1)
        o_slot = (i_l * num_slots + j_tile + c) * rows_padded
        m_marked = tl.load(min_ptr + o_slot + i_row) == NEAR_MARK
        row = tl.min(tl.where(m_marked, i_row, NONE), axis=0)
        while row < NONE:
            exact = tl.zeros([BT], tl.float64)
            for o_d in range(0, D, BD):
                i_d = o_d + tl.arange(0, BD)
                i_one = row + tl.arange(0, 1)
                one = _original(rows, i_one, M, o_rows, i_l * rows_padded, i_d, D, UNIT)
                many = _original(cols, i_col, N, o_cols, i_l * cols_padded, i_d, D, UNIT)
                exact += tl.sum((many - one) * (many - one), axis=1)
            squared = exact.to(tl.float32)
            distance = _distance(squared, METRIC)
            m_class = (i_col >= start) & (i_col < end)
            if SYMMETRIC:
                m_class = m_class & (i_col != row)
            o_out = o_slot + row
            tl.store(sum_ptr + o_out, tl.sum(tl.where(m_class, distance, 0.0), axis=0))
            tl.store(min_ptr + o_out, tl.min(tl.where(m_class, distance, float("inf")), axis=0))
            tl.store(max_ptr + o_out, tl.max(tl.where(m_class, distance, float("-inf")), axis=0))
            for g in tl.static_range(G):
                kernel = tl.where(m_class, tl.exp2(squared * decays[g]), 0.0)
                o_kernel = g * num_layers.to(tl.int64) * num_slots * rows_padded + o_out
                tl.store(kernel_ptr + o_kernel, tl.sum(kernel, axis=0))
            m_marked = m_marked & (i_row != row)
            row = tl.min(tl.where(m_marked, i_row, NONE), axis=0)


@triton.jit(do_not_specialize=["num_layers", "M", "num_row_tiles", "num_slots"])
def finish_kernel(
    sum_ptr,  # [L, num_slots, num_row_tiles BT] float32
    min_ptr,
    max_ptr,
    kernel_ptr,  # [G, L, num_slots, num_row_tiles BT] float32
    starts_ptr,  # [C + 1] int64: where each class starts among the sorted columns
    order_ptr,  # [M] int64: the place of each row in the results
    sum_out_ptr,  # [L, M, C] float64
    min_out_ptr,  # [L, M, C] float32
    max_out_ptr,
    kernel_out_ptr,  # [L, M, C, G] float64
    num_layers,
    M,
    num_row_tiles,
    C,
    num_slots,
    G: tl.constexpr,
    BT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the slots of one class, tile after tile."""
    i_m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1)
    i_l = tl.program_id(2).to(tl.int64)
    rows_padded = num_row_tiles * BT
    m_in = i_m < rows_padded
    m_m = i_m < M
    start = tl.load(starts_ptr + c)
    end = tl.load(starts_ptr + c + 1)
    first_slot = start // BT + c
    end_slot = tl.where(end > start, (end + BT - 1) // BT + c, first_slot)
    o_rows = i_l * num_slots * rows_padded + i_m
    total = tl.zeros([BLOCK], tl.float64)
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    for slot in range(first_slot, end_slot):
        o_slot = o_rows + slot * rows_padded
        total += tl.load(sum_ptr + o_slot, mask=m_in, other=0.0).to(tl.float64)
        low = tl.minimum(low, tl.load(min_ptr + o_slot, mask=m_in, other=0.0))
        high = tl.maximum(high, tl.load(max_ptr + o_slot, mask=m_in, other=0.0))
    # Minimum and maximum pass NaN over, the sum of distances cannot.
    low = tl.where(total == total, low, float("nan"))
    high = tl.where(total == total, high, float("nan"))
    o_out = (i_l * M + tl.load(order_ptr + i_m, mask=m_m, other=0)) * C + c
    tl.store(sum_out_ptr + o_out, total, mask=m_m)
    tl.store(min_out_ptr + o_out, low, mask=m_m)
    tl.store(max_out_ptr + o_out, high, mask=m_m)
    for g in tl.static_range(G):
        p_kernel = kernel_ptr + g * num_layers.to(tl.int64) * num_slots * rows_padded + o_rows
        total = tl.zeros([BLOCK], tl.float64)
        for slot in range(first_slot, end_slot):
            total += tl.load(p_kernel + slot * rows_padded, mask=m_in, other=0.0).to(tl.float64)
        tl.store(kernel_out_ptr + o_out * G + g, total, mask=m_m)


class TileConfig(NamedTuple):
    """Block sizes of `tile_kernel`: six planes of BT x BK stand in shared memory at each stage."""

    BT: int
    BK: int
    num_warps: int
    num_stages: int


# By what fits into registers and shared memory (`python -m benchmarks gpu-static`).
TILE_CONFIGS = {
    80: TileConfig(128, 16, 8, 4),
    90: TileConfig(128, 64, 8, 2),
    100: TileConfig(128, 16, 8, 4),
    "gfx942": TileConfig(128, 16, 8, 2),
}
DEFAULT_TILE_CONFIG = TileConfig(64, 32, 4, 2)
SPLIT_BLOCK = 1024
MEND_BLOCK = 16
MAX_GAMMAS = 4


def tile_config(target: Any) -> TileConfig:
    """Block sizes for a GPU; small ones for a GPU that the table does not know."""
    return TILE_CONFIGS.get(target.arch, DEFAULT_TILE_CONFIG)


def supports(
    rows: Tensor,
    cols: Tensor | None,
    center: Tensor,
    col_labels: Tensor,
    num_classes: int,
    metric: str,
    gammas: list[float],
) -> list[str]:
    """Reasons why this implementation cannot take these arguments; empty when it can."""
    reasons = device_reasons("rows", rows)
    if rows.dtype not in DTYPES:
        reasons.append(f"rows are {rows.dtype}, not float32, bfloat16 or float16")
    if len(gammas) > MAX_GAMMAS:
        reasons.append(f"{len(gammas)} gammas, and only {MAX_GAMMAS} are done without spills")
    return reasons


def pairwise_reduce(
    rows: Tensor,
    cols: Tensor | None,
    center: Tensor,
    col_labels: Tensor,
    num_classes: int,
    metric: str,
    gammas: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reduce the distances from every row to the columns of each class, without synchronisation.

    rows: [L, M, D] float32, bfloat16 or float16, any strides; cols: [L, N, D], or None for the rows
    themselves without the diagonal; center: [L, D] float64, a point near the data; col_labels: [N]
    int64 (a column whose label is not in 0 .. num_classes - 1 is left out).
    Returns sum [L, M, C] f64; min, max [L, M, C] f32; kernel_sum [L, M, C, G] f64.
    """
    results = reference.pairwise_empty(rows, rows.shape[1], num_classes, len(gammas))
    if rows.shape[0] == 0 or rows.shape[1] == 0 or col_labels.shape[0] == 0:
        return results
    with torch.accelerator.device_index(rows.device.index):
        _launch(rows, cols, center.contiguous(), col_labels, num_classes, metric, gammas, results)
    return results


def _launch(
    rows: Tensor,
    cols: Tensor | None,
    center: Tensor,
    col_labels: Tensor,
    C: int,
    metric: str,
    gammas: list[float],
    results: tuple[Tensor, ...],
) -> None:
    L, M, D = rows.shape
    N = col_labels.shape[0]
    G = len(gammas)
    target = current_target()
    config = tile_config(target)
    labels, order = torch.sort(col_labels, stable=True)
    starts = torch.searchsorted(labels, torch.arange(C + 1, device=rows.device))
    others = rows if cols is None else cols
    col_split = _split(others, center, order, metric, config)
    row_split = col_split
    if cols is not None:
        order = torch.arange(M, device=rows.device)
        row_split = _split(rows, center, order, metric, config)

    num_row_tiles = triton.cdiv(M, config.BT)
    num_col_tiles = triton.cdiv(N, config.BT)
    num_slots = num_col_tiles + C - 1
    rows_padded = num_row_tiles * config.BT
    partial = rows.new_empty((3 + G, L, num_slots, rows_padded), dtype=torch.float32)
    sums, lows, highs = partial[0], partial[1], partial[2]
    squares = triton.cdiv(num_row_tiles, GROUP.value)
    if cols is None:
        num_squares = squares * (squares + 1) // 2
    else:
        num_squares = squares * triton.cdiv(num_col_tiles, GROUP.value)
    decays = tuple(-gamma / math.log(2) for gamma in gammas)
    num_steps = triton.cdiv(D, config.BK)
    flags = {"METRIC": METRICS[metric].value, "SYMMETRIC": cols is None, "G": G}
    tile_kernel[(num_squares * GROUP.value**2, L)](
        row_split.planes,
        col_split.planes,
        row_split.norms,
        col_split.norms,
        labels,
        starts,
        sums,
        lows,
        highs,
        partial[3:],
        decays,
        L,
        N,
        C,
        num_row_tiles,
        num_col_tiles,
        num_steps,
        num_slots,
        **flags,
        BT=config.BT,
        BK=config.BK,
        UPCAST=triton.knobs.runtime.interpret,
        **launch_options(config.num_warps, num_stages=config.num_stages),
    )
    mend_kernel[(num_row_tiles * num_col_tiles, L)](
        row_split.source,
        col_split.source,
        rows.stride(0),
        others.stride(0),
        labels,
        starts,
        sums,
        lows,
        highs,
        partial[3:],
        decays,
        L,
        M,
        N,
        C,
        num_row_tiles,
        num_col_tiles,
        D,
        num_slots,
        **flags,
        ALIGNED=rows.stride(0) % 16 == others.stride(0) % 16 == 0,
        BT=config.BT,
        BD=MEND_BLOCK,
        **launch_options(8),
    )
    block = 4 * target.warp_size
    finish_kernel[(triton.cdiv(M, block), C, L)](
        sums,
        lows,
        highs,
        partial[3:],
        starts,
        order,
        *results,
        L,
        M,
        num_row_tiles,
        C,
        num_slots,
        G=G,
        BT=config.BT,
        BLOCK=block,
        **launch_options(1),
    )


class _Split(NamedTuple):
    """Centred rows as `tile_kernel` wants them, and where they come from, for `mend_kernel`."""

    planes: Tensor  # [3, L, N rounded up to BT, D rounded up to BK] bfloat16
    norms: Tensor  # [L, N rounded up to BT] float32
    source: tuple[Any, ...]


def _split(x: Tensor, center: Tensor, order: Tensor, metric: str, config: TileConfig) -> _Split:
    L, N, D = x.shape
    num_padded = triton.cdiv(N, config.BT) * config.BT
    num_steps = triton.cdiv(D, config.BK)
    planes = x.new_empty((3, L, num_padded, num_steps * config.BK), dtype=torch.bfloat16)
    norms = x.new_empty((L, num_padded), dtype=torch.float32)
    scales = x.new_empty((L, num_padded) if metric == "cosine" else 0, dtype=torch.float64)
    split_kernel[(L * num_padded,)](
        x,
        center,
        order,
        planes,
        norms,
        scales,
        L,
        N,
        num_padded,
        D,
        num_steps,
        *x.stride(),
        UNIT=metric == "cosine",
        ALIGNED=x.stride(0) % 16 == 0,
        BK=config.BK,
        BD=SPLIT_BLOCK,
        **launch_options(4),
    )
    return _Split(planes, norms, (x, order, scales, *x.stride()[1:]))
