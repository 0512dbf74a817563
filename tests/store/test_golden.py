"""Stores of every format_version there was are read, and give the numbers they gave.

`version-1` is of before permutations were stored; `version-1-basis` has every array that there was
when it was made.
"""

import json
import zipfile
from pathlib import Path

import pytest
import zarr
from golden.make import HERE, hashes, values

from safetyspace_fast import api
from safetyspace_fast.cli import main
from safetyspace_fast.errors import StoreError
from safetyspace_fast.store.layout import FORMAT_VERSION, MODEL

VERSIONS = sorted(HERE.glob("version-*.zip"))


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


def test_there_is_one_of_todays_format() -> None:
    newest = json.loads((HERE / f"version-{FORMAT_VERSION}-basis.json").read_text())["arrays"]
    arrays = {name for name in newest if not name.startswith("samples/")}
    assert arrays <= {spec.name for spec in MODEL}
    assert {"null", "nearest", "fold_mean", "basis_coords"} < arrays


@pytest.mark.parametrize("store", VERSIONS, indirect=True, ids=lambda path: path.stem)
def test_a_golden_store_gives_what_it_gave(store: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    expected = json.loads((HERE / f"{name}.json").read_text())
    report = api.check(store)
    assert (report.complete[-1], report.damage) == ("m", [])
    run = api.open_run(store)
    assert hashes(run) == expected["arrays"]  # to the bit
    got = values(run)
    for key, value in expected["separation"].items():
        if value is None:
            assert got[key] is None, key
        else:
            # An AUC counts which of 20 x 20 pairs are in order; rounding may turn a few over.
            slack = 0.01 if key.startswith("auc_") else 1e-6 * abs(value) + 1e-9
            assert got[key] == pytest.approx(value, abs=slack, rel=0), key


@pytest.mark.parametrize("place", ["", "models/m", "samples"])
@pytest.mark.parametrize("store", VERSIONS[-1:], indirect=True, ids=lambda path: path.stem)
def test_a_newer_format_is_refused(
    store: Path, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    group = zarr.open_group(store / place, mode="r+", use_consolidated=False)
    group.attrs["format_version"] = FORMAT_VERSION + 1
    with pytest.raises(StoreError, match=f"format_version {FORMAT_VERSION + 1}, .* up to .*update"):
        _ = api.open_run(store).samples, api.open_run(store).model("m")
    if not place:
        for command in ("separation", "check"):
            assert main([command, str(store)]) == 1
            (line,) = capfd.readouterr().err.splitlines()
            assert "update safetyspace-fast" in line
        config = api.RunConfig(models=("m=x",), data="sample:polite", out=store, resume=True)
        with pytest.raises(StoreError, match="update safetyspace-fast"):
            api.run(config)
