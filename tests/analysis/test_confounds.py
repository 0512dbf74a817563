"""What texts differ in beside harm: length alone separates them as well as its AUC says."""

import numpy as np
import pytest
import torch
from oracle import planted, stand_in

from safetyspace_fast.analysis import explain, separation, tables
from safetyspace_fast.analysis.confounds import length_auc
from safetyspace_fast.analysis.glossary import ENDS
from safetyspace_fast.analysis.uncertainty import Resamples, draw


def resampled(label: np.ndarray, pair: np.ndarray, text: np.ndarray) -> Resamples:
    columns = (torch.from_numpy(column.astype(np.int64)) for column in (label, pair, text))
    return draw(*columns, bootstraps=0, permutations=0, seed=0, key="x")


def drawn_auc(
    rng: np.random.Generator, n0: int, n1: int, longer: float, kind: str = "alone"
) -> np.ndarray:
    """Value and interval for texts whose lengths are drawn; harmful ones are `longer` times more.

    `kind`: alone, heavy (a tail of t with 1.5 degrees of freedom), pairs, or twice (copies).
    """
    label, pair = np.repeat([0, 1], [n0, n1]), np.full(n0 + n1, -1)
    size = rng.gamma(2, 10, n0 + n1)
    if kind == "heavy":
        size = 15 * np.abs(rng.standard_t(1.5, n0 + n1))
    if kind == "pairs":
        pair = np.tile(np.arange(n0), 2)
        size = np.tile(size[:n0], 2) * rng.lognormal(0, 0.3, 2 * n0)
    tokens = np.maximum(1, size * (1 + longer * label)).astype(np.int32)
    text = np.arange(n0 + n1)
    if kind == "twice":
        label, pair, tokens, text = (np.tile(column, 2) for column in (label, pair, tokens, text))
    return length_auc(torch.from_numpy(tokens), resampled(label, pair, text)).numpy()


def test_length_alone_is_the_share_of_pairs_of_texts_in_which_the_harmful_one_is_longer() -> None:
    rng = np.random.default_rng(0)
    label, tokens = np.repeat([0, 1], [30, 20]), rng.integers(1, 9, 50).astype(np.int32)
    gap = tokens[label == 1][:, None] - tokens[label == 0]
    texts = resampled(label, np.full(50, -1), np.arange(50))
    value, low, high = length_auc(torch.from_numpy(tokens), texts).tolist()
    assert value == pytest.approx(((np.sign(gap) + 1) / 2).mean())
    assert low < value < high
    shorter = length_auc(torch.from_numpy(-tokens), texts)
    assert shorter[0] == pytest.approx(1 - value)
    for few, known in ((slice(20, 40), True), (slice(21, 41), False)):  # 10 harmless texts, or 9
        texts = resampled(label[few], np.full(20, -1), np.arange(20))
        auc = length_auc(torch.from_numpy(tokens[few]), texts)
        assert bool(auc.isfinite().all()) is known


def covered(n_draws: int, *, n0: int, n1: int, longer: float, kind: str) -> float:
    rng = np.random.default_rng(1)
    found = np.array([drawn_auc(rng, n0, n1, longer, kind) for _ in range(n_draws)])
    mean = found[:, 0].mean()
    return float(((found[:, 1] <= mean) & (mean <= found[:, 2])).mean())


@pytest.mark.parametrize("kind", ["alone", "pairs", "twice"])
def test_intervals_of_length_cover_in_a_few_draws(kind: str) -> None:
    assert 0.88 <= covered(150, n0=60, n1=60, longer=0.3, kind=kind) <= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("longer", [0, 0.1, 0.5])
@pytest.mark.parametrize(
    ("n0", "n1", "kind"),
    [
        (12, 12, "alone"),
        (200, 200, "alone"),
        (950, 50, "alone"),
        (2500, 2500, "alone"),
        (100, 100, "heavy"),
        (150, 150, "pairs"),
        (150, 150, "twice"),
    ],
)
def test_intervals_of_length_cover(n0: int, n1: int, longer: float, kind: str) -> None:
    assert 0.92 <= covered(400, n0=n0, n1=n1, longer=longer, kind=kind) <= 0.985


def test_length_stands_beside_the_results() -> None:
    x, label = planted(n=80, width=6)
    run = stand_in({"m": {"en": x, "de": x}}, {"en": label, "de": label})
    tokens = run.model("m")._arrays["n_tokens"]
    half = len(tokens) // 2
    tokens[:half] = 5 + np.arange(half) % 7 + 3 * run.samples.label[:half]  # English
    found = separation(run, metrics=["rho"], bootstraps=0, permutations=0)
    en, de = (found.sel(lang=lang, model="m") for lang in ("en", "de"))
    assert en["auc_length"] > 0.75
    assert de["auc_length"] == 0.5  # all texts are equally long
    numbers = [f"{float(en[f'auc_length{end}']):.3f}" for end in ENDS]
    text = tables.to_table(found)
    assert "{} [{}, {}]".format(*numbers) in text.partition("auc_length")[2]
    for end in ENDS:
        assert f"auc_length{end}" in explain(f"auc_length{end}")
