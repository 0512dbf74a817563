"""Groups of languages: exactly these, others like these, and contents that they share."""

import numpy as np
import pytest
import torch
from oracle import stand_in

from safetyspace_fast.analysis import compare, groups, separation
from safetyspace_fast.analysis.items import SharedItems
from safetyspace_fast.analysis.tables import to_table

CONTRAST, ALONE = np.array([1.0, -1.0]), np.array([1.0])


def drawn(sizes, *, between, noise, shared, draws, seed=0):
    """Values of languages of two groups with means 1 and 0.5, and the covariance of their noise."""
    rng = np.random.default_rng(seed)
    design = np.zeros((sum(sizes), 2))
    design[: sizes[0], 0] = design[sizes[0] :, 1] = 1
    each = np.exp(rng.uniform(-0.7, 0.7, len(design)))
    covariance = np.diag((noise * each) ** 2) + shared**2 * np.outer(each, each)
    y = design @ [1.0, 0.5] + between * rng.standard_normal((draws, len(design)))
    y += rng.multivariate_normal(np.zeros(len(design)), covariance, draws)
    return y, np.broadcast_to(covariance, (draws, *covariance.shape)), design


def held(found, truth, kind):
    low, high = found[f"group_{kind}low"], found[f"group_{kind}high"]
    return float(((low <= truth) & (truth <= high)).mean())


SETTINGS = [
    pytest.param((3, 3), 0.1, 0.02, 0.0, id="three and three"),
    pytest.param((5, 6), 0.02, 0.02, 0.0, id="languages differ as much as noise"),
    pytest.param((5, 6), 0.0, 0.02, 0.0, id="languages do not differ"),
    pytest.param((5, 6), 0.05, 0.02, 0.04, id="shared items"),
    pytest.param((3, 8), 0.1, 0.05, 0.0, id="three and eight"),
]


@pytest.mark.parametrize(("sizes", "between", "noise", "shared"), SETTINGS)
def test_intervals_for_languages_like_these_cover(sizes, between, noise, shared):
    y, covariance, design = drawn(sizes, between=between, noise=noise, shared=shared, draws=2000)
    # 2000 draws know a rate to half a percent.
    gap = groups._like(y, covariance, design, CONTRAST)
    assert 0.92 <= held(gap, 0.5, "like_") <= 0.98
    k = sizes[0]
    high = groups._like(y[:, :k], covariance[:, :k, :k], design[:k, :1], ALONE)
    assert 0.92 <= held(high, 1.0, "like_") <= 0.985
    assert float(np.sqrt((high["group_tau"] ** 2).mean())) == pytest.approx(between, abs=0.015)
    new = 1 + between * np.random.default_rng(1).standard_normal(2000)
    # With languages that differ as little as the noise it is a little too narrow.
    assert held(high, new, "predict_") >= 0.88
    assert float((gap["group_like_p"] <= 0.05).mean()) == pytest.approx(
        1 - held(gap, 0.0, "like_"), abs=1e-3
    )
    names = np.array([str(i) for i in range(sum(sizes))])
    these = held(groups._these(y, covariance, design, CONTRAST, names), 0.5, "")
    if between == 0:
        assert 0.92 <= these <= 0.98
    elif between > 2 * noise:
        assert these < 0.9  # which is why it must not be read as more than these languages


def test_equal_languages_without_noise_have_equal_ends():
    y, covariance = np.full((2, 6), 0.3), np.zeros((2, 6, 6))
    design = np.repeat(np.eye(2), 3, axis=0)
    found = groups._like(y, covariance, design, CONTRAST)
    for name in ("group_like_value", "group_like_low", "group_like_high", "group_tau"):
        np.testing.assert_allclose(found[name], 0, atol=1e-7)


def test_the_language_that_moves_a_group_most_is_named():
    y = np.array([[0.9, 0.1, 0.2, 0.1, 0.1]])
    design = np.repeat(np.eye(2), [3, 2], axis=0)
    names = np.array(["en", "de", "fr", "hi", "am"])
    found = groups._these(y, np.zeros((1, 5, 5)), design, CONTRAST, names)
    assert found["group_without"].tolist() == ["en"]
    assert found["group_without_low"][0] == pytest.approx(0.15 - 0.1)
    assert found["group_without_high"][0] == pytest.approx(0.55 - 0.1)
    single = groups._these(y[:, :1], np.zeros((1, 1, 1)), design[:1, :1], ALONE, names[:1])
    assert "group_without" not in single


LANGS = {"en": "high", "de": "high", "fr": "high", "hi": "low", "am": "low", "ta": "low"}


def shared_run(draws, *, shared, seed=0, n=60, models=("m",)):
    """Languages with the same items; each layer is another draw of the items and texts."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], n // 2)
    item = rng.standard_normal((draws, 1, n, 4))
    states = {}
    for model in models:
        states[model] = {
            lang: item + 0.6 * rng.standard_normal(item.shape) + 0.7 * label[:, None]
            for lang in LANGS
        }
    items = {lang: np.arange(n) if shared else np.full(n, -1) for lang in LANGS}
    return stand_in(states, dict.fromkeys(LANGS, label), item=items, proj=4)


@pytest.mark.parametrize("metric", ["rho_adjusted", "auc_direction"])
def test_intervals_of_groups_cover_where_languages_share_items(metric):
    options = {"metrics": [metric], "bootstraps": 2, "permutations": 0}
    rates = {}
    for shared in (True, False):
        found = separation(shared_run(150, shared=shared), **options).squeeze()
        for row in ("high", "high - low"):
            one = found.sel(group=row)
            mean = float(one["group_value"].mean())
            inside = (one["group_low"] <= mean) & (mean <= one["group_high"])
            rates[shared, row] = float(inside.mean())
    # 150 draws know a rate to 1.8 %; the seed is fixed.
    assert 0.89 <= rates[True, "high"] <= 0.995
    assert 0.89 <= rates[True, "high - low"] <= 0.995
    assert rates[False, "high"] < 0.88  # the same texts, taken for independent
    assert rates[False, "high - low"] > 0.985


@pytest.mark.slow
def test_differences_of_differences_cover_where_languages_share_items():
    run = shared_run(150, shared=True, models=("a", "b"))
    found = compare(run, base="a", aligned="b", metrics=["rho_adjusted"], bootstraps=2).squeeze()
    one = found.sel(lang="de")
    mean = float(one["excess"].mean())
    inside = (one["excess_low"] <= mean) & (mean <= one["excess_high"])
    assert 0.9 <= float(inside.mean()) <= 0.99
    assert (found.sel(lang="en")["excess_low"] == 0).all()


def test_equal_texts_of_two_languages_have_no_excess():
    x = np.random.default_rng(0).standard_normal((1, 1, 60, 4))
    label = np.repeat([0, 1], 30)
    y = x + 0.3 * label[:, None]
    states = {"a": {"en": x, "de": x}, "b": {"en": y, "de": y}}
    items = dict.fromkeys(("en", "de"), np.arange(60))
    run = stand_in(states, dict.fromkeys(items, label), item=items, proj=4)
    found = compare(run, base="a", aligned="b", metrics=["rho", "auc_direction"], bootstraps=2)
    de = found.sel(lang="de").squeeze()
    for part in ("excess", "excess_low", "excess_high"):
        np.testing.assert_allclose(de[part], 0, atol=1e-6)
    assert (de["high"] > de["low"]).all()


def test_draws_of_languages_with_common_items_correlate():
    run = shared_run(1, shared=True)
    some = SharedItems(run, ["en", "de"], (1, 2), 500)
    rng = np.random.default_rng(0)
    common = rng.standard_normal(500)
    for i in (0, 1):
        draws = torch.tensor(common + rng.standard_normal(500))[None]
        some.add(([0], i), i, torch.ones(60, dtype=torch.bool), torch.arange(60), None, draws)
    rho = some.correlations()[0]
    assert rho[0, 1] == pytest.approx(0.5, abs=0.12)
    assert rho.diagonal().tolist() == [1, 1]


def test_the_table_says_what_groups_can_show():
    run = shared_run(1, shared=False)
    options = {"metrics": ["rho"], "bootstraps": 3, "permutations": 0}
    whole = separation(run, **options)
    text = " ".join(to_table(whole).split())
    assert "are about exactly these languages and show nothing about others." in text
    assert "like these: high - low for all languages like these" in text
    lines = {line.split("  ")[0]: line for line in to_table(whole).splitlines()}
    gap = whole.squeeze().sel(group="high - low")
    assert f"({gap['group_without'].item()})" in lines["without one"]
    assert f"{float(gap['group_like_low']):.2f}" in lines["like these"]
    few = separation(run, languages=["en", "de", "hi", "am"], **options)
    assert few["group_like_value"].isnull().all()
    assert "no row for languages like these: it needs 3" in " ".join(to_table(few).split())
    assert "\nlike these " not in to_table(few)
