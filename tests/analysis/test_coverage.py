"""The benchmark that asks whether intervals cover: what it draws is what a run sees."""

import numpy as np
import pytest

import safetyspace_fast as ssf
from benchmarks import coverage


@pytest.mark.parametrize("name", ["pairs, 12", "4 copies, 100 + 100", "clusters of 6, 120 + 120"])
def test_a_run_pools_the_states_that_were_drawn(name, tmp_path):
    design, rng = coverage.DESIGNS[name], np.random.default_rng(0)
    drawn = [coverage.draw(design, rng) for _ in range(2)]
    coverage.write(drawn, design.copies, tmp_path)
    run = coverage.run_models(tmp_path)
    assert run.languages == ("qaa", "qab")
    for i_model, model in enumerate(coverage.MODELS):
        means = run.model(model).read("class_mean")[0, 0]
        for i_lang, one in enumerate(drawn):
            for label in (0, 1):
                mean = one.states[i_model][one.label == label].astype(float).mean(0)
                np.testing.assert_allclose(means[i_lang, label], mean, rtol=1e-5, atol=1e-6)
    found = ssf.separation(run, models="base", metrics=["rho"], permutations=0)
    units = {"pairs, 12": 12, "4 copies, 100 + 100": 50, "clusters of 6, 120 + 120": 40}
    assert (found["units"] == units[name]).all()
    assert found["paired"].all() == design.pairs


def test_a_rate_counts_intervals_around_the_mean_and_small_p():
    value = np.array([1.0, 2.0, 3.0, 2.0, np.nan])
    low, high = value - 0.5, value + np.array([2.0, 0.5, 0.5, np.nan, np.nan])
    low[3] = np.nan  # no interval
    found = coverage.rates_of(value, low, high, np.array([0.04, 0.05, 0.06, np.nan, np.nan]))
    assert found == pytest.approx({"refused": 0.2, "covered": 2 / 3, "rejected": 2 / 3})
    assert np.isnan(coverage.rates_of(value, low, high)["rejected"])


def test_a_report_names_what_is_outside():
    rows = {"rho": {"covered": 0.95, "rejected": 0.05}, "mmd": {"covered": 0.9, "rejected": 0.1}}
    found = {"draws": 400} | {
        kind: {"separation": rows, "compare": rows, "starred": [[1, 25], [0, 25]]}
        for kind in ("shift", "null")
    }
    text = coverage.text_of({"designs": {"12 + 12": found}})
    assert "median 0.925; 1 of 2 within 92% to 98%; below: mmd 0.900; above: none" in text
    assert "1 of 2 within 3% to 7%; below: none; above: mmd 0.100" in text
    assert "separation a false star: in 1 of 25 results" in text
