"""Damage: found by `check`, never read as numbers, and repaired by doing just that part again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import save_tiny

from safetyspace_fast import api
from safetyspace_fast.cli import main
from safetyspace_fast.errors import StoreError
from safetyspace_fast.store.layout import MODEL, SHARD_SAMPLES

COUNTS = {"de": 300, "en": 300, "ru": 300}
"""Four shards: `de` lies in 0 and 1, `en` in 1 and 2, `ru` in 2 and 3."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> api.RunConfig:
    folder = tmp_path_factory.mktemp("check")
    rows = [
        {"text": f"text {i} of {lang} {'x' * (i % 7)}", "label": i % 2, "lang": lang}
        for lang, count in COUNTS.items()
        for i in range(count)
    ]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_tiny("llama", folder / "llama", num_hidden_layers=1)
    return api.RunConfig(
        models=(f"m={model}",),
        data=str(folder / "x.jsonl"),
        out=folder / "run.zarr",
        template="none",
        layers="block.0,final_norm",
        resume=True,
    )


@pytest.fixture(scope="module")
def finished(config: api.RunConfig) -> Path:
    return api.run(config).path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run.zarr"))


def contents(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "zarr.json"
    }


def read_everything(store: Path) -> dict[str, object]:
    run = api.open_run(store)
    model = run.model("m")
    written = model.attrs["optional_arrays"]
    values: dict[str, object] = {
        spec.name: model.read(spec.name)
        for spec in MODEL
        if not spec.optional or spec.name in written
    }
    values |= {f"samples/{name}": column for name, column in vars(run.samples).items()}
    facts = ("hookpoints", "poolings", "manifest", "model", "versions")
    return values | {name: model.attrs[name] for name in facts} | {"languages": run.languages}


def assert_same(got: dict[str, object], expected: dict[str, object]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_equal(got[name], value, err_msg=name)


def damage_one_file(store: Path, i_file: int, place: float, flip: int) -> None:
    """Damage a file, read all, and mend it; a flip of 0 cuts it, at 0 it is deleted."""
    expected = read_everything(store)
    files = sorted(path for path in store.rglob("*") if path.is_file())
    path = files[i_file % len(files)]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    cut = int(place * len(damaged))
    if flip:
        damaged[cut] ^= flip
        path.write_bytes(damaged)
    elif cut:
        path.write_bytes(whole[:cut])
    else:
        path.unlink()
    message = ""
    try:
        assert_same(read_everything(store), expected)
    except StoreError as error:
        message = str(error)
    finally:
        path.write_bytes(whole)
    if message:
        assert "\n" not in message
        name = path.relative_to(store)
        # Where a group's or an array's metadata are gone, it is the name that is not there.
        where = str(name) if path.exists() and (flip or cut) else str(name.parent.name)
        assert where in message


DAMAGE = given(
    i_file=st.integers(0, 10_000),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.one_of(st.just(0), st.integers(1, 255)),
)
REUSED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=40, **REUSED)
@DAMAGE
def test_damage_gives_the_right_data_or_names_the_file(
    finished: Path, i_file: int, place: float, flip: int
) -> None:
    damage_one_file(finished, i_file, place, flip)


@pytest.mark.slow
@settings(max_examples=1000, **REUSED)
@DAMAGE
def test_much_damage_gives_the_right_data_or_names_the_file(
    finished: Path, i_file: int, place: float, flip: int
) -> None:
    damage_one_file(finished, i_file, place, flip)


def test_a_whole_store_is_whole(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = api.check(finished)
    assert (report.complete, report.incomplete, report.damage) == (["m"], {}, [])
    assert main(["check", str(finished)]) == 0
    assert capfd.readouterr().out == "m: complete\n"


LAST = f"c/0/0/{sum(COUNTS.values()) // SHARD_SAMPLES}/0"


@pytest.mark.parametrize(
    ("file", "texts_again"),
    [
        (f"models/m/projected/{LAST}", 300),  # `ru`
        (f"models/m/pair_sum/{LAST}", 300),
        ("models/m/class_mean/c/0/0/0/0/0", 600),  # `de`, and `en` for the shard that they share
        ("models/m/nonfinite/c/0", 0),
        ("models/m/pca_basis/c/0/0/0/0", 0),
        ("models/m/pca_coords/zarr.json", 900),
        ("models/m/truncated/zarr.json", 0),
        ("models/m/zarr.json", 900),
        ("models/zarr.json", 0),
        ("samples/zarr.json", 0),
        ("samples/label/c/0", 0),
        ("samples/lang/zarr.json", 0),
    ],
)
def test_repair_does_again_only_what_is_damaged(
    config: api.RunConfig,
    finished: Path,
    copy: Path,
    capfd: pytest.CaptureFixture[str],
    file: str,
    texts_again: int,
) -> None:
    damaged = bytearray((copy / file).read_bytes())
    damaged[len(damaged) // 2] ^= 0x55
    (copy / file).write_bytes(damaged)
    assert main(["check", str(copy)]) == 1
    assert file.removesuffix("/c/0") in capfd.readouterr().out
    assert main(["check", str(copy), "--repair"]) == 0
    assert "--resume" in capfd.readouterr().out
    events = list(api.iter_run(api.RunConfig(**(vars(config) | {"out": copy}))))
    texts = sum(event.texts for event in events if isinstance(event, api.Progressed))
    assert texts == texts_again
    assert contents(copy) == contents(finished)
    assert api.check(copy).damage == []
    assert not copy.with_name("run.zarr.work").exists()


def test_the_root_is_beyond_repair(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = copy / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b'"de"', b'"dx"', 1))
    assert main(["check", str(copy), "--repair"]) == 1
    assert str(root) in capfd.readouterr().err


def test_stale_consolidated_metadata_are_found_and_renewed(copy: Path) -> None:
    root = json.loads((copy / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["models/m"]["attributes"]["metadata_sha256"] = "0"
    (copy / "zarr.json").write_text(json.dumps(root))
    assert [damage.file for damage in api.check(copy).damage] == ["zarr.json"]
    api.check(copy, repair=True)
    assert api.check(copy).damage == []


def test_other_tools_see_consolidated_metadata(finished: Path) -> None:
    opened = zarr.open_group(finished, mode="r", use_consolidated=True)
    assert opened["models/m"].attrs["complete"]
    assert "models/m/projected" in opened.metadata.consolidated_metadata.flattened_metadata


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("keep me")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["precious"]


def test_links_out_of_a_store_are_not_followed(
    config: api.RunConfig, copy: Path, outside: Path
) -> None:
    options = vars(config) | {"out": copy}
    shutil.rmtree(copy / "models/m/projected")
    (copy / "models/m/projected").symlink_to(outside)
    with pytest.raises(StoreError, match=r"projected.*link that leads out of the store"):
        api.open_run(copy).model("m").read("projected")
    shutil.rmtree(copy / "models/m")
    (copy / "models/m").symlink_to(outside)
    with pytest.raises(StoreError, match="link that leads out of the store"):
        api.run(api.RunConfig(**options))
    (copy / "models/m").unlink()
    (copy / "models").rename(copy.parent / "elsewhere")
    (copy / "models").symlink_to(outside)
    with pytest.raises(StoreError, match="link that leads out of the store"):
        api.run(api.RunConfig(**(options | {"resume": False, "overwrite": True})))
