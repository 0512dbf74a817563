"""What cannot be compared is refused with a reason; degenerate texts never give NaN in silence."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import planted, stand_in
from toys import pair_of_models

from safetyspace_fast.analysis import compare, rows, separation
from safetyspace_fast.analysis.families import METRICS, metric
from safetyspace_fast.analysis.metric import NONE
from safetyspace_fast.analysis.tables import to_table
from safetyspace_fast.errors import ConfigError

QUICK = {"bootstraps": 30, "permutations": 9}


def test_texts_left_out_of_one_model_are_left_out_of_both():
    x, label = planted(n=200, width=12, shift=1.5)
    broken = x.copy()
    broken[0, 0, 7] = np.nan
    run = stand_in({"base": {"en": x}, "aligned": {"en": broken}}, {"en": label})
    names = ["auc_direction", "bhattacharyya_pc2"]
    found = compare(run, base="base", aligned="aligned", metrics=names, **QUICK)
    assert (found["refused"] == "").all()
    assert abs(float(found["difference"].sel(metric="auc_direction").squeeze())) < 0.01


def test_ignored_pairs_leave_the_metrics_of_pairs_out():
    label, pair = np.tile([0, 1], 30), np.repeat(np.arange(30), 2)
    x = np.random.default_rng(0).standard_normal((1, 1, 60, 12))
    run = stand_in(
        {"base": {"en": x}, "aligned": {"en": x[..., ::-1]}}, {"en": label}, pair={"en": pair}
    )
    models = {"base": "base", "aligned": "aligned"}
    assert "paired_shift" in compare(run, **models, **QUICK)["metric"]
    with pytest.warns(UserWarning, match="en are paired"):
        found = compare(run, **models, paired=False, **QUICK)
    assert not any(METRICS[name].paired for name in found["metric"].to_numpy())
    assert not found["paired"].any()


def test_aliases_and_refusals_give_reasons():
    run = pair_of_models(n=60)
    found = compare(
        run, base="base", aligned="aligned", metrics=["xie_beni", "bhattacharyya_pc10"], **QUICK
    )
    assert (
        found["refused"].sel(metric="xie_beni", lang="en").item()
        == "a transformation of rho: compare that"
    )
    assert "needs 100 texts" in found["refused"].sel(metric="bhattacharyya_pc10", lang="de").item()


def never_silent(dataset):
    """Every difference is finite or refused with a reason, and so is its interval."""
    for name in dataset["metric"].to_numpy():
        entry = metric(str(name))
        one = dataset.sel(metric=name)
        refused = one["refused"].to_numpy() != ""
        parts = ["difference", "excess"]
        if entry.interval != NONE:
            parts += ["low", "high", "p", "p_family", "excess_low", "excess_high", "excess_p"]
        for part in parts:
            known = one[part].to_numpy()
            missing = refused | refused[..., :1] if part.startswith("excess") else refused
            assert np.isnan(known[missing]).all(), (name, part)
            assert not np.isnan(known[~missing]).any(), (name, part)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([(1, 12), (10, 10), (12, 30), (40, 41)]),
    width=st.sampled_from([1, 2, 17]),
    scales=st.sampled_from([(1e-30, 1e-30), (1.0, 1e-30), (1.0, 1.0), (1.0, 1e30), (1e30, 1e30)]),
    constant=st.integers(0, 3),
    copies=st.sampled_from([1, 3, 100]),
    apart=st.sampled_from([0.0, 1.0, 1e6]),
    spread=st.sampled_from([0.0, 1.0]),
    moved=st.sampled_from([0.0, 0.3]),
    paired=st.booleans(),
)
def test_degenerate_input_is_finite_or_refused(
    n, width, scales, constant, copies, apart, spread, moved, paired
):
    n0, n1 = (max(n), max(n)) if paired else n
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [n0, n1])
    x = spread * rng.standard_normal((n0 + n1, width))
    x = x[np.arange(n0 + n1) // copies] + apart * label[:, None]
    y = x + moved * rng.standard_normal(x.shape)
    x[:, :constant] = y[:, :constant] = 2.5
    pair = np.concatenate([np.arange(n0), np.arange(n1)])
    states = {
        name: {"en": scale * z[None, None], "de": scale * z[None, None]}
        for name, scale, z in zip(("base", "aligned"), scales, (x, y), strict=True)
    }
    run = stand_in(
        states, {"en": label, "de": label}, pair={"en": pair, "de": pair} if paired else None
    )
    found = compare(run, base="base", aligned="aligned", metrics="all", **QUICK)
    never_silent(found)
    assert "nan" not in to_table(found)


def test_models_of_other_depth_or_name_are_errors():
    run = pair_of_models()
    with pytest.raises(ConfigError, match="nobody"):
        compare(run, base="base", aligned="nobody")
    run.model("aligned").hookpoints = ("block.0",)
    with pytest.raises(ConfigError, match=r"different layers \('base' alone has embed; 'aligned'"):
        compare(run, base="base", aligned="aligned")
    run.model("aligned").hookpoints, run.model("aligned").poolings = ("embed",), ("mean", "last")
    with pytest.raises(ConfigError, match=r"different poolings \('aligned' alone has last\)"):
        compare(run, base="base", aligned="aligned")


def test_models_without_a_common_projection_are_compared_by_their_metrics_only():
    x, label = planted(n=240, width=12, shift=1.0)
    y, _ = planted(n=240, width=16, shift=2.0)
    run = stand_in({"base": {"en": x}, "aligned": {"en": y}}, {"en": label})
    names = ["auc_direction", "rho_pc2", "bhattacharyya_pc10", "silhouette_pc10"]

    def in_spaces_of_their_own(run, same_width):
        whole = compare(run, base="base", aligned="aligned", metrics=names, **QUICK)
        found, alone = whole.squeeze(), separation(run, metrics=names, **QUICK).squeeze()
        assert (found["refused"] == "").all()
        for model in ("base", "aligned"):
            np.testing.assert_array_equal(found[model], alone["value"].sel(model=model))
        spaces = ["full", "own pc2", "own pc10", "own pc10"]
        assert found["space"].to_numpy().tolist() == spaces
        assert "own pcK" in to_table(whole)
        projected = {"displacement_rank"}
        wide = set() if same_width else {"displacement", "displacement_share"}
        for name in projected | wide:
            assert np.isnan(found[name]).all(), name
        return float(found["rounding_share"])

    assert math.isnan(in_spaces_of_their_own(run, same_width=False))
    run = stand_in({"base": {"en": x}, "aligned": {"en": x}}, {"en": label})
    run.model("aligned").seed = 1
    assert in_spaces_of_their_own(run, same_width=True) == math.inf
    found = compare(
        run, base="base", aligned="aligned", metrics=["auc_probe", "accuracy_probe"], **QUICK
    )
    assert found["refused"].str.contains("the projections differ; run both with the same").all()


def templates(run, base, aligned):
    for name, template in (("base", base), ("aligned", aligned)):
        run.model(name).manifest["template_sha256"] = template
    return run


BARE = "50d6082419a2d88fdbda83ccf1855b5334f45254ae1804dcd7c71e98fc97ebb6"


@pytest.mark.parametrize(
    ("base", "aligned", "words"),
    [
        (BARE, "3b" * 32, "'base' was run with template none, 'aligned' with chat 3b3b3b3b"),
        ("c0" * 32, "3b" * 32, "with template chat c0c0c0c0, 'aligned' with chat 3b3b3b3b"),
        (None, BARE, "with template not recorded, 'aligned' with none"),
    ],
)
def test_models_with_different_templates_are_compared_only_if_asked(base, aligned, words):
    run = templates(pair_of_models(), base, aligned)
    with pytest.raises(ConfigError, match=words) as error:
        compare(run, base="base", aligned="aligned")
    assert "--template none" in str(error.value)
    assert "--different-templates" in str(error.value)
    assert "\n" not in str(error.value)
    found = compare(
        run, base="base", aligned="aligned", metrics=["rho"], different_templates=True, **QUICK
    )
    differ = found.attrs["settings_differ"]
    assert differ.startswith("template: ")
    assert "not run alike: template" in to_table(found)
    assert json.loads(rows.to_json(found))["settings"]["settings_differ"] == differ
    lines = csv.DictReader(rows.to_csv(found).splitlines())
    assert {line["settings_differ"] for line in lines} == {differ}
    both = separation(run, metrics=["rho"], **QUICK)
    assert both.attrs["settings_differ"] == differ
    assert "not run alike: template" in to_table(both)
    assert "settings_differ" not in next(rows.rows(separation(run, models=["base"], **QUICK)))


def test_other_settings_that_differ_are_said():
    run = pair_of_models()
    run.model("aligned").manifest |= {"dtype": "bfloat16", "max_tokens": 64}
    found = compare(run, base="base", aligned="aligned", metrics=["rho"], **QUICK)
    assert found.attrs["settings_differ"] == (
        "dtype: float32 (base), bfloat16 (aligned); max_tokens: none (base), 64 (aligned)"
    )
    assert found.attrs["run_as"] == "template chat 00000000, device cpu"
    run.model("aligned").manifest["data_sha256"] = "other"
    with pytest.raises(ConfigError, match="'base' and 'aligned' were run on different data"):
        compare(run, base="base", aligned="aligned")


def test_the_reference_is_a_language_of_the_data():
    run = pair_of_models(langs=("eng_Latn", "zh-CN", "zh-TW"))
    options = {"base": "base", "aligned": "aligned", "metrics": ["rho"], **QUICK}
    assert compare(run, **options).attrs["reference"] == "eng_Latn"
    assert compare(run, reference="zh_cn", **options).attrs["reference"] == "zh-CN"
    assert compare(run, reference=None, **options).attrs["reference"] == ""
    with pytest.raises(ConfigError, match="'zh' means zh-CN and zh-TW; name one"):
        compare(run, reference="zh", **options)
    with pytest.raises(ConfigError, match=r"reference: no language 'zh-TV'.*did you mean 'zh-TW'"):
        compare(run, reference="zh-TV", **options)
    without = compare(run, languages=["zh-CN", "zh-TW"], **options)
    assert "excess" not in without
    assert "No language is the reference" in " ".join(to_table(without).split())
