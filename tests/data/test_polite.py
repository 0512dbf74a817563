"""The packaged sample: rude against polite, the same situations in every language."""

from collections import Counter

import numpy as np

from safetyspace_fast.data import NUM_FOLDS, read_samples

PAIRS = 50


def test_it_is_balanced_and_parallel() -> None:
    samples = read_samples("sample:polite", strict=True)
    assert samples.name == "polite"
    assert samples.languages == ("ar", "de", "en", "es", "fr", "hi", "it", "ja", "ru", "zh")
    assert len(samples) == 2 * PAIRS * len(samples.languages)
    items = Counter(zip(samples.item.tolist(), samples.lang_index.tolist(), strict=True))
    assert set(items.values()) == {2}
    assert len(items) == PAIRS * len(samples.languages)
    assert np.all(np.bincount(samples.pair) == 2)
    for lang in samples.languages:
        assert np.bincount(samples.labels[samples.lang_range(lang)]).tolist() == [PAIRS, PAIRS]


def test_texts_differ_and_vary_in_length() -> None:
    samples = read_samples("sample:polite")
    assert len(set(samples.texts)) == len(samples)
    for lang in samples.languages:
        inside = samples.lang_range(lang)
        lengths = np.array([len(text) for text in samples.texts[inside]])
        labels = samples.labels[inside]
        assert lengths.max() > 2 * lengths.min()
        # Length alone must not tell the classes apart.
        gap = abs(lengths[labels == 1].mean() - lengths[labels == 0].mean())
        assert gap < lengths.std()


def test_scripts_are_those_of_the_languages() -> None:
    scripts = {
        "ar": "\u0621\u064a",
        "hi": "\u0901\u0964",
        "ja": "\u3041\u30f6",
        "ru": "Ая",
        "zh": "一龥",
    }
    samples = read_samples("sample:polite")
    for lang in samples.languages:
        low, high = scripts.get(lang, "az")
        for text in samples.texts[samples.lang_range(lang)]:
            letters = [c for c in text if c.isalpha() or lang == "hi"]
            assert any(low <= c <= high for c in letters), (lang, text)
            if lang in scripts:
                assert not any("a" <= c.lower() <= "z" for c in text), (lang, text)


def test_every_fold_holds_both_classes() -> None:
    samples = read_samples("sample:polite")
    columns = (samples.lang_index, samples.labels, samples.fold)
    cells = np.unique(np.stack(columns), axis=1).T
    assert len(cells) == len(samples.languages) * 2 * NUM_FOLDS
