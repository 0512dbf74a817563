"""Stores made to harm: links out of them, and metadata that are sealed but make no sense."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import save_tiny
from zarr.core.buffer.cpu import Buffer
from zarr.core.sync import sync

from safetyspace_fast import api
from safetyspace_fast.errors import SafetySpaceError, StoreError
from safetyspace_fast.store import Claim, Journal, Place, consolidate, files
from safetyspace_fast.store.layout import MODEL


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> api.RunConfig:
    folder = tmp_path_factory.mktemp("hostile")
    return api.RunConfig(
        models=(f"m={save_tiny('llama', folder / 'llama', num_hidden_layers=1)}",),
        data="sample:polite",
        out=folder / "run.zarr",
        template="none",
        layers="final_norm",
        languages=("de", "en"),
        limit=6,
        resume=True,
    )


@pytest.fixture(scope="module")
def finished(config: api.RunConfig) -> Path:
    run = api.run(config)
    api.save_results(run, api.separation(run, metrics=["rho"], bootstraps=9, permutations=9))
    return run.path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run.zarr"))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "outside"
    folder.mkdir()
    names = ("journal.jsonl", "precious.npz", "part.seg", "zarr.json")
    for name in names:
        (folder / name).write_text("keep me")
    yield folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert {(folder / name).read_text() for name in names} == {"keep me"}


def test_a_name_cannot_steer_the_terminal_that_shows_a_store(copy: Path) -> None:
    root = Place(copy).group(read_only=False)
    for group in (root, root["samples"]):
        group.attrs["languages"] = ["\x1b[2J\u202ede", "en"]
    consolidate(copy)
    shown = repr(api.open_run(copy))
    assert shown.isprintable()
    assert "[2J" in shown


def test_deleting_a_link_leaves_what_it_leads_to(tmp_path: Path, outside: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(outside)
    files.remove_tree(link)
    assert not link.is_symlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(outside)
    files.remove_tree(tmp_path / "folder")


def test_a_link_where_unfinished_work_is_kept_is_refused(
    config: api.RunConfig, copy: Path, outside: Path
) -> None:
    again = api.RunConfig(**(vars(config) | {"out": copy, "resume": False, "overwrite": True}))
    work = Place(copy).work
    for link in (work, work / "m"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside)
        for claim in (lambda: api.run(again), lambda: Claim(work / "m", "m")):
            with pytest.raises(StoreError, match="a link, expected the folder of unfinished work"):
                claim()
        link.unlink()
    (work / "m").mkdir(parents=True, exist_ok=True)
    (work / "m" / "journal.jsonl").symlink_to(outside / "journal.jsonl")
    with pytest.raises(StoreError, match="a link"):
        Journal(work / "m").mend()


def test_results_are_not_written_through_a_link(copy: Path, outside: Path) -> None:
    run = api.open_run(copy)
    dataset = api.separation(run, metrics=["rho"], bootstraps=0, permutations=0)
    shutil.rmtree(copy / "separation/m")
    (copy / "separation/m").symlink_to(outside)
    with pytest.raises(SafetySpaceError, match="link"):
        run.separation("m")
    api.save_results(run, dataset)  # takes the link's place
    assert not (copy / "separation/m").is_symlink()
    shutil.rmtree(copy / "separation")
    (copy / "separation").symlink_to(outside)
    with pytest.raises(StoreError, match="link that leads out of the store"):
        api.save_results(run, dataset)


def test_a_linked_chunk_is_neither_read_nor_mended_in_place(copy: Path, outside: Path) -> None:
    chunk = next((copy / "models/m/projected/c").rglob("0/0"))
    while chunk.is_dir():
        chunk = next(chunk.iterdir())
    chunk.unlink()
    chunk.symlink_to(outside / "zarr.json")
    with pytest.raises(StoreError, match=r"projected/c.*link that leads out of the store"):
        api.open_run(copy).model("m").read("projected")
    assert any("link that leads out" in damage.reason for damage in api.check(copy).damage)
    with pytest.raises(StoreError, match="link that leads out of the store"):
        api.check(copy, repair=True)


def test_a_model_whose_name_differs_in_case_is_refused(config: api.RunConfig, copy: Path) -> None:
    (name,) = config.models
    other = api.RunConfig(**(vars(config) | {"out": copy, "models": ("M" + name[1:],)}))
    with pytest.raises(StoreError, match=r"has a model 'm', and some disks cannot tell 'M'"):
        api.run(other)
    assert not (copy / "models/M").exists()


def read_all(location: Path) -> None:
    """Everything that a reader may ask for."""
    run = api.open_run(location)
    assert all(isinstance(name, str) for name in (*run.models, *run.languages))
    assert all(isinstance(run.lang_range(lang), slice) for lang in run.languages)
    for name in run.models:
        model = run.model(name)
        assert all(isinstance(word, str) for word in (*model.hookpoints, *model.poolings))
        for spec in MODEL:
            if not spec.optional or model.has(spec.name):
                model.read(spec.name)
        run.dataset(name)
        run.separation(name)


ODD = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 2**40, 2**70, 1.5, "", "x", "\ud800", "../..", [], {}]),
    st.sampled_from([[1], ["a", "a"], [2**40] * 3, {"name": "numcodecs.pickle"}, "zarr_v2", "|O"]),
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every key of every object, and every index of every list, below a JSON value."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def with_odd_metadata(store: Path, i_file: int, i_place: int, value: Any, delete: bool) -> None:
    """Change a value in a zarr.json and seal it anew; then read all, and mend it."""
    paths = sorted(store.rglob("zarr.json"))
    path = paths[i_file % len(paths)]
    whole = path.read_bytes()
    tree = json.loads(whole)
    tree.pop("consolidated_metadata", None)
    found = list(places(tree))
    inside, key = found[i_place % len(found)]
    if delete:
        del inside[key]
    else:
        inside[key] = value
    message = ""
    try:
        sealed = Buffer.from_bytes(json.dumps(tree).encode())
        key = str(path.relative_to(store))
        sync(Place(store).store(read_only=False).set(key, sealed))
        read_all(store)
        api.check(store)
    except SafetySpaceError as error:
        message = str(error)
    finally:
        path.write_bytes(whole)
    assert message.isprintable()


METADATA = given(
    i_file=st.integers(0, 10_000),
    i_place=st.integers(0, 10_000),
    value=ODD,
    delete=st.booleans(),
)
REUSED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=40, **REUSED)
@METADATA
def test_odd_metadata_are_read_or_refused(
    finished: Path, i_file: int, i_place: int, value: Any, delete: bool
) -> None:
    with_odd_metadata(finished, i_file, i_place, value, delete)


@pytest.mark.slow
@settings(max_examples=1000, **REUSED)
@METADATA
def test_much_odd_metadata_is_read_or_refused(
    finished: Path, i_file: int, i_place: int, value: Any, delete: bool
) -> None:
    with_odd_metadata(finished, i_file, i_place, value, delete)
