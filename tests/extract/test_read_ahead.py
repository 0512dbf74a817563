"""Streamed weights on a GPU: what waits for what, with stand-ins for streams and events."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_extraction import files, make_config
from tiny_models import save_tiny

from safetyspace_fast import api
from safetyspace_fast.extract import blocks, transfer
from safetyspace_fast.extract.read_ahead import ahead
from safetyspace_fast.extract.transfer import HostCopy

GPU = torch.device("cuda", 0)
MAIN = threading.main_thread().name


class FakeCuda:
    """Stands in for `torch.cuda`: writes down each wait, and on which thread."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.on = threading.local()

    def note(self, what: str) -> None:
        self.log.append((threading.current_thread().name, what))

    def Stream(self, _device: torch.device) -> "FakeStream":  # noqa: N802 - torch.cuda's own name
        return FakeStream(self, "beside")

    def Event(self) -> "FakeEvent":  # noqa: N802 - the same
        return FakeEvent(self)

    def current_stream(self, _device: torch.device) -> "FakeStream":
        return FakeStream(self, getattr(self.on, "stream", "compute"))

    @contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        self.on.stream = stream.name
        yield
        del self.on.stream


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: "FakeStream") -> None:
        self.cuda.note(f"{self.name} waits for {other.name}")

    def wait_event(self, event: "FakeEvent") -> None:
        self.cuda.note(f"{self.name} waits for a copy on {event.stream}")


class FakeEvent:
    stream = "no stream"

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def record(self, stream: FakeStream) -> None:
        self.stream = stream.name

    def synchronize(self) -> None:
        self.cuda.note("the host waits")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake, empty = FakeCuda(), torch.empty

    def pageable(*size: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return empty(*size, **options)

    def kept(_tensor: torch.Tensor, stream: FakeStream) -> None:
        fake.note(f"kept for {stream.name}")

    monkeypatch.setattr(transfer.torch, "empty", pageable)
    monkeypatch.setattr(torch.Tensor, "record_stream", kept)
    return fake


def test_what_is_computed_next_waits_for_the_copy_and_the_host_does_not(cuda: FakeCuda) -> None:
    used = []
    for tensor in ahead(lambda i: torch.full((2,), i), range(3), GPU, lambda t: (t,), cuda):
        cuda.note("used")
        used.append(int(tensor[0]))
    assert used == [0, 1, 2]
    assert cuda.log[0] == (MAIN, "beside waits for compute")
    steps = ["compute waits for a copy on beside", "kept for compute", "used"]
    assert cuda.log[1:] == [(MAIN, step) for step in 3 * steps]


def test_an_error_in_reading_comes_when_its_result_is_taken(cuda: FakeCuda) -> None:
    for device in (GPU, torch.device("cpu")):
        results = ahead(lambda i: 1 // i, [2, 1, 0], device, lambda _: (), cuda)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_in_a_streamed_run_only_the_writer_waits_for_the_device(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is on a CPU; its streams and events are those of a GPU."""
    model, data = save_tiny("llama", tmp_path / "model"), tmp_path / "texts.jsonl"
    rows = [
        {"text": "the dog " * (1 + i % 5) + f"{i}", "label": i % 2, "lang": "en"} for i in range(20)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(weights: str) -> dict[str, bytes]:
        out = tmp_path / f"{weights}.zarr"
        options = {"token_budget": 32, "poolings": ("mean",), "dtype": "float32"}
        return files(api.run(make_config(model, data, out, weights=weights, **options)).path)

    whole = run("load")
    advanced: list[int] = []
    advance = blocks.BlockCapture.advance

    def counted(self: blocks.BlockCapture, *arguments: Any) -> Any:
        advanced.append(1)
        return advance(self, *arguments)

    monkeypatch.setattr(blocks.BlockCapture, "advance", counted)
    monkeypatch.setattr(
        blocks, "HostCopy", lambda _device, largest: HostCopy(GPU, largest, cuda=cuda)
    )
    monkeypatch.setattr(
        blocks, "ahead", lambda read, items, _, tensors: ahead(read, items, GPU, tensors, cuda)
    )
    assert run("stream") == whole
    waits = Counter(thread for thread, what in cuda.log if what == "the host waits")
    assert waits[MAIN] == 0
    assert sum(waits.values()) == 2 * len(advanced)  # states and averages of each batch
    assert (MAIN, "compute waits for a copy on beside") in cuda.log
