"""Results go from the device to the disk while the next batch runs."""

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

SLOTS = 2
"""Pinned host buffers: one is written to disk while the next result is copied."""


class HostResult:
    """A batch's result on its way to the host. Its buffer is in use until `free` is called."""

    def __init__(
        self, host: torch.Tensor, wait: Callable[[], None], free: Callable[[], None], *, kept: bool
    ) -> None:
        """`host` is complete when `wait` has returned; `kept`: it need not be freed soon."""
        self._host = host
        self._wait = wait
        self._free: Callable[[], None] | None = free
        self.kept = kept

    def get(self) -> torch.Tensor:
        """The result on the host; waits until it is there."""
        self._wait()
        return self._host

    def free(self) -> None:
        """Give the buffer back; a second call does nothing."""
        give_back, self._free = self._free, None
        if give_back is not None:
            give_back()


class _Chunk:
    """Pinned memory that is handed out from its beginning; free again when all is given back."""

    def __init__(self, size: int) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._used = self._taken = 0

    def take(self, size: int) -> torch.Tensor | None:
        """So many bytes of it, or None if no more than that is left."""
        if self._used + size > len(self._memory):
            return None
        self._used += size
        self._taken += 1
        return self._memory[self._used - size : self._used]

    def give_back(self) -> None:
        """One of the tensors that were taken is no longer in use."""
        self._taken -= 1
        if not self._taken:
            self._used = 0


class HostCopy:
    """Copies results from a GPU to the host on a stream of its own, into pinned memory.

    Results for which there is room stay there: whoever computes statistics reads them there and
    not on the disk. All others share `SLOTS` buffers. Pinned memory is allocated here and never
    later, since that stops the device. On a CPU there is nothing to copy or to keep.
    """

    def __init__(
        self,
        device: torch.device,
        largest: int,
        kept: int = 0,
        budget: int = 0,
        cuda: Any = torch.cuda,
    ) -> None:
        """Make the stream, and allocate.

        Args:
            device: where the results are, all of one dtype.
            largest: bytes of the largest result.
            kept: bytes of all results that would stay in memory at one time.
            budget: bytes that they may take.
            cuda: the module with streams and events; tests replace it (hence Any).
        """
        self._cuda = cuda if device.type == "cuda" else None
        self._slots: queue.Queue[torch.Tensor] = queue.Queue()
        self._chunks: list[_Chunk] = []
        self._lock = threading.Lock()  # around the chunks
        if self._cuda is not None:
            self._stream = self._cuda.Stream(device)
            for _ in range(SLOTS):
                self._slots.put(torch.empty(largest, dtype=torch.uint8, pin_memory=True))
            size, count = chunks(largest, kept, budget)
            self._chunks = [_Chunk(size) for _ in range(count)]

    def start(self, result: torch.Tensor) -> HostResult:
        """Begin to copy a result; waits only if it cannot be kept and all slots are in use.

        Args:
            result: a contiguous tensor on the device, computed on the current stream.
        """
        if self._cuda is None:
            return HostResult(result, lambda: None, lambda: None, kept=False)
        room, free = self._room(result.nbytes)
        kept = free is not None
        if room is None or free is None:
            buffer = self._slots.get()
            room, free = buffer[: result.nbytes], partial(self._slots.put, buffer)
        host = room.view(result.dtype).view(result.shape)
        self._stream.wait_stream(self._cuda.current_stream(result.device))
        with self._cuda.stream(self._stream):
            host.copy_(result, non_blocking=True)
            copied = self._cuda.Event()
            copied.record(self._stream)
        result.record_stream(self._stream)  # so that its memory is reused only after the copy
        return HostResult(host, copied.synchronize, free, kept=kept)

    def _room(self, size: int) -> tuple[torch.Tensor, Callable[[], None]] | tuple[None, None]:
        """Memory in which a result can stay, and how it is given back; None: there is none."""
        with self._lock:
            for chunk in self._chunks:
                taken = chunk.take(size)
                if taken is not None:
                    return taken, partial(self._give_back, chunk)
        return None, None

    def _give_back(self, chunk: _Chunk) -> None:
        with self._lock:
            chunk.give_back()


def chunks(largest: int, kept: int, budget: int) -> tuple[int, int]:
    """Bytes and number of the chunks in which all results have room, or what the budget allows.

    A chunk is a power of two, to which torch rounds pinned memory up. It holds at least four of the
    largest results, since what is left behind the last one is lost; and there are at most about 32.

    Args:
        largest, kept, budget: as in `HostCopy`.
    """
    size = 1 << max(2, 4 * largest - 1).bit_length()
    while 32 * size < min(kept, budget):
        size *= 2
    return size, min(-(-kept // (size - largest)), budget // size)


class OrderedThread:
    """Runs jobs in order on one thread. When its queue is full, the caller waits."""

    def __init__(self, name: str, depth: int = 4) -> None:
        """Start the thread; at most `depth` jobs are in its queue."""
        self._jobs: queue.Queue[tuple[Callable[[], None], Callable[[], None]] | None]
        self._jobs = queue.Queue(depth)
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None], dropped: Callable[[], None] = lambda: None) -> None:
        """Queue a job; raises the error of an earlier job.

        Args:
            job: called on the thread.
            dropped: called instead, if an earlier job has failed or the thread was stopped.
        """
        try:
            self._raise()
        except BaseException:
            dropped()
            raise
        self._jobs.put((job, dropped))

    def flush(self) -> None:
        """Wait until all jobs are done; raises the error of a job."""
        self._jobs.join()
        self._raise()

    def stop(self) -> None:
        """Drop the jobs that have not begun, and those to come; does not wait."""
        self._stopped = True

    def close(self) -> None:
        """Finish the jobs and end the thread; raises nothing."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (pair := self._jobs.get()) is not None:
            job, dropped = pair
            try:
                # What follows a failed write must not be written.
                dropped() if self._error is not None or self._stopped else job()
            except BaseException as error:  # raised by the next `put` or `flush`
                self._error = error
            finally:
                self._jobs.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
