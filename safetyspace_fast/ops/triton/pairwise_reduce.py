"""Distances of every row to the columns of each class, reduced tile by tile and never stored.

    sum[m, c] = sum of distance(squared[m, n]) over the columns n of class c; min, max likewise
    kernel_sum[m, c, g] = sum of exp(-gamma_g squared[m, n])

Squared distances, their precision and the order of tiles are those of `tiles`.

Bytes and flops, for L layers, N rows against themselves, D dimensions, C classes, tiles of BT
(N=5000, D=4096, C=2, one layer, in brackets):

    rows in, planes out     4 L N D + 6 L N D                                     [205 MB]
    products                6 * 2 L D N^2 / 2, on tensor cores                    [614 Gflop]
    planes read by tiles    6 L D N^2 / BT, nearly all from L2                    [ 4.8 GB]
    partial sums            2 * 12 L N N / BT, written and read                   [ 4.7 MB]
    reduction               about 20 L N^2 / 2                                [0.3 Gflop]

The products decide: 2.0 ms on an A100, 0.62 ms on an H100, where float32 without tensor cores needs
5.2 and 1.5 ms. 4.8 GB at an L2's 5 TB/s would take longer than that on an H100 if every tile waited
for its own loads: hence tiles of 128, in squares.

No atomics and a fixed order. Columns come in blocks of PAIRWISE_BLOCK, each sorted by class and its
classes numbered 0, 1, ... in the block. A tile then holds a run of classes, and the pair (t-th tile
of its block, k-th class) gets the block's slot t + k: unique, because along the sorted columns t
and k only grow. Every tile writes its rows' partial results into its own slots; a last kernel adds
each row's slots of a class in ascending order, in float64, to what the results hold already. So
block by block and all at once are bit-identical. With rows and columns the same, one product
serves the tile and its mirror image. Partial results take 12 + 4 G bytes for each of N slots times
PAIRWISE_BLOCK / BT + min(C, PAIRWISE_BLOCK) - 1 a block, the planes 6 bytes for each of N D
numbers.
"""

# A kernel's arguments have the types that its launch gives them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, var-annotated"

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from safetyspace_fast.ops import reference
from safetyspace_fast.ops.triton import INTERPRETED, current_target, launch_options
from safetyspace_fast.ops.triton.tiles import (
    COSINE,
    DEFAULT_TILE_CONFIG,
    GROUP,
    MEND_BLOCK,
    METRICS,
    NEAR_MARK,
    NONE,
    distance_of,
    exact_squares,
    layer_offset,
    mend_limit,
    split,
    squared_distances,
    tile_config,
    tile_position,
    tile_reasons,
)

BLOCK = tl.constexpr(reference.PAIRWISE_BLOCK)
SUM = tl.constexpr(0)
MIN = tl.constexpr(1)
MAX = tl.constexpr(2)
MAX_GAMMAS = 4


@triton.jit
def _identity(KIND: tl.constexpr):
    """The neutral element of a reduction."""
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
def _side(tile, i, labels_ptr, starts_ptr, K, BT: tl.constexpr):
    """One side of a tile: positions, first and last class, where classes start, slots."""
    low = tl.load(labels_ptr + tile * BT).to(tl.int32)
    high = tl.minimum(tl.load(labels_ptr + tile * BT + BT - 1).to(tl.int32), K - 1)
    block = tile // (BLOCK // BT)
    slot = block * (BLOCK // BT + K - 1) + tile % (BLOCK // BT)
    return tile, i, low, high, starts_ptr + block * (K + 1), slot


@triton.jit
def _store_slots(p_out, pitch, values, side, AXIS: tl.constexpr, KIND: tl.constexpr):
    """Reduce a tile along AXIS, one class after the other, into the classes' slots."""
    _, i, low, high, p_starts, slot = side
    for k in range(low, high + 1):
        # The class is a range of the sorted positions `i`: comparing with it takes no registers.
        start = tl.load(p_starts + k).to(tl.int32)
        end = tl.load(p_starts + k + 1).to(tl.int32)
        m_class = tl.expand_dims((i >= start) & (i < end), 1 - AXIS)
        kept = tl.where(m_class, values, _identity(KIND))
        tl.store(p_out + (slot + k).to(tl.int64) * pitch, _reduce(kept, AXIS, KIND))


@triton.jit
def _store_tile(p_out, pitch, values, rows, cols, SYMMETRIC: tl.constexpr, KIND: tl.constexpr):
    """Reduce a tile for its rows and, where rows and columns are the same, for its columns."""
    i_row = rows[1]
    i_col = cols[1]
    if SYMMETRIC:
        m_diagonal = i_row[:, None] == i_col[None, :]
        values = tl.where(m_diagonal, _identity(KIND), values)
    _store_slots(p_out + i_row, pitch, values, cols, 1, KIND)
    if SYMMETRIC and rows[0] != cols[0]:
        _store_slots(p_out + i_col, pitch, values, rows, 0, KIND)


@triton.jit(
    do_not_specialize=[
        "num_layers",
        "num_row_tiles",
        "num_col_tiles",
        "first_square",
        "num_steps",
        "num_slots",
    ]
)
def tile_kernel(
    row_planes_ptr,  # [3, L, num_row_tiles BT, num_steps BK] bfloat16
    col_planes_ptr,
    row_norms_ptr,  # [L, num_row_tiles BT] float32
    col_norms_ptr,
    labels_ptr,  # [num_blocks BLOCK] int64, ascending in each block, 0 .. K - 1, K for none
    starts_ptr,  # [num_blocks, K + 1] int64: where each class of a block starts
    sum_ptr,  # [L, num_slots, num_row_tiles BT] float32
    min_ptr,
    max_ptr,
    kernel_ptr,  # [G, L, num_slots, num_row_tiles BT] float32
    decays_ptr,  # [G] float32, -gamma / ln 2
    num_layers,
    K,
    num_row_tiles,
    num_col_tiles,
    first_square,
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
    square = first_square + tl.program_id(0)
    i_tile, j_tile = tile_position(square, num_row_tiles, num_col_tiles, SYMMETRIC)
    if (i_tile >= num_row_tiles) | (j_tile >= num_col_tiles):
        return
    if SYMMETRIC and i_tile < j_tile:
        return
    rows_padded = num_row_tiles * BT
    cols_padded = num_col_tiles * BT
    i_row = i_tile * BT + tl.arange(0, BT)
    i_col = j_tile * BT + tl.arange(0, BT)
    squared = squared_distances(
        row_planes_ptr,
        col_planes_ptr,
        row_norms_ptr,
        col_norms_ptr,
        i_l,
        i_row,
        i_col,
        num_layers,
        rows_padded,
        cols_padded,
        num_steps,
        BT,
        BK,
        UPCAST,
    )
    # Without symmetry rows have no classes, and none are asked for.
    rows = _side(i_tile if SYMMETRIC else j_tile, i_row, labels_ptr, starts_ptr, K, BT)
    cols = _side(j_tile, i_col, labels_ptr, starts_ptr, K, BT)
    o_layer = i_l * num_slots * rows_padded
    pitch = rows_padded
    distance = tl.where(squared < 0.0, NEAR_MARK, distance_of(squared, METRIC))
    _store_tile(sum_ptr + o_layer, pitch, distance, rows, cols, SYMMETRIC, SUM)
    _store_tile(min_ptr + o_layer, pitch, distance, rows, cols, SYMMETRIC, MIN)
    _store_tile(max_ptr + o_layer, pitch, distance, rows, cols, SYMMETRIC, MAX)
    for g in tl.range(0, G, loop_unroll_factor=1):  # unrolled, it would spill
        p_kernel = kernel_ptr + g * num_layers.to(tl.int64) * num_slots * rows_padded + o_layer
        kernel = tl.exp2(squared * tl.load(decays_ptr + g))
        _store_tile(p_kernel, pitch, kernel, rows, cols, SYMMETRIC, SUM)


@triton.jit(
    do_not_specialize=[
        "row_stride_l",
        "col_stride_l",
        "num_layers",
        "M",
        "N",
        "num_row_tiles",
        "num_col_tiles",
        "first_tile",
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
    decays_ptr,
    num_layers,
    M,
    N,
    K,
    num_row_tiles,
    num_col_tiles,
    first_tile,
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

    A segment is one row and the columns of one class in one tile; its minimum carries the mark.
    """
    i_tile = tl.program_id(0) % num_row_tiles
    j_tile = tl.program_id(0) // num_row_tiles
    if tl.maximum(i_tile, j_tile) < first_tile:
        return
    i_l = tl.program_id(1).to(tl.int64)
    rows_padded = num_row_tiles * BT
    cols_padded = num_col_tiles * BT
    i_row = i_tile * BT + tl.arange(0, BT)
    i_col = j_tile * BT + tl.arange(0, BT)
    o_rows = layer_offset(i_l, row_stride_l, ALIGNED)
    o_cols = layer_offset(i_l, col_stride_l, ALIGNED)
    UNIT: tl.constexpr = METRIC == COSINE
    _, _, low, high, p_starts, first_slot = _side(j_tile, i_col, labels_ptr, starts_ptr, K, BT)
    for k in range(low, high + 1):
        start = tl.load(p_starts + k)
        end = tl.load(p_starts + k + 1)
        o_slot = (i_l * num_slots + first_slot + k) * rows_padded
        m_marked = tl.load(min_ptr + o_slot + i_row) == NEAR_MARK
        row = tl.min(tl.where(m_marked, i_row, NONE), axis=0)
        while row < NONE:
            squared = exact_squares(
                rows,
                cols,
                row,
                i_col,
                M,
                N,
                o_rows,
                o_cols,
                i_l * rows_padded,
                i_l * cols_padded,
                D,
                UNIT,
                BT,
                BD,
            )
            distance = distance_of(squared, METRIC)
            m_class = (i_col >= start) & (i_col < end)
            if SYMMETRIC:
                m_class = m_class & (i_col != row)
            o_out = o_slot + row
            tl.store(sum_ptr + o_out, tl.sum(tl.where(m_class, distance, 0.0), axis=0))
            tl.store(min_ptr + o_out, tl.min(tl.where(m_class, distance, float("inf")), axis=0))
            tl.store(max_ptr + o_out, tl.max(tl.where(m_class, distance, float("-inf")), axis=0))
            for g in range(G):
                kernel = tl.where(m_class, tl.exp2(squared * tl.load(decays_ptr + g)), 0.0)
                o_kernel = g * num_layers.to(tl.int64) * num_slots * rows_padded + o_out
                tl.store(kernel_ptr + o_kernel, tl.sum(kernel, axis=0))
            m_marked = m_marked & (i_row != row)
            row = tl.min(tl.where(m_marked, i_row, NONE), axis=0)


@triton.jit
def _fold(result, p_rows, m_rows, pitch, classes, blocks, K, BT: tl.constexpr, KIND: tl.constexpr):
    """Take up a class's slots, block after block and tile after tile."""
    p_firsts, p_ranks, C = classes
    for block in range(blocks[0], blocks[1]):
        start = tl.load(p_firsts + block * (C + 1))
        end = tl.load(p_firsts + block * (C + 1) + 1)
        slot = block * (BLOCK // BT + K - 1) + tl.load(p_ranks + block * C) + start // BT
        for _ in range(start // BT, tl.where(end > start, (end + BT - 1) // BT, start // BT)):
            value = tl.load(p_rows + slot * pitch, mask=m_rows, other=0.0)
            if KIND == MIN:
                result = tl.minimum(result, value)
            elif KIND == MAX:
                result = tl.maximum(result, value)
            else:
                result += value.to(tl.float64)
            slot += 1
    return result


@triton.jit(
    do_not_specialize=[
        "num_layers",
        "M",
        "num_results",
        "num_row_tiles",
        "first_block",
        "num_blocks",
        "num_slots",
        "G",
    ]
)
def finish_kernel(
    sum_ptr,  # [L, num_slots, num_row_tiles BT] float32
    min_ptr,
    max_ptr,
    kernel_ptr,  # [G, L, num_slots, num_row_tiles BT] float32
    firsts_ptr,  # [num_blocks, C + 1] int64: where each class would start in its block
    ranks_ptr,  # [num_blocks, C] int64: its number among the classes of the block
    order_ptr,  # [M] int64: the position of each row in the results
    sum_out_ptr,  # [L, num_results, C] float64
    min_out_ptr,  # [L, num_results, C] float32
    max_out_ptr,
    kernel_out_ptr,  # [L, num_results, C, G] float64
    num_layers,
    M,
    num_results,
    num_row_tiles,
    C,
    K,
    first_block,
    num_blocks,
    num_slots,
    G,
    BT: tl.constexpr,
    BM: tl.constexpr,
):
    """Add the slots of one class, block after block and tile after tile."""
    i_m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1)
    i_l = tl.program_id(2).to(tl.int64)
    rows_padded = num_row_tiles * BT
    m_in = i_m < rows_padded
    m_m = i_m < M
    # An earlier call has added the earlier blocks to their own rows.
    first = tl.where(tl.program_id(0) * BM < first_block * BLOCK, first_block, 0)
    classes = (firsts_ptr + c, ranks_ptr + c, C)
    blocks = (first, num_blocks)
    o_rows = i_l * num_slots * rows_padded + i_m
    o_out = (i_l * num_results + tl.load(order_ptr + i_m, mask=m_m, other=0)) * C + c
    total = tl.load(sum_out_ptr + o_out, mask=m_m, other=0.0)
    total = _fold(total, sum_ptr + o_rows, m_in, rows_padded, classes, blocks, K, BT, SUM)
    tl.store(sum_out_ptr + o_out, total, mask=m_m)
    low = tl.load(min_out_ptr + o_out, mask=m_m, other=0.0)
    low = _fold(low, min_ptr + o_rows, m_in, rows_padded, classes, blocks, K, BT, MIN)
    # Minimum and maximum pass NaN over, the sum of distances cannot.
    tl.store(min_out_ptr + o_out, tl.where(total == total, low, float("nan")), mask=m_m)
    high = tl.load(max_out_ptr + o_out, mask=m_m, other=0.0)
    high = _fold(high, max_ptr + o_rows, m_in, rows_padded, classes, blocks, K, BT, MAX)
    tl.store(max_out_ptr + o_out, tl.where(total == total, high, float("nan")), mask=m_m)
    for g in range(G):
        p_rows = kernel_ptr + g * num_layers.to(tl.int64) * num_slots * rows_padded + o_rows
        total = tl.load(kernel_out_ptr + o_out * G + g, mask=m_m, other=0.0)
        total = _fold(total, p_rows, m_in, rows_padded, classes, blocks, K, BT, SUM)
        tl.store(kernel_out_ptr + o_out * G + g, total, mask=m_m)


def supports(
    rows: Tensor,
    cols: Tensor | None,
    center: Tensor,
    col_labels: Tensor,
    num_classes: int,
    metric: str,
    gammas: list[float],
) -> list[str]:
    """Reasons why this implementation cannot take these arguments; empty if it can."""
    return reduction_reasons("rows", rows, gammas)


def reduction_reasons(name: str, rows: Tensor, gammas: list[float]) -> list[str]:
    """Reasons why rows cannot be reduced with these kernels; empty if they can."""
    reasons = tile_reasons(name, rows)
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
    add_pairs(rows, cols, center, col_labels, 0, metric, gammas, results)
    return results


class _Columns(NamedTuple):
    """Columns block by block, each block sorted by class. Positions are those after sorting."""

    order: Tensor  # [N] int64: which column goes to each position
    labels: Tensor  # [num_blocks BLOCK] int64: number of each position's class in its block, or K
    starts: Tensor  # [num_blocks, K + 1] int64: first position of each of these numbers
    firsts: Tensor  # [num_blocks, C + 1] int64: first position of each class in its block
    ranks: Tensor  # [num_blocks, C] int64: number of each class in each block that has it


def _columns(labels: Tensor, C: int, K: int) -> _Columns:
    N, block = labels.shape[0], BLOCK.value
    num_blocks = triton.cdiv(N, block)
    # Labels out of range come after all classes, positions without a column after those.
    padded = labels.new_full((num_blocks * block,), C + 1)
    padded[:N] = torch.where((labels >= 0) & (labels < C), labels, C)
    labels, order = torch.sort(padded.view(num_blocks, block), dim=1, stable=True)
    offsets = torch.arange(0, num_blocks * block, block, device=labels.device)[:, None]

    def first_positions(ascending: Tensor, count: int) -> Tensor:
        values = torch.arange(count, device=labels.device).expand(num_blocks, -1).contiguous()
        return torch.searchsorted(ascending, values)

    firsts = first_positions(labels, C + 1)
    ranks = (firsts.diff(dim=1) > 0).cumsum(1) - 1
    changes = torch.zeros_like(labels)
    changes[:, 1:] = labels.diff(dim=1) != 0
    numbers = torch.where(labels < C, changes.cumsum(1), K)
    starts = first_positions(numbers, K + 1) + offsets
    return _Columns((order + offsets).flatten()[:N], numbers, starts, firsts, ranks)


def add_pairs(
    rows: Tensor,
    cols: Tensor | None,
    center: Tensor,
    labels: Tensor,
    start: int,
    metric: str,
    gammas: list[float],
    results: tuple[Tensor, ...],
) -> None:
    """Add pairs to the results, in place; with cols None those that have a row from `start` on.

    results: the first M rows of contiguous tensors, otherwise as of `pairwise_reduce`. start: a
    multiple of PAIRWISE_BLOCK. Other arguments as of `pairwise_reduce`.
    """
    L, M, D = rows.shape
    N, C, G = labels.shape[0], results[0].shape[2], len(gammas)
    if L == 0 or M == 0 or N == 0:
        return
    with torch.accelerator.device_index(rows.device.index):
        target = current_target()
        # Kernels of bandwidths need more registers than a large tile leaves.
        config = DEFAULT_TILE_CONFIG if G else tile_config(target)
        K = min(C, BLOCK.value)
        columns = _columns(labels, C, K)
        center = center.contiguous()
        others = rows if cols is None else cols
        order = columns.order
        col_split = row_split = split(others, center, order, metric, config)
        if cols is not None:
            order = torch.arange(M, device=rows.device)
            row_split = split(rows, center, order, metric, config)

        num_row_tiles = triton.cdiv(M, config.BT)
        num_col_tiles = triton.cdiv(N, config.BT)
        num_blocks = triton.cdiv(N, BLOCK.value)
        num_slots = num_blocks * (BLOCK.value // config.BT + K - 1)
        rows_padded = num_row_tiles * config.BT
        partial = rows.new_empty((3 + G, L, num_slots, rows_padded), dtype=torch.float32)
        parts = (partial[0], partial[1], partial[2], partial[3:])
        across = triton.cdiv(num_row_tiles, GROUP.value)
        done = start // (GROUP.value * config.BT)
        if cols is None:
            num_squares = across * (across + 1) // 2
            first_square = done * (done + 1) // 2
        else:
            num_squares = across * triton.cdiv(num_col_tiles, GROUP.value)
            first_square = 0
        in_square = GROUP.value**2
        decays = rows.new_empty(G, dtype=torch.float32)
        for g, gamma in enumerate(gammas):  # numbers copied from the host would wait for the device
            decays[g].fill_(-gamma / math.log(2))
        num_steps = triton.cdiv(D, config.BK)
        flags = {"METRIC": METRICS[metric].value, "SYMMETRIC": cols is None, "G": G}
        tile_kernel[((num_squares - first_square) * in_square, L)](
            row_split.planes,
            col_split.planes,
            row_split.norms,
            col_split.norms,
            columns.labels,
            columns.starts,
            *parts,
            decays,
            L,
            K,
            num_row_tiles,
            num_col_tiles,
            first_square * in_square,
            num_steps,
            num_slots,
            **flags,
            BT=config.BT,
            BK=config.BK,
            UPCAST=INTERPRETED,
            **launch_options(config.num_warps, num_stages=config.num_stages),
        )
        mend_kernel[(num_row_tiles * num_col_tiles, L)](
            row_split.source,
            col_split.source,
            rows.stride(0),
            others.stride(0),
            columns.labels,
            columns.starts,
            *parts,
            decays,
            L,
            M,
            N,
            K,
            num_row_tiles,
            num_col_tiles,
            start // config.BT,
            D,
            num_slots,
            **flags,
            ALIGNED=rows.stride(0) % 16 == others.stride(0) % 16 == 0,
            BT=config.BT,
            BD=MEND_BLOCK // rows.itemsize,
            **launch_options(config.BT // 16, **mend_limit(target)),
        )
        rows_at_once = 4 * target.warp_size
        finish_kernel[(triton.cdiv(M, rows_at_once), C, L)](
            *parts,
            columns.firsts,
            columns.ranks,
            order,
            *results,
            L,
            M,
            results[0].stride(0) // C,
            num_row_tiles,
            C,
            K,
            start // BLOCK.value,
            num_blocks,
            num_slots,
            G,
            BT=config.BT,
            BM=rows_at_once,
            **launch_options(1),
        )
