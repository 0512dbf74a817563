"""Folds, and a logistic probe that is fitted to all folds and layers together."""

from dataclasses import dataclass

import torch
from torch import Tensor


def fold_texts(fold: Tensor) -> list[Tensor]:
    """The texts of each fold that is not empty, as indices: fold [n] int64."""
    number = torch.bincount(fold)
    order = torch.argsort(fold, stable=True)
    return [part for part in torch.split(order, number.tolist()) if part.numel()]


@dataclass(frozen=True)
class _LogisticFit:
    """Penalised logistic regressions on one design: design [B, n, P], target [n]."""

    design: Tensor
    target: Tensor

    def curvature(self, curve: Tensor, design: Tensor) -> Tensor:
        """X' diag(curve) X: curve [B, F, n], design [B, n, P] -> [B, F, P, P]."""
        return (curve[..., None, :] * design.transpose(-1, -2)[:, None]) @ design[:, None]

    def minimise(
        self, weight: Tensor, train: Tensor, penalty: Tensor, hessian: Tensor | None, refresh: int
    ) -> tuple[Tensor, Tensor]:
        """Newton steps, halved while they raise the cost, until no weight changes.

        Args:
            weight, penalty: [B, F, P]; train: [F, n], 1 for the texts of a fit.
            hessian: [B, F, P, P] at the start, without the penalty; None computes it.
            refresh: compute the curvature again after this many steps.

        Returns:
            weight [B, F, P] and scores [B, F, n] of all texts.
        """
        ridge = torch.diag_embed(penalty) + 1e-10 * torch.eye(weight.shape[-1])
        both_classes = (train @ self.target > 0) & (train @ (1 - self.target) > 0)
        cost, score = self._loss(weight, train, penalty)
        factor = None if hessian is None else torch.linalg.cholesky(hessian + ridge)
        for i in range(100):
            odds = score.sigmoid()
            if factor is None or (i + 1) % refresh == 0:
                curve = train * odds * (1 - odds)
                factor = torch.linalg.cholesky(self.curvature(curve, self.design) + ridge)
            gradient = ((odds - self.target) * train) @ self.design + penalty * weight
            step = torch.cholesky_solve(gradient[..., None], factor).squeeze(-1)
            step = step * both_classes[:, None]
            size = torch.ones_like(cost)
            for _ in range(30):
                tried = weight - size[..., None] * step
                tried_cost, score = self._loss(tried, train, penalty)
                worse = tried_cost > cost + 1e-12 * cost.abs()
                if not bool(worse.any()):
                    break
                size = torch.where(worse, size / 2, size)
            weight, cost = tried, tried_cost
            if float(step.abs().max()) < 1e-8:
                break
        return weight, score

    def _loss(self, weight: Tensor, train: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
        score = weight @ self.design.transpose(-1, -2)
        cost = torch.nn.functional.softplus(score) - self.target * score
        return (cost * train).sum(-1) + (penalty * weight.square()).sum(-1) / 2, score


def logistic_scores(x: Tensor, labels: Tensor, fold: Tensor, strength: float = 1.0) -> Tensor:
    """Held-out scores of an L2 logistic probe, all layers and folds fitted together.

    Minimises sum log(1 + exp(-y s)) + strength/2 |w|^2 over the training folds with features
    standardised there (C = 1/strength in scikit-learn); the intercept is not penalised. Scaling the
    penalty by the training variances has the effect of standardising.

    Newton's method first fits all texts. Each fold starts from this fit, where its curvature is
    that of all texts minus that of the texts left out: ten folds cost little more than one.

    Args:
        x: [B, n, P] float64, labels: [n] int64, fold: [n] int64.

    Returns:
        [B, n] float64, log odds of class 1, from a probe that was not trained on the text; NaN in
        folds whose training texts are all of one class.
    """
    centred = x - x.mean(-2, keepdim=True)
    spread = centred.square().mean(-2, keepdim=True).sqrt()
    design = torch.where(spread > 0, centred / spread, 0.0)
    design = torch.cat([design, torch.ones_like(design[..., :1])], dim=-1)
    target = labels.to(x.dtype)
    folds = fold_texts(fold)
    i_fold = torch.empty_like(fold)
    for f, texts in enumerate(folds):
        i_fold[texts] = f
    train = (i_fold != torch.arange(len(folds))[:, None]).to(x.dtype)
    n_train = train.sum(-1)[:, None]
    mean = train @ design / n_train
    penalty = strength * (train @ design.square() / n_train - mean.square())
    penalty[..., -1] = 0
    # A constant feature has no variance to penalise by; its weight stays zero with any penalty.
    penalty[..., :-1] = torch.where(penalty[..., :-1] > 1e-12, penalty[..., :-1], strength)
    known = (train @ target > 0) & (train @ (1 - target) > 0)

    fit = _LogisticFit(design, target)
    everything = torch.ones(1, len(labels), dtype=x.dtype)
    whole_penalty = penalty.mean(-2, keepdim=True)
    start, score = fit.minimise(
        torch.zeros_like(whole_penalty), everything, whole_penalty, None, refresh=1
    )
    odds = score.sigmoid()
    curve = odds * (1 - odds)
    left_out = torch.stack(
        [fit.curvature(curve[..., texts], design[:, texts]).squeeze(1) for texts in folds], dim=1
    )
    hessian = left_out.sum(1, keepdim=True) - left_out
    _, score = fit.minimise(start.expand_as(penalty), train, penalty, hessian, refresh=8)
    held_out = score.gather(-2, i_fold.expand(x.shape[0], 1, -1)).squeeze(-2)
    return torch.where(known[i_fold], held_out, torch.nan)
