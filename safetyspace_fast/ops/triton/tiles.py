"""Tiles of squared distances on tensor cores: what the pairwise kernels share.

    squared[m, n] = |a_m|^2 + |b_n|^2 - 2 a_m b_n        a, b: rows and columns less a common center

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
nearly equal rows, the pair is marked, and computed again from the rows as they came, in float64.
Bfloat16 input takes the same path: centred, it is no longer bfloat16.

`split_kernel` reads 4 L N D bytes of float32 rows and writes 6 L N D of planes; a tile of BT x BT
pairs reads 12 BT D bytes of planes, nearly all from L2, for 12 BT^2 D flops. Hence BT = 128 (64
where kernels of bandwidths need the registers), and an order of tiles in squares of GROUP, whose
programs share what they read.
"""

# A kernel's arguments have the types that its launch gives them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, var-annotated"

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget

from safetyspace_fast.ops import reference
from safetyspace_fast.ops.triton import TRITON, device_reasons, launch_options

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EUCLIDEAN = tl.constexpr(0)
SQEUCLIDEAN = tl.constexpr(1)
COSINE = tl.constexpr(2)
METRICS = {"euclidean": EUCLIDEAN, "sqeuclidean": SQEUCLIDEAN, "cosine": COSINE}
NEAR = tl.constexpr(2 * reference.NEAR)
NEAR_MARK = tl.constexpr(-1.0)  # not a distance: the pair has to be computed again
GROUP = tl.constexpr(8)
NONE = tl.constexpr(2**30)


@triton.jit
def layer_offset(i_l, stride_l, ALIGNED: tl.constexpr):
    """Where a layer starts. stride_l grows with N: if Triton specialised it, it would recompile."""
    o_layer = i_l * stride_l
    if ALIGNED:
        o_layer = tl.multiple_of(o_layer, 16)
    return o_layer


@triton.jit(do_not_specialize=["num_layers", "N", "num_padded", "stride_l"])
def split_kernel(
    rows_ptr,  # [L, N, D]
    center_ptr,  # [L, D] float64, contiguous
    order_ptr,  # [N] int64: which row goes to each position
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
    o_layer = layer_offset(i_l, stride_l, ALIGNED)
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
def tile_position(pid, num_row_tiles, num_col_tiles, SYMMETRIC: tl.constexpr):
    """Row and column of the pid-th tile, in squares of GROUP x GROUP tiles."""
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
def dot(a, b, accumulator, UPCAST: tl.constexpr):
    """Product of bfloat16 blocks, exact, with float32 sums."""
    if UPCAST:  # Triton's interpreter gets bfloat16 wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def squared_distances(
    row_planes_ptr,  # [3, L, rows_padded, num_steps BK] bfloat16
    col_planes_ptr,
    row_norms_ptr,  # [L, rows_padded] float32
    col_norms_ptr,
    i_l,
    i_row,
    i_col,
    num_layers,
    rows_padded,
    cols_padded,
    num_steps,
    BT: tl.constexpr,
    BK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A tile of squared distances, near pairs marked."""
    width = num_steps * BK
    row_plane = num_layers.to(tl.int64) * rows_padded * width
    col_plane = num_layers.to(tl.int64) * cols_padded * width
    p_rows = row_planes_ptr + (i_l * rows_padded + i_row)[:, None] * width + tl.arange(0, BK)
    p_cols = col_planes_ptr + (i_l * cols_padded + i_col)[:, None] * width + tl.arange(0, BK)
    product = tl.zeros([BT, BT], tl.float32)
    for _ in range(num_steps):
        a1 = tl.load(p_rows)
        a2 = tl.load(p_rows + row_plane)
        a3 = tl.load(p_rows + 2 * row_plane)
        b1 = tl.trans(tl.load(p_cols))
        b2 = tl.trans(tl.load(p_cols + col_plane))
        b3 = tl.trans(tl.load(p_cols + 2 * col_plane))
        step = dot(a3, b1, tl.zeros([BT, BT], tl.float32), UPCAST)
        step = dot(a1, b3, step, UPCAST)
        step = dot(a2, b2, step, UPCAST)
        step = dot(a2, b1, step, UPCAST)
        step = dot(a1, b2, step, UPCAST)
        step = dot(a1, b1, step, UPCAST)
        product += step
        p_rows += BK
        p_cols += BK
    row_norms = tl.load(row_norms_ptr + i_l * rows_padded + i_row)
    col_norms = tl.load(col_norms_ptr + i_l * cols_padded + i_col)
    norms = row_norms[:, None] + col_norms[None, :]
    squared = norms - 2.0 * product
    # Not maximum(): that would turn NaN into 0.
    squared = tl.where(squared < 0.0, 0.0, squared)
    return tl.where(squared < NEAR * norms, NEAR_MARK, squared)


@triton.jit
def _original(x, i, num_rows, o_layer, o_scales, i_d, D, UNIT: tl.constexpr):
    """Load rows before centring, of length 1 with UNIT, in float64."""
    p_x, p_order, p_scales, stride_n, stride_d = x
    source = tl.load(p_order + i, mask=i < num_rows, other=0)
    p_rows = p_x + o_layer + source[:, None] * stride_n
    p_values = p_rows + i_d[None, :].to(tl.int64) * stride_d
    values = tl.load(p_values, mask=(i_d < D)[None, :], other=0.0).to(tl.float64)
    if UNIT:
        values = values * tl.load(p_scales + o_scales + i)[:, None]
    return values


@triton.jit
def distance_of(squared, METRIC: tl.constexpr):
    """Turn a squared distance between (unit) rows into the metric's."""
    if METRIC == EUCLIDEAN:
        squared = tl.sqrt(squared)
    if METRIC == COSINE:
        squared = squared * 0.5
    return squared


@triton.jit
def exact_squares(
    rows,
    cols,
    row,
    i_col,
    M,
    N,
    o_rows,
    o_cols,
    o_row_scales,
    o_col_scales,
    D,
    UNIT: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """One row's squared distances to the columns of a tile, from differences."""
    exact = tl.zeros([BT], tl.float64)
    for o_d in range(0, D, BD):
        i_d = o_d + tl.arange(0, BD)
        one = _original(rows, row + tl.arange(0, 1), M, o_rows, o_row_scales, i_d, D, UNIT)
        many = _original(cols, i_col, N, o_cols, o_col_scales, i_d, D, UNIT)
        exact += tl.sum((many - one) * (many - one), axis=1)
    return exact.to(tl.float32)


class TileConfig(NamedTuple):
    """Block sizes of a tile: six planes of BT x BK stand in shared memory at each stage."""

    BT: int
    BK: int
    num_warps: int
    num_stages: int


# By what fits into registers and shared memory (`python -m benchmarks gpu-static`).
TILE_CONFIGS = {
    80: TileConfig(128, 16, 8, 2),
    90: TileConfig(128, 64, 8, 2),
    100: TileConfig(128, 16, 8, 4),
    "gfx942": TileConfig(128, 16, 8, 2),
}
DEFAULT_TILE_CONFIG = TileConfig(64, 32, 4, 2)
SPLIT_BLOCK = 1024
MEND_BLOCK = 64  # bytes of a row at a time, so that a thread loads 16 of them


def tile_config(target: GPUTarget) -> TileConfig:
    """Block sizes for a GPU; small ones for a GPU that is not in the table.

    Of tiles of 128 rows, Triton before 3.8 leaves an empty kernel on sm_100: no load, no product.
    """
    if target.arch == 100 and TRITON < (3, 8):
        return DEFAULT_TILE_CONFIG
    return TILE_CONFIGS.get(target.arch, DEFAULT_TILE_CONFIG)


def mend_limit(target: GPUTarget) -> dict[str, int]:
    """The launch option `maxnreg` where the mending kernel of `pairwise_reduce` needs it.

    On sm_100 Triton 3.8 spills although registers are left, unless a limit is named. 255 is all
    that a thread can have.
    """
    return {"maxnreg": 255} if target.arch == 100 and TRITON == (3, 8) else {}


def tile_reasons(name: str, rows: Tensor) -> list[str]:
    """Reasons why rows cannot be split into planes; empty if they can."""
    reasons = device_reasons(name, rows)
    if rows.dtype not in DTYPES:
        reasons.append(f"{name} are {rows.dtype}, not float32, bfloat16 or float16")
    return reasons


class Split(NamedTuple):
    """Centred rows for `squared_distances`, and where they come from for `exact_squares`."""

    planes: Tensor  # [3, L, N rounded up to BT, D rounded up to BK] bfloat16
    norms: Tensor  # [L, N rounded up to BT] float32
    source: tuple[Any, ...]


def split(x: Tensor, center: Tensor, order: Tensor, metric: str, config: TileConfig) -> Split:
    """Centre the rows of x [L, N, D], put them in order, and split them."""
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
    return Split(planes, norms, (x, order, scales, *x.stride()[1:]))
