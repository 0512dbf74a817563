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


class HostCopy:
    """Copies results from a GPU to the host on a stream of its own, into pinned buffers.

    Results that fit into `budget` are kept: whoever computes statistics reads them there and not
    on the disk. All others share `SLOTS` buffers. On a CPU there is nothing to copy or to keep.
    """

    def __init__(self, device: torch.device, budget: int = 0, cuda: Any = torch.cuda) -> None:
        """Make the stream.

        Args:
            device: where the results are.
            budget: largest size of all kept results together, in bytes.
            cuda: the module with streams and events; tests replace it (hence Any).
        """
        self._cuda = cuda if device.type == "cuda" else None
        self._slots: queue.Queue[torch.Tensor] = queue.Queue()
        self._left = budget
        self._spare: list[torch.Tensor] = []
        self._lock = threading.Lock()  # around the two above
        if self._cuda is not None:
            self._stream = self._cuda.Stream(device)
            for _ in range(SLOTS):
                self._slots.put(torch.empty(0))

    def start(self, result: torch.Tensor) -> HostResult:
        """Begin to copy a result; waits only if it cannot be kept and all slots are in use.

        Args:
            result: a contiguous tensor on the device, computed on the current stream.
        """
        if self._cuda is None:
            return HostResult(result, lambda: None, lambda: None, kept=False)
        buffer = self._spare_buffer(result)
        kept = buffer is not None
        if buffer is None:
            buffer = self._slots.get()
            if buffer.numel() < result.numel():
                buffer = torch.empty(result.numel(), dtype=result.dtype, pin_memory=True)
        host = buffer[: result.numel()].view(result.shape)
        self._stream.wait_stream(self._cuda.current_stream(result.device))
        with self._cuda.stream(self._stream):
            host.copy_(result, non_blocking=True)
            copied = self._cuda.Event()
            copied.record(self._stream)
        result.record_stream(self._stream)  # so that its memory is reused only after the copy
        free = partial(self._free_spare if kept else self._slots.put, buffer)
        return HostResult(host, copied.synchronize, free, kept=kept)

    def _spare_buffer(self, result: torch.Tensor) -> torch.Tensor | None:
        """A buffer within the budget, the smallest that there is or a new one."""
        with self._lock:
            fitting = [i for i, b in enumerate(self._spare) if b.numel() >= result.numel()]
            if fitting:
                return self._spare.pop(min(fitting, key=lambda i: self._spare[i].numel()))
            n_bytes = _pinned_bytes(result)
            while self._spare and self._left < n_bytes:
                self._left += _pinned_bytes(self._spare.pop())
            if self._left < n_bytes:
                return None
            self._left -= n_bytes
        return torch.empty(result.numel(), dtype=result.dtype, pin_memory=True)

    def _free_spare(self, buffer: torch.Tensor) -> None:
        with self._lock:
            self._spare.append(buffer)


def _pinned_bytes(tensor: torch.Tensor) -> int:
    """What a pinned copy takes: torch rounds it up to a power of two."""
    return 1 << max(0, tensor.nbytes - 1).bit_length()


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
