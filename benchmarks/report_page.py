"""The page of 33 layers, 11 languages and 2 models: its size by part, and its speed in Chromium.

    python -m benchmarks report-page [--json] [--blocks 31] [--texts 200] [--keep page.html]

A tiny model of random weights and the same with other weights in its last blocks, on made-up texts.
Opening: from navigation to the moment when all figures are drawn, in a fresh headless Chromium; the
best of three. A step: from the slider's event to the new figure, over all layers. Goals: 2.5 MB,
2 s, 100 ms.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from safetyspace_fast import api
from safetyspace_fast.report.write import report

sys.path += [str(Path(__file__).parents[1] / "tests" / part) for part in (".", "report")]

LANGUAGES = ("en", "de", "ru", "es", "zh", "ar", "hi", "am", "fr", "it", "ja")
GOALS = {"size_mb": 2.5, "open_s": 2.0, "step_ms": 100.0}


def write_texts(path: Path, number: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for lang in LANGUAGES:
            for i in range(number):
                own = ["fine", "tea", "good"] if i % 2 else ["bad", "hate", "kill"]
                words = rng.choice([*own, "dog", "fox", "lazy", "quick", "und"], 4 + i % 9)
                row = {"text": f"{lang} {' '.join(words)} {i}", "label": 1 - i % 2, "lang": lang}
                file.write(json.dumps(row) + "\n")


def save_models(folder: Path, blocks: int) -> list[str]:
    import tiny_models

    tiny_models.save_tiny("llama", folder / "base", num_hidden_layers=blocks)
    model = tiny_models.tiny_model("llama", num_hidden_layers=blocks)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.model.layers[blocks // 2 :]:
            for weight in block.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder / "aligned")
    tiny_models.tiny_tokenizer().save_pretrained(folder / "aligned")
    return [f"{name}={folder / name}" for name in ("base", "aligned")]


def sizes(text: str) -> dict[str, int]:
    """Bytes of each part of the page."""
    parts = {
        f"figure {name}": len(data)
        for name, data in re.findall(r'id="data-(\w+)">([^<]*)</script>', text)
    }
    library, script = re.findall(r"<script>(.*?)</script>", text, re.S)
    parts |= {"Vega": len(library.encode()), "script": len(script.encode())}
    parts["style"] = len(re.findall(r"<style>(.*?)</style>", text, re.S)[0].encode())
    total = len(text.encode())
    return parts | {"words and tables": total - sum(parts.values()), "all": total}


def in_browser(page: Path) -> dict[str, Any]:
    from browser import Browser

    opened = []
    for _ in range(3):
        with Browser() as window:
            window.open(page)
            opened.append(window.js("performance.getEntriesByName('drawn')[0].startTime / 1000"))
            busy = {x["name"]: x["value"] for x in window.metrics()}
            steps = window.js("""(async () => {
                const figure = document.getElementById('scatter');
                const input = figure.querySelector('input[type=range]');
                const times = [];
                for (let i = 0; i <= Number(input.max); i += 1) {
                    const before = figure.dataset.drawn, start = performance.now();
                    input.value = i;
                    input.dispatchEvent(new Event('input'));
                    while (figure.dataset.drawn === before) {
                        await new Promise(requestAnimationFrame);
                    }
                    times.push(performance.now() - start);
                }
                return times;
            })()""")
    return {
        "open_s": min(opened),
        "script_s": busy["ScriptDuration"],
        "step_ms": median(steps),
        "slowest_step_ms": max(steps),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="report-page", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--blocks", type=int, default=31, help="transformer blocks (default: 31)")
    parser.add_argument("--texts", type=int, default=200, help="texts a language (default: 200)")
    parser.add_argument("--keep", type=Path, help="keep the page in this file")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder / "texts.jsonl", arguments.texts)
        models = save_models(folder, arguments.blocks)
        run = api.run(models=models, data=folder / "texts.jsonl", out=folder / "run.zarr")
        page = arguments.keep or folder / "page.html"
        start, cpu = time.perf_counter(), time.process_time()
        report(run, page)
        made = {"made_s": time.perf_counter() - start, "made_cpu_s": time.process_time() - cpu}
        result = {"bytes": sizes(page.read_text("utf-8")), **made, **in_browser(page)}
    result |= {"machine": harness.machine(), "size_mb": result["bytes"]["all"] / 1e6}
    lines = [f"{part:<20}{size / 1e3:>10,.0f} KB" for part, size in result["bytes"].items()]
    lines += [f"{key:<20}{result[key]:>10.3g}" for key in (*made, "open_s", "script_s", "step_ms",
              "slowest_step_ms")]  # fmt: skip
    lines += [
        f"{key}: {result[key]:.3g}, goal {goal:g}: {'met' if result[key] <= goal else 'MISSED'}"
        for key, goal in GOALS.items()
    ]
    harness.finish("report-page", result, arguments.json, "\n".join(lines))
    return 0
