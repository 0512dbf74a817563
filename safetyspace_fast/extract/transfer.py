"""Results go from the device to the disk while the next batch runs."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

SLOTS = 2
"""Pinned host buffers: one is written to disk while the next result is copied."""


class HostCopy:
    """Copies results from a GPU to the host on a stream of its own, into pinned buffers.

    On a CPU there is nothing to copy.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:  # Any: a module
        """Make the stream and the buffers.

        Args:
            device: where the results are.
            cuda: the module with streams and events; tests replace it.
        """
        self._cuda = cuda if device.type == "cuda" else None
        self._free: queue.Queue[torch.Tensor] = queue.Queue()
        if self._cuda is not None:
            self._stream = self._cuda.Stream(device)
            for _ in range(SLOTS):
                self._free.put(torch.empty(0))

    def start(self, result: torch.Tensor) -> "Callable[[Callable[[torch.Tensor], None]], None]":
        """Begin to copy a result; waits only while all buffers are being written.

        Args:
            result: a contiguous tensor on the device, computed on the current stream.

        Returns:
            A function for the writer's thread. It waits for the copy, calls its argument with the
            tensor on the host, and then frees the buffer.
        """
        if self._cuda is None:
            return lambda use: use(result)
        slot = self._free.get()
        if slot.numel() < result.numel():
            slot = torch.empty(result.numel(), dtype=result.dtype, pin_memory=True)
        host = slot[: result.numel()].view(result.shape)
        self._stream.wait_stream(self._cuda.current_stream(result.device))
        with self._cuda.stream(self._stream):
            host.copy_(result, non_blocking=True)
            copied = self._cuda.Event()
            copied.record(self._stream)
        result.record_stream(self._stream)  # so that its memory is reused only after the copy

        def finish(use: Callable[[torch.Tensor], None]) -> None:
            try:
                copied.synchronize()
                use(host)
            finally:
                self._free.put(slot)

        return finish


class WriterThread:
    """Runs jobs in order on one thread. When its queue is full, the caller waits."""

    def __init__(self, depth: int = 4) -> None:
        """Start the thread; at most `depth` jobs are in its queue."""
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="safetyspace-writer", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Queue a job; raises the error of an earlier job."""
        self._raise()
        self._jobs.put(job)

    def flush(self) -> None:
        """Wait until all jobs are done; raises the error of a job."""
        self._jobs.join()
        self._raise()

    def close(self) -> None:
        """Finish the jobs and stop the thread; raises nothing."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:  # what follows a failed write must not be written
                    job()
            except BaseException as error:  # raised by the next `put` or `flush`
                self._error = error
            finally:
                self._jobs.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
