"""Labellings of the same texts, in the forms that sums over their classes need.

Labellings are rows of 0 and 1, [R, n]; the number of ones may differ from row to row. Sums over a
class are the product of a matrix with the labellings, so no text is copied. Statistics of a null
are only compared with each other: float32 is exact enough.
"""

import torch
from torch import Tensor

from ._labels import label_sums, pack_labels


class Labellings:
    """Labellings in the forms that sums need; R is rounded up where the kernels take more at once.

    labels: [R, n] float64; member: [n, R rounded up] float32; packed: result of `pack_labels`.
    """

    def __init__(self, labels: Tensor) -> None:
        """Take labellings [R, n], 0 or 1."""
        self.labels = labels.double()
        self.packed = pack_labels(labels)
        self.number = len(labels)
        width = self.packed.shape[1]
        padded = torch.nn.functional.pad(labels, (0, 0, 0, width - self.number))
        self.member = padded.T.float().contiguous()
        self.n1 = self.member.sum(0)
        self.n0 = len(self.member) - self.n1
        self.compiled = self.packed.dtype == torch.int32
        """Whether the compiled kernels can be used."""

    def sums(self, values: Tensor) -> Tensor:
        """Sums of each row of values [m, n] float64 over class 1: [m, R rounded up] float32."""
        return label_sums(values, self.packed)


class FoldLabellings(Labellings):
    """Labellings of texts in the order of their folds.

    order: [n] int64, sorts the texts; back: undoes it; n1_of_fold: [folds, R rounded up] float32,
    texts of class 1 in each fold.

    The folds of the sorted texts, empty ones left out, in the forms that slices, indices and
    products need: folds: slices, on the host; limits: [folds + 1] int64, where each begins, and n;
    fold: [n] int64, that of each text; of_fold: [folds, n] float32, 1 where a text is in a fold.
    """

    def __init__(self, labels: Tensor, fold: Tensor) -> None:
        """Take labellings [R, n], 0 or 1, and the fold of each text, [n] int64."""
        self.order = torch.argsort(fold, stable=True)
        self.back = torch.argsort(self.order)
        ends = torch.bincount(fold).cumsum(0).tolist()
        self.folds = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False) if a < b]
        limits = torch.tensor([0, *(i.stop for i in self.folds)])
        in_fold = torch.arange(len(self.folds)).repeat_interleave(limits.diff())
        self.limits, self.fold = limits.to(labels.device), in_fold.to(labels.device)
        super().__init__(labels[:, self.order])
        self.of_fold = (
            torch.nn.functional.one_hot(self.fold, len(self.folds)).T.float().contiguous()
        )
        self.n1_of_fold = self.of_fold @ self.member
