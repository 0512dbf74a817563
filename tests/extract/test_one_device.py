"""The statistics of a cell keep their tensors on one device, shown without a GPU.

Tensors that say that they are on a GPU and hold their values on the CPU take the GPU's branches. An
operation on one of them and on a tensor of the CPU fails as it would there; so does one that adds
on a GPU in an order that changes from run to run.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_extraction import files, make_config
from tiny_models import CHAT_TEMPLATE, save_tiny, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from safetyspace_fast import api
from safetyspace_fast.analysis.resamples import draw as draw_resamples
from safetyspace_fast.data import find_units, read_samples
from safetyspace_fast.extract import blocks
from safetyspace_fast.extract.blocks import StreamedExtraction
from safetyspace_fast.extract.chance import Chance
from safetyspace_fast.extract.equal_length import at_equal_length
from safetyspace_fast.extract.finish import Basis, finish_cell
from safetyspace_fast.extract.transfer import HostResult
from safetyspace_fast.models import StreamedBlocks
from safetyspace_fast.ops import group_sums
from safetyspace_fast.store.layout import COMPONENTS

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
TAKES_INDICES_OF_THE_CPU = {aten.index.Tensor, aten.index_put_.default}
IN_ANY_ORDER = {aten.index_add.default, aten.index_add_.default, aten.scatter_add_.default}


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU; `values` are on the CPU."""

    values: torch.Tensor
    is_cuda = True
    device = GPU

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "OnGpu":
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=values.device,  # torch built without CUDA knows no other
        )
        wrapper.values = values
        return wrapper

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        values = self.values.to(dtype)
        return values if device is not None and device.type == "cpu" else OnGpu(values)

    def cpu(self) -> torch.Tensor:
        return self.values.clone()

    def numpy(self) -> Any:
        raise TypeError("a tensor on the GPU has no array")

    def tolist(self) -> Any:
        return self.values.tolist()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.one_hot:  # makes a tensor on what it takes for the device
            return OnGpu(func(args[0].values, *args[1:]))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class StandIn(TorchDispatchMode):
    """What is made on the GPU is an `OnGpu`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:  # only then such operations come here as a whole
                return func.decompose(*args, **(kwargs or {}))
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; what it returns is where a GPU would leave it."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, OnGpu)]
    here = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim]
    if func in TAKES_INDICES_OF_THE_CPU and isinstance(args[0], OnGpu):
        indices = {id(x) for x in args[1]}
        here = [x for x in here if id(x) not in indices]
    if there and here and func not in COPIES:
        raise RuntimeError(f"{func}: tensors on the GPU and on the CPU")
    if there and func in IN_ANY_ORDER:
        raise RuntimeError(f"{func}: adds in any order on a GPU")
    wanted = kwargs.get("device")
    on_gpu = bool(there) if wanted is None else torch.device(wanted).type == "cuda"
    if wanted is not None:
        kwargs = kwargs | {"device": "cpu"}
    bare = tree_map(lambda x: x.values if isinstance(x, OnGpu) else x, (args, kwargs))
    result = func(*bare[0], **bare[1])
    known = {id(b): x for b, x in zip(tree_leaves(bare), tree_leaves((args, kwargs)), strict=True)}

    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in known:  # an operation in place, or with `out`
            return known[id(x)]
        return OnGpu(x) if on_gpu else x

    return tree_map(placed, result)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: "a stream")
    with torch.no_grad(), StandIn():
        yield GPU


def draw(n: int, width: int = 24) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(n, width, generator=draws) * torch.logspace(1, -1, width) + 3


def write_texts(folder: Path, *, paired: bool) -> str:
    """Texts in pairs, or with copies."""
    rows = [
        {"text": f"number {i // 2} and {i % 2}", "label": i % 2, "lang": "en"}
        | ({"pair": f"p{i // 2}"} if paired else {})
        for i in range(48)
    ]
    if not paired:
        rows += rows[:8]  # copies
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(data)


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            got[name].cpu(), values, rtol=1e-4, atol=1e-4, equal_nan=True, msg=name
        )


def test_the_stand_in_tells_devices_apart(gpu: torch.device) -> None:
    there, here = torch.ones(3, device=gpu), torch.ones(3)
    assert there.is_cuda
    assert there.to(gpu).is_cuda
    assert not there.cpu().is_cuda
    for mix in (lambda: there + here, lambda: here[there.long()], lambda: torch.cat([here, there])):
        with pytest.raises(RuntimeError, match="on the GPU and on the CPU"):
            mix()
    with pytest.raises(TypeError, match="has no array"):
        there.numpy()


@pytest.mark.parametrize(("n", "width"), [(60, 24), (400, 300)])
def test_a_cell(gpu: torch.device, n: int, width: int) -> None:
    x, y, fold = draw(n, width), torch.arange(n) % 2, torch.arange(n) // 2 % 3
    x[3, 2] = torch.nan
    basis = Basis(
        torch.randn(1, 1, COMPONENTS, width).double(),
        torch.randn(1, 1, 2, 10, width).double(),
        torch.ones(1, 1, 2, 10),
    )
    expected = finish_cell(x, y, fold, "reference", [basis.cell(0, 0, torch.device("cpu"))])
    arguments = [tensor.to(gpu) for tensor in (x, y, fold)]
    got = finish_cell(*arguments, "reference", [basis.cell(0, 0, gpu)])
    assert all(tensor.is_cuda for tensor in got.values())
    assert_same(got, expected)


@pytest.mark.parametrize("units", [40, 60])
def test_states_at_equal_length(gpu: torch.device, units: int) -> None:
    n = 60
    x, y, fold = draw(n), torch.arange(n) % 2, torch.arange(n) // 2 % 3
    unit, tokens = torch.arange(n) % units, torch.arange(n) % 7 + 3
    x[3, 2] = torch.nan
    arguments = (x, y, fold, unit, tokens, x.isfinite().all(1))
    got = at_equal_length(*(tensor.to(gpu) for tensor in arguments))
    assert all(tensor.is_cuda for tensor in got.values())
    assert_same(got, at_equal_length(*arguments))


@pytest.mark.parametrize("paired", [False, True])
def test_what_chance_would_give(gpu: torch.device, tmp_path: Path, paired: bool) -> None:
    samples = read_samples(write_texts(tmp_path, paired=paired))
    chance = Chance(samples, "en")
    x = draw(len(samples))
    x[3, 2] = torch.nan
    kept = chance.counted(x)
    assert torch.equal(chance.counted(x.to(gpu)), kept)
    label, fold = (torch.from_numpy(a.astype(np.int64)) for a in (samples.labels, samples.fold))
    pair_sum = finish_cell(x, label, fold)["pair_sum"]
    expected = chance.of_cell(x, kept, pair_sum)
    assert expected["kernel_sum"][kept].isfinite().all()
    got = chance.of_cell(x.to(gpu), kept, pair_sum.to(gpu))
    assert_same(got, expected)


def test_sums_of_groups_are_those_of_the_cpu(gpu: torch.device) -> None:
    x, group = draw(50).double(), torch.arange(50) % 7
    got = group_sums(x.to(gpu), group.to(gpu), 7)
    torch.testing.assert_close(got.cpu(), group_sums(x, group, 7))


def test_sums_over_resamples_come_back_to_the_cpu(gpu: torch.device) -> None:
    units = find_units(np.arange(40) % 2, np.full(40, -1), np.arange(40))
    options: dict[str, Any] = {"bootstraps": 5, "permutations": 7, "seed": 0, "key": "en"}
    here, there = (draw_resamples(units, device=d, **options) for d in ("cpu", str(gpu)))
    kept, x = torch.arange(40) != 3, draw(39).double()
    for bootstrap in (True, False):
        got = there.keep(kept).class_sums(x, bootstrap=bootstrap)
        assert not got.is_cuda
        torch.testing.assert_close(got, here.keep(kept).class_sums(x, bootstrap=bootstrap))
    assert there._on_device[0].is_cuda


def test_each_stream_has_its_own_labellings(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stream may come to what another one has not computed yet."""
    chance = Chance(read_samples(write_texts(tmp_path, paired=True)), "en")
    kept = torch.ones(len(chance.unit), dtype=torch.bool)
    first = chance._labellings(kept, gpu)
    assert chance._labellings(kept, gpu) is first
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: "another stream")
    assert chance._labellings(kept, gpu) is not first


# Streamed weights


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """Put the weights and buffers of a module on the stand-in."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and not tensor.is_meta and not isinstance(tensor, OnGpu):
                    tensors[name] = OnGpu(tensor.detach())
    return module


class ToHost:
    """What stands in for `HostCopy`."""

    def start(self, result: torch.Tensor) -> HostResult:
        assert result.is_cuda
        return HostResult(result.cpu(), lambda: None, lambda: None, kept=False)


class AtOnce:
    """A writer on this thread, on which alone the stand-in is there."""

    def put(self, job: Callable[[], None], _dropped: object = None) -> None:
        job()

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("template", ["none", "auto"])
def test_blocks_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    """`auto`: with tokens that all prompts share."""
    model = save_tiny("llama", tmp_path / "model")
    tiny_tokenizer(CHAT_TEMPLATE).save_pretrained(model)

    def run_it(name: str) -> dict[str, bytes]:
        options = {"weights": "stream", "dtype": "bfloat16", "impl": "reference"}
        options |= {"token_budget": 256, "template": template}
        data = Path(write_texts(tmp_path, paired=True))
        return files(api.run(make_config(model, data, tmp_path / name, **options)).path / "models")

    expected = run_it("cpu.zarr")
    until, take = StreamedExtraction._until, StreamedBlocks.take
    ran, made = [], torch.tensor

    def tensor(data: Any, *, device: Any = "cpu", **options: Any) -> torch.Tensor:
        return made(data, **options).to(device)

    def until_on_gpu(self: Any, _writer: object, unit: object, part: Any) -> Iterator[Any]:
        kept = self._model, self._work
        moved(self._model.backbone)
        self._model = replace(self._model, device=GPU)
        self._work = replace(self._work, projection=OnGpu(self._work.projection))
        self._states_to_host = self._averages_to_host = ToHost()
        with StandIn(), monkeypatch.context() as patch:
            patch.setattr(StreamedBlocks, "take", lambda self, i: moved(take(self, i)))
            patch.setattr(torch, "tensor", tensor)  # no operation, so `StandIn` does not see it
            ran.extend(until(self, AtOnce(), unit, part))  # type: ignore[arg-type]  # a stand-in
        self._model, self._work = kept
        return iter(())

    monkeypatch.setattr(StreamedExtraction, "_until", until_on_gpu)
    monkeypatch.setattr(blocks, "ahead", lambda read, items, *_: map(read, items))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    assert run_it("gpu.zarr") == expected
    assert ran
