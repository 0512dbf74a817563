"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real multilingual data; outside CI, tests that need it skip without it."""
    folder = Path(os.environ.get("SAFETYSPACE_FAST_SHARED", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        message = f"no shared data at {folder}: set SAFETYSPACE_FAST_SHARED"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
