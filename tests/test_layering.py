"""Dependencies point one way: cli -> api -> extract, analysis -> models, data, store -> ops."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import safetyspace_fast

ROOT = Path(safetyspace_fast.__file__).parent
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "presets": {"errors"},
    "parallel": set(),
    "ops": {"errors"},
    "data": {"errors"},
    "models": {"config", "errors", "ops"},
    "store": {"errors"},
    "extract": {"errors", "ops", "parallel", "data", "models", "store"},
    "analysis": {"errors", "ops", "parallel", "data", "store"},
    "info": {"ops"},
    "bench": {"data", "models", "extract"},
    "api": {"bench", "config", "errors", "info", "data", "models", "store", "extract"}
    | {"analysis"},
    "terminal": {"api"},
    "cli": {"config", "errors", "info", "presets", "api", "analysis", "terminal"},
    "__init__": {"api", "ops"},
}


def imported(path: Path) -> set[str]:
    """Parts of this package that a file imports, anywhere in it."""
    found = set()
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            inner = f"{node.module}." if node.module else ""
            names = [f"safetyspace_fast.{inner}{alias.name}" for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names]
        found |= {part[1] for part in parts if part[0] == "safetyspace_fast" and len(part) > 1}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    above = imported(path) - ALLOWED[part] - {part}
    assert not above, f"{part} must not import {', '.join(sorted(above))}"


def test_the_store_knows_no_torch() -> None:
    script = "import sys, safetyspace_fast.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("part", ["", ".ops", ".config", ".errors"])
def test_imports_are_light(part: str) -> None:
    heavy = "{'transformers', 'zarr', 'triton', 'xarray', 'pyarrow', 'peft'}"
    script = f"import sys, safetyspace_fast{part}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    for name in safetyspace_fast.__all__:
        assert getattr(safetyspace_fast, name) is not None
    assert set(safetyspace_fast.__all__) <= set(dir(safetyspace_fast))
