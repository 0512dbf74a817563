"""Writing one model: what is entered in the journal, what is deleted, and when."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from test_store import SIZES, N, make_run, values_of

from safetyspace_fast.errors import StoreError
from safetyspace_fast.store import Journal, Place, Session, segments
from safetyspace_fast.store.layout import MODEL, ROW_ARRAYS, SHARD_SAMPLES
from safetyspace_fast.store.segments import Segments

LANGUAGES = [slice(0, 300), slice(300, N)]
"""Shard 0 is all of the first, 1 is shared, 2 is all of the second."""
ROW = (SIZES["layer"], SIZES["pooling"], SIZES["hidden"] + SIZES["proj"])


def begin(
    root: zarr.Group, path: Path, manifest: dict[str, Any], earlier: dict[str, Any] | None = None
) -> Session:
    return Session(
        Place(path),
        root,
        "m",
        SIZES,
        languages=LANGUAGES,
        parts=[[0], [1, 2]],
        attributes={
            "hookpoints": ["embed", "block.0", "final_norm"],
            "poolings": ["mean", "last"],
            "manifest": manifest,
        },
        earlier=earlier,
    )


def arrays_of(i_lang: int) -> dict[str, np.ndarray]:
    arrays = {}
    for spec in MODEL:
        if spec.by_sample:
            arrays[spec.name] = values_of(spec.name)[:, :, LANGUAGES[i_lang]]
        elif spec.by_language:
            arrays[spec.name] = values_of(spec.name).take(i_lang, spec.dims.index("lang"))
    return arrays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


@pytest.fixture
def session(path: Path) -> Session:
    session = begin(make_run(path), path, {"seed": 0})
    for part in (0, 1, 2):
        session.segments.append(part, np.array([part]), np.zeros((*ROW[:2], 1, ROW[2]), np.float32))
    return session


def left(path: Path) -> tuple[set[int], list[str]]:
    """The shards in the journal, and the segments that are there."""
    folder = Place(path).work / "m"
    return Journal(folder).shards(), sorted(file.stem for file in folder.glob("*.seg"))


def test_a_segment_goes_when_all_shards_of_its_language_are_in_the_journal(
    session: Session, path: Path
) -> None:
    everything = ["part-000000", "part-000001", "part-000002"]
    assert left(path) == (set(), everything)
    session.write_language(0, arrays_of(0))
    assert not session.is_written(0), "its last shard waits for the other language"
    assert left(path) == ({0}, everything)
    session.write_language(1, arrays_of(1))
    assert session.is_written(0)
    assert session.is_written(1)
    assert left(path) == ({0, 1, 2}, [])


@pytest.mark.parametrize("name", [spec.name for spec in MODEL if spec.by_sample])
def test_a_shard_that_lacks_rows_of_one_array_is_not_entered(
    session: Session, path: Path, name: str
) -> None:
    arrays = arrays_of(0)
    arrays[name] = arrays[name][:, :, : SHARD_SAMPLES - 1]
    session.write_language(0, arrays)
    assert left(path)[0] == set()


@pytest.mark.parametrize("name", ["projected", "pair_sum", "class_mean"])
def test_nothing_is_entered_if_an_array_cannot_be_written(
    session: Session, path: Path, name: str
) -> None:
    arrays = arrays_of(1)
    del arrays[name]
    with pytest.raises(KeyError, match=name):
        session.write_language(1, arrays)
    assert left(path)[0] == set()
    assert len(left(path)[1]) == 3


@pytest.mark.parametrize(("step", "entered"), [("add", set()), ("drop", {1, 2})])
def test_a_segment_is_there_until_its_shards_are_entered(
    session: Session, path: Path, monkeypatch: pytest.MonkeyPatch, step: str, entered: set[int]
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ROW_ARRAYS:  # so that the other language waits for nothing
        session.arrays.write_rows(name, 0, arrays_of(0)[name])
    monkeypatch.setattr(Journal if step == "add" else Segments, step, crash)
    with pytest.raises(KeyboardInterrupt):
        session.write_language(1, arrays_of(1))
    assert left(path) == (entered, ["part-000000", "part-000001", "part-000002"])


def test_a_later_session_goes_on_where_the_journal_ends(session: Session, path: Path) -> None:
    session.write_language(0, arrays_of(0))
    again = begin(Place(path).group(read_only=False), path, {"seed": 0}, {"seed": 0})
    assert not again.is_written(0)
    others = {name: values.copy() for name, values in arrays_of(0).items()}
    for name in ROW_ARRAYS:
        others[name][:, :, :SHARD_SAMPLES] = 7  # would be seen if the shard was written again
    again.write_language(0, others)
    again.write_language(1, arrays_of(1))
    again.finish({})
    group = Place(path).group(read_only=True)["models/m"]
    for name in ROW_ARRAYS:
        np.testing.assert_allclose(group[name][...], values_of(name), rtol=1e-3)
    assert group.attrs["complete"]
    assert not list((Place(path).work / "m").iterdir())


def test_other_settings_are_named_and_change_nothing(session: Session, path: Path) -> None:
    root = Place(path).group(read_only=False)
    with pytest.raises(StoreError, match=r"model 'm' was begun with another seed;"):
        begin(root, path, {"seed": 1, "dtype": "float32"}, {"seed": 0, "dtype": "float32"})
    assert root["models/m"].attrs["manifest"] == {"seed": 0}


def test_segments_are_made_durable_by_time_and_not_by_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for the disk every few MiB made a fast writer the slowest part of a run."""
    now, synced = [100.0], []
    monkeypatch.setattr(segments.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(segments.files, "sync", synced.append)
    states = Segments(tmp_path, ROW)
    values = np.zeros((*ROW[:2], 1, ROW[2]), np.float32)
    for _ in range(50):
        states.append(0, np.array([0]), values)
    assert not synced
    now[0] += 6
    states.append(0, np.array([0]), values)
    states.append(0, np.array([0]), values)
    assert len(synced) == 1
