"""Units of evidence: what is one unit, and how its labels may be permuted."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetyspace_fast.data import find_units, permuted_labels, read_samples


def alone(n: int) -> np.ndarray:
    return np.full(n, -1)


def test_a_cluster_joins_pairs_copies_and_texts() -> None:
    labels = np.array([0, 1, 0, 1, 0, 0, 1])
    pair = np.array([0, 0, 1, 1, -1, -1, -1])
    text = np.array([0, 1, 2, 3, 4, 5, 6])
    cluster = np.array([7, -1, 7, -1, -1, -1, -1])
    assert find_units(labels, pair, text).unit.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert find_units(labels, pair, text, cluster).unit.tolist() == [0, 0, 0, 0, 1, 2, 3]


def test_clusters_of_one_label_exchange_it_as_wholes() -> None:
    """Topics of unequal size: the number of harmful texts changes, that of harmful topics not."""
    sizes = [3, 1, 5, 2, 4, 2, 6, 1]
    topic = np.repeat(np.arange(8), sizes)
    labels = np.repeat([0, 1, 0, 1, 0, 1, 0, 1], sizes)
    units = find_units(labels, alone(24), np.arange(24), topic)
    found = permuted_labels(units, 200, "en")
    first = np.unique(topic, return_index=True)[1]
    assert (found == found[:, first][:, topic]).all()
    assert (found[:, first].sum(1) == 4).all()
    assert len(np.unique(found.sum(1))) > 3
    assert 0.35 < found[:, first].mean(0).min() <= found[:, first].mean(0).max() < 0.65


def test_balanced_clusters_swap_and_others_shuffle_inside() -> None:
    labels = np.array([0, 1, 0, 1, 0, 0, 0, 1, 0, 1])
    cluster = np.array([0, 0, 0, 0, 1, 1, 1, 1, -1, -1])
    units = find_units(labels, alone(10), np.arange(10), cluster)
    found = permuted_labels(units, 100, "en")
    balanced = found[:, :4]
    assert {tuple(row) for row in balanced.tolist()} == {(0, 1, 0, 1), (1, 0, 1, 0)}
    assert (found[:, 4:8].sum(1) == 1).all()
    assert len({tuple(row) for row in found[:, 4:8].tolist()}) == 4
    assert {tuple(row) for row in found[:, 8:].tolist()} == {(0, 1), (1, 0)}


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 50))
def test_labellings_keep_units_whole(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    labels, text = rng.integers(0, 2, n), rng.integers(0, n, n)
    cluster = rng.integers(-1, max(1, n // 3), n)
    pair = alone(n)
    for k, (i, j) in enumerate(rng.permutation(n)[: n // 4 * 2].reshape(-1, 2)):
        if labels[i] != labels[j]:
            pair[[i, j]] = k
    units = find_units(labels, pair, text, cluster)
    found = permuted_labels(units, 9, "en")
    assert set(np.unique(found)) <= {0, 1}
    for links in (units.copy, units.partner):
        same = (links[:, None] == links) & (labels[:, None] == labels)
        i, j = np.nonzero(same)
        assert (found[:, i] == found[:, j]).all()
    for number in np.unique(pair[pair >= 0]):
        first, second = np.flatnonzero(pair == number)
        assert (found[:, first] != found[:, second]).all()
    for unit in np.unique(units.unit):
        inside = units.unit == unit
        of_unit = found[:, inside].sum(1)
        if len(np.unique(labels[inside])) == 1:
            assert np.isin(of_unit, [0, inside.sum()]).all()
        elif labels[inside].sum() * 2 != inside.sum():
            assert (found[:, inside].mean(1) > 0).all()
    assert (permuted_labels(units, 9, "en") == found).all()


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_that_are_almost_equal_are_a_cluster_and_share_a_fold(tmp_path: Path) -> None:
    texts = ["Thank you so much!", "thank you  so much", "THANK YOU, SO MUCH...", "a word", "other"]
    rows = [
        {"text": text, "label": i % 2, "lang": lang}
        for lang in ("de", "en")
        for i, text in enumerate(texts)
    ]
    samples = read_samples(str(write(tmp_path / "a.jsonl", rows)))
    for lang in ("de", "en"):
        part = samples.lang_range(lang)
        known = dict(zip(samples.texts[part], samples.cluster[part], strict=True))
        assert len({known[text] for text in texts[:3]}) == 1
        assert known[texts[0]] >= 0
        assert known["a word"] == known["other"] == -1
        folds = {samples.fold[part][samples.texts[part].index(text)] for text in texts[:3]}
        assert len(folds) == 1


def test_clusters_of_the_data_are_read_and_join_what_is_alike(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {chr(97 + i)}", "label": i % 2, "lang": "en", "cluster": f"topic {i // 4}"}
        for i in range(12)
    ]
    rows[11]["text"] = "TEXT A"
    samples = read_samples(str(write(tmp_path / "a.jsonl", rows)))
    cluster = dict(zip(samples.texts, samples.cluster.tolist(), strict=True))
    assert cluster["text a"] == cluster["text d"] == cluster["TEXT A"] == cluster["text i"]
    assert cluster["text e"] == cluster["text h"] != cluster["text a"]
    fold = dict(zip(samples.texts, samples.fold.tolist(), strict=True))
    assert fold["text a"] == fold["TEXT A"] == fold["text i"]


def test_data_without_clusters_are_the_data_they_were(tmp_path: Path) -> None:
    """The hash names a data set in stores of earlier versions; copies alone do not change it."""
    texts = [("a b", 1), ("a b", 1), ("c d", 0)]
    rows = [{"text": text, "label": label, "lang": "en"} for text, label in texts]
    plain = read_samples(str(write(tmp_path / "a.jsonl", rows)))
    assert plain.cluster.tolist() == [-1, -1, -1]
    rows[0]["cluster"] = "x"
    assert read_samples(str(write(tmp_path / "b.jsonl", rows))).sha256 != plain.sha256


@pytest.mark.parametrize("value", [["x"], {"a": 1}])
def test_a_cluster_that_is_no_name_is_left_out_with_a_reason(tmp_path: Path, value: object) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"text {i}", "label": i % 2, "lang": "en"} for i in range(4)
    ]
    rows[1]["cluster"] = value
    samples = read_samples(str(write(tmp_path / "a.jsonl", rows)))
    assert len(samples) == 3
    assert "cluster" in samples.excluded[0].reason
