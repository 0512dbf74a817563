"""Where a model runs: the device, and the dtype of its weights."""

import torch

from ..errors import ConfigError

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def find_device(device: str | torch.device) -> torch.device:
    """The device that a user names.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, or `auto` (a GPU if there is one).

    Raises:
        ConfigError: it is none of these, or is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        if target.type not in ("cpu", "cuda"):
            raise RuntimeError(f"no {target.type} here")
    except RuntimeError as error:
        raise ConfigError(
            f"device {device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'"
        ) from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices")
    return target


def find_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that a user names.

    Args:
        dtype: a key of `DTYPES`, or `auto`: on a GPU bfloat16 if it has that, else float16; on a
            CPU bfloat16 with AMX, else float32.
        device: where the model will run.

    Raises:
        ConfigError: it is none of these.
    """
    if dtype == "auto":
        if device.type != "cuda":  # without AMX tiles, bfloat16 is slower than float32
            return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: expected 'auto', {', '.join(map(repr, DTYPES))}")
    return DTYPES[dtype]
