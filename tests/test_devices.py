"""Devices that are absent, too old, too small or lost: one clear line each, with stand-ins."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import save_tiny

from safetyspace_fast import api, ops
from safetyspace_fast.errors import ConfigError, ImplementationError, ModelError
from safetyspace_fast.extract import Capture
from safetyspace_fast.info import environment
from safetyspace_fast.models import ModelSpec, device_errors, load_model, memory_errors
from safetyspace_fast.models.device import find_device, find_dtype, too_large
from safetyspace_fast.ops import _select
from safetyspace_fast.sweep.devices import devices_of
from safetyspace_fast.terminal import show_environment

GIB = 1 << 30
GPU = torch.device("cuda", 0)


@dataclass
class Card:
    """What torch says of a GPU."""

    name: str = "NVIDIA A100-SXM4-80GB"
    major: int = 8
    minor: int = 0
    memory: int = 80 * GIB
    free: int = 79 * GIB


MIG = Card("NVIDIA A100-SXM4-40GB MIG 1g.5gb", memory=int(4.75 * GIB), free=int(4.5 * GIB))
V100 = Card("Tesla V100-SXM2-16GB", major=7)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that says which GPUs torch sees; the last one is the current one."""

    def see(*cards: Card, built_for: tuple[str, ...] = ("sm_80", "sm_90a", "compute_100")) -> None:
        def of(device: Any) -> Card:
            return cards[torch.device(device).index]

        stand_ins = {
            "is_available": lambda: True,
            "device_count": lambda: len(cards),
            "current_device": lambda: len(cards) - 1,
            "get_arch_list": lambda: list(built_for),
            "get_device_properties": of,
            "mem_get_info": lambda device: (of(device).free, of(device).memory),
        }
        for name, function in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, function)

    return see


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("m") / "llama")


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    line = str(caught.value)
    assert "\n" not in line
    return line


# Absent


OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version from the URL: ..."
)
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"


def without_gpu(monkeypatch: pytest.MonkeyPatch, reason: Exception) -> None:
    def init() -> None:
        raise reason

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)


@pytest.mark.parametrize("device", ["cuda", "cuda:9", torch.device("cuda", 0)])
@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (AssertionError("Torch not compiled with CUDA enabled"), "not compiled with CUDA"),
        (RuntimeError(NO_DRIVER), "Found no NVIDIA driver on your system;"),
        (RuntimeError(OLD_DRIVER), r"too old \(found version 11040\);"),
    ],
)
def test_without_a_gpu_the_line_says_why(
    monkeypatch: pytest.MonkeyPatch, device: Any, reason: Exception, said: str
) -> None:
    without_gpu(monkeypatch, reason)
    with pytest.raises(ConfigError, match=rf"no GPU can be used: .*{said}.* use 'cpu'$") as caught:
        find_device(device)
    one_line(caught)


@pytest.mark.parametrize("asked", ["all", "0-7", 2])
def test_options_for_several_gpus_say_why_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str | int
) -> None:
    """`--devices`, and `--tensor-parallel`."""
    without_gpu(monkeypatch, RuntimeError(OLD_DRIVER))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    shared: dict[str, Any] = {
        "models": "gpt2",
        "data": "sample:polite",
        "out": tmp_path / "a",
        "device": "cuda",
    }
    with pytest.raises(ConfigError, match=r"no GPU can be used: .*version 11040\);") as caught:
        devices_of(asked) if isinstance(asked, str) else api.run(**shared, tensor_parallel=asked)
    one_line(caught)


def test_info_says_why_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_gpu(monkeypatch, RuntimeError(OLD_DRIVER))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    show_environment(environment())
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("gpu  "))
    assert line.split() == ["gpu", "none:", *OLD_DRIVER.partition(". Please")[0].split()]


def test_auto_takes_the_cpu_and_says_so_where_only_the_driver_is_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes: list[str] = []
    for reason in (NO_DRIVER, "Torch not compiled with CUDA enabled"):
        without_gpu(monkeypatch, RuntimeError(reason))
        assert find_device("auto", notes.append) == torch.device("cpu")
    assert notes == []
    without_gpu(monkeypatch, RuntimeError(OLD_DRIVER))
    assert find_device("auto", notes.append) == torch.device("cpu")
    assert len(notes) == 1
    assert "too old (found version 11040)" in notes[0]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1, "'cuda:0', the only GPU that"), (3, "'cuda:0' to 'cuda:2', the GPUs that")],
)
def test_a_number_beyond_the_last_gpu(cards: Any, number: int, expected: str) -> None:
    cards(*[Card()] * number)
    with pytest.raises(ConfigError, match=f"'cuda:9': expected {expected} torch sees$"):
        find_device("cuda:9")


@pytest.mark.parametrize("device", ["cuda", "auto", torch.device("cuda")])
def test_the_current_gpu_is_named_at_once(cards: Any, device: Any) -> None:
    """Other threads have another current one, as has this one later."""
    cards(Card(), Card())
    assert find_device(device) == torch.device("cuda", 1)
    assert find_device("cuda:0") == torch.device("cuda", 0)


# Too old


def test_a_gpu_that_this_torch_has_no_code_for(cards: Any) -> None:
    cards(V100, built_for=("sm_75", "sm_80"))
    with pytest.raises(ConfigError, match=r"Tesla V100.* 7\.0\) is too old .* 7\.5 or") as caught:
        find_device("cuda")
    one_line(caught)
    cards(V100, built_for=("sm_50", "sm_70"))
    assert find_device("cuda") == GPU
    cards(Card(major=9, minor=4), built_for=("gfx90a", "gfx942"))  # of AMD
    assert find_device("cuda") == GPU


def test_bfloat16_is_asked_of_the_target_and_not_of_the_current_gpu(cards: Any) -> None:
    cards(V100, Card())
    assert find_dtype("auto", torch.device("cuda", 0)) == torch.float16
    assert find_dtype("auto", torch.device("cuda", 1)) == torch.bfloat16
    assert find_dtype("bfloat16", torch.device("cuda", 1)) == torch.bfloat16
    with pytest.raises(ConfigError, match=r"Tesla V100.* has none; use float16 or float32"):
        find_dtype("bfloat16", torch.device("cuda", 0))


@pytest.mark.parametrize("impl", ["cuda", "triton"])
def test_kernels_pass_over_an_old_gpu_and_refuse_to_be_forced(cards: Any, impl: str) -> None:
    states: Any = SimpleNamespace(device=GPU, dtype=torch.float32, is_cuda=True)
    cards(V100)
    with pytest.raises(ImplementationError, match=r"capability 7\.0, expected 8\.0 or later"):
        _select.choose("pool_project", impl, states, None, None)
    chosen = _select.choose("pool_project", None, states, None, None)
    assert chosen is _select.IMPLEMENTATIONS["pool_project"]["reference"].call


# Too small


def test_too_little_memory_is_counted_and_the_ways_out_are_named(cards: Any) -> None:
    cards(MIG)
    assert too_large(8 * 10**9, torch.bfloat16, GPU, None) == (
        "its weights take 14.9 GiB in bfloat16, but cuda:0 (NVIDIA A100-SXM4-40GB MIG 1g.5gb, "
        "compute capability 8.0) has 4.5 of 4.8 GiB free, 10.4 GiB too little; use --weights "
        "stream or a quantised model or --device cpu"
    )
    assert too_large(2 * 10**9, torch.float32, GPU, "a pickle").endswith(
        "GiB too little; use --dtype bfloat16 or a quantised model or --device cpu (they cannot be "
        "streamed: a pickle)"
    )


def test_a_model_that_does_not_fit_is_not_read(
    cards: Any, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(Card(free=1000, memory=GIB))
    monkeypatch.setattr("safetyspace_fast.models.loading.load_weights", pytest.fail)
    match = r"^/.*: its weights take .* in bfloat16, but cuda:0 .* use --weights stream or"
    with pytest.raises(ModelError, match=match) as caught:
        load_model(ModelSpec("m", str(llama)), device="cuda")
    one_line(caught)


# Full

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."),
    torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' ..."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError(
        "NCCL error ..., unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"
    ),
    RuntimeError("out of memory"),  # of our CUDA kernels' launches: cudaGetErrorString
    RuntimeError(
        'torch_call_dispatcher( "aten::new_empty", "", stack.data(), ( ((0ULL + 2) << 56))) '
        "API call failed at ./torch/csrc/stable/ops.h, line 939"
    ),
    RuntimeError(
        "CUDA out of memory. Tried to allocate 2.00 GiB (originally from torch_call_dispatcher( "
        '"aten::contiguous", "", stack.data()) API call failed at ops.h, line 903)'
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4503599627370496 bytes."
    ),
    RuntimeError("std::bad_alloc"),
]
"""Words of torch 2.11 to 2.13, its libraries, Triton, and the compiled kernels."""
OTHERS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError(
        'torch_call_dispatcher( "aten::fill_", "", stack.data()) API call failed at ops.h'
    ),
    ModelError("m: a rank is out of memory"),
]
"""Not for smaller batches."""


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_out_of_memory_has_one_type_and_one_line(error: RuntimeError) -> None:
    with pytest.raises(torch.OutOfMemoryError), memory_errors():
        raise error
    line = r"^m: the device has too little memory \(.*\); go on$"
    with pytest.raises(ModelError, match=line) as caught, device_errors("m", "go on"):
        raise error
    one_line(caught)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_out_of_memory(error: RuntimeError) -> None:
    with pytest.raises(type(error)) as caught, memory_errors():
        raise error
    assert caught.value is error


def test_what_torch_and_a_compiled_kernel_really_raise() -> None:
    """Of an expanded tensor, which takes nothing itself: an average for each of 2^44 ranges."""
    with pytest.raises(torch.OutOfMemoryError, match="allocate memory"), memory_errors():
        torch.empty(1 << 50)
    if ops.implementations()["pool_project"]["cpu"]:
        pytest.skip("the CPU kernels are not built")
    states = torch.zeros(1, 1, 1).expand(1 << 22, 1, 1 << 22)
    spans = torch.zeros(1, 1, 2, dtype=torch.int32).expand(1 << 22, 1, 2)
    with pytest.raises(torch.OutOfMemoryError, match="new_empty"), memory_errors():
        ops.pool_project(states, spans, impl="cpu")


def test_a_batch_that_does_not_fit_is_halved_whatever_the_error_is_called(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled = Capture._pooled

    def starved(capture: Capture, tokens: Any, batch: Any) -> Any:
        if len(batch.unique) > 3:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return pooled(capture, tokens, batch)

    monkeypatch.setattr(Capture, "_pooled", starved)
    notes = [
        event.message
        for event in api.iter_run(
            models=f"m={llama}",
            data="sample:polite",
            languages=("en",),
            layers="block.0",
            template="none",
            token_budget=512,
            out=tmp_path / "run.zarr",
        )
        if isinstance(event, api.Note)
    ]
    assert "out of memory: continuing with smaller batches" in notes


# Lost


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel ..."),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ],
)
def test_an_error_of_the_gpu_is_one_line(error: Exception) -> None:
    line = r"^m: the GPU failed \(.*\); go on$"
    with pytest.raises(ModelError, match=line) as caught, device_errors("m", "go on"):
        raise error
    one_line(caught)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"), device_errors("m", "go on"):
        raise RuntimeError("shape mismatch")


def test_a_run_that_loses_its_gpu_goes_on_with_resume(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"models": f"m={llama}", "data": "sample:polite", "template": "none"}
    fields |= {"languages": ("en", "de"), "token_budget": 512, "dtype": "float32"}
    expected = api.run(**fields, out=tmp_path / "expected.zarr")
    run, batches = Capture.run, 0

    def lost(*arguments: Any) -> torch.Tensor:
        nonlocal batches
        batches += 1
        if batches > 4:
            raise torch.AcceleratorError("CUDA error: unknown error")
        return run(*arguments)

    out = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(Capture, "run", lost)
        with pytest.raises(ModelError, match=r"m: the GPU failed .* --resume to go on") as caught:
            api.run(**fields, out=out)
    one_line(caught)
    planned: list[api.Planned] = []
    again = api.run(
        **fields,
        out=out,
        resume=True,
        on_event=lambda event: planned.append(event) if isinstance(event, api.Planned) else None,
    )
    assert planned[0].texts_done > 0  # what was written is kept
    for name in ("class_mean", "pca_coords"):
        one, other = (store.model("m").read(name) for store in (again, expected))
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    "step",
    [
        "models.loading.find_backbone",
        "extract.prepare.find_batching",
        "verification.prepare",
    ],
)
def test_a_gpu_that_is_lost_before_the_first_batch_is_one_line_too(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """While a model is loaded, prepared, or verified."""

    def lost(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: unknown error")

    monkeypatch.setattr(f"safetyspace_fast.{step}", lost)
    fields: dict[str, Any] = {"models": f"m={llama}", "data": "sample:polite", "verify": True}
    with pytest.raises(ModelError, match=r"m: the GPU failed .* another --device") as caught:
        api.run(**fields, out=tmp_path / "run.zarr")
    one_line(caught)


@pytest.mark.parametrize("command", [api.verify, api.bench])
def test_other_commands_say_that_the_gpu_was_lost(
    llama: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: unknown error")

    monkeypatch.setattr(Capture, "run", lost)
    line = r"tiny-llama: the GPU failed .*; repeat the command, on another --device if need be$"
    with pytest.raises(ModelError, match=line.replace("tiny-llama", llama.name)) as caught:
        command(str(llama), "sample:polite", samples=4)
    one_line(caught)
