"""How the harm direction and the texts moved from one model to another."""

import torch
from torch import Tensor

from .auc import auc_with_ends, fold_auc
from .cells import Cells
from .cka import debiased_cka
from .crossfit import direction_cosine, fold_means
from .families.scores import direction_noise
from .rounding import level, sizes

_TRANSFER = "transfer_auc", "transfer_low", "transfer_high"


def geometry(base: Cells, aligned: Cells, *, shared: bool) -> dict[str, Tensor]:
    """The entries of `GEOMETRY` for every cell, [cell] each; those that are not known are left out.

    Args:
        base, aligned: the same cells of two models.
        shared: whether both models have the same projection.
    """
    numbers = {
        "rounding_share": rounding_share(base, aligned),
        "kept_share": torch.minimum(kept_share(base), kept_share(aligned)),
    }
    alike = debiased_cka(base, aligned)
    numbers |= {"cka": alike.value, "cka_low": alike.low, "cka_high": alike.high}
    if base.shift.shape == aligned.shift.shape:
        numbers |= _directions(base, aligned) | _displacement(base, aligned)
    if shared:
        moves = aligned.stored("projected") - base.stored("projected")
        eigenvalues = torch.linalg.eigvalsh(moves.transpose(-1, -2) @ moves).clamp_min(0)
        numbers |= {
            "displacement_rank": eigenvalues.sum(-1).square() / eigenvalues.square().sum(-1),
        }
    own, _ = fold_auc(aligned.stored("heldout_score"), aligned.labels, aligned.fold, aligned.copy)
    numbers["own_auc"] = own
    if (scores := aligned.by_basis("basis_score", base)) is not None:
        of_texts = aligned.labels, aligned.unit, aligned.fold
        noise = direction_noise(base, "mean difference")
        cells = zip(scores, noise, strict=True)
        ends = [auc_with_ends(x, *of_texts, copy=aligned.copy, noise=s) for x, s in cells]
        numbers |= dict(zip(_TRANSFER, map(torch.stack, zip(*ends, strict=True)), strict=True))
    return numbers


def _directions(base: Cells, aligned: Cells) -> dict[str, Tensor]:
    """Cosine of the harm directions of both models, with its interval."""
    first, second = fold_means(base), fold_means(aligned)
    if first is None or second is None:
        return {}
    cosine = direction_cosine(first, second)
    return {
        "direction_cosine": cosine.value,
        "direction_low": cosine.low,
        "direction_high": cosine.high,
        "direction_reliability": cosine.reliability,
    }


def _displacement(base: Cells, aligned: Cells) -> dict[str, Tensor]:
    """How far the texts moved, and how much of it is along the harm direction of the base model."""
    move = aligned.stored("class_mean") - base.stored("class_mean")
    move = (move * (base.count / base.count.sum())[:, None]).sum(-2)
    move_sq = move.square().sum(-1)
    within = (base.trace * base.count).sum(-1) / base.count.sum()
    along = (move * base.shift).sum(-1).square() / (move_sq * base.shift_sq)
    return {
        "displacement": (move_sq / within).sqrt(),
        "displacement_share": along,
    }


def rounding_share(base: "Cells", aligned: "Cells") -> Tensor:
    """[cell], the level of rounding over the move of the class means; at least 1: no real move.

    The move is the root mean square, over classes and dimensions, of the move of the class mean
    relative to `sizes`. NaN for models of different widths, infinite where nothing moves.
    """
    first, second = (cells.stored("class_mean") for cells in (base, aligned))
    if first.shape != second.shape:
        return first.new_full((len(first),), torch.nan)
    size = sizes(first, base.stored("class_var"))[:, None]
    move = ((second - first) / size).nan_to_num(0.0).square().mean((-1, -2)).sqrt()
    layers = [layer for layer, _ in base.names]
    levels = [level(cells.window.model, layers) for cells in (base, aligned)]
    return torch.maximum(*levels) / move


def kept_share(cells: Cells) -> Tensor:
    """[cell], share of the variance of all texts in the components that the store keeps."""
    within = ((cells.count - 1) * cells.trace).sum(-1)
    between = cells.count.prod() / cells.count.sum() * cells.shift.square().sum(-1)
    variance = (within + between) / (cells.count.sum() - 1)
    return (cells.stored("pca_explained").nansum(-1) / variance).clamp_max(1)
