"""Directions that are chosen on one store and tested on another, with planted truth."""

import math

import numpy as np
import pytest
from oracle import planted, stand_in

from safetyspace_fast.analysis import transfer
from safetyspace_fast.analysis.tables import to_table
from safetyspace_fast.errors import ConfigError

WIDTH = 24


def states(rng, n, axis, shift, layers=1):
    """Two classes of n texts, `shift` apart along one axis in the last layer and nowhere else."""
    label = np.repeat([0, 1], n)
    x = rng.standard_normal((layers, 1, 2 * n, WIDTH))
    x[-1, 0, :, axis] += shift * label
    return x, label


def store(x, label, first=None, *, place="second", **options):
    """A store of one model; of `first`, it has the texts' place along its direction."""
    run = stand_in({"m": {"en": x}}, {"en": label}, **options)
    run.place = place
    if first is not None:
        means = first.model("m").read("class_mean")[:, :, 0]
        direction = means[:, :, 1] - means[:, :, 0]
        score = np.einsum("lpnd,lpd->lpn", x - x.mean(2, keepdims=True), direction)[..., None]
        run.model("m").add("basis_score", score, ("layer", "pooling", "sample", "a"))
        run.model("m").attrs["bases"] = [first.model("m").identity]
    return run


def apart(run, by=100_000):
    """The same store with other texts."""
    run.samples.text_sha256[:, :] = (
        (np.arange(len(run.samples.label)) + by).astype(np.uint32)[:, None].view(np.uint8)
    )
    return run


def test_the_same_direction_transfers_and_the_layer_is_the_planted_one():
    rng = np.random.default_rng(0)
    first = store(*states(rng, 200, 3, 2.0, layers=3), place="first")
    second = apart(store(*states(rng, 300, 3, 2.0, layers=3), first))
    found = transfer(first, second).squeeze()
    assert str(found["best_layer"].item()) == "block.1"
    assert str(found["space"].item()) == "full"
    expected = 0.5 * math.erfc(-2 / math.sqrt(2) / math.sqrt(2))  # of a shift of 2 deviations
    assert float(found["target_auc"]) == pytest.approx(expected, abs=0.03)
    assert float(found["target_low"]) < expected < float(found["target_high"])
    assert float(found["target_p"]) < 0.01
    assert float(found["removed"]) == 0
    assert float(found["target_own_auc"]) == pytest.approx(expected, abs=0.03)


def test_another_direction_does_not_transfer():
    rng = np.random.default_rng(1)
    first = store(*states(rng, 300, 3, 2.0), place="first")
    second = apart(store(*states(rng, 300, 9, 2.0), first))
    found = transfer(first, second).squeeze()
    assert float(found["source_auc"]) > 0.85
    assert float(found["target_own_auc"]) > 0.85
    assert abs(float(found["target_auc"]) - 0.5) < 0.12


def rejected(draws, n, *, seed=0):
    """Share of p <= 0.05, and of intervals that hold 0.5, without any direction in common."""
    rng = np.random.default_rng(seed)
    first = store(*states(rng, 100, 3, 2.0), place="first")
    p, held = [], []
    for _ in range(draws):
        # The first direction holds some of axis 9: classes do not differ at all here.
        second = apart(store(*states(rng, n, 9, 0.0), first))
        found = transfer(first, second, permutations=199).squeeze()
        p.append(float(found["target_p"]))
        held.append(float(found["target_low"]) <= 0.5 <= float(found["target_high"]))
    return np.mean(np.array(p) <= 0.05), np.mean(held)


def test_without_a_difference_p_is_nominal():
    # Of 50 draws of a 5 % event more than 9 happen less than once in 5,000 times.
    p, held = rejected(50, 25)
    assert p <= 0.18
    assert held >= 0.82


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, 100])
def test_without_a_difference_p_and_intervals_are_nominal(n):
    p, held = rejected(1000, n)
    assert 0.03 <= p <= 0.07
    assert 0.92 <= held <= 0.98


def test_common_texts_and_their_units_are_left_out():
    rng = np.random.default_rng(2)
    x, label = states(rng, 60, 3, 2.0)
    first = store(x, label, place="first")
    pair = {"en": np.concatenate([np.arange(60), np.arange(60)])}
    second = apart(store(x, label, first, pair=pair), by=10)  # texts 10 to 119 are in the first
    found = transfer(first, second).squeeze()
    # The last ten harmful texts are new, but their partners 50 to 59 are not.
    assert float(found["removed"]) == 120
    assert str(found["refused"].item()).startswith("0+0 texts are left")
    alone = apart(store(x, label, first), by=60)
    some = transfer(first, alone).squeeze()
    assert float(some["removed"]) == 60
    assert "0+60 texts are left" in str(some["refused"].item())
    assert "0+60" in to_table(transfer(first, alone))


def test_without_a_basis_the_projection_serves_and_it_is_said():
    rng = np.random.default_rng(3)
    x, label = states(rng, 200, 3, 2.0)
    first = store(x, label, place="first", proj=16)
    y, other = states(rng, 200, 3, 2.0)
    exact = transfer(first, apart(store(y, other, first, proj=16))).squeeze()
    found = transfer(first, apart(store(y, other, proj=16)))
    assert found["space"].item() == "projection"
    assert "approximate; run the second store with --basis" in " ".join(to_table(found).split())
    assert found["target_auc"].item() == pytest.approx(exact["target_auc"].item(), abs=0.12)
    narrow = transfer(first, apart(store(y, other, proj=8)))
    assert "projections of both differ" in narrow["refused"].item()


def test_what_cannot_be_compared_is_refused():
    x, label = planted(n=60, width=8)
    first, second = store(x, label, place="first"), apart(store(x, label))
    with pytest.raises(ConfigError, match=r"models: got q, expected some .* both stores: m"):
        transfer(first, second, models="q")
    with pytest.raises(ConfigError, match="languages: got de, expected some"):
        transfer(first, second, languages=["de"])
    second.model("m").manifest["template_sha256"] = "1" * 64
    with pytest.raises(ConfigError, match="'m' differs in template between first and second"):
        transfer(first, second)
