"""Where a model runs: the device, the dtype of its weights, and what a device refuses.

What is asked of torch about a GPU is also right for a slice of one (MIG): its own name and memory.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ConfigError, ModelError, SafetySpaceError, first_line

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels for attention on a GPU, the first that can. New cards' default is cuDNN's, which plans
anew for every shape of a batch (23 to 440 ms by public readings), and shapes abound."""
_GIB = 1 << 30
_ARCH = re.compile(r"(?:sm|compute)_(\d+)")  # not those of AMD (gfx942)
# Errors of a GPU that come as plain RuntimeErrors.
_DEVICE_ERROR = re.compile(r"(CUDA|HIP) (driver |kernel )?error|CUBLAS_|CUDNN_|Triton Error \[")
# Out of memory in other words than torch.OutOfMemoryError: of the runtime and its libraries, of
# torch on a CPU, and of our compiled kernels, where the stable ABI names only what was called.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|_ALLOC(ATION)?_FAILED|DefaultCPUAllocator: |std::bad_alloc"
    r'|"aten::((new_)?(empty|zeros)|contiguous)".* API call failed'
)


def find_device(
    device: str | torch.device, note: Callable[[str], None] = lambda _: None
) -> torch.device:
    """The device that a user names, a GPU with its index.

    Args:
        device: `cpu`, `cuda` (the current one of this thread), `cuda:1`, or `auto` (a GPU if there
            is one).
        note: told if `auto` passes over a GPU, and why.

    Raises:
        ConfigError: it is none of these, is not there, or is too old for this build of torch.
    """
    name = device
    if device == "auto":
        reason = why_no_gpu()
        if reason is not None:
            if "driver" in reason and "no NVIDIA driver" not in reason:
                note(f"runs on the CPU, because no GPU can be used: {reason}")
            return torch.device("cpu")
        device = "cuda"
    try:
        target = torch.device(device)
        if target.type not in ("cpu", "cuda"):
            raise RuntimeError(f"no {target.type} here")
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if target.type == "cpu":
        return target
    if (reason := why_no_gpu()) is not None:
        raise ConfigError(f"device {str(name)!r}: no GPU can be used: {reason}; use 'cpu'")
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if target.index is None else target.index
    if index >= count:
        known = f"'cuda:0' to 'cuda:{count - 1}', the GPUs"
        if count == 1:
            known = "'cuda:0', the only GPU"
        raise ConfigError(f"device {str(name)!r}: expected {known} that torch sees")
    target = torch.device("cuda", index)
    _refuse_too_old(target)
    return target


def why_no_gpu() -> str | None:
    """Why torch cannot use a GPU; None if it can."""
    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch gives no type
    except (AssertionError, RuntimeError) as error:  # an assertion: torch was built without CUDA
        return first_line(error).partition(". Please")[0]
    return "torch sees none"


def find_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that a user names.

    Args:
        dtype: a key of `DTYPES`, or `auto`: on a GPU bfloat16 if it has that, else float16; on a
            CPU bfloat16 with AMX, else float32.
        device: where the model will run, with its index.

    Raises:
        ConfigError: it is none of these, or the device does not have it.
    """
    if dtype == "auto":
        if device.type != "cuda":  # without AMX tiles, bfloat16 is slower than float32
            return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
        return torch.bfloat16 if _has_bfloat16(device) else torch.float16
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: expected 'auto', {', '.join(map(repr, DTYPES))}")
    if dtype == "bfloat16" and device.type == "cuda" and not _has_bfloat16(device):
        raise ConfigError(f"dtype 'bfloat16': {_words(device)} has none; use float16 or float32")
    return DTYPES[dtype]


def available_bytes() -> int:
    """Memory that this process may still take on the host."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    limits = [free]
    try:
        import resource

        lines = Path("/proc/meminfo").read_text().splitlines()
        entries = dict(line.split(":") for line in lines)
        limits[0] = 1024 * int(entries["MemAvailable"].split()[0])
        pages = list(map(int, Path("/proc/self/statm").read_text().split()))
        for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                limits.append(soft - page * used)
        groups = Path("/proc/self/cgroup").read_text().split()
        own = next((group[3:] for group in groups if group.startswith("0::")), "/")
        limits += _left_of_limits(Path(f"/sys/fs/cgroup{own}"))
    except (ImportError, OSError, KeyError, ValueError):
        pass  # another system: what is known has to do
    return max(0, min(limits))


def _left_of_limits(group: Path) -> Iterator[int]:
    """What each memory limit of a control group and of those around it leaves (Slurm, containers).

    Pages of files count as left: the system takes them back when memory is short.
    """
    for folder in (group, *group.parents):
        if not (folder / "memory.max").is_file():
            continue
        limit = (folder / "memory.max").read_text().strip()
        if limit != "max":
            taken = int((folder / "memory.current").read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            parts = dict(line.split() for line in lines)
            yield int(limit) - taken + int(parts["active_file"]) + int(parts["inactive_file"])


def fits(numbers: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there is memory for so many weights of a dtype on a device."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    return numbers * dtype.itemsize <= free


def too_large(
    numbers: int, dtype: torch.dtype, device: torch.device, why_not_streamed: str | None
) -> str:
    """What to say and to do about weights for which a GPU has too little free memory.

    Args:
        numbers: how many the weights have.
        dtype: in which they are to be.
        device: a GPU, with its index.
        why_not_streamed: why they cannot stay on disk; None if they can.
    """
    free, total = torch.cuda.mem_get_info(device)
    needed = numbers * dtype.itemsize
    ways = ["a quantised model", "--device cpu"]
    if why_not_streamed is None:
        ways.insert(0, "--weights stream")
    if dtype.itemsize > 2 and 2 * numbers <= free:
        ways.insert(0, f"--dtype {'bfloat16' if _has_bfloat16(device) else 'float16'}")
    name = str(dtype).removeprefix("torch.")
    unable = f" (they cannot be streamed: {why_not_streamed})" if why_not_streamed else ""
    return (
        f"its weights take {needed / _GIB:.1f} GiB in {name}, but {_words(device)} has "
        f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free, {(needed - free) / _GIB:.1f} GiB too "
        f"little; use {' or '.join(ways)}{unable}"
    )


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """While it lasts, attention on a GPU takes the kernels of `ATTENTION`; a no-op on a CPU."""
    if device.type != "cuda":
        return nullcontext()
    kernels: AbstractContextManager[None] = sdpa_kernel(ATTENTION, set_priority=True)
    return kernels


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn every form in which a device says that its memory is full into torch.OutOfMemoryError.

    torch's allocator raises that itself; the CUDA runtime, its libraries, Triton and compiled
    kernels raise a RuntimeError (or torch.AcceleratorError) that only the message tells apart.
    """
    try:
        yield
    except (torch.OutOfMemoryError, SafetySpaceError):
        raise
    except RuntimeError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise torch.OutOfMemoryError(first_line(error)) from error


@contextmanager
def device_errors(name: str, advice: str) -> Iterator[None]:
    """Turn the errors of a GPU that is full, lost or damaged into ModelError, in one line.

    Args:
        name: of the model, for the message.
        advice: what to do, the message's end.
    """
    try:
        with memory_errors():
            yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name}: the device has too little memory ({first_line(error)}); {advice}"
        ) from error
    except RuntimeError as error:
        if not isinstance(error, torch.AcceleratorError) and not _DEVICE_ERROR.search(str(error)):
            raise
        raise ModelError(f"{name}: the GPU failed ({first_line(error)}); {advice}") from error


def _refuse_too_old(device: torch.device) -> None:
    """Raise ConfigError if this build of torch holds no code that a GPU can run."""
    built = [int(found[1]) for arch in torch.cuda.get_arch_list() if (found := _ARCH.match(arch))]
    facts = torch.cuda.get_device_properties(device)
    if built and 10 * facts.major + facts.minor < min(built):
        oldest = f"{min(built) // 10}.{min(built) % 10}"
        raise ConfigError(
            f"device '{device}': {_words(device)} is too old for this build of torch, which needs "
            f"compute capability {oldest} or later; use 'cpu', or a build of torch for it"
        )


def _has_bfloat16(device: torch.device) -> bool:
    return bool(torch.version.hip) or torch.cuda.get_device_properties(device).major >= 8


def _words(device: torch.device) -> str:
    """A GPU by its index, name and compute capability."""
    facts = torch.cuda.get_device_properties(device)
    return f"{device} ({facts.name}, compute capability {facts.major}.{facts.minor})"
