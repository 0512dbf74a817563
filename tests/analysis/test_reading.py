"""Reading a store window by window: what is decoded, how often, and what is kept."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.separation import write_store
from safetyspace_fast.analysis import reading, separation, states
from safetyspace_fast.analysis.families import choose
from safetyspace_fast.analysis.states import LayerReader
from safetyspace_fast.api import open_run
from safetyspace_fast.store.place import Sealed

LAYERS = 4
NAMES = [f"block.{i}" for i in range(LAYERS)]
METRICS = ["auc_direction", "rho_adjusted", "dunn", "bhattacharyya_pc2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("reading") / "run.zarr"
    write_store(path, LAYERS, languages=1, texts=60)
    return open_run(path)


@pytest.fixture
def chunks(monkeypatch):
    """How often each chunk was read: by its key and its place in the file."""
    counts = Counter()
    get = Sealed.get

    async def counted(self, key, prototype, byte_range=None):
        if "/c/" in key and key.startswith("models/"):
            counts[key, str(byte_range)] += 1
        return await get(self, key, prototype, byte_range)

    monkeypatch.setattr(Sealed, "get", counted)
    monkeypatch.setattr(reading, "WORKING_BYTES", 1)  # one layer a window
    return counts


def estimate(run, layers=NAMES):
    """Estimate some metrics. Yields the cells of each window."""
    cut = {"layers": layers, "poolings": ["last"], "bootstraps": 5, "permutations": 9}
    for (cells,) in reading.read_cells(run, ["m"], "la", **cut):
        for metric in choose(METRICS):
            metric.estimate(cells)
        yield cells


def test_every_chunk_is_read_once(run, chunks):
    assert len(list(estimate(run))) == LAYERS
    assert {key.split("/")[2] for key, _ in chunks} >= {"projected", "null", "class_mean"}
    assert set(chunks.values()) == {1}


def test_without_memory_each_window_reads_its_chunks_again(run, chunks, monkeypatch):
    monkeypatch.setattr(states, "AHEAD_BYTES", 0)
    list(estimate(run))
    assert chunks["models/m/null/c/0/0/0/0/0", "None"] == LAYERS


def test_rows_of_other_layers_are_not_read(run, chunks):
    list(estimate(run, layers=[NAMES[0], NAMES[1], NAMES[3]]))
    rows = [part for key, part in chunks if "/projected/" in key and "Range" in part]
    assert len(rows) == 3


@pytest.mark.parametrize("kib", [16, 256])
def test_what_is_kept_fits_into_its_memory(run, chunks, monkeypatch, kib):
    monkeypatch.setattr(states, "AHEAD_BYTES", kib << 10)
    most = 0
    read = LayerReader.read

    def watched(self, name, layers):
        nonlocal most
        array = read(self, name, layers)
        kept = (x for other, (_, x) in self._kept.items() if other != "n_tokens")
        most = max(most, sum(x.untyped_storage().nbytes() for x in kept))
        return array

    monkeypatch.setattr(LayerReader, "read", watched)
    list(estimate(run))
    assert 0 < most <= kib << 10


@pytest.mark.parametrize("kib", [0, 64])
def test_what_is_kept_changes_no_bit(run, monkeypatch, kib):
    monkeypatch.setattr(reading, "WORKING_BYTES", 1)
    options = {"metrics": METRICS, "bootstraps": 5, "permutations": 9}
    ahead = separation(run, **options)
    monkeypatch.setattr(states, "AHEAD_BYTES", kib << 10)
    assert separation(run, **options).identical(ahead)


def test_layers_are_those_that_were_asked_for(run):
    model = run.model("m")
    reader = LayerReader(model, 0, run.lang_range("la"), range(LAYERS))
    for name in ("projected", "null", "heldout_score"):
        for start, stop in ((0, 2), (2, 3), (2, 4), (1, 2)):
            some = slice(start, stop)
            stored = model.read(name, layer=some, samples=reader.samples, lang=0)
            np.testing.assert_array_equal(reader.read(name, some).numpy(), stored, err_msg=name)
