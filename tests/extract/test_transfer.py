"""The order of copies, waits and writes on a GPU, with a stand-in for the streams; the writer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from safetyspace_fast.extract import transfer
from safetyspace_fast.extract.transfer import HostCopy, WriterThread


class FakeCuda:
    """Writes down what is asked of streams and events."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def Stream(self, _device: torch.device) -> "FakeStream":  # noqa: N802 - torch.cuda's own name
        return FakeStream(self.log)

    def Event(self) -> "FakeEvent":  # noqa: N802
        return FakeEvent(self.log)

    def current_stream(self, _device: torch.device) -> str:
        return "compute"

    @contextmanager
    def stream(self, _stream: "FakeStream") -> Iterator[None]:
        self.log.append("enter side stream")
        yield
        self.log.append("leave side stream")


class FakeStream:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def wait_stream(self, other: str) -> None:
        self.log.append(f"side stream waits for {other}")


class FakeEvent:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def record(self, _stream: FakeStream) -> None:
        self.log.append("event recorded")

    def synchronize(self) -> None:
        self.log.append("writer waits for event")


class DeviceTensor(torch.Tensor):
    """A CPU tensor that remembers which stream still reads it."""

    kept_for: Any = None

    def record_stream(self, stream: Any) -> None:
        self.kept_for = stream


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    empty = torch.empty

    def pageable(*size: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            fake.log.append("pinned buffer made")
        return empty(*size, **options)

    monkeypatch.setattr(transfer.torch, "empty", pageable)
    return fake


def device_tensor(value: float, n: int = 6) -> DeviceTensor:
    return torch.full((n,), value).as_subclass(DeviceTensor)


def test_one_copy_waits_for_the_forward_pass_and_the_writer_for_the_copy(cuda: FakeCuda) -> None:
    copy = HostCopy(torch.device("cuda", 0), cuda)
    result = device_tensor(3.0)
    finish = copy.start(result)
    assert cuda.log == [
        "pinned buffer made",
        "side stream waits for compute",
        "enter side stream",
        "event recorded",
        "leave side stream",
    ]
    assert isinstance(result.kept_for, FakeStream)
    got: list[torch.Tensor] = []
    finish(lambda host: got.append(host.clone()))
    assert cuda.log[-1] == "writer waits for event"
    torch.testing.assert_close(got[0], torch.full((6,), 3.0))


def test_buffers_take_turns_and_grow(cuda: FakeCuda) -> None:
    copy = HostCopy(torch.device("cuda", 0), cuda)
    for n in (6, 6, 4, 6, 9, 9, 2):
        copy.start(device_tensor(1.0, n))(lambda host: None)
    assert cuda.log.count("pinned buffer made") == 4  # two of 6, then both grow to 9


def test_a_third_copy_waits_until_a_slot_is_written(cuda: FakeCuda) -> None:
    copy = HostCopy(torch.device("cuda", 0), cuda)
    first, _second = copy.start(device_tensor(1.0)), copy.start(device_tensor(2.0))
    third: list[Any] = []
    starter = threading.Thread(target=lambda: third.append(copy.start(device_tensor(3.0))))
    starter.start()
    starter.join(0.2)
    assert starter.is_alive(), "the copy overwrote a buffer that was not written yet"
    seen: list[float] = []
    first(lambda host: seen.append(float(host[0])))
    starter.join(10)
    third[0](lambda host: seen.append(float(host[0])))
    assert seen == [1.0, 3.0]


def test_a_slot_is_freed_when_writing_fails(cuda: FakeCuda) -> None:
    copy = HostCopy(torch.device("cuda", 0), cuda)

    def fail(_host: torch.Tensor) -> None:
        raise OSError("disk full")

    for _ in range(4):
        with pytest.raises(OSError, match="disk full"):
            copy.start(device_tensor(1.0))(fail)


def test_on_the_cpu_the_tensor_itself_is_passed_on() -> None:
    result = torch.ones(3)
    got: list[torch.Tensor] = []
    HostCopy(torch.device("cpu")).start(result)(got.append)
    assert got[0] is result


def test_the_writer_keeps_the_order_and_hands_errors_on() -> None:
    writer = WriterThread(depth=2)
    done: list[int] = []
    for i in range(20):
        writer.put(lambda i=i: done.append(i))
    writer.flush()
    assert done == list(range(20))

    def fail() -> None:
        raise OSError("disk full")

    writer.put(fail)
    with pytest.raises(OSError, match="disk full"):
        writer.flush()
    with pytest.raises(OSError, match="disk full"):
        writer.put(lambda: done.append(99))
    writer.close()
    assert 99 not in done


def test_the_writer_slows_the_caller_when_it_is_behind() -> None:
    writer = WriterThread(depth=1)
    release = threading.Event()
    writer.put(lambda: release.wait(10) and None)
    caller = threading.Thread(target=lambda: [writer.put(lambda: None) for _ in range(5)])
    caller.start()
    caller.join(0.2)
    assert caller.is_alive(), "the queue grew without bound"
    release.set()
    caller.join(10)
    writer.flush()
    writer.close()
