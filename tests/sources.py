"""A clean copy of what a source distribution holds, for tests that build or install it."""

import shutil
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
ABSENT = shutil.ignore_patterns("*.so", "__pycache__", "_build_record.json")


def copy_sources(folder: Path) -> Path:
    """Copy the sources to `folder/source`, without anything that was built."""
    source = folder / "source"
    for name in ("csrc", "safetyspace_fast"):
        shutil.copytree(REPO / name, source / name, ignore=ABSENT)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    return source
