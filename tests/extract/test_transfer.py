"""The order of copies, waits and writes on a GPU, with a stand-in for the streams; the writer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from safetyspace_fast.extract import transfer
from safetyspace_fast.extract.transfer import HostCopy, HostResult, OrderedThread

GPU = torch.device("cuda", 0)


class FakeCuda:
    """Writes down what is asked of streams and events."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def Stream(self, _device: torch.device) -> "FakeStream":  # noqa: N802 - torch.cuda's own name
        return FakeStream(self.log)

    def Event(self) -> "FakeEvent":  # noqa: N802 - the same
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
    copy = HostCopy(GPU, 24, cuda=cuda)
    result = device_tensor(3.0)
    cuda.log.clear()
    on_its_way = copy.start(result)
    assert cuda.log == [
        "side stream waits for compute",
        "enter side stream",
        "event recorded",
        "leave side stream",
    ]
    assert isinstance(result.kept_for, FakeStream)
    torch.testing.assert_close(on_its_way.get(), torch.full((6,), 3.0))
    assert cuda.log[-1] == "writer waits for event"
    assert not on_its_way.kept


def test_no_pinned_memory_is_allocated_after_the_start(cuda: FakeCuda) -> None:
    """Allocation takes long and stops the device: batches of any size find theirs."""
    copy = HostCopy(GPU, 64, kept=1000, budget=4096, cuda=cuda)
    made = cuda.log.count("pinned buffer made")
    assert made == 2 + 6  # two slots, and chunks of 256 of which 192 can be used
    results = [copy.start(device_tensor(float(i), n)) for i, n in enumerate([16, 1, 9, 16] * 5)]
    assert [float(result.get()[0]) for result in results] == list(range(20))
    assert all(result.kept for result in results)
    for result in results:
        result.free()
    for n in (16, 1, 9) * 20:
        copy.start(device_tensor(1.0, n)).free()
    assert cuda.log.count("pinned buffer made") == made


@pytest.mark.parametrize(
    ("largest", "kept", "budget", "expected"),
    [
        (100, 1000, 1 << 20, (512, 3)),  # 412 bytes of each chunk can be used
        (100, 1000, 1100, (512, 2)),  # not all can stay
        (100, 1000, 500, (512, 0)),
        (100, 0, 1 << 20, (512, 0)),
        (0, 0, 0, (4, 0)),  # nothing to run
        (50 << 20, 15 << 30, 250 << 30, (512 << 20, 34)),
        (50 << 20, 15 << 30, 4 << 30, (256 << 20, 16)),
    ],
)
def test_chunks_hold_what_stays_within_the_budget(
    largest: int, kept: int, budget: int, expected: tuple[int, int]
) -> None:
    size, number = transfer.chunks(largest, kept, budget)
    assert (size, number) == expected
    assert size * number <= budget
    assert size * number >= min(kept, budget // size * size)


def test_a_third_copy_waits_until_a_slot_is_free(cuda: FakeCuda) -> None:
    copy = HostCopy(GPU, 24, cuda=cuda)
    first, second = copy.start(device_tensor(1.0)), copy.start(device_tensor(2.0))
    third: list[HostResult] = []
    starter = threading.Thread(target=lambda: third.append(copy.start(device_tensor(3.0))))
    starter.start()
    starter.join(0.2)
    assert starter.is_alive(), "the copy overwrote a buffer that was not written yet"
    assert first.get()[0] == 1
    first.free()
    first.free()  # a second time frees nothing
    starter.join(10)
    assert [float(r.get()[0]) for r in (second, third[0])] == [2.0, 3.0]
    assert copy._slots.empty()


def test_results_within_the_budget_are_kept_and_their_memory_is_used_again(cuda: FakeCuda) -> None:
    copy = HostCopy(GPU, 256, kept=3000, budget=1024, cuda=cuda)  # one chunk of four results
    kept = [copy.start(device_tensor(float(i), 64)) for i in range(4)]
    assert [r.kept for r in kept] == [True] * 4
    over = copy.start(device_tensor(9.0, 64))
    assert not over.kept
    assert [float(r.get()[0]) for r in [*kept, over]] == [0, 1, 2, 3, 9]
    over.free()
    for result in kept[:3]:
        result.free()
    assert not copy.start(device_tensor(5.0, 1)).kept  # one of the chunk is still read
    assert float(kept[3].get()[0]) == 3
    kept[3].free()
    assert copy.start(device_tensor(5.0, 64)).kept


def test_a_writer_that_failed_frees_the_slots_of_the_batches_behind(cuda: FakeCuda) -> None:
    """The loop gets the error of the disk; it must not wait for ever for a slot."""
    copy = HostCopy(GPU, 24, cuda=cuda)
    writer = OrderedThread("test", depth=8)
    begun = threading.Event()

    def fail() -> None:
        begun.wait(10)
        raise OSError("disk full")

    def loop() -> None:
        writer.put(fail)
        for _ in range(6):
            result = copy.start(device_tensor(1.0))
            writer.put(lambda: None, result.free)
            begun.set()

    error: list[OSError] = []

    def caught() -> None:
        try:
            loop()
        except OSError as found:
            error.append(found)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "the loop waits for a slot that nobody frees"
    assert [str(found) for found in error] == ["disk full"]
    writer.close()


def test_a_stopped_thread_drops_what_has_not_begun() -> None:
    thread = OrderedThread("test", depth=8)
    release, begun = threading.Event(), threading.Event()
    done: list[str] = []

    def first() -> None:
        begun.set()
        release.wait(10)
        done.append("first")

    thread.put(first)
    thread.put(lambda: done.append("second"), lambda: done.append("dropped"))
    begun.wait(10)
    thread.stop()
    release.set()
    thread.close()
    assert done == ["first", "dropped"]


def test_on_the_cpu_the_tensor_itself_is_passed_on() -> None:
    result = torch.ones(3)
    on_its_way = HostCopy(torch.device("cpu"), 12, 12, 1 << 30).start(result)
    assert on_its_way.get() is result
    assert not on_its_way.kept


def test_the_writer_keeps_the_order_and_hands_errors_on() -> None:
    writer = OrderedThread("test", depth=2)
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
    writer = OrderedThread("test", depth=1)
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
