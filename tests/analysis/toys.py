"""Two Gaussian classes, what a store would hold of them, and two models of them."""

import math

import numpy as np
import torch
from oracle import language_arrays, planted, stand_in

from safetyspace_fast.analysis import moments


def classes(n0=60, n1=45, width=8, shift=0.7, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat([0, 1], [n0, n1]))
    x = rng.standard_normal((n0 + n1, width)) * np.exp(rng.standard_normal(width))
    x[label == 1] = x[label == 1] * 1.3 + shift
    return x, label


def tensors(x, label):
    y = torch.tensor(label)
    weights = torch.stack([(y == 0).double(), (y == 1).double()])[None]
    return torch.tensor(x), y, weights


def moments_of(x, weights):
    return moments.moments(
        (weights.flatten(0, 1) @ moments.products(x)).unflatten(-2, weights.shape[:2]),
        weights.sum(-1),
        x.shape[-1],
    )


def stored(x, label, seed=0):
    fold = np.random.default_rng(seed).permutation(len(x)) % 10
    projection = np.eye(x.shape[1])
    row, _, cell = language_arrays(x, label, fold, projection)
    return {k: torch.tensor(v).double() for k, v in (row | cell).items()}, torch.tensor(fold)


def full_width(x, label):
    arrays, _ = stored(x, label)
    shift_sq = (arrays["class_mean"][1] - arrays["class_mean"][0]).square().sum()
    return shift_sq, arrays["class_var"].sum(-1), torch.tensor(np.bincount(label)).double()


def pair_of_models(shift=1.0, more=1.0, *, n=240, width=12, seed=0, noise=0.0, langs=("en", "de")):
    """An aligned model that moves harmful texts `more` further along the same direction."""
    rng = np.random.default_rng(seed)
    base, aligned, labels = {}, {}, {}
    for i, lang in enumerate(langs):
        x, label = planted(n=n, width=width, shift=shift, seed=seed + i)
        step = more if lang == "en" else 0.0
        base[lang] = x
        aligned[lang] = x + step / math.sqrt(width) * label[:, None]
        aligned[lang] = aligned[lang] + noise * rng.standard_normal(x.shape)
        labels[lang] = label
    return stand_in({"base": base, "aligned": aligned}, labels)
