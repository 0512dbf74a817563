"""`run --seed` draws another projection: only numbers that say so may depend on it."""

import numpy as np
import pytest
import xarray
from tiny_models import save_tiny

import safetyspace_fast as ssf


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[ssf.Run]:
    """Two models of one store, under two seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    base, aligned = save_tiny("llama", folder / "a"), save_tiny("llama", folder / "b", seed=1)
    fields = {"data": "sample:polite", "languages": ["en"], "limit": 30}
    return [
        ssf.run(
            ssf.RunConfig(
                models=(f"base={base}", f"aligned={aligned}"),
                layers=["-1"],
                poolings=["last"],
                out=folder / f"{seed}.zarr",
                seed=seed,
                proj_dim=16,
                **fields,  # type: ignore[arg-type]  # of several types
            )
        )
        for seed in (0, 1)
    ]


def changed(found: list[xarray.Dataset]) -> set[str]:
    """Numbers that differ, but for metrics that are labelled as of the projection."""
    one, other = (x.sel(metric=x["space"] != "projection") for x in found)
    floats = [name for name, variable in one.data_vars.items() if variable.dtype.kind == "f"]
    return {
        str(name)
        for name in floats
        if not np.allclose(one[name], other[name], rtol=1e-6, atol=1e-9, equal_nan=True)
    }


def test_the_projections_differ(runs: list[ssf.Run]) -> None:
    one, other = (run.model("base").read("projected") for run in runs)
    assert not np.allclose(one, other)


@pytest.mark.parametrize(
    "metrics", [None, ["mmd", "energy_distance", "silhouette_cosine", "dprime"]]
)
def test_values_intervals_and_p_do_not_depend_on_the_projection(
    runs: list[ssf.Run], metrics: list[str] | None
) -> None:
    found = [ssf.separation(run, metrics=metrics, bootstraps=20) for run in runs]
    assert int(found[0]["value"].notnull().sum()) >= 2 * len(metrics or range(5))
    family = {"p_family", "q"} if metrics is None else set()  # of all metrics together
    assert changed(found) <= family


def test_differences_do_not_depend_on_the_projection_but_what_says_so(runs: list[ssf.Run]) -> None:
    found = [
        ssf.compare(run, base="base", aligned="aligned", bootstraps=20, permutations=99)
        for run in runs
    ]
    differ = changed(found) - {"p_family", "q"}
    assert all("projection" in found[0][name].attrs.get("definition", "") for name in differ)
    assert "transfer_auc" not in differ
    assert float(abs(found[0]["cka"] - found[1]["cka"]).max()) < 0.01
