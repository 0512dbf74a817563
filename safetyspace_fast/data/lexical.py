"""A baseline without a model: how well the characters of a text tell its label."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .samples import NUM_FOLDS, Samples

LENGTHS = (1, 2, 3, 4)
"""Characters in an n-gram."""
FIRST_ALONE = 0x2E80
"""Only characters from here on are n-grams alone. These are Chinese characters, kana, Hangul and
emoji, which are words or syllables; single letters of an alphabet say little and are many."""
HASH_BITS = 18
"""n-grams are counted in 2^18 buckets."""
SMOOTHING = 0.1
"""Added to the count of every bucket."""
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))


def lexical_scores(samples: Samples) -> NDArray[np.float32]:
    """Score each text by its n-grams, language by language, from the texts of the other folds.

    Returns:
        [N] float32, see `held_out_scores`.
    """
    scores = np.full(len(samples), np.nan, np.float32)
    for span in samples.lang_ranges:
        scores[span] = held_out_scores(
            samples.texts[span], samples.labels[span], samples.fold[span]
        )
    return scores


def held_out_scores(
    texts: Sequence[str], labels: NDArray[np.int8], folds: NDArray[np.int8]
) -> NDArray[np.float32]:
    """Score each text by its n-grams, with weights from the other folds.

    Each text is a vector x of counts of its character n-grams (1 to 4, single ones only from
    `FIRST_ALONE` on, lower case, hashed), of length 1. The weight of an n-gram is the logarithm of
    its share in harmful over its share in harmless texts: multinomial naive Bayes (McCallum & Nigam
    1998) on normalised counts (Rennie et al. 2003). On real comments its AUC is above that of ridge
    and logistic regression.

    Args:
        texts: n, of one language.
        labels: [n], 1 harmful, 0 harmless.
        folds: [n], below `NUM_FOLDS`.

    Returns:
        [n] float32: 0 midway between the class means of the texts of the other folds, which are 1
        apart. NaN where these are all of one class, or where nothing tells the classes apart.
    """
    text, bucket, value = _vectors(texts)
    used, bucket = np.unique(bucket, return_inverse=True)  # an empty bucket counts in shares alone
    group = labels.astype(np.int64) * NUM_FOLDS + folds
    sums = np.bincount(group[text] * len(used) + bucket, value, 2 * NUM_FOLDS * len(used))
    sums = sums.reshape(2, NUM_FOLDS, -1)
    number = np.bincount(group, minlength=2 * NUM_FOLDS).reshape(2, NUM_FOLDS)
    scores = np.full(len(texts), np.nan)
    for fold in np.unique(folds):
        rest, n_rest = sums.sum(1) - sums[:, fold], number.sum(1) - number[:, fold]
        if n_rest.min() == 0:
            continue
        total = rest.sum(1, keepdims=True) + (SMOOTHING * 2**HASH_BITS)
        weight = np.diff(np.log((rest + SMOOTHING) / total), axis=0)[0]
        low, high = (rest @ weight) / n_rest
        inside = folds[text] == fold
        own = np.bincount(text[inside], value[inside] * weight[bucket[inside]], len(texts))
        if high > low:
            scores[folds == fold] = (own[folds == fold] - (low + high) / 2) / (high - low)
    return scores.astype(np.float32)


def _vectors(
    texts: Sequence[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The entries of all vectors that are not zero: text, bucket, value."""
    lower = [text.lower() for text in texts]
    code = np.frombuffer("".join(lower).encode("utf-32-le", "surrogatepass"), np.uint32)
    length = np.array([len(text) for text in lower], np.int64)
    text = np.repeat(np.arange(len(lower)), length)
    left = np.repeat(np.cumsum(length), length) - np.arange(len(code))  # characters to the end
    hashed = np.zeros(len(code), np.uint64)
    entries = []
    for n in range(1, max(LENGTHS) + 1):
        behind = np.zeros(len(code), np.uint64)
        behind[: max(0, len(code) - n + 1)] = code[n - 1 :]
        hashed = hashed * _MULTIPLIERS[0] + behind + np.uint64(n)
        if n in LENGTHS:
            here = left >= n if n > 1 else code >= FIRST_ALONE
            mixed = hashed[here]
            mixed = (mixed ^ (mixed >> np.uint64(31))) * _MULTIPLIERS[1]
            of_text = text[here] << HASH_BITS
            entries.append(of_text + (mixed >> np.uint64(64 - HASH_BITS)).astype(np.int64))
    entry, count = np.unique(np.concatenate(entries), return_counts=True)
    text, bucket = entry >> HASH_BITS, entry & ((1 << HASH_BITS) - 1)
    size = np.sqrt(np.bincount(text, count.astype(np.float64) ** 2, len(lower)))
    return text, bucket, count / size[text]
