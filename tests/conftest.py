"""Fixtures that every test may use."""

import os
import sys
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.append(str(REPO))  # for `benchmarks`; last, so that an installed package comes first

from benchmarks.small_models import small_model  # noqa: E402 - found by the line above

# Kernels need no store and no adapters: a bare machine with a GPU may lack what these need.
if not all(map(find_spec, ("zarr", "numcodecs", "peft", "accelerate"))):
    collect_ignore = ["analysis", "data/test_describe.py"]
    collect_ignore += ["extract", "models", "report", "store", "sweep"]
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a file that needs a package of the tests alone, which a bare machine lacks."""
    report = yield
    error = report.call.excinfo.value.__cause__ if report.failed and report.call.excinfo else None
    if isinstance(error, ModuleNotFoundError) and not os.environ.get("CI"):
        package = (error.name or "").partition(".")[0]
        if package in ("hypothesis", "sklearn"):
            report.outcome = "skipped"
            report.longrepr = (report.nodeid, 1, f"needs {package}")
    return report


@pytest.fixture(scope="session", autouse=True)
def _float32_by_default() -> Iterator[None]:
    """Where a CPU has AMX, dtype `auto` is bfloat16; tests ask for the same type everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waits_for_the_disk() -> Iterator[None]:
    """Sync nothing: no test cuts the power, and a store has hundreds of files to be synced.

    What a power cut leaves is known from the calls, see `store/faults.py`. Commands that tests
    start as a person does still sync.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # this too refuses a file that is not open
        yield


def _absent(message: str) -> NoReturn:
    """Skip a test that needs something this machine lacks; in CI nothing passes by skipping."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real multilingual data; outside CI, tests that need it skip without it."""
    folder = Path(os.environ.get("SAFETYSPACE_FAST_SHARED", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        _absent(f"no shared data at {folder}: set SAFETYSPACE_FAST_SHARED")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct: chat template, adds no BOS."""
    return _small_model("smollm2")


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma 3 270M: no chat template, adds BOS."""
    return _small_model("gemma")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2: a BERT encoder."""
    return _small_model("minilm")


def _small_model(name: str) -> Path:
    path = small_model(name)
    if path is None:
        _absent(f"no {name} here: run `python -m benchmarks.small_models {name}`")
    return path
