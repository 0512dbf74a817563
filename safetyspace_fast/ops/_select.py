"""Which implementation of an operator runs, and why the others cannot."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..errors import ImplementationError
from . import _native, _schema, reference


class Implementation(NamedTuple):
    """One kernel of one operator.

    call: takes the operator's arguments in the order of `_schema`.
    unavailable: reasons why it cannot run on this machine; empty if it can.
    unsupported: reasons why it cannot take these arguments; empty if it can.
    """

    call: Callable[..., Any]
    unavailable: Callable[[], list[str]]
    unsupported: Callable[..., list[str]]


def _reference(op: str) -> Implementation:
    return Implementation(getattr(reference, op), list, lambda *args: [])


def _native_kernel(op: str, key: str) -> Implementation:
    missing = _native.MISSING[op, key]
    device_type = key.lower()

    def unsupported(*args: Any) -> list[str]:
        reasons = [] if missing is None else [missing]
        tensor = args[0]
        if tensor.device.type != device_type:
            reasons.append(f"the tensors are on {tensor.device}, not on {device_type}")
        if tensor.dtype == torch.float64:
            reasons.append("float64 input runs on the reference")
        return reasons + _too_old(tensor.device)

    call = getattr(getattr(torch.ops, _schema.NAMESPACE), op).default
    return Implementation(call, lambda: [] if missing is None else [missing], unsupported)


def _too_old(device: torch.device) -> list[str]:
    """Why a GPU is too old for the kernels; empty if it is not."""
    if device.type != "cuda":
        return []
    facts = torch.cuda.get_device_properties(device)  # torch.compile takes it for a constant
    if facts.major >= 8:
        return []
    return [f"{device} has compute capability {facts.major}.{facts.minor}, expected 8.0 or later"]


def _triton_modules() -> dict[str, ModuleType]:
    # An import statement: torch.compile cannot trace other ways of importing.
    from .triton import pairwise_reduce, pairwise_update, pairwise_within, pool_project

    return {
        "pool_project": pool_project,
        "pool_into": pool_project,
        "pairwise_reduce": pairwise_reduce,
        "pairwise_update": pairwise_update,
        "pairwise_within": pairwise_within,
    }


def _triton_kernel(op: str) -> Implementation:
    def unavailable() -> list[str]:
        if find_spec("triton") is None:
            return ["triton is not installed"]
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            return ["no CUDA device (TRITON_INTERPRET=1 runs it on the CPU, for tests)"]
        return []

    def unsupported(*args: Any) -> list[str]:
        too_old = _too_old(args[0].device)
        return unavailable() or too_old or list(_triton_modules()[op].supports(*args))

    call = getattr(getattr(torch.ops, _schema.NAMESPACE), f"{op}_triton").default
    return Implementation(call, unavailable, unsupported)


def _of(op: str) -> dict[str, Implementation]:
    return {
        "cuda": _native_kernel(op, "CUDA"),
        "triton": _triton_kernel(op),
        "cpu": _native_kernel(op, "CPU"),
        "reference": _reference(op),
    }


# Fastest first.
IMPLEMENTATIONS = {op: _of(op) for op in _schema.SCHEMAS}
# Those with a kernel in CUDA C++; the others run Triton's on a GPU.
_WITH_CUDA = ("pool_project", "pool_into")
# Tried by default on each device. Triton's interpreter runs on a CPU only if it is forced.
_DEFAULTS = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}


def written(op: str, impl: str | None) -> str | None:
    """`impl`, if the operator has such a kernel at all; None: its fastest must do."""
    return None if impl == "cuda" and op not in _WITH_CUDA else impl


# Arguments and results differ by operator, hence Any.
def choose(op: str, impl: str | None, *args: Any) -> Callable[..., Any]:
    """The kernel to call with `args`.

    Args:
        op: the operator's name.
        impl: an implementation to force; None: the fastest on the tensors' device that supports
            the arguments.
        args: the operator's arguments; the first is a tensor.

    Raises:
        ImplementationError: `impl` cannot be used; the message lists the reasons.
    """
    table = IMPLEMENTATIONS[op]
    if impl is None:
        for name in _DEFAULTS.get(args[0].device.type, ("reference",)):
            if not table[name].unsupported(*args):
                return table[name].call
    if impl not in table:
        raise ImplementationError(f"{op}: impl is one of {', '.join(table)}, got {impl!r}")
    if reasons := table[impl].unsupported(*args):
        raise ImplementationError(f"{op}: impl={impl!r} cannot be used: {'; '.join(reasons)}")
    return table[impl].call


def implementations() -> dict[str, dict[str, list[str]]]:
    """The implementations of every operator, fastest first, each with the reasons against it.

    Returns:
        operator -> implementation -> reasons why it cannot run on this machine; empty if it can.
    """
    return {
        op: {name: kernel.unavailable() for name, kernel in table.items()}
        for op, table in IMPLEMENTATIONS.items()
    }
