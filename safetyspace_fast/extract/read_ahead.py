"""What comes next is read, and copied to a GPU, while the device computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    read: Callable[[Item], Result],
    items: Iterable[Item],
    device: torch.device,
    tensors: Callable[[Result], Iterable[Tensor]],
    cuda: Any = torch.cuda,
) -> Iterator[Result]:
    """Results in order, of which the next one is read on a thread.

    On a GPU the thread copies on a stream of its own. Whoever takes a result does not wait for it:
    what is computed next on the current stream does.

    Args:
        read: makes a result of an item.
        items: what to read.
        device: where the results are.
        tensors: those of a result that are on the device.
        cuda: the module with streams and events; tests replace it (hence Any).
    """
    beside = cuda.Stream(device) if device.type == "cuda" else None
    if beside is not None:
        beside.wait_stream(cuda.current_stream(device))  # what results are made of is there

    def reading(item: Item) -> tuple[Result, Any]:
        if beside is None:
            return read(item), None
        with cuda.stream(beside):
            result, copied = read(item), cuda.Event()
            copied.record(beside)
        return result, copied

    def taken(coming: Future[tuple[Result, Any]]) -> Result:
        result, copied = coming.result()
        if copied is not None:
            stream = cuda.current_stream(device)
            stream.wait_event(copied)
            for tensor in tensors(result):
                tensor.record_stream(stream)  # so that its memory is reused only after its use
        return result

    with ThreadPoolExecutor(1) as pool:
        coming: deque[Future[tuple[Result, Any]]] = deque()
        for item in items:
            coming.append(pool.submit(reading, item))
            if len(coming) > 1:
                yield taken(coming.popleft())  # and no name keeps it: a block is large
        if coming:
            yield taken(coming.popleft())
