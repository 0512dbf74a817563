"""Figures of more texts than small numbers hold."""

import base64
from types import SimpleNamespace
from typing import Any

import numpy as np

from safetyspace_fast.report import figures


def test_counts_of_scores_are_not_cut() -> None:
    texts = 70_001
    scores = np.zeros((1, 1, 2 * texts), np.float32)
    scores[..., texts:] = 1.0
    label = np.arange(2 * texts) // texts
    store = SimpleNamespace(
        hookpoints=("embed",), poolings=("mean",), read=lambda *_, samples: scores[..., samples]
    )
    whole = slice(0, 2 * texts)
    results: Any = SimpleNamespace(
        run=SimpleNamespace(
            model=lambda _: store,
            lang_range=lambda _: whole,
            samples=SimpleNamespace(label=label),
        ),
        selection=SimpleNamespace(layers=("embed",), poolings=("mean",), languages=("en",)),
        names=("m",),
        pooling="mean",
    )
    module: Any = figures.figure("scores")
    packed, table = module.moving(results)
    (blob,) = packed["blobs"]
    counts = np.frombuffer(base64.b64decode(blob), "<u4").reshape(2, module.BINS)
    assert counts[0].tolist() == [texts, *[0] * 31]
    assert counts[1].tolist() == [*[0] * 31, texts]
    assert [row["texts"] for row in table] == [texts, texts]
