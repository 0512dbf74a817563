"""Differences between languages that are not due to the model: lengths, copies, class balance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .glossary import CONFOUNDS

if TYPE_CHECKING:
    from ..store import Run


def confounds(
    run: "Run", models: Sequence[str], langs: Sequence[str]
) -> dict[str, tuple[tuple[str, str], NDArray[np.float64], dict[str, str]]]:
    """Compute the variables of `CONFOUNDS`, each (model, lang), for `xarray.Dataset`."""
    columns = {name: np.full((len(models), len(langs)), np.nan) for name in CONFOUNDS}
    for j, lang in enumerate(langs):
        span = run.lang_range(lang)
        label = np.asarray(run.samples.label[span])
        texts = np.asarray(run.samples.text_sha256[span])
        chars = np.asarray(run.samples.n_chars[span])
        copies = 1 - len(np.unique(texts, axis=0)) / max(1, len(texts))
        for i, model in enumerate(models):
            tokens = run.model(model).read("n_tokens", samples=span)
            for c in (0, 1):
                if (label == c).any():
                    columns[f"tokens{c}"][i, j] = tokens[label == c].mean()
            columns["truncated"][i, j] = run.model(model).read("truncated", samples=span).mean()
            columns["duplicates"][i, j] = copies
            columns["chars_per_token"][i, j] = chars.sum() / max(1, tokens.sum())
            columns["harmful"][i, j] = label.mean() if len(label) else np.nan
    dims = ("model", "lang")
    return {
        name: (dims, column, {"definition": CONFOUNDS[name]}) for name, column in columns.items()
    }
