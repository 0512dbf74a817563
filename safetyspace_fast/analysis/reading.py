"""Reads the cells of one language from a store, some layers at a time."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..store.layout import COMPONENTS
from .cells import Cells, Space
from .moments import varies
from .resamples import draw
from .rounding import roundoff
from .selection import has_pairs, is_paired, partners, shared_units, units_of
from .states import LayerReader, Window

if TYPE_CHECKING:
    from ..store import Run

WORKING_BYTES = 64 << 20
"""Stored rows of one language that are in memory at once."""


def read_cells(
    run: "Run",
    models: Sequence[str],
    lang: str,
    *,
    layers: Sequence[str],
    poolings: Sequence[str],
    bootstraps: int = 0,
    permutations: int = 0,
    seed: int = 0,
    paired: bool = True,
    force: bool = False,
    space: Space = "own",
    device: str = "cpu",
) -> Iterator[tuple[Cells, ...]]:
    """Read one language of one or two models, some layers at a time.

    Args:
        run: an open store.
        models: names; of two, the first is the base, and both have the same layers and poolings.
        lang: a name.
        layers, poolings: names; those that a model does not have are left out.
        bootstraps, permutations, seed: see `resamples.draw`.
        paired: resample pairs as units where texts have partners, and leave out texts without one
            in languages of pairs (`selection.is_paired`).
        force, space: see `Cells`.
        device: see `resamples.Resamples`.

    Yields:
        The cells of each model; all have the same layers, poolings and texts.
    """
    stores = [run.model(name) for name in models]
    i_lang = run.languages.index(lang)
    span = run.lang_range(lang)
    fold = torch.from_numpy(np.asarray(run.samples.fold[span]).astype(np.int64))
    scores = run.samples.lexical_score
    lexical = None if scores is None else torch.from_numpy(scores[span].astype(np.float64))
    units = units_of(run, lang, paired=paired)
    partner = torch.from_numpy(partners(run, lang)) if paired and is_paired(run, lang) else None
    own_null = paired or not has_pairs(run, lang)
    resamples = draw(
        units,
        bootstraps=bootstraps,
        permutations=permutations,
        seed=seed,
        key=lang,
        shared=shared_units(run, paired=paired).get(lang) if bootstraps else None,
        device=device,
    )
    i_layers, i_poolings = (
        [i for i, name in enumerate(known) if name in asked]
        for known, asked in ((stores[0].hookpoints, layers), (stores[0].poolings, poolings))
    )
    readers = [LayerReader(store, i_lang, span, i_layers) for store in stores]
    cell_bytes = len(fold) * _TEXT_BYTES + (bootstraps + permutations) * _RESAMPLE_BYTES
    for some in _neighbours(i_layers, len(i_poolings) * cell_bytes):
        windows = [Window(reader, slice(some[0], some[-1] + 1)) for reader in readers]
        each = [w.read("projected").isfinite().all(-1) for w in windows]
        finite = torch.stack(each).all(0)
        constant = torch.stack(
            [
                ~varies(w.read("class_mean"), w.read("class_var"), roundoff(w.model)).any(-1)
                for w in windows
            ]
        ).any(0)
        alike: dict[tuple[bytes, bool], list[tuple[int, int]]] = {}
        for layer in some:
            for pooling in i_poolings:
                at = (layer - some[0], pooling)
                key = (finite[at].numpy().tobytes(), bool(constant[at]))
                alike.setdefault(key, []).append((layer, pooling))
        for (mask, same), index in alike.items():
            stored = torch.frombuffer(bytearray(mask), dtype=torch.bool)
            kept = stored if partner is None else stored & stored[partner] & (partner >= 0)
            left_out = stored & ~kept
            lone = torch.where(left_out, resamples.labels, -1) if bool(left_out.any()) else None
            texts = resamples.keep(kept)
            group: list[Cells] = []
            i_layer, i_pooling = (torch.tensor(axis) for axis in zip(*index, strict=True))
            for window, own in zip(windows, each, strict=True):
                same_texts = bool((own[i_layer - some[0], i_pooling] == stored).all())
                group.append(
                    Cells(
                        window=window,
                        index=index,
                        kept=kept,
                        resamples=texts,
                        fold=fold[kept],
                        force=force,
                        constant=same,
                        group=group,
                        space=space,
                        own_null=own_null and same_texts,
                        lone=lone,
                        lexical=None if lexical is None else lexical[kept],
                    )
                )
            yield tuple(group)


_TEXT_BYTES = 8 * 128
"""About the size of all arrays of one text, layer and pooling in float64."""
_RESAMPLE_BYTES = 8 * 2 * 2 * COMPONENTS**2
"""About the size of the class moments of one resample, and of what is computed from them."""


def _neighbours(layers: list[int], layer_bytes: int) -> list[list[int]]:
    """Group neighbouring layers so that each group fits `WORKING_BYTES`."""
    most = max(1, WORKING_BYTES // max(1, layer_bytes))
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] + 1 == layer and len(runs[-1]) < most:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs
