"""GPU kernels in Triton, one file each, imported when a kernel is first used."""

import torch
import triton
from triton.backends.compiler import GPUTarget

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter; decided when they are defined."""

TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
"""Triton's version: what a kernel compiles to depends on it."""


def current_target() -> GPUTarget:
    """The GPU that a launch would use; in Triton's interpreter one that is in no table."""
    if INTERPRETED:
        return GPUTarget("cuda", 0, 32)
    return triton.runtime.driver.active.get_current_target()


def device_reasons(name: str, tensor: torch.Tensor) -> list[str]:
    """Reasons why a GPU kernel cannot read `tensor`; empty if it can."""
    if tensor.device.type == "cuda" or INTERPRETED:
        return []
    return [f"{name} is on {tensor.device}, not on a GPU"]


def launch_options(num_warps: int, **more: int) -> dict[str, int]:
    """Options of every launch; fusion is named because Triton 3.10 changes its default."""
    return {"num_warps": num_warps, "enable_fp_fusion": True, **more}
