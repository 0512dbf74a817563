"""How often intervals cover, and how often p rejects where nothing separates.

The whole product is asked, from texts to printed numbers. A model is made whose token embeddings
are drawn states; a text is one word, repeated; so that `run` at the layer `embed` pools exactly
what was drawn. Each language is one draw: a store of 400 languages is 400 draws. An interval covers
if it holds the mean of its number over all draws. That is what `low` and `high` are about; they
know nothing of the other draws.

A run waits until its bytes are on the disk; where that is slow, set TMPDIR to a folder in memory.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import harness

if TYPE_CHECKING:
    import xarray

    from safetyspace_fast import Run

WIDTH = 64
LANGUAGES = ["q" + a + b for a, b in product(ascii_lowercase[:20], ascii_lowercase)]
"""ISO 639 keeps qaa to qtz for private use."""
MODELS = "base", "aligned"
QUESTIONS = "separation", "compare"
BESIDE = {
    "auc_length": "auc_length",
    "auc_lexical": "auc_lexical",
    "cka": "cka",
    "direction_cosine": "direction",
    "transfer_auc": "transfer",
}
"""Numbers beside the metrics, and how the names of their ends start."""
FAMILY = 8
"""Languages of one result, over all of whose numbers p_family is corrected."""
COVERAGE = 0.92, 0.98
LEVEL = 0.03, 0.07


@dataclass(frozen=True)
class Design:
    """What the texts of a language are drawn from.

    counts: texts of each class. shift: between the classes, in standard deviations of each of four
    dimensions; the aligned model has `more` times as much. tail: degrees of freedom of Student's t;
    infinite: normal. scale: of the first dimension, against the others. cluster: texts of a
    cluster, whose intraclass correlation is 0.3. copies: how often each text stands in the data.
    pairs: whether a harmless and a harmful text share their content. draws: languages, at most.
    """

    counts: tuple[int, int]
    shift: float
    more: float = 1.3
    tail: float = math.inf
    scale: float = 1.0
    cluster: int = 1
    copies: int = 1
    pairs: bool = False
    draws: int = 400


DESIGNS = {
    "12 + 12": Design((12, 12), 0.9),
    "50 + 50": Design((50, 50), 0.5),
    "150 + 150": Design((150, 150), 0.5),
    "2500 + 2500": Design((2500, 2500), 0.3, draws=60),
    "190 + 10": Design((190, 10), 0.7),
    "heavy tails, 60 + 60": Design((60, 60), 0.9, tail=3),
    "heavy tails, 190 + 10": Design((190, 10), 1.2, tail=3),
    "one huge dimension, 60 + 60": Design((60, 60), 0.5, scale=1000),
    "clusters of 6, 120 + 120": Design((120, 120), 0.7, cluster=6),
    "4 copies, 100 + 100": Design((100, 100), 0.7, copies=4),
    "pairs, 12": Design((12, 12), 0.4, pairs=True),
    "pairs, 60": Design((60, 60), 0.3, pairs=True),
    "near 1, 60 + 60": Design((60, 60), 2.0),
}


@dataclass(frozen=True)
class Drawn:
    """The texts of one language: states [2, n, WIDTH] in both models, and columns [n].

    pair, cluster: -1 where a text has none.
    """

    states: NDArray[np.float32]
    label: NDArray[np.int64]
    pair: NDArray[np.int64]
    cluster: NDArray[np.int64]


def draw(design: Design, rng: np.random.Generator) -> Drawn:
    """Draw the texts of one language; copies are not yet made."""
    n0, n1 = (count // design.copies for count in design.counts)
    n = n0 + n1
    label = np.tile([0, 1], n0) if design.pairs else np.repeat([0, 1], [n0, n1])
    pair = np.arange(n) // 2 if design.pairs else np.full(n, -1)
    cluster = np.arange(n) // design.cluster if design.cluster > 1 else np.full(n, -1)

    def noise(*rows: int) -> NDArray[np.float64]:
        if math.isinf(design.tail):
            return rng.standard_normal((*rows, WIDTH))
        return rng.standard_t(design.tail, (*rows, WIDTH))

    x = math.sqrt(0.8) * noise(n) + math.sqrt(0.2) * noise(2, n)
    if design.pairs:
        x = x / 2 + 1.5 * noise(n0)[pair]
    if design.cluster > 1:
        x = math.sqrt(0.7) * x + math.sqrt(0.3) * noise(cluster[-1] + 1)[cluster]
    shift = np.array([design.shift, design.shift * design.more])
    x[..., 1:5] += (shift[:, None] * label)[..., None]
    x *= np.exp(-0.03 * np.arange(WIDTH))
    x[..., 0] *= design.scale
    return Drawn(x.astype(np.float32), label, pair, cluster)


def words(number: int) -> list[str]:
    """Different words of random letters."""
    rng, vocabulary = np.random.default_rng(0), dict[str, None]()
    while len(vocabulary) < number:
        for row in rng.integers(0, 26, (number, 9)):
            vocabulary["".join(ascii_lowercase[i] for i in row)] = None
    return list(vocabulary)[:number]


def write(drawn: Sequence[Drawn], copies: int, folder: Path) -> None:
    """Write both models, and the data whose states they hold."""
    import tokenizers
    import torch
    import transformers

    states = np.concatenate([one.states for one in drawn], 1)
    vocabulary = words(states.shape[1])
    ids = {word: i for i, word in enumerate(vocabulary)}
    word_level = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=vocabulary[0]))
    word_level.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    for name, embedding in zip(MODELS, states, strict=True):
        model = transformers.LlamaForCausalLM(config)
        model.get_input_embeddings().weight.data = torch.from_numpy(embedding)
        model.save_pretrained(folder / name)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_level)
        tokenizer.save_pretrained(folder / name)

    rng, word = np.random.default_rng(1), iter(vocabulary)
    with (folder / "data.jsonl").open("w") as file:
        for lang, one in zip(LANGUAGES, drawn, strict=False):
            times = rng.integers(2, 12, len(one.label))  # lengths that say nothing
            for i, label in enumerate(one.label):
                row = {"text": " ".join([next(word)] * times[i]), "label": int(label), "lang": lang}
                row |= {"pair": int(one.pair[i])} if one.pair[i] >= 0 else {}
                row |= {"cluster": int(one.cluster[i])} if one.cluster[i] >= 0 else {}
                file.write((json.dumps(row) + "\n") * copies)


def run_models(folder: Path) -> "Run":
    """Run both models over the data that `write` left in a folder."""
    import safetyspace_fast as ssf

    return ssf.run(
        models=[f"{model}={folder / model}" for model in MODELS],
        data=folder / "data.jsonl",
        out=folder / "run.zarr",
        layers="embed",
        poolings=["mean"],
        template="none",
        dtype="float32",
        device="cpu",
    )


def results(design: Design, draws: int, seed: int) -> Iterator[list["xarray.Dataset"]]:
    """`separation` of the base model, of all metrics, and `compare` of both, of default ones.

    Each result has `FAMILY` languages.
    """
    import safetyspace_fast as ssf
    from safetyspace_fast.analysis.families import METRICS

    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write([draw(design, rng) for _ in range(draws)], design.copies, folder)
        run = run_models(folder)
        base, aligned = MODELS
        families = [run.languages[first : first + FAMILY] for first in range(0, draws, FAMILY)]
        metrics = [name for name, metric in METRICS.items() if not metric.alias_of]
        yield [ssf.separation(run, models=base, metrics=metrics, languages=one) for one in families]
        yield [
            ssf.compare(run, base=base, aligned=aligned, languages=one, reference=None)
            for one in families
        ]


def rates(families: Sequence["xarray.Dataset"], value: str) -> dict[str, dict[str, float]]:
    """By metric: the shares of draws that are refused, that are covered, and with p <= 0.05.

    A share is NaN where a metric has no interval, or no p. Numbers that stand beside the metrics,
    such as the AUC of length, have rows too.

    Args:
        families: of `separation` or `compare`, with one model, layer and pooling.
        value: the variable whose intervals are `low` and `high`.
    """
    import xarray

    names = [value, "low", "high", "p"]
    for name, start in BESIDE.items():
        if name in families[0] and families[0][name].sizes.get("model", 1) == 1:
            names += [name, f"{start}_low", f"{start}_high"]
    joined = xarray.concat([family[names] for family in families], "lang")
    rows = {}
    for i, name in enumerate(joined["metric"].to_numpy().tolist()):
        parts = (joined[part].isel(metric=i) for part in (value, "low", "high", "p"))
        rows[name] = rates_of(*(part.to_numpy().ravel() for part in parts))
    for name, start in BESIDE.items():
        if name in joined:
            parts = (joined[part] for part in (name, f"{start}_low", f"{start}_high"))
            rows[name] = rates_of(*(part.to_numpy().ravel() for part in parts))
    return rows


def rates_of(
    value: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    p: NDArray[np.float64] | None = None,
) -> dict[str, float]:
    """The rates of one number, all `[draw]`."""
    known = np.isfinite(value) & ~np.isnan(low)
    tested = np.isfinite(value if p is None else p) & (p is not None)
    inside = (low <= value[known].mean()) & (value[known].mean() <= high) if known.any() else known
    return {
        "refused": float(np.isnan(value).mean()),
        "covered": float(inside[known].mean()) if known.any() else math.nan,
        "rejected": float((p[tested] <= 0.05).mean())
        if p is not None and tested.any()
        else math.nan,
    }


def simulate(name: str, draws: int, seed: int) -> dict[str, Any]:
    """Rates of one design: {question: {metric: rates}}, with a shift and without one."""
    design = DESIGNS[name]
    n = min(draws, design.draws)
    simulated: dict[str, Any] = {"draws": n}
    for kind, law in (("shift", design), ("null", replace(design, shift=0.0))):
        separation, compare = results(law, n, seed)
        simulated[kind] = {
            "separation": rates(separation, "value"),
            "compare": rates(compare, "difference"),
            "starred": [starred(separation), starred(compare)],
        }
    return simulated


def starred(families: Sequence["xarray.Dataset"]) -> list[int]:
    """How many families have a number with p_family <= 0.05, and how many there are."""
    return [sum(bool((one["p_family"] <= 0.05).any()) for one in families), len(families)]


def spread_of(
    rows: Mapping[str, Mapping[str, float]], rate: str, limits: tuple[float, float]
) -> str:
    """The median of a rate over metrics, how many are within the limits, and which are not."""
    known = {name: row[rate] for name, row in rows.items() if not math.isnan(row[rate])}
    low, high = limits
    ordered = sorted(known, key=known.__getitem__)
    below, above = (
        ", ".join(f"{name} {known[name]:.3f}" for name in ordered if test(known[name])) or "none"
        for test in (low.__gt__, high.__lt__)
    )
    within = sum(low <= x <= high for x in known.values())
    return (
        f"median {median(known.values()):.3f}; {within} of {len(known)} within {low:.0%} to "
        f"{high:.0%}; below: {below}; above: {above}"
    )


def text_of(report: Mapping[str, Any]) -> str:
    """A paragraph for each design."""
    lines = []
    for name, one in report["designs"].items():
        n = one["draws"]
        lines.append(f"{name}: {n} draws know 5 % to {math.sqrt(0.05 * 0.95 / n):.1%}")
        for question in QUESTIONS:
            for kind, rate, limits, what in (
                ("shift", "covered", COVERAGE, "intervals, classes apart"),
                ("null", "covered", COVERAGE, "intervals, no difference"),
                ("null", "rejected", LEVEL, "p <= 0.05, no difference"),
            ):
                told = spread_of(one[kind][question], rate, limits)
                lines.append(f"  {question:10} {what}: {told}")
        for question, (stars, families) in zip(QUESTIONS, one["null"]["starred"], strict=True):
            lines.append(f"  {question:10} a false star: in {stars} of {families} results")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks coverage", description=__doc__)
    parser.add_argument("--design", action="append", choices=list(DESIGNS), help="default: all")
    parser.add_argument("--draws", type=int, default=400, help="at most 520")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if not 2 <= options.draws <= len(LANGUAGES):
        parser.error(f"--draws: got {options.draws}, expected 2 to {len(LANGUAGES)}")
    report: dict[str, Any] = {"machine": harness.machine(), "seed": options.seed, "designs": {}}
    for name in options.design or DESIGNS:
        report["designs"][name] = simulate(name, options.draws, options.seed)
        print(name, "done", file=sys.stderr, flush=True)
    harness.finish("coverage", report, options.json, text_of(report))
    return 0
