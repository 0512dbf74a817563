"""`run --basis`: texts as they lie along the directions of a model in another store."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny

import safetyspace_fast as ssf
from safetyspace_fast.cli import main
from safetyspace_fast.errors import ConfigError, StoreError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")


def config(tiny: Path, out: Path, **changes: object) -> ssf.RunConfig:
    fields = {"models": f"m={tiny}", "data": "sample:polite", "languages": ["en", "de"]}
    fields |= {"layers": ["-1"], "limit": 20, "out": out}
    return ssf.RunConfig(**fields | changes)


@pytest.fixture(scope="module")
def first(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> ssf.Run:
    out = tmp_path_factory.mktemp("first") / "first.zarr"
    return ssf.run(config(tiny, out, languages=["en"]))


def test_texts_lie_along_the_direction_of_all_texts_of_the_other_store(
    tiny: Path, first: ssf.Run, tmp_path: Path
) -> None:
    notes: list[str] = []

    def listen(event: ssf.Event) -> None:
        if isinstance(event, ssf.Note):
            notes.append(event.message)

    run = ssf.run(config(tiny, tmp_path / "b.zarr", basis=first.path), on_event=listen)
    assert any(note.endswith(":m: has no texts in de") for note in notes)
    model, other = run.model("m"), first.model("m")
    assert model.attrs["bases"] == [other.identity]
    english, german = run.lang_range("en"), run.lang_range("de")
    assert np.isnan(model.read("basis_score", samples=german)).all()
    # The texts are the same here, so that the class means lie as far apart along the direction.
    score = model.read("basis_score", samples=english)[..., 0]
    label = np.asarray(run.samples.label[english])
    gap = score[..., label == 1].mean(-1) - score[..., label == 0].mean(-1)
    mean = other.read("class_mean")[:, :, 0]
    length = np.linalg.norm(mean[:, :, 1] - mean[:, :, 0], axis=-1)
    np.testing.assert_allclose(gap, length, rtol=1e-3)
    np.testing.assert_allclose(
        model.read("basis_coords", samples=english)[:, :, :, 0],
        model.read("pca_coords", samples=english),
        rtol=1e-3,
        atol=1e-4 * float(np.abs(model.read("pca_coords")).max()),
    )
    again = ssf.run(config(tiny, tmp_path / "b.zarr", basis=f"{first.path}:m", resume=True))
    assert again.model("m").attrs["bases"] == [other.identity]
    found = ssf.transfer(first, run)
    assert set(found["lang"].to_numpy()) == {"en"}
    assert (found["removed"] == 40).all()


def test_transfer_prints_a_table_and_rows(
    tiny: Path, first: ssf.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [f'{{"text": "Text {i} of {"bad" if i % 2 else "good"} kind", ' for i in range(60)]
    data = tmp_path / "texts.jsonl"
    lines = (f'{row}"label": {i % 2}, "lang": "en"}}' for i, row in enumerate(rows))
    data.write_text("\n".join(lines))
    out = tmp_path / "other.zarr"
    run = ["run", "--model", f"m={tiny}", "--data", str(data), "--layers=-1", "--out", str(out)]
    assert main([*run, "--basis", str(first.path)]) == 0
    capfd.readouterr()
    assert main(["transfer", str(first.path), str(out), "--poolings", "last"]) == 0
    table = capfd.readouterr().out
    assert "30+30" in table
    assert "full" in table
    assert main(["transfer", str(first.path), str(out), "--json"]) == 0
    assert '"target_auc":' in (said := capfd.readouterr().out)
    assert '"best_layer": "final_norm"' in said
    for name in ("best_layer", "target_auc", "source_high", "removed", "target_p"):
        assert main(["explain", name]) == 0
    assert main(["transfer", str(first.path), str(out), "--models", "x"]) == 2


def test_a_run_goes_on_with_the_bases_that_it_began_with(
    tiny: Path, first: ssf.Run, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    list(islice(ssf.iter_run(config(tiny, out, basis=first.path)), 4))
    with pytest.raises(StoreError, match=r"'m' was begun with basis m@.*, now it is none; give"):
        ssf.run(config(tiny, out, resume=True))
    run = ssf.run(config(tiny, out, basis=first.path, resume=True))
    assert len(run.model("m").attrs["bases"]) == 1
    plain = ssf.run(config(tiny, tmp_path / "plain.zarr"))
    with pytest.raises(StoreError, match="is complete, and was run with another basis"):
        ssf.run(config(tiny, plain.path, basis=first.path, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": "{first}:x"}, "no model 'x'; has m"),
        ({"models": "other={tiny}", "basis": "{first}"}, "no model 'other'; has m"),
        ({"basis": "nothing.zarr"}, "nothing.zarr"),
        ({"basis": "{first}", "layers": ["embed"]}, "has layers final_norm, but this run embed"),
        ({"basis": "{first}", "poolings": ["last"]}, "has poolings mean, last, but this run last"),
    ],
)
def test_what_cannot_be_a_basis_is_refused(
    tiny: Path, first: ssf.Run, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    filled = {
        key: x.format(first=first.path, tiny=tiny) if isinstance(x, str) else x
        for key, x in changes.items()
    }
    with pytest.raises((ConfigError, StoreError), match=message):
        ssf.run(config(tiny, tmp_path / "run.zarr", **filled))
