"""What runs here: versions, devices, how the kernels were built, which ones are used and why."""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy", "zarr", "numcodecs", "peft")


def package_versions() -> dict[str, str | None]:
    """Versions of this package and of those that can change a result; None if not installed."""
    versions: dict[str, str | None] = {}
    for name in ("safetyspace-fast", *PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def build_record() -> dict[str, Any] | None:
    """What the build wrote down: mode, compiler, reason if there are no compiled kernels."""
    path = Path(__file__).with_name("_build_record.json")
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def environment() -> dict[str, Any]:
    """Everything that `safetyspace-fast info` prints."""
    import torch

    from . import ops

    devices = [
        {
            "name": torch.cuda.get_device_name(i),
            "memory_bytes": torch.cuda.get_device_properties(i).total_memory,
            "capability": "{}.{}".format(*torch.cuda.get_device_capability(i)),
        }
        for i in range(torch.cuda.device_count())
    ]
    return {
        "versions": package_versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda_devices": devices,
        "build": build_record(),
        "implementations": ops.implementations(),
        "fused_layers": ops.can_pack(),
    }
