"""What may rule the numbers beside harm: lengths, copies, class balance, one huge dimension."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Units, equal_rows
from .auc import auc_with_ends, lexical_noise
from .glossary import CONFOUNDS, DOMINANCE, ENDS
from .moments import of_class, shift_influence
from .selection import Selection, units_of
from .texts import MIN_TEXTS
from .uncertainty import influence_variance

if TYPE_CHECKING:
    from ..store import Run


def confounds(
    run: "Run", models: Sequence[str], langs: Sequence[str]
) -> dict[str, tuple[tuple[str, str], NDArray[np.float64], dict[str, str]]]:
    """Compute the variables of `CONFOUNDS`, each (model, lang), for `xarray.Dataset`."""
    columns = {name: np.full((len(models), len(langs)), np.nan) for name in CONFOUNDS}

    def write(name: str, at: tuple[int, int], auc: Tensor) -> None:
        for end, value in zip(ENDS, auc.tolist(), strict=True):
            columns[name + end][at] = value

    number, count = _languages_with(run, langs)
    for j, lang in enumerate(langs):
        span = run.lang_range(lang)
        label = np.asarray(run.samples.label[span])
        equal = number[lang]
        chars = np.asarray(run.samples.n_chars[span])
        copies = 1 - len(np.unique(equal)) / max(1, len(equal))
        elsewhere = count[equal] > 1
        units = units_of(run, lang)
        lexical = run.samples.lexical_score  # None in a store of an earlier version
        for i, model in enumerate(models):
            tokens = run.model(model).read("n_tokens", samples=span)
            for c in (0, 1):
                if (label == c).any():
                    columns[f"tokens{c}"][i, j] = tokens[label == c].mean()
            columns["truncated"][i, j] = run.model(model).read("truncated", samples=span).mean()
            columns["duplicates"][i, j] = copies
            columns["clustered"][i, j] = _clustered(run, span)
            columns["units"][i, j] = int(units.unit.max(initial=-1)) + 1
            columns["design_effect"][i, j] = _design_effect(run, model, lang, units)
            columns["elsewhere"][i, j] = elsewhere.mean() if len(label) else np.nan
            columns["chars_per_token"][i, j] = chars.sum() / max(1, tokens.sum())
            columns["harmful"][i, j] = label.mean() if len(label) else np.nan
            write("auc_length", (i, j), length_auc(torch.from_numpy(tokens), units))
            if lexical is not None:
                scores = torch.from_numpy(lexical[span].astype(np.float64))
                write("auc_lexical", (i, j), lexical_auc(scores, units))
    dims = ("model", "lang")
    return {
        name: (dims, column, {"definition": CONFOUNDS[name]}) for name, column in columns.items()
    }


def _clustered(run: "Run", span: slice) -> float:
    if run.samples.cluster is None or span.start == span.stop:
        return 0.0
    cluster = np.asarray(run.samples.cluster[span])
    _, number, size = np.unique(cluster, return_inverse=True, return_counts=True)
    return float(((cluster >= 0) & (size[number] > 1)).mean())


def _design_effect(run: "Run", model: str, lang: str, units: Units) -> float:
    """Variance of |d|^2 from units, over that from texts: last layer, mean over poolings."""
    labels, unit = torch.from_numpy(units.labels), torch.from_numpy(units.unit)
    if len(units.unit) == int(units.unit.max(initial=-1)) + 1:
        return 1.0
    store, i_lang = run.model(model), run.languages.index(lang)
    layer, rows = len(store.hookpoints) - 1, run.lang_range(lang)
    sqdist, mean = (
        torch.from_numpy(store.read(name, layer=layer, samples=rows, lang=i_lang)).double()
        for name in ("class_sqdist", "class_mean")
    )
    shift_sq = (mean[:, 1] - mean[:, 0]).square().sum(-1)
    influence, _ = shift_influence(sqdist, shift_sq, labels)
    apart = influence_variance(influence, torch.arange(len(unit)))
    return float((influence_variance(influence, unit) / apart).mean())


def length_auc(tokens: Tensor, units: Units) -> Tensor:
    """AUC of the number of tokens: a harmful text has more of them than a harmless one.

    Args:
        tokens: [n] int, of each text.
        units: of the texts.

    Returns:
        [3] float64, value and ends of its 95 % interval; NaN with few texts in a class.
    """
    return _auc(tokens.double(), units, 0.0)


def lexical_auc(scores: Tensor, units: Units) -> Tensor:
    """AUC of held-out scores whose training class means are 1 apart; see `length_auc`.

    Args:
        scores: [n] float64, on one scale for all folds; NaN gives NaN.
        units: of the texts.
    """
    return _auc(scores, units, lexical_noise(scores, torch.from_numpy(units.labels)))


def _auc(scores: Tensor, units: Units, noise: Tensor | float) -> Tensor:
    labels, unit, copy = map(torch.from_numpy, (units.labels, units.unit, units.copy))
    if int(torch.bincount(labels, minlength=2).min()) < MIN_TEXTS:
        return torch.full((3,), torch.nan, dtype=torch.float64)
    together = torch.zeros_like(labels)
    return torch.stack(auc_with_ends(scores, labels, unit, together, copy=copy, noise=noise))


def dominance(
    run: "Run", models: Sequence[str], chosen: Selection
) -> dict[str, tuple[tuple[str, ...], NDArray[np.float64], dict[str, str]]]:
    """Read the variables of `DOMINANCE`, each (model, layer, pooling, lang), for `xarray.Dataset`.

    NaN where a model has no such layer or pooling, or was run by an earlier version; correlations
    also where a class has fewer than `MIN_TEXTS` texts. All but `tail_share` are stored.
    """
    axes = (models, chosen.layers, chosen.poolings, chosen.languages)
    columns = {name: np.full([len(names) for names in axes], np.nan) for name in DOMINANCE}
    languages = [run.languages.index(lang) for lang in chosen.languages]
    for i_model, model in enumerate(map(run.model, models)):
        cells = [
            (model.hookpoints.index(layer), model.poolings.index(pooling), i_layer, i_pooling)
            for i_layer, layer in enumerate(chosen.layers)
            for i_pooling, pooling in enumerate(chosen.poolings)
            if layer in model.hookpoints and pooling in model.poolings
        ]
        for name in filter(model.has, DOMINANCE.keys() - {"tail_share"}):
            array = model.read(name)
            for layer, pooling, i_layer, i_pooling in cells:
                columns[name][i_model, i_layer, i_pooling] = array[layer, pooling, languages]
        for i_lang, lang in enumerate(languages):
            span = run.lang_range(run.languages[lang])
            labels = torch.from_numpy(np.asarray(run.samples.label[span], np.int64))
            sqdist = torch.from_numpy(model.read("class_sqdist", samples=span, lang=lang))
            share = tail_share(sqdist, labels).numpy()
            for layer, pooling, i_layer, i_pooling in cells:
                columns["tail_share"][i_model, i_layer, i_pooling, i_lang] = share[layer, pooling]
            if int(torch.bincount(labels, minlength=2).min()) < MIN_TEXTS:  # two always correlate
                for name in ("pc1_tokens", "pc1_inverse_tokens"):
                    columns[name][i_model, ..., i_lang] = np.nan
    dims = ("model", "layer", "pooling", "lang")
    return {
        name: (dims, column, {"definition": DOMINANCE[name]}) for name, column in columns.items()
    }


TAIL = 0.01
"""Share of texts that are the tail."""


def tail_share(sqdist: Tensor, labels: Tensor) -> Tensor:
    """Share of the squares inside the classes that the texts farthest from their class mean hold.

    Args:
        sqdist: [..., n, 2], squared distance to each class mean, NaN where a state is not finite;
            labels: [n] int64.

    Returns:
        [...] float64 of the `TAIL` n largest squares; NaN if that is less than one text.
    """
    if (number := math.floor(TAIL * len(labels))) == 0:
        return torch.full(sqdist.shape[:-2], torch.nan, dtype=torch.float64)
    own = of_class(sqdist.double().nan_to_num(0.0), labels)
    share: Tensor = own.topk(number, -1).values.sum(-1) / own.sum(-1)
    return share


def _languages_with(
    run: "Run", langs: Sequence[str]
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """A number for each text of each language, equal for equal texts, and how many have it."""
    spans = [run.lang_range(lang) for lang in langs]
    digests = np.concatenate([run.samples.text_sha256[span] for span in spans])
    ends = np.cumsum([span.stop - span.start for span in spans])
    number = np.split(equal_rows(digests), ends[:-1])
    count = np.zeros(len(digests), np.int64)
    for own in number:
        count[np.unique(own)] += 1
    return dict(zip(langs, number, strict=True)), count
