"""The canonical order, the folds, the limit and the hash."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safetyspace_fast.data import NUM_FOLDS, Samples, read_samples


def records(seed: int = 0) -> list[dict[str, Any]]:
    """Make rows in three languages with pairs, repeated texts and texts shared by pairs."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for lang in ("en", "zh-Hans", "ar"):
        for i in range(60):
            word = "é" * rng.randrange(5)
            rows.append({"text": f"{lang} {word} {i}", "label": i % 2, "lang": lang})
        for i in range(20):
            shared = i // 2  # two pairs share their harmless text
            rows.append({"text": f"{lang} bad {i}", "label": 1, "lang": lang, "pair": f"p{i}"})
            rows.append(
                {"text": f"{lang} fine {shared}", "label": 0, "lang": lang, "pair": f"p{i}"}
            )
        rows += rows[-60:-50]
    rows += [{"text": "ok", "label": 0, "lang": lang} for lang in ("en", "ar")]
    return rows


def read(path: Path, rows: list[dict[str, Any]], **arguments: Any) -> Samples:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_samples(path, **arguments)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    return read(tmp_path / "x.jsonl", records())


ARRAYS = ("labels", "lang_index", "pair", "item", "fold", "text_sha256")


def assert_equal(a: Samples, b: Samples) -> None:
    assert (a.sha256, a.languages, a.texts) == (b.sha256, b.languages, b.texts)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_order_is_language_length_hash_label_position(samples: Samples) -> None:
    keys = [
        (samples.languages[lang], len(text.encode()), digest.tobytes(), label)
        for lang, text, digest, label in zip(
            samples.lang_index, samples.texts, samples.text_sha256, samples.labels, strict=True
        )
    ]
    assert keys == sorted(keys)
    assert samples.languages == ("ar", "en", "zh-Hans")


def test_columns_belong_to_their_text(samples: Samples) -> None:
    rows = records()
    for i, position in enumerate(samples.file_position):
        row = rows[position]
        assert samples.texts[i] == row["text"]
        assert samples.labels[i] == row["label"]
        assert samples.languages[samples.lang_index[i]] == row["lang"]
        assert (samples.pair[i] >= 0) == ("pair" in row)
        assert samples.text_sha256[i].tobytes() == hashlib.sha256(row["text"].encode()).digest()
    assert sorted(samples.file_position.tolist()) == list(range(len(rows)))


def test_types(samples: Samples) -> None:
    n = len(samples)
    expected = {
        "labels": ("int8", (n,)),
        "lang_index": ("int16", (n,)),
        "pair": ("int32", (n,)),
        "item": ("int32", (n,)),
        "fold": ("int8", (n,)),
        "file_position": ("int64", (n,)),
        "text_sha256": ("uint8", (n, 32)),
    }
    for name, (dtype, shape) in expected.items():
        array = getattr(samples, name)
        assert (array.dtype, array.shape) == (dtype, shape), name
        assert not array.flags.writeable, name


@pytest.mark.parametrize("seed", range(5))
def test_file_order_changes_nothing_but_positions(
    samples: Samples, tmp_path: Path, seed: int
) -> None:
    rows = records()
    random.Random(seed).shuffle(rows)
    shuffled = read(tmp_path / "shuffled.jsonl", rows)
    assert_equal(samples, shuffled)
    assert [rows[i]["text"] for i in shuffled.file_position] == samples.texts


def test_file_order_changes_nothing_for_pairs_in_a_row(tmp_path: Path) -> None:
    rows = [
        {"toxic_sentence": f"bad {i % 7}", "neutral_sentence": f"fine {i % 3}", "lang": "en"}
        for i in range(42)
    ]
    assert_equal(read(tmp_path / "a.jsonl", rows), read(tmp_path / "b.jsonl", rows[::-1]))


def test_pairs_are_numbered_by_appearance_and_share_no_language(samples: Samples) -> None:
    numbers = [pair for pair in samples.pair.tolist() if pair >= 0]
    assert list(dict.fromkeys(numbers)) == list(range(60))
    for number in range(60):
        both = np.flatnonzero(samples.pair == number)
        assert sorted(samples.labels[both].tolist()) == [0, 1]
        assert len(set(samples.lang_index[both].tolist())) == 1


def test_lang_range(samples: Samples) -> None:
    for i, lang in enumerate(samples.languages):
        inside = samples.lang_range(lang)
        assert set(samples.lang_index[inside].tolist()) == {i}
        assert inside.stop - inside.start == np.count_nonzero(samples.lang_index == i)
    with pytest.raises(ValueError, match="tuple"):
        samples.lang_range("sw")


def test_folds_keep_groups_together(samples: Samples) -> None:
    folds: dict[object, set[int]] = {}
    for text, pair, fold in zip(samples.texts, samples.pair, samples.fold, strict=True):
        folds.setdefault(text, set()).add(int(fold))
        if pair >= 0:
            folds.setdefault(int(pair), set()).add(int(fold))
    assert all(len(seen) == 1 for seen in folds.values())
    assert set(samples.fold.tolist()) == set(range(NUM_FOLDS))


def test_folds_join_pairs_that_share_a_text(samples: Samples) -> None:
    fold = dict(zip(samples.texts, samples.fold.tolist(), strict=True))
    # bad 6 and bad 7 both lean on fine 3.
    assert fold["en bad 6"] == fold["en bad 7"] == fold["en fine 3"]


def test_folds_follow_items_over_languages(tmp_path: Path) -> None:
    rows = [
        {"text": f"{lang} {i} {label}", "label": label, "lang": lang, "item": i}
        for lang in ("de", "en", "fr")
        for i in range(50)
        for label in (0, 1)
    ]
    samples = read(tmp_path / "x.jsonl", rows)
    by_item = {(int(i), int(f)) for i, f in zip(samples.item, samples.fold, strict=True)}
    assert len(by_item) == 50
    alone = read_samples(tmp_path / "x.jsonl", languages=["fr"])
    np.testing.assert_array_equal(alone.fold, samples.fold[samples.lang_range("fr")])


def test_folds_are_even_and_depend_on_the_seed(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 2, "lang": "en"} for i in range(20_000)]
    folds = [read(tmp_path / "x.jsonl", rows, seed=seed).fold for seed in (0, 1)]
    for fold in folds:
        # 2,000 +- 42 a fold: five standard deviations.
        assert np.all(np.abs(np.bincount(fold, minlength=NUM_FOLDS) - 2000) < 212)
    agree = np.mean(folds[0] == folds[1])
    assert abs(agree - 1 / NUM_FOLDS) < 0.02


def test_a_known_arrangement_stays_what_it_is(tmp_path: Path) -> None:
    """Stores on disk hold these hashes and folds: they may not change with a version."""
    rows = [
        {"text": "kind", "label": 0, "lang": "en", "pair": "a", "item": "1"},
        {"text": "rude", "label": 1, "lang": "en", "pair": "a", "item": "1"},
        {"text": "nett", "label": 0, "lang": "de", "pair": "b"},
        {"text": "frech", "label": 1, "lang": "de", "pair": "b"},
        {"text": "naja", "label": 0, "lang": "de"},
    ]
    samples = read(tmp_path / "x.jsonl", rows)
    assert samples.texts == ["naja", "nett", "frech", "kind", "rude"]
    text = b"text " + hashlib.sha256(b"naja").digest()
    groups = [text, b"pair de b", b"pair de b", b"item 1", b"item 1"]
    draws = [hashlib.sha256(b"draw 0 " + group).digest()[:8] for group in groups]
    folds = [int.from_bytes(draw, "little") % NUM_FOLDS for draw in draws]
    assert samples.fold.tolist() == folds == [6, 7, 7, 0, 0]
    assert samples.sha256 == "f2e1c413132b30dcd8fd5da1069b771f65d15c901014909d5eeecbed8298f29a"


def test_nothing_depends_on_the_process(tmp_path: Path, samples: Samples) -> None:
    script = (
        "import sys; from safetyspace_fast.data import read_samples; "
        "s = read_samples(sys.argv[1]); print(s.sha256, s.fold.tolist())"
    )
    path = str(tmp_path / "x.jsonl")
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script, path],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{samples.sha256} {samples.fold.tolist()}\n"}


@pytest.mark.parametrize("change", ["text", "label", "lang", "pair", "item"])
def test_the_hash_covers_the_content(tmp_path: Path, samples: Samples, change: str) -> None:
    rows = records()
    assert read(tmp_path / "y.jsonl", rows, seed=9).sha256 == samples.sha256
    rows[0] |= {"text": "new", "label": 1, "lang": "ar", "pair": "q", "item": "i"}
    rows[1] |= {"text": "old", "label": 0, "lang": "ar", "pair": "q", "item": "i"}
    before = read(tmp_path / "y.jsonl", rows).sha256
    assert before != samples.sha256
    for row in rows[:2]:
        row[change] = {
            "text": row["text"].upper(),
            "label": 1 - row["label"],
            "lang": "en",
            "pair": None,
            "item": None,
        }[change]
    assert read(tmp_path / "y.jsonl", rows).sha256 != before


def test_limit_draws_whole_pairs_by_hash(tmp_path: Path, samples: Samples) -> None:
    path = tmp_path / "x.jsonl"
    paired = 0
    for limit in (1, 5, 12):
        few = read_samples(path, limit=limit)
        cells = np.unique(np.stack([few.lang_index, few.labels]), axis=1, return_counts=True)[1]
        assert cells.tolist() == [limit] * 6
        assert np.all(np.bincount(few.pair[few.pair >= 0]) == 2)
        paired += np.count_nonzero(few.pair >= 0)
        all_folds = dict(zip(samples.texts, samples.fold.tolist(), strict=True))
        assert all(all_folds[t] == f for t, f in zip(few.texts, few.fold, strict=True))
        shuffled = records()
        random.Random(1).shuffle(shuffled)
        assert_equal(few, read(tmp_path / "shuffled.jsonl", shuffled, limit=limit))
    assert paired > 0
    assert_equal(read_samples(path, limit=10**6), samples)
    assert read_samples(path, limit=5, seed=1).texts != read_samples(path, limit=5).texts


def test_limit_takes_the_same_items_in_every_language(tmp_path: Path) -> None:
    rows = [
        {"text": f"{lang} {i} {y}", "label": y, "lang": lang, "item": i, "pair": i}
        for lang in ("de", "en")
        for i in range(50)
        for y in (0, 1)
    ]
    few = read(tmp_path / "x.jsonl", rows, limit=7)
    items = [{t.split()[1] for t in few.texts[few.lang_range(lang)]} for lang in ("de", "en")]
    assert items[0] == items[1]
    assert len(items[0]) == 7
