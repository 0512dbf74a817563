"""The on-disk format: what other tools see, and what the writer and the reader refuse."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from safetyspace_fast.errors import StoreError
from safetyspace_fast.store import (
    Claim,
    Journal,
    ModelWriter,
    Place,
    Run,
    clear,
    create_run,
    files,
)
from safetyspace_fast.store.layout import FORMAT_VERSION, MODEL, ROW_ARRAYS, SAMPLES, SHARD_SAMPLES
from safetyspace_fast.store.segments import Segments

N = 2 * SHARD_SAMPLES + 40
SIZES = {
    "layer": 3,
    "pooling": 2,
    "sample": N,
    "proj": 8,
    "component": 4,
    "basis": 2,
    "class": 2,
    "label": 2,
    "fold": 10,
    "lang": 2,
    "hidden": 6,
    "statistic": 3,
    "labelling": 5,
    "space": 2,
}


def make_run(path: Path, **changes: object) -> zarr.Group:
    samples = {
        "file_position": np.arange(N)[::-1],
        "text_sha256": np.zeros((N, 32), np.uint8),
        "n_chars": np.full(N, 20),
        "lang": np.repeat([0, 1], [300, N - 300]).astype(np.int16),
        "label": (np.arange(N) % 2).astype(np.int8),
        "pair": np.full(N, -1, np.int32),
        "item": np.full(N, -1, np.int32),
        "cluster": np.full(N, -1, np.int32),
        "fold": (np.arange(N) % 10).astype(np.int8),
        "lexical_score": np.linspace(-1, 1, N, dtype=np.float32),
    }
    options = {
        "created_by": "test",
        "data_name": "toy",
        "data_sha256": "ab" * 32,
        "languages": ("de", "en"),
        "samples": samples,
    }
    return create_run(path, **(options | changes))


def values_of(name: str) -> np.ndarray:
    spec = next(spec for spec in MODEL if spec.name == name)
    shape = [SIZES[dim] for dim in spec.dims]
    draw = np.random.default_rng(len(name)).normal(size=shape) * 1000
    return draw.astype(spec.dtype)


def fill(root: zarr.Group, name: str = "m", *, complete: bool = True) -> ModelWriter:
    writer = ModelWriter(root, name, SIZES)
    writer.create({"hookpoints": ["embed", "block.0", "final_norm"], "poolings": ["mean", "last"]})
    for spec in MODEL:
        values = values_of(spec.name)
        if not spec.by_sample:
            writer.write(spec.name, values)
            continue
        for start, stop in ((300, N), (0, 300)):  # languages may come in any order
            writer.write_rows(spec.name, start, values[:, :, start:stop])
    if complete:
        writer.finish({})
    return writer


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read."""
    path = tmp_path_factory.mktemp("store") / "run.zarr"
    fill(make_run(path))
    return path


@pytest.fixture
def own_store(store: Path, tmp_path: Path) -> Path:
    """To be changed."""
    return shutil.copytree(store, tmp_path / "run.zarr")


@pytest.mark.parametrize("spec", MODEL, ids=lambda spec: spec.name)
def test_what_was_written_is_read(store: Path, spec: object) -> None:
    got, expected = Run(store).model("m").read(spec.name), values_of(spec.name)
    if spec.keepbits:
        np.testing.assert_allclose(got, expected, rtol=2.0 ** -(spec.keepbits + 1))
        dropped = np.finfo(got.dtype).nmant - spec.keepbits
        assert (got.view(f"u{got.itemsize}") % 2**dropped == 0).all()
    else:
        np.testing.assert_array_equal(got, expected)


def test_parts_are_read_by_axis(store: Path) -> None:
    model = Run(store).model("m")
    got = model.read("pca_coords", layer=1, pooling=slice(0, 1), samples=slice(250, 270))
    np.testing.assert_array_equal(got, model.read("pca_coords")[1, 0:1, 250:270])
    np.testing.assert_array_equal(
        model.read("class_mean", lang=1), model.read("class_mean")[:, :, 1]
    )
    assert Run(store).lang_range("en") == slice(300, N)


def test_xarray_opens_it_with_named_axes_and_units(store: Path) -> None:
    for group, specs in (("models/m", MODEL), ("samples", SAMPLES)):
        opened = xarray.open_zarr(store, group=group, consolidated=False)
        for spec in specs:
            assert opened[spec.name].dims == spec.dims
            assert opened[spec.name].attrs["units"] == spec.unit
    data = Run(store).dataset("m")
    chosen = data["class_mean"].sel(layer="block.0", pooling="last", lang="en", label=1)
    np.testing.assert_array_equal(chosen, Run(store).model("m").read("class_mean")[1, 1, 1, 1])


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.filterwarnings("ignore:Consolidated metadata:zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_a_dataset_can_be_written_by_xarray(store: Path, tmp_path: Path, kind: str) -> None:
    data = Run(store).dataset("m")
    if kind == "netcdf":
        data.to_netcdf(tmp_path / "copy", engine="scipy")
        copy = xarray.open_dataset(tmp_path / "copy", engine="scipy")
    else:
        data.to_zarr(tmp_path / "copy", zarr_format=3)
        copy = xarray.open_zarr(tmp_path / "copy")
    np.testing.assert_array_equal(copy["class_mean"], data["class_mean"])
    assert [str(name) for name in copy["layer"].values] == list(data["layer"].values)
    assert json.loads(copy.attrs["hookpoints"]) == list(Run(store).model("m").hookpoints)
    assert copy.attrs["complete"] == 1


def test_a_shard_is_one_file_and_every_chunk_has_a_checksum(store: Path) -> None:
    for name in ROW_ARRAYS:
        folder = store / "models" / "m" / name
        chunks = [path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]
        assert len(chunks) == -(-N // SHARD_SAMPLES)
        (sharding,) = json.loads((folder / "zarr.json").read_text())["codecs"]
        inner = sharding["configuration"]["codecs"]
        assert [codec["name"] for codec in inner] == ["bytes", "blosc", "crc32c"]


def test_a_seal_is_the_hash_that_the_readme_defines(store: Path) -> None:
    for file in store.rglob("zarr.json"):
        content = json.loads(file.read_text())
        content.pop("consolidated_metadata", None)
        seal = content["attributes"].pop("metadata_sha256")
        expected = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        assert seal == expected, file


def test_damage_is_an_error_that_names_the_array(own_store: Path) -> None:
    chunk = own_store / "models/m/pair_sum/c/0/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[50] ^= 0xFF
    chunk.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="models/m/pair_sum/c/0/0/0/0: damaged"):
        Run(own_store).model("m").read("pair_sum")


def test_a_missing_row_keeps_the_model_incomplete(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run.zarr")
    writer = fill(root, complete=False)
    writer.write_rows("pair_sum", 5, values_of("pair_sum")[:, :, 5:9])
    with pytest.raises(StoreError, match=r"pair_sum\[0\]"):
        writer.finish({})
    run = Run(tmp_path / "run.zarr")
    assert run.models == ()
    with pytest.raises(StoreError, match="not complete"):
        run.model("m")


def test_what_is_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    make_run(path)
    with pytest.raises(StoreError, match="--resume"):
        make_run(path)
    make_run(path, overwrite=True)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").touch()
    with pytest.raises(StoreError, match="not a store"):
        make_run(folder, overwrite=True)
    assert (folder / "cat.jpg").exists()


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such store"):
        Run(tmp_path / "nothing.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(StoreError, match="not a safetyspace-fast store"):
        Run(tmp_path / "empty.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="not written by safetyspace-fast"):
        Run(tmp_path / "other.zarr")
    zarr.create_group(tmp_path / "newer.zarr", attributes={"format_version": FORMAT_VERSION + 1})
    with pytest.raises(StoreError, match="update safetyspace-fast"):
        Run(tmp_path / "newer.zarr")


def test_unknown_names_are_listed(store: Path) -> None:
    with pytest.raises(StoreError, match="has m"):
        Run(store).model("n")
    with pytest.raises(StoreError, match="has de, en"):
        Run(store).lang_range("fr")
    with pytest.raises(StoreError, match="no array"):
        Run(store).model("m").read("nothing")


ROW = (3, 2, 14)


def record(seed: int, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return np.array(rows), draw.normal(size=(*ROW[:2], len(rows), ROW[2])).astype(np.float32)


def test_segments_give_back_what_was_appended(tmp_path: Path) -> None:
    segments = Segments(tmp_path, ROW)
    batches = [record(0, [4, 1]), record(1, [2]), record(2, [9, 8, 0])]
    for rows, values in batches:
        segments.append(3, rows, values)
    again = Segments(tmp_path, ROW)
    assert again.rows_done(3) == {0, 1, 2, 4, 8, 9}
    for (rows, values), got in zip(batches, again.records(3), strict=True):
        np.testing.assert_array_equal(got.rows, rows)
        for layer, pooling in np.ndindex(*ROW[:2]):
            np.testing.assert_array_equal(got.read(layer, pooling), values[layer, pooling])
    assert again.rows_done(0) == set()


@pytest.mark.parametrize("where", [0, 3, 10, 25, 60, -1])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_tail_is_cut_off(tmp_path: Path, where: int, damage: str) -> None:
    segments = Segments(tmp_path, ROW)
    first, second = record(0, [4, 1]), record(1, [2])
    segments.append(0, *first)
    (segment,) = tmp_path.glob("*.seg")
    good = segment.read_bytes()
    segments.append(0, *second)
    whole = bytearray(segment.read_bytes())
    place = len(whole) - 1 if where < 0 else len(good) + where
    if damage == "cut":
        del whole[place:]
    else:
        whole[place] ^= 0x10
    segment.write_bytes(whole)
    assert segments.rows_done(0) == {1, 4}
    assert segment.read_bytes() == good
    segments.append(0, *second)
    assert segments.rows_done(0) == {1, 2, 4}


def test_a_journal_line_cut_short_is_dropped(tmp_path: Path) -> None:
    Journal(tmp_path).add(0)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write("01234567 {")
    again = Journal(tmp_path)
    again.mend()
    again.add(1)
    assert again.shards() == {0, 1}


def test_the_work_folder_goes_when_all_models_are_done(tmp_path: Path) -> None:
    work = Place(tmp_path / "run.zarr").work
    for name in ("a", "b"):
        files.make_folder(work / name)
    for name, other_is_there in (("a", True), ("b", False)):
        with Claim(work / name, "it"):
            Journal(work / name).add(0)
            Segments(work / name, ROW).append(0, *record(0, [4, 1]))
            clear(work / name)
        assert not (work / name).exists()
        assert work.exists() == other_is_there


def test_a_store_describes_itself(own_store: Path) -> None:
    fill(Place(own_store).group(read_only=False), "n", complete=False)
    assert repr(Run(own_store)) == (
        f"<Run {own_store}: 552 texts in 2 languages (de, en); "
        "model 'm': 3 layers (embed to final_norm), poolings mean, last, complete; "
        "model 'n': 3 layers (embed to final_norm), poolings mean, last, not complete>"
    )
    assert repr(Run(own_store).model("m")) == (
        "<ModelStore 'm': 552 texts, 2 languages, 3 layers (embed to final_norm), "
        "poolings mean, last, complete>"
    )


def test_a_damaged_store_describes_what_is_left(own_store: Path) -> None:
    (own_store / "samples/label/c/0").unlink()
    metadata = own_store / "models/m/zarr.json"
    metadata.write_bytes(metadata.read_bytes().replace(b"embed", b"embad"))
    expected = f"<Run {own_store}: damaged samples in 2 languages (de, en); model 'm': damaged>"
    assert repr(Run(own_store)) == expected
    run = Run(own_store)
    shutil.rmtree(own_store)
    assert repr(run).startswith(f"<Run {own_store}: damaged samples")
