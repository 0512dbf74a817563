"""States at equal length: what is left of a cell when the number of tokens explains no more."""

from functools import partial

import torch

from ..data import NUM_FOLDS
from ..ops import equal_units, group_sums, length_terms
from .chance import MIN_TEXTS


def at_equal_length(
    states: torch.Tensor,
    labels: torch.Tensor,
    folds: torch.Tensor,
    unit: torch.Tensor,
    tokens: torch.Tensor,
    keep: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Compute what the store keeps of the states less their regression on length.

    With z = (log t, 1/t) of t tokens, the slopes are those inside the classes, pooled (analysis of
    covariance, Cochran 1957): a difference between the classes is not taken for one of length. The
    held-out score of a text uses slopes of the other folds. The residuals are never written out.

    d is the difference of their class means, V its covariance: a text with the residual r adds
    a r to the noise of d, and a allows for the noise of the slopes, for the freedom that they and
    the class means take from r (HC2 of MacKinnon & White 1985) and for units of several texts.

    Args:
        states: `[n, D] float32`, pooled states.
        labels: `[n] int64`, 0 or 1.
        folds: `[n] int64`, below `NUM_FOLDS`.
        unit: `[n] int64`, texts of one unit of evidence share a number.
        tokens: `[n]`, tokens of each text.
        keep: `[n] bool`, texts that count, see `Chance.counted`; rows of the others are NaN.

    Returns:
        By text `equal_length_sqdist [n, 2]`, float64, squared distance to each class mean, and
        `equal_length_score [n]`, float32, along the difference of the other folds' class means,
        from their midpoint; `equal_length_noise []`, tr V, and `equal_length_noise_sq []`, tr V^2,
        both float64. All NaN if a class has fewer than `MIN_TEXTS` texts that count.
    """
    n = len(states)
    new = partial(torch.full, fill_value=torch.nan, device=states.device)
    arrays = {
        "equal_length_sqdist": new((n, 2), dtype=torch.float64),
        "equal_length_score": new((n,)),
        "equal_length_noise": new((), dtype=torch.float64),
        "equal_length_noise_sq": new((), dtype=torch.float64),
    }
    y, fold = labels[keep], folds[keep]
    unit = torch.unique(unit[keep], return_inverse=True)[1]
    if int(torch.bincount(y, minlength=2).min()) < MIN_TEXTS:
        return arrays
    x = states[keep]
    x = x - x.mean(0)
    scale = float(x.abs().max().clamp_min(1e-30))  # squares of squares must fit float32
    x /= scale
    z = length_terms(tokens[keep])
    width = x.shape[1]

    # Sums over each class and fold; fit 0 is of all folds, the others are each of all but one.
    columns = torch.cat([x, z.float(), torch.ones_like(x[:, :1])], 1)
    one_hot = torch.nn.functional.one_hot
    of_class, of_fold = one_hot(y, 2).double(), one_hot(fold, NUM_FOLDS).double()
    by = (torch.cat([of_class, z], 1)[:, :, None] * of_fold[:, None]).flatten(1)
    sums = (by.float().T @ columns).double().view(4, NUM_FOLDS, -1)
    whole = sums.sum(1, keepdim=True)
    sums = torch.cat([whole, whole - sums], 1)
    size = sums[:2, :, -1:].clamp_min(1)
    means, cross = sums[:2, :, :-1] / size, sums[2:, :, :-1].transpose(0, 1)
    cross = cross - sums[:2, :, width:-1].permute(1, 2, 0) @ means.transpose(0, 1)
    inverse = torch.linalg.pinv(cross[..., width:], hermitian=True, rtol=1e-6)
    slopes = inverse @ cross[..., :width]
    z_means = means[..., width:]
    means = means[..., :width] - (z_means[..., None, :] @ slopes).squeeze(-2)

    direction = torch.nn.functional.normalize(means[1, 1:] - means[0, 1:], dim=1)
    middle = (direction * means[:, 1:].sum(0)).sum(1) / 2
    by_length = (slopes[1:] @ direction[..., None]).squeeze(-1)
    fitted = torch.cat([slopes[0], means[:, 0]])  # by z, and for each class
    product = (x @ torch.cat([direction, fitted]).float().T).double()
    along, toward = product[:, :NUM_FOLDS], product[:, NUM_FOLDS:]
    score = (along - z @ by_length.T - middle).gather(1, fold[:, None])[:, 0]
    square = fitted @ fitted.T
    length = x.square().sum(1).double() - ((2 * toward[:, :2] - z @ square[:2, :2]) * z).sum(1)
    to_means = toward[:, 2:] - z @ square[:2, 2:]
    sqdist = length[:, None] - 2 * to_means + square.diagonal()[2:]

    inside = z - z_means[:, 0][y]
    leverage = inside @ inverse[0]
    weight = (2.0 * y - 1) / size[y, 0, 0] - leverage @ (z_means[1, 0] - z_means[0, 0])
    left = 1 - (leverage * inside).sum(1) - (1 / equal_units(y, unit))[y]
    weight = weight / left.clamp_min(1e-9).sqrt()
    noise = torch.addmm(x, torch.cat([z, of_class], 1).float(), fitted.float(), alpha=-1)
    noise *= weight[:, None].float()
    if int(unit.max()) + 1 < len(unit):
        noise = group_sums(noise, unit, int(unit.max()) + 1)
    own = noise.square().sum(1).double()
    gram = noise.T @ noise if len(noise) > width else noise @ noise.T
    arrays["equal_length_sqdist"][keep] = sqdist.clamp_min(0) * scale**2
    arrays["equal_length_score"][keep] = (score * scale).float()
    arrays["equal_length_noise"] = own.sum() * scale**2
    pairs = gram.square().sum().double() - own.square().sum()
    arrays["equal_length_noise_sq"] = pairs.clamp_min(0) * scale**4
    return arrays
