"""Dependencies point one way: cli -> api -> extract, analysis -> models, data, store -> ops."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import safetyspace_fast

ROOT = Path(safetyspace_fast.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ALLOWED = {
    "errors": set(),
    "config": {"errors", "names"},
    "presets": {"entries", "errors", "names"},
    "threads": set(),
    "names": set(),
    "notebook": set(),
    "entries": set(),
    "ops": {"errors", "threads"},
    "data": {"config", "entries", "errors", "names", "notebook"},
    "models": {"config", "errors", "names", "ops"},
    "store": {"errors", "names", "notebook"},
    "extract": {"config", "errors", "notebook", "ops", "threads", "data", "models", "store"},
    "analysis": {"config", "errors", "names", "ops", "threads", "data", "store"},
    "info": {"models", "ops"},
    "benchmark": {"data", "models", "extract", "notebook"},
    "verification": {"data", "errors", "models", "extract"},
    "runner": {"config", "data", "errors", "extract", "info", "models", "ops", "store"}
    | {"verification"},
    "report": {"analysis", "config", "errors", "names", "notebook", "store", "threads"},
    "tensor_parallel": {"config", "errors", "extract", "models", "runner", "threads"},
    "api": {"analysis", "benchmark", "config", "data", "errors", "extract", "models", "runner"}
    | {"store", "tensor_parallel", "verification"},
    "sweep": {"config", "data", "errors", "extract", "info", "models", "names", "runner"}
    | {"store", "threads"},
    "terminal": {"api", "errors", "info", "sweep"},
    "cli": {"config", "data", "errors", "info", "models", "presets", "api", "analysis", "report"}
    | {"sweep", "terminal"},
    "__init__": {"api", "ops", "report"},
}


def imported(path: Path) -> set[Path]:
    """Files of this package that a file imports: anywhere in it, for types only or in a function.

    That a package's `__init__.py` runs before its modules is not counted as an import of it.
    """
    files = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = (ROOT.name, *path.relative_to(ROOT).parts)[: -node.level or 0]
            module = [*package, *(node.module.split(".") if node.module else [])]
            names = [[*module, alias.name] for alias in node.names]
        else:
            continue
        files |= {file_of(name) for name in names if name[0] == ROOT.name}
    return files


def file_of(name: list[str]) -> Path:
    """The file of a module or, if the last part is a name in one, of the module that it is in."""
    path = ROOT.joinpath(*name[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.exists():
            return file
    return file_of(name[:-1])


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below(path: Path) -> None:
    above = {room(file) for file in imported(path)} - ALLOWED[room(path)] - {room(path)}
    assert not above, f"{room(path)} must not import {', '.join(sorted(above))}"


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({path: imported(path) - {path} for path in FILES}).prepare()
    except CycleError as error:
        circle = " <- ".join(str(path.relative_to(ROOT)) for path in error.args[1])
        pytest.fail(f"these files import each other: {circle}")


def test_the_store_knows_no_torch() -> None:
    script = "import sys, safetyspace_fast.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("part", ["", ".ops", ".config", ".errors"])
def test_imports_are_light(part: str) -> None:
    heavy = "{'transformers', 'zarr', 'triton', 'xarray', 'pyarrow', 'peft'}"
    script = f"import sys, safetyspace_fast{part}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_no_module_hides_a_public_function() -> None:
    """A module that is imported becomes an attribute of the package, under its own name."""
    modules = {room(path) for path in FILES} - {"ops", "report"}  # the second may be called
    assert not modules & set(safetyspace_fast.__all__)


def test_every_public_name_is_there() -> None:
    for name in safetyspace_fast.__all__:
        assert getattr(safetyspace_fast, name) is not None
    assert set(safetyspace_fast.__all__) <= set(dir(safetyspace_fast))
