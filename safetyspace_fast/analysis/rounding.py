"""The level of rounding: what differs by no more is not a difference.

The unit roundoff u of a dtype is the largest relative error of one rounding. Each block adds its
rounding to that of the blocks before, independently: after b blocks the states of two models whose
weights and sums are rounded differently are up to 3 (1 + sqrt b) u of their size apart. (Small
models with random weights of 1, 4 and 12 blocks, each weight multiplied by 1 + u z with z uniform
between -1 and 1: at most 0.63 of that, in float32, float16 and bfloat16.)
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..store import ModelStore

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff of each dtype."""
MOST_BLOCKS = 32
"""Blocks below a layer that says nothing about them, as `final_norm` alone."""


def roundoff(model: "ModelStore") -> float:
    """Unit roundoff of the dtype that a model was run in; of float32 if it is not recorded."""
    return ROUNDOFF.get(str(model.manifest.get("dtype")), ROUNDOFF["float32"])


def level(model: "ModelStore", layers: list[str]) -> Tensor:
    """[layer] float64, distance of states by rounding alone, relative to their size."""
    blocks = [int(name[6:]) + 1 for name in model.hookpoints if name.startswith("block.")]
    last = max(blocks, default=MOST_BLOCKS)
    depth = {"embed": 0} | {f"block.{number - 1}": number for number in blocks}
    return torch.tensor(
        [3 * (1 + math.sqrt(depth.get(name, last))) * roundoff(model) for name in layers],
        dtype=torch.float64,
    )


def sizes(mean: Tensor, var: Tensor) -> Tensor:
    """Root mean square of each dimension over the classes, at least the median over dimensions.

    mean, var: [..., 2, D] -> [..., D]. A small dimension is the sum of larger ones, and is rounded
    as these are.
    """
    square = (mean.square() + var).mean(-2)
    return torch.maximum(square, square.median(-1, keepdim=True).values).sqrt()
