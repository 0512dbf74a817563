"""The baseline of character n-grams: what it finds, what it must not find, what it refuses."""

import time
from collections import Counter

import numpy as np
import pytest

from safetyspace_fast.data import lexical, lexical_scores, read_samples

LETTERS = np.array(list("abcdefghijklmnop"))


def words(rng: np.random.Generator, n: int, length: int = 30) -> list[str]:
    return ["".join(rng.choice(LETTERS, length)) for _ in range(n)]


def auc(scores: np.ndarray, label: np.ndarray) -> float:
    gap = scores[label == 1][:, None] - scores[label == 0]
    return float(((np.sign(gap) + 1) / 2).mean())


def balanced(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and folds of n texts."""
    number = np.arange(n)
    return (number % 2).astype(np.int8), (number // 2 % 10).astype(np.int8)


def by_hand(texts: list[str], label: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The definition, n-gram by n-gram."""
    vectors = []
    for text in texts:
        count = Counter(
            text[i : i + n]
            for n in lexical.LENGTHS
            for i in range(len(text) - n + 1)
            if n > 1 or ord(text[i]) >= lexical.FIRST_ALONE
        )
        size = sum(c * c for c in count.values()) ** 0.5
        vectors.append({gram: c / size for gram, c in count.items()})
    scores = np.full(len(texts), np.nan)
    for i, vector in enumerate(vectors):
        sums = [Counter(), Counter()]
        for j in np.flatnonzero(fold != fold[i]):
            sums[label[j]].update(vectors[j])
        total = [sum(c.values()) + lexical.SMOOTHING * 2**lexical.HASH_BITS for c in sums]

        def weight(gram: str, sums: list[Counter] = sums, total: list[float] = total) -> float:
            share = [(c[gram] + lexical.SMOOTHING) / t for c, t in zip(sums, total, strict=True)]
            return float(np.log(share[1] / share[0]))

        def score(vector: dict[str, float]) -> float:
            return sum(value * weight(gram) for gram, value in vector.items())

        means = [
            np.mean([score(vectors[j]) for j in np.flatnonzero((fold != fold[i]) & (label == c))])
            for c in (0, 1)
        ]
        scores[i] = (score(vector) - np.mean(means)) / (means[1] - means[0])
    return scores


def test_scores_follow_their_definition() -> None:
    rng = np.random.default_rng(0)
    signs = ["\u6728", "\u6797", "\u68ee"]
    texts = [text + rng.choice(signs) for text in words(rng, 20, 8)]  # no two share a bucket
    label, fold = balanced(20)
    found = lexical.held_out_scores(texts, label, fold)
    np.testing.assert_allclose(found, by_hand(texts, label, fold), rtol=1e-4, atol=1e-5)


def test_a_planted_word_is_found_and_labels_by_chance_are_not() -> None:
    rng = np.random.default_rng(0)
    texts = words(rng, 300)
    label, fold = balanced(300)
    marked = [text[:9] + "XYZW" * int(y) + text[9:] for text, y in zip(texts, label, strict=True)]
    assert auc(lexical.held_out_scores(marked, label, fold), label) == 1
    chance = [auc(lexical.held_out_scores(words(rng, 300), label, fold), label) for _ in range(5)]
    assert abs(np.mean(chance) - 0.5) < 0.06


def test_a_planted_character_is_found_where_characters_are_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between others that change, it is in no longer n-gram that comes again."""
    rng = np.random.default_rng(0)
    label, fold = balanced(200)
    signs = np.array([chr(0x4E00 + i) for i in range(2000)])
    texts = ["".join(rng.choice(signs, 12)) for _ in range(200)]
    marked = [text[:6] + "\u6bd2" * int(y) + text[6:] for text, y in zip(texts, label, strict=True)]
    assert auc(lexical.held_out_scores(marked, label, fold), label) > 0.8
    monkeypatch.setattr(lexical, "FIRST_ALONE", 1 << 21)
    assert auc(lexical.held_out_scores(marked, label, fold), label) < 0.65


def test_a_text_is_never_scored_by_itself() -> None:
    rng = np.random.default_rng(1)
    texts = words(rng, 60)
    label, fold = balanced(60)
    before = lexical.held_out_scores(texts, label, fold)
    turned = label.copy()
    turned[fold == 3] = 1 - turned[fold == 3]
    after = lexical.held_out_scores(texts, turned, fold)
    np.testing.assert_array_equal(before[fold == 3], after[fold == 3])
    assert (before[fold != 3] != after[fold != 3]).any()


def test_polite_sentences_differ_in_their_characters() -> None:
    samples = read_samples("sample:polite")
    scores = lexical_scores(samples)
    for span in samples.lang_ranges:
        assert 0.96 <= auc(scores[span], samples.labels[span]) <= 1


def test_where_nothing_can_be_learned_there_is_no_score() -> None:
    label, fold = balanced(40)
    assert np.isnan(lexical.held_out_scores([""] * 40, label, fold)).all()
    assert np.isnan(lexical.held_out_scores(["one"] * 40, np.zeros(40, np.int8), fold)).all()
    assert lexical.held_out_scores([], label[:0], fold[:0]).shape == (0,)
    odd = ["\ud800 half", "a", *words(np.random.default_rng(0), 38)]
    assert np.isfinite(lexical.held_out_scores(odd, label, fold)).all()


@pytest.mark.slow
def test_five_thousand_texts_take_less_than_five_seconds() -> None:
    label, fold = balanced(5000)
    texts = words(np.random.default_rng(0), 5000, 120)
    started = time.perf_counter()
    lexical.held_out_scores(texts, label, fold)
    assert time.perf_counter() - started < 5
