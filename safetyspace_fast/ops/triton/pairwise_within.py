"""Sums over the pairs within many sets of samples (permuted labels), in one pass over the tiles.

    total[l, m]  = sum of value(squared[l, m, n]) over all n but m
    within[l, r] = sum of (value(squared[l, m, n]) - shift[l]) z[m, r] z[n, r] over the pairs m < n

for every layer l, with z 0 or 1 and the same in all of them.

Squared distances, their precision and the order of tiles are those of `tiles`; a value is the
distance, or the kernel exp(-gamma squared). A tile V of values is multiplied with the sets of its
columns while it is in registers: within = sum of Z * (V Z), Z * by element. Z is exact in bfloat16
and V is three bfloat16 numbers, as rows are: three products on tensor cores, all exact but for
their sums. `shift`, a typical value, keeps these small where it counts.

Bytes and flops of a layer, for N rows, D dimensions, R sets, tiles of BT (N=5000, D=4096, R=1000):

    tiles of distances     6 * 2 D N^2 / 2 flops                               [614 Gflop]
    tiles by sets          3 * 2 R N^2 / 2 flops                               [ 75 Gflop]
    planes read by tiles   6 D N^2 / BT, nearly all from L2                    [ 4.8 GB]
    sets read by tiles     2 R N^2 / BT, nearly all from L2                    [ 0.4 GB]
    partial sums           2 * 4 (R / BT / 2 + 1) N^2 / BT, written and read   [ 7.7 MB]

so a thousand sets cost an eighth more than none: 2.2 ms on an A100, 0.70 ms on an H100.

No atomics and a fixed order: every tile writes its own partial sums, and a last kernel adds them in
float64 in the order of the tiles. They take 4 R bytes a tile, 2 R (N / BT)^2 in all. A row of a
tile with a marked pair adds nothing but its mark, and `mend_kernel` adds it from differences.
"""

# A kernel's arguments have the types that its launch gives them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, var-annotated"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from safetyspace_fast.ops.triton import INTERPRETED, current_target, launch_options
from safetyspace_fast.ops.triton.tiles import (
    COSINE,
    GROUP,
    MEND_BLOCK,
    METRICS,
    NEAR_MARK,
    NONE,
    distance_of,
    dot,
    exact_squares,
    layer_offset,
    split,
    squared_distances,
    tile_config,
    tile_position,
    tile_reasons,
)

# Sets that a tile is multiplied with at a time, by what fits into registers.
SETS = {100: 32}
DEFAULT_SETS = 64
MEND_SETS = 32  # more would spill with some versions of Triton
SLOTS = tl.constexpr(16)  # partial sums that `add_slots_kernel` reads at a time


@triton.jit
def _value(squared, p_decay, METRIC: tl.constexpr, KERNEL: tl.constexpr):
    if KERNEL:
        return tl.exp2(squared * tl.load(p_decay))
    else:
        return distance_of(squared, METRIC)


@triton.jit
def _pair(i_tile, j_tile):
    """Count the tiles on and below the diagonal that come before this one, row by row."""
    return i_tile.to(tl.int64) * (i_tile + 1) // 2 + j_tile


@triton.jit(do_not_specialize=["N", "num_sets", "num_tiles", "num_steps"])
def within_kernel(
    planes_ptr,  # [3, L, num_tiles BT, num_steps BK] bfloat16
    norms_ptr,  # [L, num_tiles BT] float32
    sets_ptr,  # [num_tiles BT, num_sets BR] bfloat16 of 0 and 1, contiguous
    decay_ptr,  # [L] float32: -gamma / ln 2
    shift_ptr,  # [L] float32
    total_ptr,  # [L, num_tiles, num_tiles BT] float32
    within_ptr,  # [L, tiles on and below the diagonal, num_sets BR] float32
    N,
    num_sets,
    num_tiles,
    num_steps,
    METRIC: tl.constexpr,
    KERNEL: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Multiply a tile of rows with a tile of columns, and the values with the columns' sets."""
    i_tile, j_tile = tile_position(tl.program_id(0), num_tiles, num_tiles, True)
    if (i_tile >= num_tiles) | (i_tile < j_tile):
        return
    i_l = tl.program_id(1).to(tl.int64)
    padded = num_tiles * BT
    i_row = i_tile * BT + tl.arange(0, BT)
    i_col = j_tile * BT + tl.arange(0, BT)
    squared = squared_distances(
        planes_ptr,
        planes_ptr,
        norms_ptr,
        norms_ptr,
        i_l,
        i_row,
        i_col,
        tl.num_programs(1),
        padded,
        padded,
        num_steps,
        BT,
        BK,
        UPCAST,
    )
    m_pair = (i_row < N)[:, None] & (i_col < N)[None, :] & (i_row[:, None] != i_col[None, :])
    m_near = tl.min(tl.where(m_pair, squared, 0.0), axis=1) < 0.0
    m_kept = m_pair & (m_near == 0)[:, None]
    value = _value(squared, decay_ptr + i_l, METRIC, KERNEL)
    kept = tl.where(m_kept, value, 0.0)
    row_total = tl.where(m_near, NEAR_MARK, tl.sum(kept, axis=1))
    tl.store(total_ptr + (i_l * num_tiles + j_tile) * padded + i_row, row_total)
    if i_tile != j_tile:
        tl.store(total_ptr + (i_l * num_tiles + i_tile) * padded + i_col, tl.sum(kept, axis=0))

    rest = tl.where(m_kept, value - tl.load(shift_ptr + i_l), 0.0)
    v1 = rest.to(tl.bfloat16)
    rest -= v1.to(tl.float32)
    v2 = rest.to(tl.bfloat16)
    v3 = (rest - v2.to(tl.float32)).to(tl.bfloat16)
    width = num_sets * BR
    i_r = tl.arange(0, BR)
    p_rows = sets_ptr + i_row[:, None].to(tl.int64) * width + i_r
    p_cols = sets_ptr + i_col[:, None].to(tl.int64) * width + i_r
    p_out = within_ptr + (i_l * _pair(num_tiles, 0) + _pair(i_tile, j_tile)) * width + i_r
    # The diagonal tile has every pair twice.
    weight = tl.where(i_tile == j_tile, 0.5, 1.0)
    for _ in range(num_sets):
        cols = tl.load(p_cols)
        product = dot(v3, cols, tl.zeros([BT, BR], tl.float32), UPCAST)
        product = dot(v2, cols, product, UPCAST)
        product = dot(v1, cols, product, UPCAST)
        product *= tl.load(p_rows).to(tl.float32)
        tl.store(p_out, weight * tl.sum(product, axis=0))
        p_rows += BR
        p_cols += BR
        p_out += BR


@triton.jit(do_not_specialize=["row_stride_l", "N", "num_sets", "num_tiles"])
def mend_kernel(
    rows,  # pointers to x [L, N, D], order and scales as in split_kernel; strides of N and D
    row_stride_l,
    sets_ptr,  # from here as in within_kernel
    decay_ptr,
    shift_ptr,
    total_ptr,
    within_ptr,
    N,
    num_sets,
    num_tiles,
    D,
    METRIC: tl.constexpr,
    KERNEL: tl.constexpr,
    ALIGNED: tl.constexpr,  # row_stride_l is a multiple of 16
    BT: tl.constexpr,
    BD: tl.constexpr,
    BR: tl.constexpr,
):
    """Add the marked rows of one tile, from differences."""
    i_tile = tl.program_id(0) % num_tiles
    j_tile = tl.program_id(0) // num_tiles
    if i_tile < j_tile:
        return
    i_l = tl.program_id(1).to(tl.int64)
    padded = num_tiles * BT
    i_row = i_tile * BT + tl.arange(0, BT)
    i_col = j_tile * BT + tl.arange(0, BT)
    p_total = total_ptr + (i_l * num_tiles + j_tile) * padded
    m_marked = tl.load(p_total + i_row) == NEAR_MARK
    row = tl.min(tl.where(m_marked, i_row, NONE), axis=0)
    if row == NONE:
        return
    UNIT: tl.constexpr = METRIC == COSINE
    width = num_sets * BR
    i_r = tl.arange(0, BR)
    p_out = within_ptr + (i_l * _pair(num_tiles, 0) + _pair(i_tile, j_tile)) * width + i_r
    p_cols = sets_ptr + i_col[:, None].to(tl.int64) * width + i_r
    weight = tl.where(i_tile == j_tile, 0.5, 1.0)
    col_total = tl.zeros([BT], tl.float32)
    shift = tl.load(shift_ptr + i_l)
    o_rows = layer_offset(i_l, row_stride_l, ALIGNED)
    o_scales = i_l * padded
    while row < NONE:
        squared = exact_squares(
            rows, rows, row, i_col, N, N, o_rows, o_rows, o_scales, o_scales, D, UNIT, BT, BD
        )
        value = _value(squared, decay_ptr + i_l, METRIC, KERNEL)
        m_pair = (i_col < N) & (i_col != row)
        kept = tl.where(m_pair, value, 0.0)
        tl.store(p_total + row, tl.sum(kept, axis=0))
        col_total += kept
        rest = tl.where(m_pair, value - shift, 0.0)
        p_row = sets_ptr + row.to(tl.int64) * width + i_r
        for r in range(num_sets):
            members = tl.load(p_cols + r * BR).to(tl.float32)
            grown = tl.sum(members * rest[:, None], axis=0) * tl.load(p_row + r * BR).to(tl.float32)
            grown = tl.load(p_out + r * BR) + weight * grown
            tl.debug_barrier()  # several threads may have read what one of them writes
            tl.store(p_out + r * BR, grown)
        tl.debug_barrier()
        m_marked = m_marked & (i_row != row)
        row = tl.min(tl.where(m_marked, i_row, NONE), axis=0)
    if i_tile != j_tile:
        p_mirror = total_ptr + (i_l * num_tiles + i_tile) * padded + i_col
        tl.store(p_mirror, tl.load(p_mirror) + col_total)


@triton.jit(do_not_specialize=["num_slots", "width", "num_out"])
def add_slots_kernel(
    partial_ptr,  # [L, num_slots, 16 width] float32, contiguous
    out_ptr,  # [L, num_out] float64, contiguous
    num_slots,
    width,
    num_out,
    BLOCK: tl.constexpr,
):
    """Add partial sums over the slots."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i_slot = tl.arange(0, SLOTS)
    total = tl.zeros([BLOCK], tl.float64)
    pitch = width * 16
    i_l = tl.program_id(1).to(tl.int64)
    p_partials = partial_ptr + i_l * num_slots * pitch + i
    for slot in range(0, num_slots, SLOTS):
        m_in = (slot + i_slot < num_slots)[:, None] & (i < pitch)[None, :]
        p_partial = p_partials[None, :] + (slot + i_slot).to(tl.int64)[:, None] * pitch
        total += tl.sum(tl.load(p_partial, mask=m_in, other=0.0).to(tl.float64), axis=0)
    tl.store(out_ptr + i_l * num_out + i, total, mask=i < num_out)


def supports(
    x: Tensor, center: Tensor, masks: Tensor, metric: str, gamma: Tensor | None, shift: Tensor
) -> list[str]:
    """Reasons why this implementation cannot take these arguments; empty if it can."""
    return tile_reasons("x", x)


def pairwise_within(
    x: Tensor, center: Tensor, masks: Tensor, metric: str, gamma: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum the values of all pairs within each set, without synchronisation.

    x: [L, N, D] float32, bfloat16 or float16, any strides; center: [L, D] float64; masks: [N, R] of
    0 and 1. Values are distances, or exp(-gamma d^2) with gamma: [L] float64. shift: [L] float32.
    Returns total: [L, N] f64, each sample's values with all others, and within: [L, R] f64, values
    less `shift` of the pairs in the set.
    """
    L, N, D = x.shape
    R = masks.shape[1]
    total = x.new_zeros((L, N), dtype=torch.float64)
    within = x.new_zeros((L, R), dtype=torch.float64)
    if L == 0 or N == 0:
        return total, within
    with torch.accelerator.device_index(x.device.index):
        target = current_target()
        config = tile_config(target)
        rows = split(x, center.contiguous(), torch.arange(N, device=x.device), metric, config)
        num_tiles = triton.cdiv(N, config.BT)
        num_pairs = num_tiles * (num_tiles + 1) // 2
        BR = SETS.get(target.arch, DEFAULT_SETS)
        padded, width = num_tiles * config.BT, triton.cdiv(R, DEFAULT_SETS) * DEFAULT_SETS
        sets = masks.new_zeros((padded, width), dtype=torch.bfloat16)
        sets[:N, :R] = masks
        total_parts = x.new_empty((L, num_tiles, padded), dtype=torch.float32)
        within_parts = x.new_empty((L, num_pairs, width), dtype=torch.float32)
        shift = shift.contiguous()
        decay = shift if gamma is None else (gamma / -math.log(2)).float()
        sums = (sets, decay, shift, total_parts, within_parts, N)
        squares = triton.cdiv(num_tiles, GROUP.value)
        flags = {"METRIC": METRICS[metric].value, "KERNEL": gamma is not None}
        within_kernel[(squares * (squares + 1) // 2 * GROUP.value**2, L)](
            rows.planes,
            rows.norms,
            *sums,
            width // BR,
            num_tiles,
            triton.cdiv(D, config.BK),
            **flags,
            BT=config.BT,
            BK=config.BK,
            BR=BR,
            UPCAST=INTERPRETED,
            **launch_options(config.num_warps, num_stages=config.num_stages),
        )
        mend_kernel[(num_tiles * num_tiles, L)](
            rows.source,
            x.stride(0),
            *sums,
            width // MEND_SETS,
            num_tiles,
            D,
            **flags,
            ALIGNED=x.stride(0) % 16 == 0,
            BT=config.BT,
            BD=MEND_BLOCK // 4,  # of 16-bit rows too: more would spill on sm_100
            BR=MEND_SETS,
            **launch_options(8),
        )
        for parts, out in ((total_parts, total), (within_parts, within)):
            _, slots, pitch = parts.shape
            if pitch == 0:
                continue
            block = 2 * target.warp_size
            add_slots_kernel[(triton.cdiv(pitch, block), L)](
                parts, out, slots, pitch // 16, out.shape[1], BLOCK=block, **launch_options(4)
            )
    return total, within
