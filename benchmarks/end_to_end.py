"""A whole run against the script that people write and the libraries they use.

All sides load the model once and are timed warm and in turn, from texts to pooled states of every
layer (`ours` also projects, compares all pairs of texts, finds principal components and writes the
store). The oracle comes first: how far each side's means are from transformers in float64.
"""

import argparse
import os
import shutil
import tempfile
import time
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.peers import PEERS, UsualScript, installed
from benchmarks.small_models import make
from safetyspace_fast.benchmark import matrix_products
from safetyspace_fast.data import Samples, read_samples
from safetyspace_fast.extract import (
    Batching,
    Capture,
    compile_blocks,
    make_plan,
    seeded_projection,
)
from safetyspace_fast.extract.capture import padded
from safetyspace_fast.extract.plan import Batch
from safetyspace_fast.extract.prepare import Prepared, prepare
from safetyspace_fast.extract.transfer import OrderedThread
from safetyspace_fast.extract.tune import USUAL
from safetyspace_fast.models import (
    LoadedModel,
    load_model,
    parse_model,
    tokenize,
    unfuse,
)
from safetyspace_fast.store.segments import Segments

SHARED = Path(os.environ.get("SAFETYSPACE_FAST_SHARED", "../shared"))


def default_data() -> str:
    """The English part of a real data set where it is at hand, else the packaged sample."""
    real = SHARED / "data" / "textdetox_toxicity.jsonl"
    return str(real) if real.exists() else "sample:polite"


class Ours:
    """The engine with its model loaded, as `run` uses it."""

    def __init__(
        self, path: str, token_budget: int, poolings: tuple[str, ...] = ("mean", "last")
    ) -> None:
        self.poolings = poolings
        self.model: LoadedModel = load_model(parse_model(path), dtype="float32")  # as the peers
        self.token_budget = token_budget
        self.finish_seconds: list[float] = []
        self.store_bytes = 0
        self.kept = list(range(len(self.model.blocks) + 1))

    def __call__(self, samples: Samples, template: str) -> None:
        """Tokenise, plan, run, finish the languages and write a store."""
        folder = Path(tempfile.mkdtemp())
        try:
            self._run(samples, template, folder / "run.zarr")
        finally:
            shutil.rmtree(folder)

    def prepare(self, samples: Samples, template: str) -> Prepared:
        """Everything before the first forward pass."""
        return prepare(
            self.model,
            samples.texts,
            samples.lang_ranges,
            template=template,
            poolings=self.poolings,
            token_budget=self.token_budget,
        )

    def _run(self, samples: Samples, template: str, out: Path) -> None:
        work = self.prepare(samples, template)
        extraction = harness.run_into(out, self.model, samples, work)
        self.finish_seconds.append(extraction.finish_seconds)
        self.store_bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())

    def means(self, samples: Samples, template: str) -> np.ndarray:
        """Mean over the whole prompt of every hookpoint: `[text, hookpoint, D]`, for the oracle."""
        tokens = tokenize(self.model, samples.texts, template=template, poolings=("last",))
        spans = np.stack([np.zeros_like(tokens.lengths), tokens.lengths], 1)[:, None]
        tokens = replace(tokens, spans=spans.astype(np.int32))
        plan = make_plan(tokens, batching=Batching(self.token_budget))
        hookpoints, width = self.model.hookpoints, self.model.hidden_size
        result = np.empty((len(samples), len(hookpoints), width), np.float32)
        with Capture(self.model, hookpoints, seeded_projection(width, 2, 0)) as capture:
            for batch in plan:
                out = capture.run(tokens, batch)
                states = out[:, 0, :, :width].transpose(0, 1).numpy()
                result[batch.rows] = states[batch.source]
        return result


def errors(path: str, sides: dict[str, Any], samples: Samples, template: str) -> dict[str, Any]:
    """Each side's largest relative distance from the truth, and what `verify` would call it.

    The truth is transformers in float64, each text alone and without padding; rounding is what
    transformers in float32 is away from it. The last block's own output is not among its states.
    """
    truth = UsualScript(path, torch.float64, batch=1)(samples.texts, template)
    alone = UsualScript(path, torch.float32, batch=1)(samples.texts, template)
    size = np.linalg.norm(truth, axis=2)

    def distance(states: np.ndarray, kept: list[int]) -> float:
        gap = np.linalg.norm(states - truth[:, kept], axis=2) / size[:, kept]
        return float(gap.max())

    rounding = distance(alone, list(range(truth.shape[1]))) + float(np.finfo(np.float32).eps)
    verdicts = {}
    for name, side in sides.items():
        if isinstance(side, Ours):
            states, kept = np.delete(side.means(samples, template), -2, axis=1), side.kept
        else:
            states, kept = side(samples.texts, template), side.kept
        error = distance(states, kept)
        verdict = "degraded" if error <= truth.shape[2] ** 0.5 * rounding else "wrong"
        verdicts[name] = (error, "supported" if error <= 2 * rounding else verdict)
    return verdicts


def capture_cost(ours: "Ours", samples: Samples, template: str, rounds: int) -> harness.Timing:
    """How much longer all forward passes take with capture and the thread that writes the segment.

    A round runs every batch bare and every batch captured, the first of the two in turn.
    """
    model = ours.model
    work = ours.prepare(samples, template)
    reading = {"use_cache": False}
    if work.cache is not None:
        reading = {"use_cache": True, "past_key_values": work.cache}
    shape = (len(work.hookpoints), len(ours.poolings), sum(work.projection.shape))

    @torch.inference_mode()
    def bare() -> float:
        started = time.perf_counter()
        for batch in work.plan:
            model.backbone(input_ids=padded(model, work.tokens, batch)[0], **reading)
        return time.perf_counter() - started

    def captured() -> float:
        thread = OrderedThread("writer")
        with tempfile.TemporaryDirectory() as folder:
            segments = Segments(Path(folder), shape)
            started = time.perf_counter()
            with Capture(model, work.hookpoints, work.projection, cache=work.cache) as capture:
                for batch in work.plan:
                    out = capture.run(work.tokens, batch).numpy()
                    thread.put(partial(append, segments, batch, out))
            thread.flush()
            seconds = time.perf_counter() - started
            thread.close()
        return seconds

    def append(segments: Segments, batch: Batch, out: np.ndarray) -> None:
        segments.append(0, batch.rows, batch.for_rows(out))

    ratios = []
    for i_round in range(rounds + 1):
        spent = {run: run() for run in ((bare, captured) if i_round % 2 else (captured, bare))}
        ratios.append(spent[captured] / spent[bare])
    return harness.timing(ratios[1:])


def in_file_order(samples: Samples) -> list[str]:
    order = np.argsort(samples.file_position, kind="stable")
    return [samples.texts[i] for i in order]


MEMORY_SETUP = """
import gc, torch
from benchmarks.end_to_end import PEERS, Ours, in_file_order, read_samples
samples = read_samples({data!r}, languages={languages!r}, limit={limit!r})
warm = read_samples("sample:polite", languages=("en",), limit=2)
side = {side}
weights = [w for m in gc.get_objects() if isinstance(m, torch.nn.Module) for w in m.parameters()]
for weight in weights:  # pages of a mapped file count from when they are first read
    weight.detach().sum()
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks end-to-end", description=__doc__)
    parser.add_argument("--model", help="model directory (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--data", default=default_data(), help="data set (default: %(default)s)")
    parser.add_argument("--languages", default="en", help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="texts per language and class")
    parser.add_argument("--template", choices=("none", "chat"), default="none")
    parser.add_argument("--poolings", default="mean,last", help="of ours; default: %(default)s")
    parser.add_argument("--token-budget", type=int, default=USUAL["cpu"].token_budget)
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="ours also with compiled blocks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)

    machine = harness.machine()
    path = arguments.model or str(make("smollm2"))
    template, languages = arguments.template, tuple(arguments.languages.split(","))
    samples = read_samples(arguments.data, languages=languages, limit=arguments.limit)
    small = read_samples(arguments.data, languages=languages, limit=max(1, 20 // len(languages)))
    texts = in_file_order(samples)
    names = [name for name in arguments.peers.split(",") if installed(name)]
    sides: dict[str, Any] = {name: PEERS[name](path) for name in names}
    poolings = tuple(arguments.poolings.split(","))
    sides["ours"] = ours = Ours(path, arguments.token_budget, poolings)
    work = ours.prepare(samples, template)
    if arguments.compile:
        sides["ours, compiled"] = Ours(path, arguments.token_budget, poolings)
        compile_blocks(sides["ours, compiled"].model, work.tokens, work.cache)
    verdicts = errors(path, sides, small, template)
    some = read_samples(arguments.data, languages=languages, limit=max(2, 100 // len(languages)))
    capture = capture_cost(ours, some, template, 3 * arguments.repeats)

    products, flops = matrix_products(ours.model, 512)
    cases: dict[str, Any] = {
        name: partial(side, samples if isinstance(side, Ours) else texts, template)
        for name, side in sides.items()
    }
    plain = replace(ours.model, blocks=deepcopy(ours.model.blocks))
    unfuse(plain.blocks)
    plain_products, _ = matrix_products(plain, 512)
    cases["products"] = lambda: [products() for _ in range(5)]
    cases["torch's products"] = lambda: [plain_products() for _ in range(5)]
    times = harness.interleaved(cases, repeats=arguments.repeats, budget_s=3600)
    rates = [5 * flops / times[name].median_s for name in ("products", "torch's products")]
    rate = max(rates)
    all_flops = work.plan.tokens * flops / 512
    options = {"data": arguments.data, "languages": languages, "limit": arguments.limit}
    rows: dict[str, dict[str, Any]] = {}
    for name, side in sides.items():
        is_ours = isinstance(side, Ours)
        made = (
            f"Ours({path!r}, {arguments.token_budget}, {poolings})"
            if is_ours
            else f"PEERS[{name!r}]({path!r})"
        )
        memory = None
        if name != "ours, compiled":  # the compiler's own memory would be in it
            memory = harness.extra_memory_bytes(
                MEMORY_SETUP.format(side=made, **options)
                + f"side({'warm' if is_ours else 'warm.texts'}, {template!r})",
                f"side({'samples' if is_ours else 'in_file_order(samples)'}, {template!r})",
            )
        finish_s = float(np.median(side.finish_seconds[1:])) if is_ours else 0.0
        seconds = times[name].median_s
        rows[name] = {
            "time": times[name],
            "finish_s": finish_s,
            "texts_per_s": len(samples) / seconds,
            "share_of_matrix_rate": all_flops / (seconds - finish_s) / rate if is_ours else None,
            "extra_memory_bytes": memory,
            "written_bytes": side.store_bytes if is_ours else 0,
            "error": verdicts[name][0],
            "verdict": verdicts[name][1],
        }
    report = {
        "machine": machine,
        "model": Path(path).name,
        "data": Path(arguments.data).name,
        "languages": languages,
        "template": template,
        "poolings": poolings,
        "token_budget": arguments.token_budget,
        "texts": len(samples),
        "tokens": work.plan.tokens,
        "padded_tokens": work.plan.padded_tokens,
        "matrix_rate_gflops": rate / 1e9,
        "torch_matrix_rate_gflops": rates[1] / 1e9,
        "capture": capture,
        "not_installed": [name for name in PEERS if not installed(name)],
        "sides": rows,
    }
    harness.finish("end-to-end", report, arguments.json, table(report))
    return 0


def table(report: dict[str, Any]) -> str:
    n, machine, capture = report["texts"], report["machine"], report["capture"]
    lines = [
        f"{report['model']}, {n} texts ({report['data']}, {', '.join(report['languages'])}), "
        f"template {report['template']}, poolings {', '.join(report['poolings'])}, "
        f"{report['tokens']} tokens to run "
        f"(+{report['padded_tokens'] / report['tokens'] - 1:.1%} padding)",
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"load before {machine['load_before']:.1f}, "
        f"float32 products of these layers {report['matrix_rate_gflops']:.0f} GF/s, "
        f"torch's own {report['torch_matrix_rate_gflops']:.0f}",
        "",
        f"{'':16}{'seconds':>9}{'10-90 %':>15}{'texts/s':>9}{'ours':>7}{'bare':>7}{'matrix':>8}"
        f"{'memory':>9}{'written':>9}{'error':>9}  verdict",
    ]
    ours = report["sides"]["ours"]
    ours_s = ours["time"].median_s
    for name, row in report["sides"].items():
        time = row["time"]
        ratio = "" if name == "ours" else f"{time.median_s / ours_s:.2f}x"
        bare = "" if name == "ours" else f"{time.median_s / (ours_s - ours['finish_s']):.2f}x"
        share = f"{row['share_of_matrix_rate']:.0%}" if row["share_of_matrix_rate"] else ""
        memory = row["extra_memory_bytes"]
        lines.append(
            f"{name:16}{time.median_s:9.2f}{f'{time.low_s:.2f}-{time.high_s:.2f}':>15}"
            f"{row['texts_per_s']:9.1f}{ratio:>7}{bare:>7}{share:>8}"
            f"{f'{memory / 1e6:.0f} MB' if memory is not None else '':>9}"
            f"{row['written_bytes'] / 1e6:6.1f} MB{row['error']:9.1e}  {row['verdict']}"
        )
    lines += [
        "",
        "ours: seconds against those of ours; bare: against ours without the language statistics, "
        "which no other computes; matrix: of the rate of these products, counted over real tokens",
        f"capture and its segment on disk: {capture.median_s - 1:+.1%} of the bare forward pass "
        f"({capture.low_s - 1:+.1%} .. {capture.high_s - 1:+.1%})",
    ]
    if report["not_installed"]:
        lines.append(f"not installed: {', '.join(report['not_installed'])}")
    return "\n".join(lines)
