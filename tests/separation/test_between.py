"""Base against aligned on planted moves."""

import math

import numpy as np
import pytest
import torch
from oracle import planted, stand_in

from safetyspace_fast.errors import ConfigError
from safetyspace_fast.separation import separation
from safetyspace_fast.separation.between import GEOMETRY, compare, debiased_cka

QUICK = {"bootstraps": 30, "permutations": 9}
SCALED = ("rho_adjusted", "bhattacharyya_excess_pc10", "silhouette_pc10", "auc_direction")


def pair_of_models(shift=1.0, more=1.0, *, n=240, width=12, seed=0, noise=0.0, langs=("en", "de")):
    """An aligned model that moves harmful texts `more` further along the same direction."""
    rng = np.random.default_rng(seed)
    base, aligned, labels = {}, {}, {}
    for i, lang in enumerate(langs):
        x, label = planted(n=n, width=width, shift=shift, seed=seed + i)
        step = more if lang == "en" else 0.0
        base[lang] = x
        aligned[lang] = x + step / math.sqrt(width) * label[:, None]
        aligned[lang] = aligned[lang] + noise * rng.standard_normal(x.shape)
        labels[lang] = label
    return stand_in({"base": base, "aligned": aligned}, labels)


def test_a_model_against_itself():
    run = pair_of_models(more=0.0)
    found = compare(run, base="base", aligned="base", metrics="all", **QUICK)
    for name in found["metric"].to_numpy():
        one = found.sel(metric=name)
        if (one["refused"] == "").all():
            assert (one["difference"] == 0).all(), name
            known = one["low"].notnull()
            assert (abs(one["low"]).where(known, 0) < 1e-12).all(), name
    for name in ("direction_cosine", "direction_cosine_denoised", "cka"):
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
    assert float(geometry["direction_cosine_denoised"]) == pytest.approx(1, abs=0.05)
    assert float(geometry["direction_ceiling"]) < 1
    assert float(geometry["transfer_auc"]) == pytest.approx(float(geometry["own_auc"]), abs=0.02)
    assert float(geometry["transfer_auc"]) > 0.9


def test_a_direction_that_turns_does_not_transfer():
    x, label = planted(n=400, width=12, shift=0.0)
    base, turned = x.copy(), x.copy()
    base[..., 0] += 2 * label
    turned[..., 1] += 2 * label
    run = stand_in({"base": {"en": base}, "aligned": {"en": turned}}, {"en": label})
    found = compare(run, base="base", aligned="aligned", metrics="rho", **QUICK).squeeze()
    assert float(found["own_auc"]) > 0.85
    assert float(found["transfer_auc"]) < 0.7
    assert abs(float(found["direction_cosine_denoised"])) < 0.15


def test_what_both_models_share_does_not_widen_the_difference():
    run = pair_of_models(shift=1.5, more=0.3, n=400, noise=0.05, langs=("en",))
    found = compare(run, base="base", aligned="aligned", metrics=list(SCALED), **QUICK)
    alone = separation(run, metrics=list(SCALED), **QUICK)
    for name in SCALED:
        one = found.sel(metric=name).squeeze()
        own = alone.sel(metric=name, model="base").squeeze()
        assert float(one["high"] - one["low"]) < 0.6 * float(own["high"] - own["low"]), name
        assert float(one["low"]) > 0, name


def test_intervals_of_differences_cover():
    width, hits, draws = (
        10,
        dict.fromkeys(("mean_shift", "rho_adjusted", "mahalanobis_pc10"), 0),
        60,
    )
    rng = np.random.default_rng(3)
    label = np.repeat([0, 1], 200)
    steps = {"base": 1.5, "aligned": 2.0}
    d_sq = {name: step**2 for name, step in steps.items()}
    truth = {
        "mean_shift": d_sq["aligned"] - d_sq["base"],
        "mahalanobis_pc10": d_sq["aligned"] - d_sq["base"] / 1.25,
        "rho_adjusted": d_sq["aligned"] / (d_sq["aligned"] + 4 * width)
        - d_sq["base"] / (d_sq["base"] + 4 * 1.25 * width),
    }
    for r in range(draws):
        content = rng.standard_normal((400, width))
        states = {}
        for name, step in steps.items():
            own = 0.5 * rng.standard_normal((400, width)) if name == "base" else 0.0
            states[name] = {
                "en": (content + own + step / math.sqrt(width) * label[:, None])[None, None]
            }
        run = stand_in(states, {"en": label}, seed=r)
        found = compare(
            run, base="base", aligned="aligned", metrics=list(hits), seed=r,
            bootstraps=200, permutations=0,
        ).squeeze()  # fmt: skip
        for name in hits:
            one = found.sel(metric=name)
            hits[name] += float(one["low"]) <= truth[name] <= float(one["high"])
    for name, count in hits.items():
        assert count / draws >= 0.88, name


def test_one_kernel_serves_both_models():
    run = pair_of_models(more=0.0, langs=("en",))
    run._models["aligned"]._arrays["projected"] = 3 * run.model("base").read("projected")
    found = compare(run, base="base", aligned="aligned", metrics="mmd", **QUICK).squeeze()
    own = separation(run, metrics="mmd", **QUICK).squeeze()
    # With a bandwidth of its own a scaled model shows the same MMD; with the base's it does not.
    np.testing.assert_allclose(own["value"].sel(model="aligned"), own["value"].sel(model="base"))
    assert abs(float(found["difference"])) > 1e-4


def test_texts_left_out_of_one_model_are_left_out_of_both():
    x, label = planted(n=200, width=12, shift=1.5)
    broken = x.copy()
    broken[0, 0, 7] = np.nan
    run = stand_in({"base": {"en": x}, "aligned": {"en": broken}}, {"en": label})
    names = ["auc_direction", "bhattacharyya_pc2"]
    found = compare(run, base="base", aligned="aligned", metrics=names, **QUICK)
    assert (found["refused"] == "").all()
    assert abs(float(found["difference"].sel(metric="auc_direction").squeeze())) < 0.01


def test_aliases_and_refusals_give_reasons():
    run = pair_of_models(n=60)
    found = compare(
        run, base="base", aligned="aligned", metrics=["xie_beni", "bhattacharyya_pc10"], **QUICK
    )
    assert found["refused"].sel(metric="xie_beni", lang="en").item() == "an alias: compare rho"
    assert "needs 100 texts" in found["refused"].sel(metric="bhattacharyya_pc10", lang="de").item()


def test_models_of_other_depth_or_name_are_errors():
    run = pair_of_models()
    with pytest.raises(ConfigError, match="nobody"):
        compare(run, base="base", aligned="nobody")
    run.model("aligned").hookpoints = ("block.0",)
    with pytest.raises(ConfigError, match="different hookpoints"):
        compare(run, base="base", aligned="aligned")


def test_models_of_other_width_are_compared_by_their_metrics_only():
    x, label = planted(n=240, width=12, shift=1.0)
    y, _ = planted(n=240, width=16, shift=2.0)
    run = stand_in({"base": {"en": x}, "aligned": {"en": y}}, {"en": label})
    found = compare(run, base="base", aligned="aligned", metrics="auc_direction", **QUICK)
    assert np.isfinite(found["difference"]).all()
    assert all(np.isnan(found[name]).all() for name in GEOMETRY)


def test_debiased_cka_against_the_textbook_and_on_noise():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal((20, 4))
    y[:, 0] += x[:, 0]

    def hsic(a, b):
        k, h, n = a @ a.T, b @ b.T, len(a)
        np.fill_diagonal(k, 0)
        np.fill_diagonal(h, 0)
        one = np.ones(n)
        middle = (one @ k @ one) * (one @ h @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ h) + middle - 2 / (n - 2) * one @ k @ h @ one) / (n * (n - 3))

    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert float(debiased_cka(torch.tensor(x), torch.tensor(y))) == pytest.approx(expected)
    wide = torch.tensor(rng.standard_normal((2, 50, 400)))
    assert abs(float(debiased_cka(wide[0], wide[1]))) < 0.05
