"""What `gpu-run` measures. Each part takes a `Subject` and returns figures that JSON can hold."""

import gc
import re
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import harness
from benchmarks.gpu_subject import HAS_STORE, Subject, even, tokens_of, usual_lengths
from safetyspace_fast import ops
from safetyspace_fast.benchmark import _usual_way
from safetyspace_fast.data import read_samples
from safetyspace_fast.errors import first_line
from safetyspace_fast.extract import Batching, find_batching, make_plan, packing_pays
from safetyspace_fast.extract.finish import finish_cell
from safetyspace_fast.extract.plan import Batch
from safetyspace_fast.extract.prepare import Prepared
from safetyspace_fast.extract.tune import USUAL
from safetyspace_fast.models import LoadedModel, Tokenized
from safetyspace_fast.models.device import ATTENTION
from safetyspace_fast.models.packed import why_not_packed
from safetyspace_fast.models.source import Source
from safetyspace_fast.models.stored import stored_tensors

Figures = dict[str, Any]


GRAPH_PAYS = 0.9
"""CUDA graphs are worth building if a full batch of a small model takes at most this share."""


class LeftOut(Exception):  # noqa: N818 - not an error
    """A part that cannot be measured here, and why."""


@contextmanager
def order_of_attention(order: list[SDPBackend] | None) -> Iterator[None]:
    """Let torch try its attention kernels in this order; None: its own."""
    with ExitStack() as stack:
        if order is not None:
            stack.enter_context(sdpa_kernel(order, set_priority=True))
        yield


def kernels(subject: Subject) -> Figures:
    """Every kernel beside the rate of a copy and of a product; the cases of `benchmarks gpu`."""
    if subject.device.type != "cuda":
        raise LeftOut("no GPU")
    from benchmarks import gpu
    from benchmarks.gpu_static import CASES

    rows, by_name = [], {}
    for case in CASES:
        try:
            rows += gpu.measure(case, subject.peaks)
        except (Exception, SystemExit) as error:  # the other kernels are measured all the same
            by_name[case.name] = {"failed": f"{type(error).__name__}: {first_line(error)}"}
    for row in rows:
        # In a graph, where no launch waits for the host.
        row["device_ms"] = row["median_ms"] if row["graph_ms"] is None else row["graph_ms"]
        best_ms = max(row["copy_share"], row["matrix_share"]) * row["median_ms"]
        row["roofline_share"] = best_ms / row["device_ms"]
    return by_name | {f"{row['case']}, {row['implementation']}": row for row in rows}


class _EmptyHooks:
    """Hooks that do nothing on all blocks, inside a `with` block."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        self._handles = [b.register_forward_hook(lambda *_: None) for b in self._model.blocks]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def capture(subject: Subject) -> Figures:
    """Forward passes: bare, with empty hooks, captured, and with `output_hidden_states`."""
    model, device = subject.model, subject.device
    engines = {impl: subject.capture(impl) for impl in _implementations(device)}
    default, *_ = engines
    by_shape = {}
    for num_texts, length in subject.shapes:
        tokens, batch = even(num_texts, length)
        bare = partial(subject.bare, tokens, batch)
        cases = {"bare": bare, "empty hooks": bare}
        cases |= {impl: partial(engine.run, tokens, batch) for impl, engine in engines.items()}
        cases["output_hidden_states"] = partial(_usual, subject, tokens, batch)
        around: dict[str, AbstractContextManager[Any]] = {"empty hooks": _EmptyHooks(model)}
        around |= engines
        figures: Figures = dict(harness.timed(cases, device, around=around))
        bare_ms = figures["bare"]["ms"]
        figures["shares"] = {name: figures[name]["ms"] / bare_ms - 1 for name in around}
        figures["default"] = default
        states = len(model.hookpoints) * num_texts * length * model.hidden_size
        read_ms = states * model.dtype.itemsize / subject.peaks["bytes_per_s"] * 1e3
        product_ms = subject.flops(num_texts, length) / subject.peaks["matrix_flops_per_s"] * 1e3
        figures["roofline"] = {"bare_ms": product_ms, "capture_share": read_ms / bare_ms}
        by_shape[f"{num_texts}x{length}"] = figures
    return by_shape


def _implementations(device: torch.device) -> list[str]:
    """Kernels that average on a device, the one that a run takes first; the slow one if it must."""
    wanted = ("cuda", "triton") if device.type == "cuda" else ("cpu",)
    table = ops.implementations()["pool_into"]
    return [impl for impl in wanted if not table[impl]] or ["reference"]


@torch.inference_mode()
def _usual(subject: Subject, tokens: Tokenized, batch: Batch) -> None:
    """What careful scripts do: all states in memory, averaged there."""
    states = subject.usual(tokens, batch, output_hidden_states=True).hidden_states
    torch.stack([state.float().mean(1) for state in states]).cpu()


def agreement(subject: Subject) -> Figures:
    """Largest relative distance of captured states from those of `output_hidden_states`."""
    num_texts, length = subject.shapes[0]
    tokens, batch = even(num_texts, length)
    states = subject.bare(tokens, batch, output_hidden_states=True).hidden_states
    model, width = subject.model, subject.model.hidden_size
    # transformers has no state of the last block before the norm
    layer_of = {i: min(i, len(states) - 1) for i in range(len(model.hookpoints))}
    del layer_of[len(model.blocks)]
    gap_of = {}
    for impl in dict.fromkeys(["reference", *_implementations(subject.device)]):
        with subject.capture(impl) as engine:
            out = engine.run(tokens, batch).double()
        gaps = []
        for i, i_state in layer_of.items():
            wide = states[i_state].double()
            for pooled, expected in zip(out[i], (wide.mean(1), wide[:, -1]), strict=True):
                own, projected = pooled[:, :width], pooled[:, width:]
                product = own @ subject.projection.double()
                gaps.append(float((own - expected).norm() / expected.norm()))
                gaps.append(float((projected - product).norm() / product.norm()))
        gap_of[impl] = max(gaps)
    return gap_of


def attention(subject: Subject) -> Figures:
    """The first call of a new shape beside the second: what plans of attention kernels cost."""
    times_of: Figures = {}
    for i_order, order in enumerate((None, ATTENTION)):
        times: list[list[float]] = [[], []]
        for i in range(12):
            # Shapes that nothing has run before, and other ones for each order.
            tokens, batch = even(3 + i, 33 + 5 * i + 2 * i_order)
            for seconds in times:
                with order_of_attention(order):
                    harness.wait(subject.device)
                    began = time.perf_counter()
                    subject.usual(tokens, batch)
                    harness.wait(subject.device)
                seconds.append((time.perf_counter() - began) * 1e3)
        times_of["without cuDNN" if order else "as torch orders it"] = {
            "first_ms": median(times[0]),
            "second_ms": median(times[1]),
            "worst_first_ms": max(times[0]),
        }
    return times_of


def graphs(subject: Subject) -> Figures:
    """A forward pass that the host launches as one CUDA graph, beside one operation by operation.

    Hooks and `padded` stay on the host, so this is the most that graphs can save.
    """
    if subject.device.type != "cuda":
        raise LeftOut("no GPU")
    shapes = subject.shapes[0], subject.shapes[-1]
    return {f"{texts}x{length}": _graph(subject, texts, length) for texts, length in shapes}


def _graph(subject: Subject, num_texts: int, length: int) -> Figures:
    tokens, batch = even(num_texts, length)
    ids = torch.zeros_like(subject.ids(tokens, batch))
    try:
        replay, states = harness.as_graph(partial(subject.forward, ids))
    except RuntimeError as error:
        raise LeftOut(f"the forward pass cannot be a graph: {first_line(error)}") from error

    def graph_on_batch() -> None:
        ids.copy_(subject.ids(tokens, batch))
        replay()

    launches = partial(subject.bare, tokens, batch)
    graph_on_batch()
    expected = launches().last_hidden_state.float()
    gap = float((states.last_hidden_state - expected).norm() / expected.norm())
    if not gap <= torch.finfo(subject.model.dtype).eps ** 0.5:
        raise SystemExit(f"a replayed forward pass is off by {gap:.1e}; nothing was timed")
    timings = harness.timed(
        {"launches": launches, "graph": graph_on_batch}, subject.device, rounds=3
    )
    share = timings["graph"]["ms"] / timings["launches"]["ms"]
    return {**timings, "share": share, "gap": gap}


def waits(subject: Subject) -> Figures:
    """How often the host waits for the device in a captured batch, and in which lines."""
    if subject.device.type != "cuda":
        raise LeftOut("no GPU")
    tokens, batch = even(*subject.shapes[-1])
    seen: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            stack = traceback.extract_stack()[:-1]
            frame = [f for f in stack if not re.search(r"/torch/|/warnings\.py$", f.filename)][-1]
            seen[f"{frame.filename}:{frame.lineno} {frame.line}"] += 1

    for packed in (False, True) if why_not_packed(subject.model) is None else (False,):
        with subject.capture(packed=packed) as engine, warnings.catch_warnings():
            for _ in range(2):
                engine.run(tokens, batch)
            harness.wait(subject.device)
            warnings.simplefilter("always")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("warn")
            try:
                engine.run(tokens, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return {"waits": seen.total(), "lines": dict(seen)}


def plans(subject: Subject) -> Figures:
    """All batches of a data set, by how they are cut, padded and packed; at most 20 s of each."""
    tokens = tokens_of(usual_lengths(60 if subject.name == "tiny" else 8000))
    ideal = sum(subject.flops(1, int(length)) for length in tokens.lengths)
    ways = {
        "a CPU's plan": Batching(16_384),
        "a GPU's plan before it is measured": USUAL["cuda"],
        "the measured plan": find_batching(subject.model, tokens, subject.cache),
    }
    reason = why_not_packed(subject.model)
    by_plan: Figures = {"ideal_s": ideal / subject.peaks["matrix_flops_per_s"], "packed": reason}
    for name, batching in ways.items():
        plan = make_plan(tokens, batching=batching)
        for packed in (False, True) if reason is None else (False,):
            began, done, count = time.perf_counter(), 0, 0
            with subject.capture(packed=packed) as engine:
                for batch in plan:
                    engine.run(tokens, batch)
                    done, count = done + batch.padded_tokens, count + 1
                    if time.perf_counter() - began > 20:
                        break
                harness.wait(subject.device)
            seconds = time.perf_counter() - began
            by_plan[f"{name}, {'packed' if packed else 'padded'}"] = {
                **asdict(batching),
                "batches": sum(1 for _ in plan),
                "batches_run": count,
                "padding": plan.padded_tokens / plan.tokens - 1,
                "seconds_for_all": seconds * plan.padded_tokens / done,
            }
    return by_plan


def finishing(subject: Subject) -> Figures:
    """Distances and components of one cell, alone and in two threads; also if all rows are alike.

    They are in `embed` at the last token behind a template: every distance is then computed anew.
    """
    sizes = [(60, 64)] if subject.name == "tiny" else [(800, 4096), (5000, 4096), (5000, 8192)]
    by_size: Figures = {}
    for n, width, alike in [*((*size, False) for size in sizes), (*sizes[0], True)]:
        scales = torch.linspace(1, 0.03, width, device=subject.device)
        states = torch.randn(n, width, device=subject.device) * scales + 1
        states = states[:1].repeat(n, 1) if alike else states
        rows = torch.arange(n, device=subject.device)
        cell = partial(finish_cell, states, rows % 2, rows // 2 % 5)
        with _memory(subject.device) as peak:
            timing = harness.timed({"cell": cell}, subject.device, rounds=3, calls=1)["cell"]

        def twice(cell: Callable[[], Any] = cell) -> None:
            threads = [threading.Thread(target=cell) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        pair = harness.timed({"pair": twice}, subject.device, rounds=3, calls=1)["pair"]
        by_size[f"{n}x{width}{', all alike' if alike else ''}"] = {
            **timing,
            "two_threads_ms": pair["ms"] / 2,
            "distances_ideal_ms": 6 * n**2 * width / subject.peaks["matrix_flops_per_s"] * 1e3,
            **peak,
        }
    return by_size


def whole_run(subject: Subject) -> Figures:
    """A run from tokens to the store, beside `output_hidden_states` in padded batches."""
    if not HAS_STORE:
        raise LeftOut("zarr or numcodecs is not installed")
    model = subject.model
    languages = ("en",) if subject.name == "tiny" else ()
    samples = read_samples("sample:polite", languages=languages or None)
    tokens = tokens_of(usual_lengths(len(samples)))
    batching = find_batching(model, tokens, subject.cache)
    plan = make_plan(tokens, samples.lang_ranges, batching=batching)
    work = Prepared(
        model.hookpoints,
        subject.projection,
        tokens,
        tokens,
        subject.cache,
        batching,
        plan,
        packing_pays(model, tokens, plan, subject.cache),
    )
    with tempfile.TemporaryDirectory() as folder, _memory(subject.device) as peak:
        out = Path(folder) / "run.zarr"
        began = time.perf_counter()
        extraction = harness.run_into(out, model, samples, work)
        ours_s = time.perf_counter() - began
    few = tokens_of(usual_lengths(len(samples))[:128])  # it takes long, at the same rate
    _usual_way(model, few)
    began = time.perf_counter()
    _usual_way(model, few)
    usual_s = (time.perf_counter() - began) * plan.tokens / len(few.ids)
    return {
        "texts": len(samples),
        "tokens": plan.tokens,
        **asdict(batching),
        "packed": work.packed,
        "seconds": ours_s,
        "forward_s": extraction.forward_seconds,
        "finish_s": extraction.finish_seconds,
        "usual_s": usual_s,
        "ratio": usual_s / ours_s,
        "segment_mb": extraction.segment_bytes / 1e6,
        **peak,
    }


def streamed(subject: Subject) -> Figures:
    """One block's weights from a file to the device, as `--weights stream` reads them.

    The file has just been written, so the disk is not measured. A block is read once for as many
    tokens as the scratch file has room for; `tokens_to_hide` run through it in the same time.
    """
    from safetensors.torch import save_file

    device, block = subject.device, subject.model.blocks[0]
    weights = {name: weight.cpu().contiguous() for name, weight in block.state_dict().items()}
    num_bytes = sum(weight.nbytes for weight in weights.values())
    pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, Path(folder, "model.safetensors"))
        Path(folder, "config.json").write_text("{}")
        tensors = stored_tensors(Source("a block", Path(folder))).values()
        cases = {
            "read": lambda: [tensor[...].to(device) for tensor in tensors],
            "copy": lambda: pinned.to(device, non_blocking=True, copy=True),
        }
        ms = {name: timing["ms"] for name, timing in harness.timed(cases, device, calls=1).items()}
    num_texts, length = subject.shapes[0]
    tokens, batch = even(num_texts, length)
    bare = {"bare": lambda: subject.bare(tokens, batch)}
    bare_ms = harness.timed(bare, device, rounds=3, calls=1)["bare"]["ms"]
    token_ms = bare_ms / (len(subject.model.blocks) * num_texts * length)
    return {
        "bytes": num_bytes,
        "read_ms": ms["read"],
        "copy_ms": ms["copy"],
        "copy_share": ms["copy"] / ms["read"],
        "tokens_to_hide": round(ms["read"] / token_ms),
    }


def trace(subject: Subject) -> Figures:
    """Where the device's time goes in two captured batches; the trace is a file beside."""
    if subject.device.type != "cuda":
        raise LeftOut("no GPU")
    from torch.profiler import ProfilerActivity, profile

    tokens, batch = even(*subject.shapes[0])
    with subject.capture() as engine:
        engine.run(tokens, batch)
        harness.wait(subject.device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            for _ in range(2):
                engine.run(tokens, batch)
            harness.wait(subject.device)
    file = subject.out / f"trace-{subject.name}.json.gz"
    profiled.export_chrome_trace(str(file))
    slowest = sorted(profiled.key_averages(), key=lambda e: -e.self_device_time_total)
    rows = {
        event.key[:80]: {"calls": event.count, "ms": event.self_device_time_total / 1e3}
        for event in slowest[:15]
    }
    return {"file": file.name, "kernels": rows}


@contextmanager
def _memory(device: torch.device) -> Iterator[Figures]:
    """Fills a dict, at the end of the block, with the device's peak memory beyond what it held."""
    peak: Figures = {}
    if device.type != "cuda":
        yield peak
        return
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield peak
    peak["peak_mb"] = (torch.cuda.max_memory_allocated(device) - before) / 1e6


PARTS: Mapping[str, tuple[Callable[[Subject], Figures], float]] = {
    "kernels": (kernels, 100),
    "agreement": (agreement, 20),
    "host waits": (waits, 10),
    "capture": (capture, 60),
    "whole run": (whole_run, 60),
    "plans": (plans, 60),
    "finish of a cell": (finishing, 40),
    "attention": (attention, 40),
    "graphs": (graphs, 30),
    "streamed weights": (streamed, 15),
    "trace": (trace, 20),
}
"""What is measured, in order of worth, and the seconds that must be left for it on a GPU."""
