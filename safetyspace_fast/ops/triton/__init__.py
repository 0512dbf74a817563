"""GPU kernels in Triton, one file each; nothing here is imported before a kernel is wanted."""

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, which is settled where they are defined."""


def current_target() -> Any:  # triton has no types
    """Return the GPU that a launch would use; in Triton's interpreter one that no table knows."""
    if INTERPRETED:
        return GPUTarget("cuda", 0, 32)
    return triton.runtime.driver.active.get_current_target()


def device_reasons(name: str, tensor: torch.Tensor) -> list[str]:
    """Say why `tensor` is out of reach of a GPU kernel; empty when it is not."""
    if tensor.device.type == "cuda" or INTERPRETED:
        return []
    return [f"{name} is on {tensor.device}, not on a GPU"]


def launch_options(num_warps: int, **more: int) -> dict[str, int | bool]:
    """Return what every launch names; fusion too, because Triton 3.10 changes its default."""
    return {"num_warps": num_warps, "enable_fp_fusion": True, **more}
