"""The compiled library, loaded once; if it cannot be loaded, the reason is kept.

Loading `safetyspace_fast/_C.abi3.so` registers its kernels with the operators of `_schema`; it has
no Python names.
"""

from importlib import import_module

import torch

from . import _schema

load_error: str | None = None
try:
    import_module("safetyspace_fast._C")
except ImportError as error:
    load_error = f"the compiled library is not loaded ({error}); see `safetyspace-fast info`"


def _missing(op: str, key: str) -> str | None:
    if load_error is not None:
        return load_error
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{_schema.NAMESPACE}::{op}", key):
        return None
    return f"the compiled library was built without {key} kernels for {op}"


# Computed once: it cannot change after loading, and pool_project needs it at every call.
MISSING = {(op, key): _missing(op, key) for op in _schema.SCHEMAS for key in ("CPU", "CUDA")}


def simd_level() -> str | None:
    """The instruction set of the compiled CPU kernels: "avx512", "avx2" or "baseline".

    None without compiled kernels. ATEN_CPU_CAPABILITY=avx2 or =default lowers it, as for torch.
    """
    return None if load_error else str(torch.ops.safetyspace_fast.simd_level())
