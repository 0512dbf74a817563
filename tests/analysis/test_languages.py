"""Harm directions of several languages, planted equal, turned and absent."""

import numpy as np
import pytest
import torch
from oracle import planted, stand_in
from sklearn.metrics import silhouette_samples

from safetyspace_fast.analysis import compare, directions, parallel, separation
from safetyspace_fast.analysis.families import distances
from safetyspace_fast.analysis.glossary import DIRECTIONS
from safetyspace_fast.analysis.tables import to_table
from safetyspace_fast.errors import ConfigError
from safetyspace_fast.ops import distance_sums


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 150)
    axis = {"en": 0, "de": 0, "fr": 1, "xx": None}
    states = {}
    for lang, dimension in axis.items():
        x = rng.standard_normal((2, 1, 300, 8)) + 3 * rng.standard_normal(8)
        if dimension is not None:
            x[..., dimension] += 2 * label
        states[lang] = x
    run = stand_in({"m": states}, dict.fromkeys(axis, label))
    return directions(run).squeeze()


def test_shared_directions_have_a_cosine_of_one_and_transfer(found):
    one = found.isel(layer=1).sel(lang="en", other_lang="de")
    assert 0.9 < one["direction_reliability"] < 1
    assert one["direction_cosine"] == pytest.approx(1, abs=0.06)
    assert one["direction_low"] < one["direction_cosine"]
    assert one["transfer_low"] > 0.8
    assert one["transfer_low"] < one["transfer_auc"] < one["transfer_high"]


def test_other_directions_do_not(found):
    one = found.isel(layer=0).sel(lang="en", other_lang="fr")
    assert one["direction_low"] < 0 < one["direction_high"]
    assert one["transfer_auc"] < 0.7


def test_the_diagonal_is_held_out(found):
    own = found.sel(lang="xx", other_lang="xx")
    assert own["direction_cosine"].isnull().all()  # noise has no direction
    assert (own["direction_reliability"] < 0.65).all()
    np.testing.assert_allclose(found.sel(lang="fr", other_lang="fr")["direction_cosine"], 1)
    # In-sample this noise shows about 0.6; held out it has a long tail below one half, none above.
    assert (own["transfer_auc"] < 0.58).all()
    assert (found.sel(lang="fr", other_lang="fr")["transfer_auc"] > 0.88).all()


def test_matrices_are_what_they_say(found):
    cosine = found["direction_cosine"].to_numpy()
    np.testing.assert_allclose(cosine, np.swapaxes(cosine, -1, -2))
    for name, text in DIRECTIONS.items():
        assert found[name].attrs["definition"] == text


def test_small_languages_are_left_out_and_unknown_ones_named():
    rng = np.random.default_rng(0)
    labels = {"en": np.repeat([0, 1], 20), "de": np.repeat([0, 1], [20, 5])}
    states = {lang: rng.standard_normal((1, 1, len(y), 8)) for lang, y in labels.items()}
    run = stand_in({"m": states}, labels)
    small = directions(run).squeeze()
    assert np.isfinite(small["transfer_auc"].sel(lang="en", other_lang="en"))
    assert small["transfer_auc"].sel(lang="de").isnull().all()
    assert small["direction_cosine"].sel(other_lang="de").isnull().all()
    with pytest.raises(ConfigError, match="zz"):
        directions(run, languages=["zz"])


def test_a_model_without_a_layer_has_no_number_there():
    run = parallel_run(1.0, 1.0)
    label = np.tile([0, 1], 20)
    states = np.random.default_rng(0).standard_normal((3, 1, 40, 16))
    deep = stand_in(
        {"deep": dict.fromkeys(run.languages, states)}, dict.fromkeys(run.languages, label)
    )
    run._models["deep"] = deep.model("deep")
    run.models = ("m", "deep")
    for found, name in ((directions(run), "transfer_auc"), (parallel(run), "semantic")):
        assert found["layer"].to_numpy().tolist() == ["embed", "block.0", "block.1"]
        numbers = found[name]
        assert np.isfinite(numbers.sel(model="deep")).all()
        assert np.isfinite(numbers.sel(model="m", layer="embed")).all()
        assert np.isnan(numbers.sel(model="m", layer=["block.0", "block.1"])).all()


def test_grouped_silhouettes_are_scikit_learns(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5))
    x[3] = x[4]
    group = np.unique(np.r_[rng.integers(0, 25, 58), 90, 91], return_inverse=True)[1]
    for tile_bytes in (1, 10 << 20):
        monkeypatch.setattr(distance_sums, "TILE_BYTES", tile_bytes)
        found = distances.grouped_silhouettes(torch.tensor(x), torch.tensor(group))
        np.testing.assert_allclose(found, silhouette_samples(x, group), atol=1e-7)


def parallel_run(by_content, by_language, *, item=True):
    """Forty contents in three languages; what they share is planted."""
    rng = np.random.default_rng(1)
    content = by_content * rng.standard_normal((40, 16))
    labels = dict.fromkeys(("en", "de", "hi"), np.tile([0, 1], 20))
    states = {
        lang: (content + by_language * rng.standard_normal(16) + rng.standard_normal((40, 16)))[
            None, None
        ]
        for lang in labels
    }
    numbers = dict.fromkeys(labels, np.arange(40))
    pairs = dict.fromkeys(labels, np.repeat(np.arange(20), 2))
    return stand_in(
        {"m": states}, labels, item=numbers if item else None, pair=None if item else pairs
    )


def test_content_and_language_each_show_where_they_rule():
    content = parallel(parallel_run(3.0, 0.1)).squeeze()
    assert float(content["semantic_low"]) > 0.3
    assert float(content["language_high"]) < 0.05
    language = parallel(parallel_run(0.1, 3.0)).squeeze()
    assert float(language["language_low"]) > 0.3
    assert float(language["semantic_high"]) < 0
    for found in (content, language):
        assert float(found["semantic_low"]) < float(found["semantic"]) < found["semantic_high"]


def test_a_translation_is_not_in_the_direction_that_judges_a_text():
    """Without a harm direction; all that two languages share is the content of their items."""
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    item = rng.standard_normal((40, 1, 60, 24))
    states = {lang: item + 0.3 * rng.standard_normal(item.shape) for lang in ("en", "de")}
    items = dict.fromkeys(states, np.arange(60))
    fold = dict.fromkeys(states, rng.permutation(60) % 10)
    labels = dict.fromkeys(states, label)
    run = stand_in({"m": states}, labels, item=items, fold=fold, proj=24)
    found = directions(run).squeeze()["transfer_auc"]
    # One value varies by about 0.08, the mean of 40 by 0.013.
    np.testing.assert_allclose(found.mean("layer"), 0.5, atol=0.06)


def test_a_transfer_without_an_error_is_not_certain():
    x, label = planted(n=60, width=6, shift=12.0)
    found = directions(stand_in({"m": {"en": x, "de": x + 0.1}}, {"en": label, "de": label}))
    assert (found["transfer_auc"] == 1).all()
    assert (found["transfer_low"] < 0.95).all()
    np.testing.assert_allclose(found["transfer_high"], 1, rtol=1e-12)


def test_without_parallel_texts_or_languages_there_is_no_silhouette():
    one = parallel(parallel_run(1.0, 1.0), languages=["en"]).squeeze()
    assert np.isnan(float(one["language"]))
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 20)
    alone = stand_in({"m": {"en": rng.standard_normal((1, 1, 40, 8))}}, {"en": label})
    assert np.isnan(float(parallel(alone)["semantic"].squeeze()))


def test_groups_are_means_with_independent_intervals():
    rng = np.random.default_rng(2)
    shift = {"en": 2.0, "de": 1.5, "hi": 0.2, "am": 0.4, "xx": 9.0}
    label = np.repeat([0, 1], 60)
    states = {
        lang: (rng.standard_normal((120, 10)) + step / 3 * label[:, None])[None, None]
        for lang, step in shift.items()
    }
    run = stand_in({"a": states, "b": states}, dict.fromkeys(shift, label))
    options = {"metrics": ["rho_adjusted", "bhattacharyya_pc10"], "bootstraps": 20}
    found = separation(run, models=["a"], permutations=9, **options).squeeze()
    one = found.sel(metric="rho_adjusted")
    value, half = one["value"], (one["high"] - one["low"]) / 2
    mean = {name: float(one["group_value"].sel(group=name)) for name in ("high", "low")}
    assert mean["high"] == pytest.approx(float(value.sel(lang=["en", "de"]).mean()))
    assert mean["low"] == pytest.approx(float(value.sel(lang=["hi", "am"]).mean()))
    gap = one.sel(group="high - low")
    assert float(gap["group_value"]) == pytest.approx(mean["high"] - mean["low"])
    expected = np.sqrt((half.sel(lang=["en", "de", "hi", "am"]) ** 2).sum()) / 2
    assert float(gap["group_high"] - gap["group_value"]) == pytest.approx(float(expected))
    refused = found.sel(metric="bhattacharyya_pc10")["group_value"]
    assert refused.isnull().all()
    between = compare(run, base="a", aligned="b", **options).squeeze()
    assert (between["group_value"].sel(metric="rho_adjusted") == 0).all()
    options |= {"models": ["a"], "permutations": 9}
    own = separation(run, groups={"high": "xx", "low": ["en"]}, **options).squeeze()
    assert own.attrs["group_low"] == "en"
    assert float(own["group_value"].sel(metric="rho_adjusted", group="high")) == pytest.approx(
        float(value.sel(lang="xx"))
    )
    high_only = separation(run, groups={"high": ["de", "xx"]}, **options).squeeze()
    assert high_only.attrs["group_high"] == "de,xx"
    assert high_only.attrs["group_low"] == found.attrs["group_low"] == "hi,am"
    assert "group_value" not in separation(run, languages=["en", "de"], **options)
    for wrong in ({"high": ["en"], "low": ["en"]}, {"middle": ["en"]}):
        with pytest.raises(ConfigError, match="without a language in both"):
            separation(run, groups=wrong, **options)


def small(langs, n=60):
    """The same noise in each language."""
    x, label = planted(n=n, width=6)
    return stand_in({"m": dict.fromkeys(langs, x)}, dict.fromkeys(langs, label))


QUICK = {"metrics": ["rho"], "bootstraps": 3, "permutations": 3}


def test_groups_hold_languages_by_their_primary_subtag():
    langs = ["eng_Latn", "en", "zh-CN", "zho_Hans", "pt-BR", "hin_Deva", "am", "xx"]
    found = separation(small(langs), **QUICK)
    assert found.attrs["group_high"] == "eng_Latn,en,zh-CN,zho_Hans,pt-BR"
    assert found.attrs["group_low"] == "hin_Deva,am"
    assert found.attrs["group_none"] == "xx"
    value = found["value"].squeeze().sel(lang=langs[:5])
    high = found["group_value"].squeeze().sel(group="high")
    assert float(high) == pytest.approx(float(value.mean()))
    text = " ".join(to_table(found).split())
    assert "high: mean of eng_Latn, en, zh-CN, zho_Hans, pt-BR. low: mean of hin_Deva, am." in text
    assert "In neither: xx." in text


def test_groups_by_name_and_groups_that_are_empty():
    run = small(["en", "zh-CN", "hi", "xx"])
    found = separation(run, groups={"high": "zh,hi"}, **QUICK)
    assert found.attrs["group_high"] == "zh-CN,hi"
    assert found.attrs["group_low"] == ""  # hi was in it
    assert "no language is in low; see --high" in " ".join(to_table(found).split())
    with pytest.raises(ConfigError, match=r"groups: low: no language 'zh-TN'.*mean 'zh-CN'\?"):
        separation(run, groups={"low": "zh-TN"}, **QUICK)
    with pytest.raises(ConfigError, match="without a language in both"):
        separation(run, groups={"high": "zh", "low": "zh-CN"}, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": "zh-CM"}, "languages: no language 'zh-CM'.*did you mean 'zh-CN'"),
        ({"models": "n"}, "models: no 'n' in the store; it has m"),
        ({"layers": "embedd"}, "layers: no 'embedd'.*did you mean 'embed'"),
        ({"poolings": "means"}, "poolings: no 'means'.*did you mean 'mean'"),
        ({"metrics": ["rho_ajusted"]}, "metric: no 'rho_ajusted'.*did you mean 'rho_adjusted'"),
    ],
)
def test_a_name_that_matches_nothing_offers_the_nearest(options, message):
    with pytest.raises(ConfigError, match=message):
        separation(small(["en", "zh-CN"]), **(QUICK | options))


def test_languages_are_chosen_by_what_a_name_means():
    run = small(["en", "zh-CN", "zh_TW"])
    for asked, expected in (("zh", ["zh-CN", "zh_TW"]), ("ZH-tw,en", ["en", "zh_TW"])):
        assert separation(run, languages=asked, **QUICK)["lang"].to_numpy().tolist() == expected


def test_texts_that_are_elsewhere_too_are_counted():
    x, label = planted(n=40, width=6)
    text = {"en": np.arange(40), "de": np.arange(30, 70), "xx": np.arange(100, 140) // 2}
    run = stand_in({"m": dict.fromkeys(text, x)}, dict.fromkeys(text, label), text=text)
    found = separation(run, **QUICK).squeeze()
    assert found["elsewhere"].to_numpy().tolist() == [0.25, 0.75, 1]
    assert found["duplicates"].to_numpy().tolist() == [0, 0, 0.5]
    alone = separation(run, languages=["xx"], **QUICK)
    assert alone["elsewhere"].item() == 0
    assert "Texts that belong together are one unit of evidence" in to_table(alone)
