"""Stored results: whole or not at all, and readable by anything that reads Zarr."""

from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from tiny_models import save_tiny

import safetyspace_fast as ssf
from safetyspace_fast import api
from safetyspace_fast.errors import StoreError
from safetyspace_fast.store import results


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ssf.Run:
    folder = tmp_path_factory.mktemp("results")
    model = save_tiny("llama", folder / "tiny-llama")
    config = ssf.RunConfig(
        models=(f"a={model}", f"b={model}"),
        data="sample:polite",
        languages=("en", "de"),
        out=folder / "run.zarr",
    )
    return api.run(config)


def compute(run: ssf.Run, **options: object) -> xarray.Dataset:
    settings = {"metrics": ["rho", "bhattacharyya_pc10", "dunn"], "permutations": 9}
    return ssf.separation(run, **{"bootstraps": 9, **settings, **options})


def test_results_come_back_with_all_that_belongs_to_them(run: ssf.Run) -> None:
    found = compute(run)
    api.save_results(run, found)
    for model in ("a", "b"):
        kept = ssf.open_run(run.path).separation(model)
        assert kept.attrs["settings"] == found.attrs
        assert kept["rho"].dims == ("layer", "pooling", "lang", "number")
        for name in found["metric"].to_numpy().tolist():
            one = found.sel(model=model, metric=name)
            for part in ("value", "low", "high", "floor", "p", "p_family"):
                np.testing.assert_array_equal(kept[name].sel(number=part), one[part])
            reasons = np.array(kept[name].attrs["refused_reasons"])
            refused = reasons[kept[f"{name}_refused"].to_numpy()]
            np.testing.assert_array_equal(refused, one["refused"])
            assert kept[name].attrs["definition"] == one["definition"].item()
            assert kept[name].attrs["units"] == "1"
        np.testing.assert_array_equal(kept["n0"], found["n0"].sel(model=model))
        assert kept["tokens1"].attrs["definition"]
    refused = ssf.open_run(run.path).separation("a")["bhattacharyya_pc10_refused"]
    assert (refused > 0).all()
    plain = xarray.open_zarr(run.path, group="separation/a", consolidated=False)
    assert plain.attrs["format_version"] == 1
    group = zarr.open_group(run.path, mode="r")["separation/a"]
    assert group["rho"].metadata.dimension_names == ("layer", "pooling", "lang", "number")


def test_a_second_call_replaces_and_other_models_stay(run: ssf.Run) -> None:
    api.save_results(run, compute(run))
    api.save_results(run, compute(run, models=["a"], metrics=["silhouette"], layers=["embed"]))
    assert set(run.separation("a")) >= {"silhouette"}
    assert "rho" not in run.separation("a")
    assert run.separation("a").sizes["layer"] == 1
    assert "rho" in run.separation("b")


def test_a_crash_leaves_the_old_results(run: ssf.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    api.save_results(run, compute(run))
    before = run.separation("a")["rho"].load()
    calls = []

    def broken(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        array(*arguments)

    array = results._array
    monkeypatch.setattr(results, "_array", broken)
    with pytest.raises(StoreError, match="No space left"):
        api.save_results(run, compute(run, seed=1))
    monkeypatch.undo()
    move, moves = results.files.move, []

    def refuse(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise OSError(13, "Permission denied")
        move(source, target)

    monkeypatch.setattr(results.files, "move", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        api.save_results(run, compute(run, seed=1))
    np.testing.assert_array_equal(ssf.open_run(run.path).separation("a")["rho"], before)
    assert sorted(path.name for path in (run.path / "separation").iterdir()) == [
        "a", "b", "zarr.json",
    ]  # fmt: skip


def test_a_store_with_results_is_undamaged_and_leaves_no_work_folder(run: ssf.Run) -> None:
    for seed in (0, 1):
        api.save_results(run, compute(run, seed=seed))
        assert not api.check(run.path).damage
    assert not run.place.work.exists()
    opened = zarr.open_group(run.path, mode="r", use_consolidated=True)
    assert "separation/a/rho" in opened.metadata.consolidated_metadata.flattened_metadata


def test_missing_and_newer_results_are_named(run: ssf.Run, tmp_path: Path) -> None:
    api.save_results(run, compute(run))
    with pytest.raises(StoreError, match="run `separation` first"):
        run.separation("nobody")
    group = zarr.open_group(run.path, mode="r+")["separation/b"]
    group.attrs["format_version"] = 99  # newer ones are refused wherever they stand
    with pytest.raises(StoreError, match="format_version 99"):
        run.separation("b")


def test_means_over_groups_are_not_stored(run: ssf.Run) -> None:
    found = compute(run, groups={"high": ["en"], "low": ["de"]})
    assert np.isfinite(found["group_value"].sel(metric="rho")).all()
    api.save_results(run, found)
    kept = ssf.open_run(run.path).separation("a")
    assert kept["lang"].to_numpy().tolist() == ["de", "en"]
    assert not [name for name in kept.data_vars if "group" in str(name)]
