"""What runs on this machine: versions, devices, kernels, and why a kernel cannot be used."""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import TypedDict

PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy", "zarr", "numcodecs", "peft")


class BuildRecord(TypedDict):
    """What `setup.py` wrote down when it built the package."""

    mode: str
    compiled: bool
    reason: str | None
    """Why there are no compiled kernels."""
    cuda: str | None
    cuda_reason: str | None
    torch: str
    compiler: str | None
    machine: str


class Device(TypedDict):
    """A CUDA device."""

    name: str
    memory_bytes: int
    capability: str


class Environment(TypedDict):
    """What `safetyspace-fast info` prints."""

    versions: dict[str, str | None]
    python: str
    system: str
    cpu_capability: str
    threads: int
    cuda_devices: list[Device]
    no_cuda: str | None
    """Why torch can use no CUDA device; None if it can."""
    build: BuildRecord | None
    implementations: dict[str, dict[str, list[str]]]
    """By operation and implementation: the reasons why it cannot be used; empty if it can."""
    fused_layers: bool
    """Whether float32 models on the CPU run on the package's own layers."""


def package_versions() -> dict[str, str | None]:
    """Versions of this package and of those that can change a result; None: not installed."""
    versions: dict[str, str | None] = {}
    for name in ("safetyspace-fast", *PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def build_record() -> BuildRecord | None:
    """How the package was built; None where it runs from a source tree that was not built."""
    path = Path(__file__).with_name("_build_record.json")
    if not path.exists():
        return None
    record: BuildRecord = json.loads(path.read_text("utf-8"))
    return record


def environment() -> Environment:
    """Everything that `safetyspace-fast info` prints."""
    import torch

    from . import ops
    from .models.device import why_no_gpu

    devices: list[Device] = [
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
        "no_cuda": why_no_gpu(),
        "build": build_record(),
        "implementations": ops.implementations(),
        "fused_layers": ops.can_pack(),
    }
