"""A whole run against the script that people write: texts per second, matrix rate, memory.

Both sides load the model once and are timed warm and in turn, from texts to pooled states of every
layer (`ours` also projects, compares all pairs of texts, finds principal components and writes the
store). The oracle comes first: the script's pooled means must be ours.
"""

import argparse
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import harness
from benchmarks.small_models import make
from safetyspace_fast import api
from safetyspace_fast.data import Samples, read_samples
from safetyspace_fast.extract import Capture, Extraction, make_plan, seeded_projection, share_prefix
from safetyspace_fast.extract.loop import padded
from safetyspace_fast.models import LoadedModel, load_model, parse_model, tokenize
from safetyspace_fast.store import ModelWriter, Progress, create_run

SHARED = Path(os.environ.get("SAFETYSPACE_FAST_SHARED", "../shared"))
BATCH = 32
PROJ_DIM = 64


def default_data() -> str:
    """The English part of a real data set where it is at hand, else the packaged sample."""
    real = SHARED / "data" / "textdetox_toxicity.jsonl"
    return str(real) if real.exists() else "sample:polite"


class UsualScript:
    """`output_hidden_states=True`, batches in file order, padding and mask, NumPy pooling."""

    def __init__(self, path: str) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model.eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"

    def __call__(self, texts: list[str], template: str) -> np.ndarray:
        """Mean over the prompt's tokens of every layer: `[text, layer, D]`."""
        if template == "chat":
            texts = [
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
                )
                for text in texts
            ]
        pooled = []
        for start in range(0, len(texts), BATCH):
            batch = self.tokenizer(
                texts[start : start + BATCH],
                return_tensors="pt",
                padding=True,
                add_special_tokens=template != "chat",
            )
            with torch.no_grad():
                output = self.model(**batch, output_hidden_states=True)
            mask = batch["attention_mask"].numpy()[:, :, None]
            means = [
                (states.numpy() * mask).sum(1) / mask.sum(1) for states in output.hidden_states
            ]
            pooled.append(np.stack(means, 1))
        return np.concatenate(pooled)


class Ours:
    """The engine with its model loaded, as `run` uses it."""

    def __init__(self, path: str, token_budget: int) -> None:
        self.model: LoadedModel = load_model(parse_model(path))
        self.token_budget = token_budget
        self.finish_seconds: list[float] = []

    def __call__(self, samples: Samples, template: str) -> None:
        """Tokenise, plan, run, finish the languages and write a store."""
        folder = Path(tempfile.mkdtemp())
        try:
            self._run(samples, template, folder / "run.zarr")
        finally:
            shutil.rmtree(folder)

    def _run(self, samples: Samples, template: str, out: Path) -> None:
        model = self.model
        tokens = tokenize(model, samples.texts, template=template)
        prefix, tokens, _ = share_prefix(model, tokens)
        plan = make_plan(tokens, samples.lang_ranges, token_budget=self.token_budget)
        root = create_run(
            out,
            created_by="benchmark",
            data_name=samples.name,
            data_sha256=samples.sha256,
            languages=samples.languages,
            samples=api.sample_columns(samples),
        )
        hookpoints = model.hookpoints
        sizes = api.axis_sizes(samples, hookpoints, tokens.poolings, model.hidden_size, PROJ_DIM)
        writer = ModelWriter(root, "m", sizes)
        writer.create({"hookpoints": hookpoints, "poolings": tokens.poolings})
        shape = (len(hookpoints), len(tokens.poolings), model.hidden_size + PROJ_DIM)
        progress = Progress(out, "m", shape)
        projection = seeded_projection(model.hidden_size, PROJ_DIM, 0)
        extraction = Extraction(
            model, samples, tokens, plan, hookpoints, projection, writer, progress, prefix=prefix
        )
        for _ in extraction:
            pass
        writer.finish({})
        self.finish_seconds.append(extraction.finish_seconds)

    def means(self, samples: Samples, template: str) -> np.ndarray:
        """Mean over the whole prompt of every hookpoint: `[text, hookpoint, D]`, for the oracle."""
        tokens = tokenize(self.model, samples.texts, template=template, poolings=("mean",))
        spans = np.stack([np.zeros_like(tokens.lengths), tokens.lengths], 1)[:, None]
        tokens = replace(tokens, spans=spans.astype(np.int32))
        plan = make_plan(tokens, token_budget=self.token_budget)
        hookpoints, width = self.model.hookpoints, self.model.hidden_size
        result = np.empty((len(samples), len(hookpoints), width), np.float32)
        with Capture(self.model, hookpoints, seeded_projection(width, 2, 0)) as capture:
            for batch in plan:
                out = capture.run(*padded(self.model, tokens, batch))
                states = out[:, 0, :, :width].transpose(0, 1).numpy()
                result[batch.rows] = states[batch.source]
        return result


def check(script: UsualScript, ours: Ours, samples: Samples, template: str) -> float:
    """Largest relative difference of a pooled vector between the two; the last block's own output
    is not among transformers' hidden states."""
    expected = script(samples.texts, template)
    got = np.delete(ours.means(samples, template), -2, axis=1)
    gap = np.linalg.norm(got - expected, axis=2) / np.linalg.norm(expected, axis=2)
    return float(gap.max())


def matrix_rate(model: LoadedModel, n_tokens: int) -> tuple[Any, float]:
    """A case that runs the linear layers of all blocks once and nothing else, and its flops."""
    shapes = Counter(
        (module.in_features, module.out_features)
        for module in model.blocks.modules()
        if isinstance(module, torch.nn.Linear)
    )
    pairs = [
        (torch.randn(n_tokens, width), [torch.randn(out, width).T for _ in range(count)])
        for (width, out), count in shapes.items()
    ]

    @torch.inference_mode()
    def products() -> None:
        for x, weights in pairs:
            for weight in weights:
                torch.mm(x, weight)

    flops = sum(2.0 * width * out * count for (width, out), count in shapes.items())
    return products, flops * n_tokens


def in_file_order(samples: Samples) -> list[str]:
    order = np.argsort(samples.file_position, kind="stable")
    return [samples.texts[i] for i in order]


MEMORY_SETUP = """
from benchmarks.end_to_end import Ours, UsualScript, in_file_order, read_samples
samples = read_samples({data!r}, languages={languages!r}, limit={limit!r})
warm = read_samples("sample:polite", languages=("en",), limit=2)
side = {side}
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks end-to-end", description=__doc__)
    parser.add_argument("--model", help="model directory (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--data", default=default_data(), help="data set (default: %(default)s)")
    parser.add_argument("--languages", default="en", help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="texts per language and class")
    parser.add_argument("--template", choices=("none", "chat"), default="none")
    parser.add_argument("--token-budget", type=int, default=api.CPU_TOKEN_BUDGET)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)

    machine = harness.machine()
    path = arguments.model or str(make("smollm2"))
    languages = tuple(arguments.languages.split(","))
    samples = read_samples(arguments.data, languages=languages, limit=arguments.limit)
    small = read_samples(arguments.data, languages=languages, limit=20)
    script, ours = UsualScript(path), Ours(path, arguments.token_budget)
    texts = in_file_order(samples)
    gap = check(script, ours, small, arguments.template)

    tokens = tokenize(ours.model, samples.texts, template=arguments.template)
    _, tokens, _ = share_prefix(ours.model, tokens)
    plan = make_plan(tokens, samples.lang_ranges, token_budget=arguments.token_budget)
    products, flops = matrix_rate(ours.model, 512)
    times = harness.interleaved(
        {
            "usual script": lambda: script(texts, arguments.template),
            "ours": lambda: ours(samples, arguments.template),
            "matrix products alone": lambda: [products() for _ in range(5)],
        },
        repeats=arguments.repeats,
        budget_s=3600,
    )
    rate = 5 * flops / times["matrix products alone"].median_s
    finish_s = float(np.median(ours.finish_seconds[1:]))
    ours_s, script_s = times["ours"].median_s, times["usual script"].median_s
    work = plan.tokens * flops / 512
    options = {"data": arguments.data, "languages": languages, "limit": arguments.limit}
    memory = {
        name: harness.extra_memory_bytes(
            MEMORY_SETUP.format(side=side, **options) + warm, statement
        )
        for name, side, warm, statement in (
            (
                "usual script",
                f"UsualScript({path!r})",
                f"side(warm.texts, {arguments.template!r})",
                f"side(in_file_order(samples), {arguments.template!r})",
            ),
            (
                "ours",
                f"Ours({path!r}, {arguments.token_budget})",
                f"side(warm, {arguments.template!r})",
                f"side(samples, {arguments.template!r})",
            ),
        )
    }
    report = {
        "machine": machine,
        "model": Path(path).name,
        "data": Path(arguments.data).name,
        "languages": languages,
        "template": arguments.template,
        "token_budget": arguments.token_budget,
        "texts": len(samples),
        "tokens": plan.tokens,
        "padded_tokens": plan.padded_tokens,
        "largest_relative_gap_to_script": gap,
        "times": times,
        "finish_s": finish_s,
        "ratio": script_s / ours_s,
        "ratio_before_finish": script_s / (ours_s - finish_s),
        "matrix_rate_gflops": rate / 1e9,
        "share_of_matrix_rate": work / (ours_s - finish_s) / rate,
        "extra_memory_bytes": memory,
        "memory_ratio": memory["ours"] / memory["usual script"],
    }
    harness.finish("end-to-end", report, arguments.json, table(report))
    return 0


def table(report: dict[str, Any]) -> str:
    n, machine = report["texts"], report["machine"]
    lines = [
        f"{report['model']}, {n} texts ({report['data']}, {', '.join(report['languages'])}), "
        f"template {report['template']}, {report['tokens']} tokens "
        f"(+{report['padded_tokens'] / report['tokens'] - 1:.1%} padding)",
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"load before {machine['load_before']:.1f}",
        f"largest relative gap of a pooled vector: {report['largest_relative_gap_to_script']:.1e}",
        "",
        f"{'':14}{'seconds':>9}{'10-90 %':>16}{'texts/s':>9}{'tokens/s':>10}{'memory':>10}",
    ]
    for name in ("usual script", "ours"):
        time = report["times"][name]
        lines.append(
            f"{name:14}{time.median_s:9.2f}{f'{time.low_s:.2f}-{time.high_s:.2f}':>16}"
            f"{n / time.median_s:9.1f}{report['tokens'] / time.median_s:10.0f}"
            f"{report['extra_memory_bytes'][name] / 1e6:7.0f} MB"
        )
    lines += [
        "",
        f"ratio {report['ratio']:.2f} (without the language statistics, which the script does not "
        f"compute: {report['ratio_before_finish']:.2f}), memory {report['memory_ratio']:.2f}",
        f"float32 products of these layers: {report['matrix_rate_gflops']:.0f} GF/s; "
        f"real tokens reach {report['share_of_matrix_rate']:.0%} of that",
    ]
    return "\n".join(lines)
