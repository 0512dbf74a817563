"""What fewer texts would have given: sub-samples of planted classes."""

import numpy as np
import pytest
from oracle import planted, stand_in

from safetyspace_fast.analysis import curve, separation
from safetyspace_fast.analysis.curve import METRICS
from safetyspace_fast.analysis.families import METRICS as EVERY
from safetyspace_fast.analysis.tables import to_table
from safetyspace_fast.errors import ConfigError

PAIRED = [name for name in METRICS if EVERY[name].paired]
ALONE = [name for name in METRICS if not EVERY[name].paired]
DEBIASED = ["rho_adjusted", "mean_shift", "energy_distance"]


def pairs(n=100, seed=0):
    rng = np.random.default_rng(seed)
    label, pair = np.tile([0, 1], n), np.repeat(np.arange(n), 2)
    content = np.repeat(rng.standard_normal((n, 12)), 2, axis=0)
    x = content + 0.5 * rng.standard_normal((2 * n, 12)) + 0.15 * label[:, None]
    return x[None, None], label, pair


@pytest.mark.parametrize("paired", [False, True])
def test_all_texts_give_what_a_store_of_the_projected_states_gives(paired):
    """The statistics that are computed again are those of `finish`, as the oracle knows them."""
    x, label, pair = pairs() if paired else (*planted(n=150, width=12, shift=1.5), None)
    pair = None if pair is None else {"en": pair}
    run = stand_in({"m": {"en": x}}, {"en": label}, pair=pair, proj=10)
    projected = np.float64(run.model("m").read("projected"))
    again = stand_in({"m": {"en": projected}}, {"en": label}, pair=pair, proj=10)
    # These look at the projection of the projection, which is another one.
    in_projection = ("auc_probe", "accuracy_probe", "paired_shift")
    names = [name for name in (PAIRED if paired else ALONE) if name not in in_projection]
    found = curve(run, metrics=names, draws=1).sel(size="all").squeeze()
    narrow = separation(again, metrics=names, bootstraps=0, permutations=0, layers="-1").squeeze()
    for part in ("value", "low", "high"):
        np.testing.assert_allclose(found[part], narrow[part], rtol=1e-4, atol=1e-4)
    exact = curve(run, metrics=names, draws=1).sel(size="full width").squeeze()
    expected = separation(run, metrics=names, bootstraps=0, permutations=0).squeeze()
    np.testing.assert_array_equal(exact["value"], expected["value"])
    if paired:
        gap = projected[0, 0, label == 1] - projected[0, 0, label == 0]
        shift = curve(run, metrics="paired_shift", draws=1).sel(size="all").squeeze()
        square = (gap.mean(0) ** 2).sum() - gap.var(0, ddof=1).sum() / len(gap)
        assert float(shift["value"]) == pytest.approx(square, rel=1e-6)


def test_metrics_without_bias_are_level_and_held_out_ones_rise():
    x, label = planted(n=1000, width=24, shift=1.2, seed=1)
    run = stand_in({"m": {"en": x}}, {"en": label}, proj=20)
    found = curve(run, metrics=[*DEBIASED, "rho", "auc_direction"], draws=40).squeeze()
    assert list(found["size"].to_numpy()) == ["25", "50", "100", "200", "400", "all", "full width"]
    assert found["n0"].to_numpy().tolist() == [25, 50, 100, 200, 400, 500, 500]
    value, width = found["value"], found["high"] - found["low"]
    for name in DEBIASED:
        one = value.sel(metric=name)
        # Forty draws know the mean of 25 texts to a sixth of its deviation, a 24th of the width.
        slack = 3.5 / 4 / np.sqrt(40)
        for size in ("25", "50", "100", "200", "400"):
            apart = abs(float(one.sel(size=size) - one.sel(size="all")))
            assert apart < slack * float(width.sel(metric=name, size=size)), (name, size)
        # The interval narrows as the root of the number of texts, from where noise is small.
        ratio = float(width.sel(metric=name, size="100") / width.sel(metric=name, size="400"))
        assert 1.6 < ratio < 2.6
    assert float(value.sel(metric="rho", size="25")) > 1.5 * float(
        value.sel(metric="rho", size="400")
    )
    auc = value.sel(metric="auc_direction")
    assert float(auc.sel(size="25")) + 0.02 < float(auc.sel(size="400"))


def test_units_are_drawn_as_wholes_and_labels_in_proportion():
    x, label, pair = pairs(60)
    run = stand_in({"m": {"en": x}}, {"en": label}, pair={"en": pair})
    found = curve(run, metrics=PAIRED, draws=3).squeeze()
    assert (found["refused"] == "").all()  # every text has its partner
    assert found["n0"].to_numpy().tolist() == found["n1"].to_numpy().tolist() == [25, 50, 60, 60]
    y, few = planted(n=400, width=12, shift=1.5)
    kept = np.flatnonzero((few == 0) | (np.arange(400) % 4 == 0))
    run = stand_in({"m": {"en": y[:, :, kept]}}, {"en": few[kept]})
    found = curve(run, draws=2).squeeze()
    assert found["n1"].to_numpy().tolist() == [25, 50, 50]
    assert found["n0"].to_numpy().tolist() == [100, 200, 200]


def test_the_seed_decides_the_sub_samples():
    x, label = planted(n=120, width=12, shift=1.5)
    run = stand_in({"m": {"en": x}}, {"en": label})
    first, again, other = (
        curve(run, metrics="rho", draws=2, seed=seed)["value"].squeeze() for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert float(first.sel(size="25")) != float(other.sel(size="25"))
    assert float(first.sel(size="all")) == float(other.sel(size="all"))


def test_the_table_has_a_row_for_each_size_and_says_why_not():
    x, label = planted(n=120, width=12, shift=1.5)
    y, other = planted(n=30, width=12, shift=1.5)
    run = stand_in({"m": {"en": x, "de": y}}, {"en": label, "de": other})
    table = to_table(curve(run, draws=2))
    assert "refused: the language has no more texts" in table
    assert [line.split()[0] for line in table.splitlines()[1:5]] == ["texts", "25", "50", "all"]
    assert max(map(len, table.splitlines())) <= 100
    with pytest.raises(ConfigError, match="curve: got dunn, expected some of rho"):
        curve(run, metrics="dunn")
    with pytest.raises(ConfigError, match="draws: got 0"):
        curve(run, draws=0)
