"""What the scatter and the scores share: numbers of every text, packed for a slider over layers."""

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..results import Results

LABELS = ("harmless", "harmful")


def packed(values: NDArray[Any]) -> str:
    """The bytes of an array, little-endian, in base64."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def choices(results: "Results") -> list[dict[str, Any]]:
    """What a reader chooses in a figure that shows one layer, pooling and language at a time."""
    layers, langs = list(results.selection.layers), list(results.selection.languages)
    return [
        {"name": "layer", "title": "Layer", "values": layers, "start": len(layers) - 1},
        {"name": "pooling", "title": "Pooling", "values": list(results.selection.poolings),
         "start": results.selection.poolings.index(results.pooling)},
        {"name": "lang", "title": "Language", "values": langs,
         "start": langs.index("en") if "en" in langs else 0},
    ]  # fmt: skip


def row_values(results: "Results", model: str, name: str, lang: str) -> NDArray[np.float32]:
    """[layer, pooling, text, ..] of an array, for the layers and poolings of the results.

    NaN where the model has no such layer or pooling.
    """
    store, chosen = results.run.model(model), results.selection
    stored = store.read(name, samples=results.run.lang_range(lang))
    shape = (len(chosen.layers), len(chosen.poolings), *stored.shape[2:])
    values = np.full(shape, np.nan, np.float32)
    for i, layer in enumerate(chosen.layers):
        for j, pooling in enumerate(chosen.poolings):
            if layer in store.hookpoints and pooling in store.poolings:
                values[i, j] = stored[store.hookpoints.index(layer), store.poolings.index(pooling)]
    return values
