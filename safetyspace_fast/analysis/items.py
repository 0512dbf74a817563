"""What numbers of different languages have in common because their texts have the same contents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .uncertainty import unit_sums

if TYPE_CHECKING:
    from ..store import Run


class SharedItems:
    """Correlations between languages of estimates, from what each item adds to each of them.

    Texts of different languages are independent unless they belong to one item. Of two estimates
    with influences a_i and b_i (sums over the texts of item i) the covariance is sum a_i b_i. Where
    there are draws instead, draw r has the same items in all languages, and the covariance is that
    over r.
    """

    def __init__(self, run: "Run", langs: Sequence[str], shape: Sequence[int], draws: int) -> None:
        """Prepare for estimates of `shape`, whose last axis is `langs`, and for `draws` draws."""
        self._item: dict[int, Tensor] = {}
        items = [np.asarray(run.samples.item[run.lang_range(lang)]).astype(int) for lang in langs]
        known = [np.unique(item[item >= 0]) for item in items]
        number, times = np.unique(np.concatenate(known), return_counts=True)
        shared = number[times > 1]
        self._together = np.array(
            [[len(np.intersect1d(one, other)) > 0 for other in known] for one in known]
        )
        for i, item in enumerate(items):
            place = np.searchsorted(shared, item)
            found = np.isin(item, shared)
            self._item[i] = torch.from_numpy(np.where(found, place, len(shared)))
        width = max(len(shared), draws) if len(shared) else 0
        self._parts = np.zeros((*shape, width), np.float32)
        self._number = len(shared)

    def add(
        self,
        at: tuple[int | list[int], ...],
        i_lang: int,
        kept: Tensor,
        unit: Tensor,
        influence: Tensor | None,
        draws: Tensor | None,
    ) -> None:
        """Keep what the items add to the estimates of some cells of one language.

        Args:
            at: where the cells are in `shape`.
            i_lang: number of the language.
            kept: [texts of the language] bool, the n texts of the cells.
            unit: [n] int64.
            influence, draws: [cell, n] and [cell, draws], as in `Estimate`.
        """
        if not self._number:
            return
        if influence is not None:
            own = unit_sums(influence, unit).square().sum(-1, keepdim=True)
            parts = torch.zeros(len(influence), self._number + 1, dtype=influence.dtype)
            parts = parts.index_add(-1, self._item[i_lang][kept], influence)[:, :-1]
        elif draws is not None:
            parts = (draws - draws.nanmean(-1, keepdim=True)).nan_to_num(0.0)
            own = parts.square().sum(-1, keepdim=True)
        else:
            return
        scaled = (parts / own.sqrt()).nan_to_num(0.0, 0.0, 0.0)
        self._parts[(*at, slice(scaled.shape[-1]))] = scaled.numpy()

    def correlations(self) -> NDArray[np.float64]:
        """[.., lang, lang], 1 on the diagonal, 0 for languages without a common item."""
        rho = (self._parts @ np.swapaxes(self._parts, -1, -2)).astype(np.float64).clip(-1, 1)
        rho[rho > 1 - 1e-6] = 1.0  # below 1 only by rounding
        rho[..., ~self._together] = 0.0
        own = np.arange(len(self._together))
        rho[..., own, own] = 1.0
        return rho
