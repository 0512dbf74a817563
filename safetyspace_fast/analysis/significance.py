"""Is a difference more than chance, alone and among all that are printed?"""

import math

import torch
from torch import Tensor


def student_score(t: Tensor, freedom: Tensor) -> Tensor:
    """Normal deviate with the same two-sided p as |t| of Student's t (Hill 1970).

    Args:
        t, freedom: [...] float64, freedom at least 1.
    """
    a = freedom - 0.5
    b = 48 * a.square()
    y = a * (t.square() / freedom).log1p()
    last = (((-0.4 * y - 3.3) * y - 24) * y - 85.5) / (0.8 * y.square() + 100 + b)
    return ((last + y + 3) / b + 1) * y.sqrt()


def student_p(t: Tensor, freedom: Tensor) -> Tensor:
    """Two-sided p of Student's t; arguments as in `student_score`."""
    return torch.erfc(student_score(t, freedom) / math.sqrt(2))


def student_quantile(freedom: float, share: float = 0.95) -> float:
    """The |t| that a share of draws from Student's t stays below."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        t, v = (torch.tensor(x, dtype=torch.float64) for x in (middle, freedom))
        low, high = (middle, high) if float(student_p(t, v)) > 1 - share else (low, middle)
    return middle
