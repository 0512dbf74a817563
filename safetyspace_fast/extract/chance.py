"""What chance would give: statistics of one language under permuted labels, at full width."""

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import LABELLINGS
from ..data import Samples, equal_rows, find_units, numbered, permuted_labels
from ..ops import (
    STATISTICS,
    FoldLabellings,
    KernelSums,
    labelled_statistics,
    robust_scale,
    shift_noise,
)

AXES = {"statistic": len(STATISTICS), "labelling": 1 + LABELLINGS, "space": 2}
"""Lengths of the axes that the arrays of `Chance.of_cell` have and others have not."""
MIN_TEXTS = 4
"""Below this many texts in a class there are no labellings to speak of."""


class Chance:
    """The labellings of one language, which all its cells share."""

    def __init__(self, samples: Samples, lang: str) -> None:
        """Draw the labellings.

        Args:
            samples: of all languages.
            lang: one of them.
        """
        rows = samples.lang_range(lang)
        labels, pair, cluster = (
            column[rows].astype(np.int64)
            for column in (samples.labels, samples.pair, samples.cluster)
        )
        self._units = find_units(labels, pair, equal_rows(samples.text_sha256[rows]), cluster)
        self.unit = torch.from_numpy(self._units.unit)
        """[n] int64, texts of one unit of evidence share a number."""
        self._fold = torch.from_numpy(samples.fold[rows].astype(np.int64))
        self._labels = torch.from_numpy(
            np.concatenate(
                [labels[None].astype(np.uint8), permuted_labels(self._units, LABELLINGS, lang)]
            )
        )
        self._partner = torch.from_numpy(self._units.partner)
        self._of_pairs = self._units.of_pairs
        self._last: dict[object, tuple[bytes, FoldLabellings]] = {}
        """By stream, what the last cell used."""

    def _labellings(self, kept: torch.Tensor, device: torch.device) -> FoldLabellings:
        """Of the texts that are kept `[n] bool`: those of the cell before, if it kept the same.

        Each stream of a GPU has its own: what one has not computed yet, another one must not read,
        nor may it free what the other one still reads.
        """
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        key, last = kept.numpy().tobytes(), self._last.get(stream)
        if last is None or last[0] != key:
            labels, fold = self._labels[:, kept].to(device), self._fold[kept].to(device)
            last = self._last[stream] = key, FoldLabellings(labels, fold)
        return last[1]

    def counted(self, states: torch.Tensor) -> torch.Tensor:
        """`[n] bool`, on the CPU: whether a text is in the sums of a cell, states `[n, D]`.

        One with a state that is not finite is not, nor, in a language of pairs, one without a
        partner that is.
        """
        kept = states.isfinite().all(1).cpu()
        if self._of_pairs:
            finite = torch.bincount(self._partner, kept.float())
            kept &= finite[self._partner] == 2
        return kept

    def of_cell(
        self, states: torch.Tensor, kept: torch.Tensor, pair_sum: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Compute what the store keeps of one cell.

        Args:
            states: `[n, D] float32`, pooled states.
            kept: `[n] bool`, from `counted`; rows of the other texts are NaN or -1.
            pair_sum: `[n, 2]`, from `finish_cell`: the width of the kernel of MMD^2 is the mean
                distance of the texts that are kept to all with finite states but their copies.

        Returns:
            `null [statistic, 1 + R]`, float32, see `ops.STATISTICS`; `kernel_sum [n, 2]`,
            `kernel_slope []`, `kernel_null [1 + R]`, see `KernelSums`; `scale [D]`, float32;
            `noise [2]`, float64, tr V^2 of the covariance V of d, and the same of standardised
            dimensions; by text `nearest [n]`, int32, `standard_sqdist [n, 2]`, float64, and
            `standard_score [n]`, float32. All NaN, `nearest` -1, if a class has fewer than
            `MIN_TEXTS` texts that are kept.
        """
        n, width = states.shape
        device = states.device
        arrays = {
            "null": torch.full((len(STATISTICS), len(self._labels)), torch.nan),
            "kernel_sum": torch.full((n, 2), torch.nan, dtype=torch.float64),
            "kernel_slope": torch.tensor(torch.nan, dtype=torch.float64),
            "kernel_null": torch.full((len(self._labels),), torch.nan),
            "scale": torch.full((width,), torch.nan),
            "noise": torch.full((2,), torch.nan, dtype=torch.float64),
            "nearest": torch.full((n,), -1, dtype=torch.int32),
            "standard_sqdist": torch.full((n, 2), torch.nan, dtype=torch.float64),
            "standard_score": torch.full((n,), torch.nan),
        }
        keep = kept.to(device)
        y = self._labels[0, kept].to(device).long()
        if int(torch.bincount(y, minlength=2).min()) < MIN_TEXTS:
            return arrays
        x = states[keep]
        scale = robust_scale(x)
        copy, unit, partner = (
            _numbered(numbers[kept.numpy()]).to(device)
            for numbers in (self._units.copy, self._units.unit, self._units.partner)
        )
        copies = copy if bool(torch.bincount(copy).max() > 1) else None
        labellings = self._labellings(kept, device)
        kernels = KernelSums(labellings, self._mean_distance(kept, pair_sum), copies)
        paired = bool((torch.bincount(partner) == 2).all())
        partners = torch.argsort(2 * partner + y).reshape(-1, 2) if paired else None
        arrays["null"], nearest = labelled_statistics(
            x,
            scale,
            labellings,
            copy=copies,
            partners=partners,
            pair_unit=_numbered(unit[partners[:, 1]].cpu().numpy()).to(device)
            if partners is not None
            else None,
            kernels=kernels,
        )
        of_kernels = {name: array.cpu() for name, array in kernels.result().items()}
        arrays["kernel_sum"][kept] = of_kernels.pop("kernel_sum")
        arrays |= of_kernels
        arrays["null"] = arrays["null"].float()
        arrays["nearest"][kept] = torch.arange(n, dtype=torch.int32)[kept][nearest.cpu()]
        arrays["scale"] = scale
        thin = (x.double() - x.double().mean(0)) / scale
        arrays["standard_sqdist"][kept], arrays["standard_score"][kept] = _standard(
            thin, y, self._fold[kept].to(device)
        )
        arrays["noise"] = torch.stack([shift_noise(z, y, unit) for z in (x.double(), thin)])
        return arrays

    def _mean_distance(self, kept: torch.Tensor, pair_sum: torch.Tensor) -> float:
        copy = _numbered(self._units.copy)
        finite = pair_sum.isfinite().all(1).cpu()
        copies = torch.bincount(copy[finite], minlength=len(copy))[copy]
        number = int((int(finite.sum()) - copies)[kept].sum())
        return float(pair_sum[kept.to(pair_sum.device)].sum()) / number


def _standard(x: torch.Tensor, y: torch.Tensor, fold: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Squared distance to each class mean, and held-out scores, of centred x `[n, D] float64`.

    Returns:
        `[n, 2]` float64, and `[n]` float32 along the difference of the other folds' class means.
    """
    n_folds = int(fold.max()) + 1
    member = torch.zeros(2, n_folds, len(x), dtype=torch.float64, device=x.device)
    member[y, fold, torch.arange(len(x), device=x.device)] = 1
    sums, count = member @ x, member.sum(-1, keepdim=True)
    means = sums.sum(1) / count.sum(1)
    sqdist = x.square().sum(1)[:, None] - 2 * (x @ means.T) + means.square().sum(1)
    others = (sums.sum(1, keepdim=True) - sums) / (count.sum(1, keepdim=True) - count)
    direction = torch.nn.functional.normalize(others[1] - others[0], dim=1)
    midpoint = (direction * others.sum(0)).sum(1) / 2
    score = (x @ direction.T - midpoint).gather(1, fold[:, None])[:, 0]
    return sqdist.clamp_min(0).cpu(), score.float().cpu()


def _numbered(numbers: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(numbered(numbers))
