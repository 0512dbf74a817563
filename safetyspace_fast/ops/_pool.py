"""`pool_project`: average token ranges of hidden states, and project the averages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import ConfigError
from ..threads import on_one_core
from . import _select

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def pool_project(
    hidden_states: Tensor,
    spans: Tensor,
    projection: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Average S token ranges of every sample in one read, and project the averages.

    Sums are float32. A range without tokens gives NaN. Tokens outside a range have no influence,
    even if they are NaN.

    Args:
        hidden_states: [B, T, D] float32, bfloat16 or float16, or [tokens, D] with `cu_seqlens`; any
            strides.
        spans: [B, S, 2] int32, half-open token ranges within the sample.
        projection: [D, P] float32, or None.
        cu_seqlens: [B + 1] int32, where each sample starts in `[tokens, D]`; None for a padded
            batch.
        impl: the implementation to use; None: the fastest that supports the arguments.

    Returns:
        pooled: [B, S, D] float32, and projected: [B, S, P] float32, None without a projection.

    Raises:
        ConfigError: wrong tensors (ranges are checked on the CPU only: elsewhere that would wait
            for the device).
        ImplementationError: `impl` cannot be used; the message lists the reasons.
    """
    _validate(hidden_states, spans, projection, cu_seqlens)
    if cu_seqlens is not None:
        # Every sample is a view (stride 0) of all tokens, with its spans moved to where it starts.
        hidden_states = hidden_states.expand(spans.shape[0], -1, -1)
        spans = spans + cu_seqlens[:-1, None, None]
    kernel = _select.choose("pool_project", impl, hidden_states, spans, projection)
    pooled, projected = kernel(hidden_states, spans, projection)
    return pooled, None if projection is None else projected


class PoolProject:
    """`pool_project` for the hidden states of one layer after the other, into one tensor.

    Between two layers of a model the CPU's caches hold weights, and on a GPU the host issues
    operations one by one, so checking arguments takes longer than pooling. So arguments are
    checked, and a kernel is chosen, only when shape, dtype or device change; each layer is one
    call of `pool_into`; and the averages of all layers are projected together at the end.
    """

    def __init__(
        self,
        spans: Tensor,
        projection: Tensor,
        num_layers: int,
        impl: str | None = None,
        longest: int | None = None,
    ) -> None:
        """Allocate the results.

        Args:
            spans: as in `pool_project`; for hidden states [1, tokens, D] ranges of `tokens`.
            projection, impl: as in `pool_project`.
            num_layers: L.
            longest: no sample has more tokens from the first to the last of its ranges; None: it
                may have as many as the hidden states.
        """
        self._spans = spans
        self._projection = projection
        self._impl = impl
        self._longest = longest
        self._known: tuple[torch.Size, torch.dtype, torch.device] | None = None
        (B, S, _), (D, P) = spans.shape, projection.shape
        self._out = spans.new_empty((num_layers, S, B, D + P), dtype=torch.float32)
        self._pooled = self._out.transpose(1, 2)[..., :D].unbind()

    def __call__(self, i_layer: int, hidden_states: Tensor) -> None:
        """Pool a layer's hidden states: [B, T, D], or [1, tokens, D] of all samples together."""
        kind = (hidden_states.shape, hidden_states.dtype, hidden_states.device)
        if kind != self._known:
            self._kernel, self._tokens = self._chosen(hidden_states)
            self._known = kind
        if hidden_states.shape[0] < len(self._spans):
            hidden_states = hidden_states.expand(len(self._spans), -1, -1)
        self._kernel(hidden_states, self._spans, self._pooled[i_layer], self._tokens)

    def finish(self) -> Tensor:
        """Averages and projections of all layers: [L, S, B, D + P] float32."""
        return project_averages(self._out, self._projection)

    def averages(self) -> Tensor:
        """Averages of all layers: [L, S, B, D] float32, not projected."""
        return self._out[..., : len(self._projection)]

    def _chosen(self, hidden_states: Tensor) -> tuple[Callable[..., None], int]:
        """The kernel for hidden states like these, and the most tokens of a sample."""
        spans = self._spans
        if hidden_states.shape[0] == 1:
            hidden_states = hidden_states.expand(len(spans), -1, -1)
        _validate(hidden_states, spans, self._projection, None)
        longest = hidden_states.shape[1] if self._longest is None else self._longest
        args = (hidden_states, spans, self._pooled[0], longest)
        return _select.choose("pool_into", self._impl, *args), longest


def project_averages(out: Tensor, projection: Tensor) -> Tensor:
    """Fill the last P columns of `out` [L, S, B, D + P] with the projection of the first D.

    The same bits for any number of threads.
    """
    rows, width = out.flatten(0, 2), len(projection)
    with _full_float32() if out.is_cuda else on_one_core():
        torch.mm(rows[:, :width], projection, out=rows[:, width:])
    return out


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 on a GPU keep all its digits, whatever the program around us chose."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _validate(
    hidden_states: Tensor, spans: Tensor, projection: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    # In this order everywhere: device, dtype, rank, shapes, values.
    device = hidden_states.device
    for name, tensor in (("spans", spans), ("projection", projection), ("cu_seqlens", cu_seqlens)):
        if tensor is not None and tensor.device != device:
            raise ConfigError(
                f"{name}: on {tensor.device}, but hidden_states are on {device}; move it there"
            )
    if hidden_states.dtype not in _FLOATS:
        raise ConfigError(
            f"hidden_states: expected float32, bfloat16 or float16, got {hidden_states.dtype}"
        )
    if spans.dtype != torch.int32:
        raise ConfigError(f"spans: expected int32, got {spans.dtype}; use .int()")
    if projection is not None and projection.dtype != torch.float32:
        raise ConfigError(f"projection: expected float32, got {projection.dtype}; use .float()")
    if spans.ndim != 3 or spans.shape[2] != 2:
        raise ConfigError(f"spans: expected shape [B, S, 2], got {list(spans.shape)}")
    B = spans.shape[0]
    if cu_seqlens is None:
        if hidden_states.ndim != 3 or hidden_states.shape[0] != B:
            raise ConfigError(
                f"hidden_states: expected shape [{B}, T, D] as spans have it, "
                f"got {list(hidden_states.shape)}"
            )
    else:
        if cu_seqlens.dtype != torch.int32 or list(cu_seqlens.shape) != [B + 1]:
            raise ConfigError(
                f"cu_seqlens: expected [{B + 1}] int32, "
                f"got {list(cu_seqlens.shape)} {cu_seqlens.dtype}"
            )
        if hidden_states.ndim != 2:
            raise ConfigError(
                f"hidden_states: expected shape [tokens, D] with cu_seqlens, "
                f"got {list(hidden_states.shape)}"
            )
    D = hidden_states.shape[-1]
    if projection is not None and (projection.ndim != 2 or projection.shape[0] != D):
        raise ConfigError(f"projection: expected shape [{D}, P], got {list(projection.shape)}")
    if device.type == "cpu" and not torch.compiler.is_compiling():
        _validate_ranges(spans, hidden_states.shape[-2], cu_seqlens)


def _validate_ranges(spans: Tensor, num_tokens: int, cu_seqlens: Tensor | None) -> None:
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff()
        if cu_seqlens[0] != 0 or cu_seqlens[-1] > num_tokens or (lengths < 0).any():
            raise ConfigError(
                f"cu_seqlens: expected 0, then ascending, up to {num_tokens}, "
                f"got {cu_seqlens[0]} .. {cu_seqlens[-1]}"
            )
        if (spans > lengths[:, None, None]).any():
            raise ConfigError("spans: a range ends after its sample's last token")
    if not spans.numel():
        return
    low, high = (int(limit) for limit in spans.aminmax())
    if low < 0 or high > num_tokens:
        raise ConfigError(f"spans: expected values in 0 .. {num_tokens}, got {low} .. {high}")
