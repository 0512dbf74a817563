"""What tests do that need a GPU."""

import os

import pytest
import torch


def need_cuda(count: int = 1) -> None:
    """Skip without so many GPUs; fail where `FAIL_WITHOUT_CUDA=1` says that there is one."""
    if torch.cuda.device_count() >= count:
        return
    if count == 1 and os.environ.get("FAIL_WITHOUT_CUDA") == "1":
        pytest.fail("FAIL_WITHOUT_CUDA=1, and torch sees no CUDA device")
    pytest.skip("needs a CUDA device" if count == 1 else f"needs {count} CUDA devices")
