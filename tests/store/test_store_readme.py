"""README.md of the store says the same as the layout."""

import re
from math import prod
from pathlib import Path

import numpy as np
import pytest

import safetyspace_fast.store
from safetyspace_fast.store.layout import COMPONENTS, MODEL, SAMPLES, ArraySpec

FOLDER = Path(safetyspace_fast.store.__file__).parent
README = (FOLDER / "README.md").read_text("utf-8")
ARRAY = re.compile(r"^ {4}(\w+) +(\w+) +\[([\w, ]+)\](?:.* (\d+) bits)?", re.MULTILINE)
SIZES = {"proj": 64, "component": COMPONENTS, "class": 2, "label": 2, "fold": 10, "basis": 1}
SIZES |= {"statistic": 16, "labelling": 1001, "space": 2}


def test_the_tree_has_every_array_with_its_type_axes_and_bits() -> None:
    tree = README.partition("## The tree")[2].partition("  separation/NAME/")[0]
    listed = [
        (name, dtype, tuple(dims.split(", ")), int(bits) if bits else None)
        for name, dtype, dims, bits in ARRAY.findall(tree)
    ]
    assert listed == [(s.name, s.dtype, s.dims, s.keepbits) for s in (*SAMPLES, *MODEL)]


def n_bytes(spec: ArraySpec, hidden: int) -> int:
    """Of one layer and pooling, and of one text or language."""
    sizes = SIZES | {"hidden": hidden} | dict.fromkeys(("layer", "pooling", "sample", "lang"), 1)
    return np.dtype(spec.dtype).itemsize * prod(sizes[dim] for dim in spec.dims)


@pytest.mark.parametrize("hidden", [0, 1, 4096])
def test_sizes_are_those_of_the_layout(hidden: int) -> None:
    rows = re.findall(r"^\| a (text|language|model) \| ([^|]+) \|", README, re.MULTILINE)
    given = {
        what: eval(formula.replace(",", "").replace(" D", " * D"), {"D": hidden})
        for what, formula in rows
    }
    assert given == {
        "text": sum(
            n_bytes(spec, hidden) for spec in MODEL if spec.by_sample and "basis" not in spec.dims
        ),
        "language": sum(n_bytes(spec, hidden) for spec in MODEL if spec.by_language),
        "model": sum(n_bytes(spec, hidden) for spec in MODEL if spec.name == "pca_basis"),
    }
    of_basis = sum(n_bytes(spec, hidden) for spec in MODEL if "basis" in spec.dims)
    assert f"A text takes {of_basis} bytes more for each model in `bases`" in README
    if hidden == 4096:
        example = 66 * (8800 * given["text"] + 11 * given["language"] + given["model"])
        assert f"\n{example / 1e6:.0f} MB before compression" in README


def test_every_file_has_its_job() -> None:
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", README, re.MULTILINE))
    assert listed == {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}


def test_the_format_has_fifteen_lines() -> None:
    assert re.findall(r"^(\d+)\. ", README.partition("## The tree")[0], re.MULTILINE) == [
        str(i) for i in range(1, 16)
    ]
