"""Processes that start warm: they are forked from one that has imported what a run needs."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from typing import Any

import pytest

IMPORTED = [
    "safetyspace_fast.api",
    "safetyspace_fast.cli",
    "torch._dynamo",
    "tqdm",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
]


def start(target: Callable[..., object], *arguments: object) -> Any:
    """Start a process that calls a function of a module of tests, with one thread of torch."""
    process = _context().Process(target=_run, args=(target, arguments))
    process.start()
    return process


@cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # on any number of cores the same bytes
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


def _run(target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.fsync = os.fstat  # as in conftest.py
    target(*arguments)
