"""Runs a kernel's host function in Triton's interpreter, or on a GPU where there is one.

Triton chooses between compiling and interpreting when it is imported, and other tests import it
too: the interpreter therefore lives in a process of its own, which stays for the whole session.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpus import need_cuda

WHERE = [
    pytest.param("interpreter"),
    pytest.param("cuda", marks=pytest.mark.needs_cuda),
]


def _start_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from triton.runtime import interpreter

    # At every call of a function in a kernel the interpreter patches Triton's language anew, a
    # third of its time, and undoes that behind the kernel. In this process it may stay patched.
    patch = interpreter._patch_lang

    @cache
    def patched_once(function: Callable[..., Any]) -> SimpleNamespace:
        patch(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patched_once


@cache
def _interpreter() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _start_interpreter)


def run(where: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call `function` with tensors that start and end on the CPU."""
    if where == "interpreter":
        return _interpreter().submit(function, *args).result(timeout=300)
    need_cuda()
    return _to("cpu", function(*_to("cuda", args)))


def _to(device: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # Not .to(): it would make a strided view contiguous.
        moved = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        return moved.copy_(value)
    if isinstance(value, tuple):
        return tuple(_to(device, item) for item in value)
    if isinstance(value, dict):
        return {name: _to(device, item) for name, item in value.items()}
    return value
