"""Real data: the counts that its README states."""

import time
from pathlib import Path

import numpy as np
import pytest

from safetyspace_fast.data import read_samples
from safetyspace_fast.errors import DataError

pytestmark = pytest.mark.needs_shared

# File: (languages, harmful and harmless a language, whether all are pairs).
COUNTS = {
    "hatecheck_contrast": ("ar de en es fr hi it zh", 200, 200, True),
    "multiparadetox": ("am ar de en es hi ru zh", 300, 300, True),
    "paradetox_en": ("en", 3000, 3000, True),
    "russe_detox_ru": ("ru", 3000, 3000, True),
    "textdetox_toxicity": ("am ar de en es fr hi it ja ru zh", 400, 400, False),
    "xstest_en": ("en", 200, 250, False),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(shared: Path, name: str) -> None:
    languages, harmful, harmless, paired = COUNTS[name]
    samples = read_samples(shared / "data" / f"{name}.jsonl", strict=True)
    assert samples.languages == tuple(languages.split())
    for lang in samples.languages:
        counts = np.bincount(samples.labels[samples.lang_range(lang)], minlength=2)
        assert counts.tolist() == [harmless, harmful]
    assert np.all((samples.pair >= 0) == paired)


def test_prompts_of_one_class_are_refused(shared: Path) -> None:
    with pytest.raises(
        DataError, match="2160 texts left out: 240 x all usable ar texts are harmful"
    ):
        read_samples(shared / "data" / "xsafety.jsonl")


def test_reading_is_quick(shared: Path) -> None:
    path = shared / "data" / "textdetox_toxicity.jsonl"
    read_samples(path)
    times_s = []
    for _ in range(5):
        start = time.process_time()  # not wall time: other work may share the machine
        read_samples(path)
        times_s.append(time.process_time() - start)
    assert min(times_s) < 0.3
