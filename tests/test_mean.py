"""`mean` does not measure length: the first position of a prompt, its marks, and older stores."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_models import HIDDEN_SIZE, save_tiny

from safetyspace_fast import api
from safetyspace_fast.analysis import tables
from safetyspace_fast.config import MEAN_ALL, MEAN_WITHOUT_FIRST
from safetyspace_fast.errors import ConfigError, StoreError
from safetyspace_fast.store import Place, consolidate

SINK = 7
"""The dimension in which the first position of a prompt is huge."""


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without BOS whose first position is an attention sink."""
    path = save_tiny("gpt2", tmp_path_factory.mktemp("m") / "sink", adds_bos=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.transformer.wpe.weight[0, SINK] = 1000
    model.save_pretrained(path)
    return path


def rows(**counts: int) -> list[dict[str, object]]:
    """Texts of random letters; harmful ones are longer, and differ in nothing else."""
    draw = random.Random(0)
    return [
        {
            "text": "".join(draw.choices("abdegijklmnop", k=draw.randint(4, 8) + 2 * (i % 2))),
            "label": i % 2,
            "lang": lang,
        }
        for lang, count in counts.items()
        for i in range(count)
    ]


def options(folder: Path, data: list[dict[str, object]], model: Path) -> dict[str, object]:
    path = folder / f"{len(data)}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    chosen = {"models": f"m={model}", "data": str(path), "out": folder / "run.zarr"}
    return chosen | {"layers": "embed,block.0", "dtype": "float32", "token_budget": 256}


def written_by_an_earlier_version(out: Path) -> None:
    """Take out of a manifest what an earlier version did not write."""
    model = Place(out).group(read_only=False)["models/m"]
    manifest = dict(model.attrs["manifest"])
    assert manifest.pop("mean") == MEAN_WITHOUT_FIRST
    model.attrs["manifest"] = manifest


def notes(**fields: object) -> list[str]:
    return [event.message for event in api.iter_run(**fields) if isinstance(event, api.Note)]


def test_a_sink_rules_mean_all_and_not_mean(sink: Path, tmp_path: Path) -> None:
    poolings = ["mean", "mean_all", "last"]
    run = api.run(**options(tmp_path, rows(en=300), sink), poolings=poolings)
    model = run.model("m")
    assert model.manifest["mean"] == MEAN_WITHOUT_FIRST
    chosen = ["rho_adjusted", "auc_direction"]
    found = api.separation(run, metrics=chosen, bootstraps=0, permutations=39)
    cell = found.sel(model="m", lang="en", layer="embed")
    shares = cell["largest_share"]
    assert shares.sel(pooling="mean_all") > 0.99
    assert shares.sel(pooling="mean") < 0.3
    assert cell["largest_dim"].sel(pooling="mean_all") == SINK
    follows = np.abs(cell["pc1_inverse_tokens"])
    assert follows.sel(pooling="mean_all") > 0.999
    assert follows.sel(pooling="mean") < 0.5
    auc = cell["value"].sel(metric="auc_direction")
    assert auc.sel(pooling="mean_all") > 0.7  # the AUC of length, which is all that differs
    assert auc.sel(pooling="mean") < auc.sel(pooling="mean_all") - 0.05

    text = tables.to_table(found)
    assert "\nembed !#" in text.partition("pooling mean_all")[2].partition("pooling last")[0]
    assert "embed !" not in text.partition("pooling mean_all")[0]
    assert "\n!: one dimension holds more than half of the variance" in text
    assert "see auc_equal_length, or another pooling" in " ".join(text.split())
    assert "\n!:" not in tables.to_table(found.sel(pooling=["last"], layer=["embed"]))


def test_a_text_of_one_token_keeps_it_and_is_counted(sink: Path, tmp_path: Path) -> None:
    data = [*rows(en=40), {"text": "z", "label": 0, "lang": "en"}]
    found = options(tmp_path, data, sink)
    said = [note for note in notes(**found) if "first" in note]
    assert said == ["texts whose only token is the first of the prompt: 1; `mean` is this token"]
    model = api.open_run(found["out"]).model("m")
    assert model.attrs["texts_of_first_position"] == 1
    assert model.read("n_tokens").min() == 1
    assert model.read("nonfinite").sum() == 0


def test_with_bos_mean_is_mean_all_and_nothing_runs_twice(tmp_path: Path) -> None:
    model = save_tiny("gpt2", tmp_path / "bos")
    found = options(tmp_path, rows(en=60), model) | {"poolings": ["mean", "mean_all", "last"]}
    assert not any("first" in note for note in notes(**found))
    stored = api.open_run(found["out"]).model("m")
    assert stored.manifest["mean"] == MEAN_ALL
    for name in ("projected", "heldout_score", "class_var", "pc1_tokens"):
        mean, mean_all, last = np.moveaxis(stored.read(name), 1, 0)
        np.testing.assert_array_equal(mean, mean_all)
        assert not np.array_equal(mean, last)


def test_an_unfinished_run_of_an_earlier_version_is_refused(sink: Path, tmp_path: Path) -> None:
    found = options(tmp_path, rows(en=60), sink)
    events = api.iter_run(**found)
    assert isinstance(next(events), api.Planned)
    events.close()
    written_by_an_earlier_version(tmp_path / "run.zarr")
    with pytest.raises(StoreError, match="'m' was begun by an earlier version") as no:
        api.run(**found, resume=True)
    assert "\n" not in str(no.value)


def test_an_unfinished_run_whose_mean_is_the_same_goes_on(tmp_path: Path) -> None:
    found = options(tmp_path, rows(en=60), save_tiny("gpt2", tmp_path / "bos"))
    events = api.iter_run(**found)
    next(events)
    events.close()
    model = Place(tmp_path / "run.zarr").group(read_only=False)["models/m"]
    manifest = dict(model.attrs["manifest"])
    assert manifest.pop("mean") == MEAN_ALL
    model.attrs["manifest"] = manifest
    assert api.run(**found, resume=True).models == ("m",)


def test_a_store_of_an_earlier_version_grows_without_its_languages(
    sink: Path, tmp_path: Path
) -> None:
    found = options(tmp_path, rows(en=60), sink)
    api.run(**found)
    written_by_an_earlier_version(tmp_path / "run.zarr")
    assert notes(**found, resume=True) == ["complete in the store already; nothing to do"]
    grown = options(tmp_path, rows(en=60, fr=50), sink) | {"resume": True}
    said = notes(**grown)
    assert "its `mean` held the first position of a prompt, so all languages run again" in said
    assert "languages taken from the store: none; to run: en, fr" in said
    run = api.open_run(tmp_path / "run.zarr")
    assert run.model("m").manifest["mean"] == MEAN_WITHOUT_FIRST
    assert np.isfinite(run.model("m").read("largest_share")).all()


def test_an_old_mean_is_told_and_not_compared_with_a_new_one(sink: Path, tmp_path: Path) -> None:
    found = options(tmp_path, rows(en=60), sink)
    api.run(**found)
    assert "mean over" not in api.separation(api.open_run(tmp_path / "run.zarr")).attrs["run_as"]
    written_by_an_earlier_version(tmp_path / "run.zarr")
    new = {"models": f"new={sink}", "resume": True}
    run = api.run(**found | new)
    few = {"metrics": ["rho"], "bootstraps": 0, "permutations": 0}
    old = api.separation(run, models=["m"], **few)
    assert "mean over all tokens of a text, and without BOS" in old.attrs["run_as"]
    alone = api.separation(run, models=["m"], poolings=["last"], **few)
    assert "mean over" not in alone.attrs["run_as"]
    both = api.separation(run, **few).attrs["settings_differ"]
    assert f"{MEAN_WITHOUT_FIRST} (new)" in both
    with pytest.raises(ConfigError, match="pooling mean of 'm' holds the first") as no:
        api.compare(run, base="m", aligned="new", **few)
    assert "\n" not in str(no.value)
    same = api.compare(run, base="m", aligned="new", poolings=["last"], **few)
    assert same.attrs["settings_differ"] == ""
    assert float(np.abs(same["difference"]).max()) == 0


def test_a_sink_is_marked_in_compare(sink: Path, tmp_path: Path) -> None:
    found = options(tmp_path, rows(en=60), sink) | {"models": [f"m={sink}", f"n={sink}"]}
    run = api.run(**found, poolings=["mean_all"])
    compared = api.compare(run, base="m", aligned="n", metrics=["rho"], bootstraps=20)
    assert compared["largest_share"].dims == ("model", "layer", "pooling", "lang")
    assert "\nembed !#" in tables.to_table(compared)
    with_itself = api.compare(run, base="m", aligned="m", metrics=["rho"], bootstraps=20)
    assert "\nembed !#" in tables.to_table(with_itself)


def test_few_texts_are_not_said_to_follow_their_lengths(sink: Path, tmp_path: Path) -> None:
    run = api.run(**options(tmp_path, rows(en=60, de=6), sink), poolings=["mean_all"])
    assert np.abs(run.model("m").read("pc1_inverse_tokens")).min() > 0.9
    known = api.separation(run, metrics=["rho"], permutations=0)["pc1_inverse_tokens"]
    assert np.isfinite(known.sel(lang="en")).all()
    assert np.isnan(known.sel(lang="de")).all()


def test_a_model_of_an_earlier_version_has_no_marks(sink: Path, tmp_path: Path) -> None:
    found = options(tmp_path, rows(en=60), sink)
    run = api.run(**found, poolings=["mean_all"])
    assert HIDDEN_SIZE > run.model("m").read("largest_dim").max() >= 0
    group = Place(run.path).group(read_only=False)["models/m"]
    for name in ("largest_share", "largest_dim", "pc1_tokens", "pc1_inverse_tokens"):
        del group[name]
    samples = Place(run.path).group(read_only=False)["samples"]
    del samples["lexical_score"]
    samples.attrs["optional_arrays"] = ["cluster"]
    group.attrs["optional_arrays"] = []
    consolidate(run.path)
    run = api.open_run(tmp_path / "run.zarr")
    assert api.check(tmp_path / "run.zarr").damage == []
    old = api.separation(run, metrics=["rho"], bootstraps=0, permutations=0)
    assert np.isnan(old["largest_share"]).all()
    assert old["auc_lexical"].isnull().all()
    assert "embed !" not in tables.to_table(old)
    api.run(**found | {"models": f"new={sink}"}, poolings=["mean_all"], resume=True)
    assert np.isfinite(api.open_run(run.path).samples.lexical_score).all()
