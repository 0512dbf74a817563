"""Base against aligned on planted moves: differences, marks, verdicts."""

import csv
import io
import math

import numpy as np
import pytest
from oracle import planted, stand_in
from toys import pair_of_models

from safetyspace_fast.analysis import compare, rows, separation
from safetyspace_fast.analysis.tables import to_table
from safetyspace_fast.errors import ConfigError

QUICK = {"bootstraps": 30, "permutations": 9}
SCALED = ("rho_adjusted", "bhattacharyya_excess_pc10", "silhouette_pc10", "auc_direction")


def test_a_model_against_itself():
    run = pair_of_models(shift=2.0, more=0.0)
    found = compare(run, base="base", aligned="aligned", metrics="all", **QUICK)
    for name in found["metric"].to_numpy():
        one = found.sel(metric=name)
        if (one["refused"] == "").all():
            assert (one["difference"] == 0).all(), name
            known = one["low"].notnull()
            assert (abs(one["low"]).where(known, 0) < 1e-12).all(), name
    for name in ("direction_cosine", "cka"):
        np.testing.assert_allclose(found[name], 1, atol=1e-9)
    assert (found["displacement"] == 0).all()


def test_a_planted_move_is_found_where_it_is():
    run = pair_of_models(more=2.0, n=600)
    found = compare(run, base="base", aligned="aligned", **QUICK)
    alone = separation(run, metrics=list(found["metric"].to_numpy()), **QUICK)
    for name in SCALED:
        one = found.sel(metric=name).squeeze()
        english, german = one.sel(lang="en"), one.sel(lang="de")
        assert float(english["low"]) > 0, name
        assert float(english["p"]) < 1e-3
        assert float(german["difference"]) == 0
        assert float(german["excess_high"]) < 0, name
        assert float(english["excess"]) == 0
        for model in ("base", "aligned"):
            expected = alone["value"].sel(metric=name, model=model).squeeze().to_numpy()
            np.testing.assert_array_equal(one[model], expected)
    geometry = found.sel(lang="en").squeeze()
    assert float(geometry["displacement_share"]) > 0.8
    assert float(geometry["displacement_rank"]) == pytest.approx(1, abs=0.2)
    # Half of the texts move by 2; the classes' total deviation is sqrt(12).
    assert float(geometry["displacement"]) == pytest.approx(1 / math.sqrt(12), rel=0.05)
    assert float(geometry["direction_cosine"]) == pytest.approx(1, abs=0.05)
    assert 0.65 < float(geometry["direction_reliability"]) < 1
    assert float(geometry["transfer_auc"]) == pytest.approx(float(geometry["own_auc"]), abs=0.02)
    assert float(geometry["transfer_auc"]) > 0.9


def test_exchanging_the_models_negates_every_difference():
    run = pair_of_models(more=0.7, noise=0.3, n=120)
    there = compare(run, base="base", aligned="aligned", metrics="all", **QUICK)
    back = compare(run, base="aligned", aligned="base", metrics="all", **QUICK)
    for part in ("difference", "excess"):
        np.testing.assert_array_equal(there[part], -back[part])
    np.testing.assert_allclose(there["low"], -back["high"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(there["p"], back["p"], rtol=1e-6)


IN_THE_PROJECTION = {"auc_probe", "displacement_rank"}


@pytest.mark.parametrize("models", [("base", "aligned"), ("base", "base")])
def test_nothing_printed_depends_on_the_projection_but_what_is_in_it(models):
    x, label = planted(n=240, width=40, shift=1.5, spread=np.exp(-0.1 * np.arange(40)))
    y = x + 0.3 * np.random.default_rng(0).standard_normal(x.shape)
    names = ["rho_pc2", "bhattacharyya_pc10", "silhouette_pc2", "mean_shift", "auc_direction"]
    base, aligned = models
    both = []
    for seed in (0, 1):
        run = stand_in({"base": {"en": x}, "aligned": {"en": y}}, {"en": label}, proj=16, seed=seed)
        both.append(compare(run, base=base, aligned=aligned, metrics=names, **QUICK))
    for part in ("base", "aligned", "difference"):
        if part not in IN_THE_PROJECTION:
            np.testing.assert_array_equal(both[0][part], both[1][part], err_msg=part)


def test_a_direction_without_an_error_may_have_some_in_other_texts():
    found = compare(pair_of_models(12.0, n=40), base="base", aligned="aligned", metrics=["rho"])
    assert (found["transfer_auc"] == 1).all()
    assert (found["transfer_low"] < 0.97).all()
    assert (found["transfer_high"] == 1).all()


def test_a_direction_that_turns_does_not_transfer():
    x, label = planted(n=400, width=12, shift=0.0)
    base, turned = x.copy(), x.copy()
    base[..., 0] += 2 * label
    turned[..., 1] += 2 * label
    run = stand_in({"base": {"en": base}, "aligned": {"en": turned}}, {"en": label})
    found = compare(run, base="base", aligned="aligned", metrics="rho", **QUICK).squeeze()
    assert float(found["own_auc"]) > 0.85
    assert float(found["transfer_auc"]) < 0.7
    assert abs(float(found["direction_cosine"])) < 0.15


def test_what_both_models_share_does_not_widen_the_difference():
    run = pair_of_models(shift=1.5, more=0.3, n=400, noise=0.05, langs=("en",))
    found = compare(run, base="base", aligned="aligned", metrics=list(SCALED), **QUICK)
    alone = separation(run, metrics=list(SCALED), **QUICK)
    for name in SCALED:
        one = found.sel(metric=name).squeeze()
        own = alone.sel(metric=name, model="base").squeeze()
        assert float(one["high"] - one["low"]) < 0.6 * float(own["high"] - own["low"]), name
        assert float(one["low"]) > 0, name


FAMILY = ["rho_adjusted", "auc_direction", "bhattacharyya_pc2"]


def test_verdicts_say_changed_no_change_or_undecided():
    run = pair_of_models(shift=1.5, more=0.6, n=200, noise=0.05)
    options = {"base": "base", "aligned": "aligned", "bootstraps": 30, "permutations": 19}
    options["metrics"] = ["auc_direction", "rho_adjusted", "dunn", "mean_shift"]

    def verdicts(largest, **other):
        found = compare(run, **options | other, equivalence=largest)
        return found, found["verdict"].squeeze().to_numpy().tolist()

    found, words = verdicts(0.02)
    assert words == [
        ["changed", "no change larger than 0.02"],
        ["changed", "no change larger than 0.02"],
        ["no interval", "no interval"],
        ["has a unit", "has a unit"],
    ]
    assert "within 0.02" in to_table(found)
    row = next(csv.DictReader(io.StringIO(rows.to_csv(found))))
    assert (row["verdict"], row["lang"]) == ("changed", "en")
    _, words = verdicts(0.001)
    assert words[0] == ["changed", "undecided"]
    _, words = verdicts(1e-12, aligned="base")
    assert words[:2] == [["no change larger than 1e-12"] * 2] * 2
    assert "verdict" not in compare(run, **options)
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"equivalence: got .*, expected a number above 0"):
            verdicts(wrong)


def test_marks_of_differences_do_not_depend_on_bootstraps():
    run = pair_of_models(more=0.5, noise=0.3, n=120)
    options = {"base": "base", "aligned": "aligned", "metrics": FAMILY, "permutations": 49}
    few, many = (compare(run, **options, bootstraps=n) for n in (20, 60))
    for part in ("p", "p_family", "excess_p", "excess_p_family"):
        np.testing.assert_allclose(few[part], many[part], rtol=1e-9)
    assert not np.array_equal(few["low"], many["low"])


def test_a_model_whose_states_are_scaled_has_the_same_mmd():
    x, label = planted(n=120, width=12, shift=1.5)
    run = stand_in({"base": {"en": x}, "aligned": {"en": 3 * x}}, {"en": label})
    found = compare(run, base="base", aligned="aligned", metrics="mmd", **QUICK).squeeze()
    assert float(found["base"]) > 0.05
    assert float(found["difference"]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("resamples", [0, 10, 18, 19])
def test_too_few_resamples_mark_nothing_and_say_so(resamples):
    run = pair_of_models(more=4.0, langs=("en",))
    options = {"metrics": ["rho", "rho_pc2"], "bootstraps": resamples}
    found = compare(run, base="base", aligned="aligned", permutations=resamples, **options)
    text = to_table(found)
    row = next(line for line in text.splitlines() if line.startswith("embed"))
    assert ("*" in row) == (resamples >= 19)
    assert ("fewer than 19 resamples" in " ".join(text.split())) == (resamples < 19)
    alone = to_table(separation(run, models=["base"], permutations=resamples, **options))
    row = next(line for line in alone.splitlines() if line.startswith("embed"))
    assert ("*" in row) == (resamples >= 19)
    assert "~" not in row


def test_a_difference_that_cannot_vary_has_no_smaller_p_than_the_resamples_allow():
    """Every pair is misjudged by one model and judged rightly by the other, without any spread."""
    x, label = planted(n=120, width=6, shift=0.0)
    pair = np.concatenate([np.arange(60), np.arange(60)])
    x[:, :, 60:] = x[:, :, :60]
    y = x + 100.0 * label[:, None]
    run = stand_in(
        {"base": {"en": x - 1e-3 * label[:, None]}, "aligned": {"en": y}},
        {"en": label},
        pair={"en": pair},
    )
    found = compare(
        run, base="base", aligned="aligned", metrics="all", bootstraps=20, permutations=20
    )
    p = found["p_family"].to_numpy()
    assert np.isfinite(p).any()
    assert np.nanmin(p) >= 1 / 21 - 1e-12
