"""GPU kernels in Triton, one file each; nothing here is imported before a kernel is wanted."""

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget


def current_target() -> Any:
    """Return the GPU that a launch would use; in Triton's interpreter, which has none, an H100."""
    if triton.knobs.runtime.interpret:
        return GPUTarget("cuda", 90, 32)
    return triton.runtime.driver.active.get_current_target()


def device_reasons(name: str, tensor: torch.Tensor) -> list[str]:
    """Say why `tensor` is out of reach of a GPU kernel; empty when it is not."""
    if tensor.device.type == "cuda" or triton.knobs.runtime.interpret:
        return []
    return [f"{name} is on {tensor.device}, not on a GPU"]
