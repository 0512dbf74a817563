"""What other front ends call: typed requests, events and results."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import info
from .analysis import compare, directions, parallel, separation
from .bench import Bench, bench_model
from .config import RunConfig
from .data import NUM_FOLDS, Samples, read_samples
from .errors import ConfigError, ModelError, StoreError
from .extract import (
    COMPONENTS,
    Event,
    Extraction,
    LanguageDone,
    ModelDone,
    Note,
    Plan,
    Planned,
    Progressed,
    Verification,
    Verified,
    compile_blocks,
    make_plan,
    seeded_projection,
    share_prefix,
    token_budget,
    verify_model,
)
from .models import LoadedModel, ModelSpec, load_model, parse_model, resolve_layers, tokenize
from .store import (
    Claim,
    Growth,
    ModelWriter,
    Place,
    Progress,
    Report,
    Run,
    alone,
    check,
    clear,
    consolidate,
    create_run,
    discard,
    half_made,
    resume_run,
    save_results,
    settle,
)

if TYPE_CHECKING:
    import zarr

API_VERSION = 1
"""Grows when a name of this module changes its meaning."""

__all__ = [
    "API_VERSION",
    "Bench",
    "Event",
    "LanguageDone",
    "ModelDone",
    "Note",
    "Planned",
    "Progressed",
    "Report",
    "Run",
    "RunConfig",
    "Verification",
    "Verified",
    "bench",
    "check",
    "compare",
    "directions",
    "iter_run",
    "open_run",
    "parallel",
    "run",
    "save_results",
    "separation",
    "verify",
]


def run(config: RunConfig, on_event: Callable[[Event], None] | None = None) -> Run:
    """Run every model over the data and return the finished store.

    Args:
        config: what to run.
        on_event: called with every event, in order.

    Raises:
        SafetySpaceError: a clear reason; what was written before it is kept for `resume`.
    """
    for event in iter_run(config):
        if on_event is not None:
            on_event(event)
    return open_run(config.out)


def iter_run(config: RunConfig) -> Generator[Event, None, None]:
    """The same as `run`, event by event; closing the iterator stops cleanly, to be resumed."""
    specs = [parse_model(text) for text in config.models]
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ConfigError(f"models: two have the same name in {', '.join(names)}; use NAME=MODEL")
    place = Place(config.out)
    if place.exists() and not (config.overwrite or config.resume or half_made(place)):
        raise StoreError(f"{place}: exists already; go on with --resume or use --overwrite")

    notes: list[str] = []
    samples = read_samples(
        config.data,
        strict=config.strict,
        languages=config.languages,
        limit=config.limit,
        on_note=notes.append,
    )
    for note in notes:
        yield Note("", note)
    content: dict[str, Any] = {
        "created_by": f"safetyspace-fast {info.package_versions()['safetyspace-fast']}",
        "data_name": samples.name,
        "data_sha256": samples.sha256,
        "languages": samples.languages,
        "samples": sample_columns(samples),
    }
    growth = None
    with ExitStack() as claims:
        with alone(place.work):
            settle(place)
            held = {}
            for name in names:
                claim = Claim(place.work / name, f"{place}: model {name!r}")
                held[name] = claims.enter_context(claim).left_by
            if config.resume and place.exists() and not half_made(place):
                there = open_run(config.out)
                if there.attrs["data_sha256"] == samples.sha256:
                    root = resume_run(config.out, samples=content["samples"])
                else:
                    growth = Growth(there, samples.languages, content["samples"])
                    root = growth.open(names, **content)
                    config = replace(config, out=growth.location)
            else:
                discard(place, names)
                root = create_run(config.out, **content, overwrite=config.overwrite)
        for name, gone in held.items():
            if gone is not None:
                yield Note(name, f"taken over from process {gone['pid']}, which is gone")
        for spec in specs:
            yield from _run_model(spec, config, samples, root, growth)
        with alone(place.work):
            consolidate(config.out)
            waiting = growth.finish(names) if growth else None
        if waiting:
            yield Note("", waiting)


def open_run(path: str | Path) -> Run:
    """Open a store, lazily and read-only.

    Raises:
        StoreError: no store is there, or its format is newer than this package.
    """
    return Run(path)


def verify(
    model: str,
    data: str,
    *,
    samples: int = 32,
    languages: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Verification:
    """Hold the engine against transformers' own `output_hidden_states` on a few texts.

    Args:
        model: `[NAME=]BASE[+ADAPTER]`.
        data: data file, directory, hub id or `sample:polite`.
        samples: how many texts, taken evenly over languages and lengths.
        languages: only these.
        progress: called with the texts done and their number, over all passes.
        options: `layers`, `poolings`, `template`, `device`, `dtype` and others of
            `extract.verify_model`.

    Raises:
        SafetySpaceError: the model or the data cannot be read. What is found wrong is no error
            here: see `Verification.verdict`.
    """
    texts = _texts_for(data, samples, languages)
    return verify_model(parse_model(model), texts, num_texts=samples, progress=progress, **options)


def bench(
    model: str,
    data: str,
    *,
    samples: int = 128,
    languages: Sequence[str] | None = None,
    template: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    **loading: Any,
) -> Bench:
    """Time the engine on a few of the texts, beside `output_hidden_states` in padded batches.

    Args:
        model: `[NAME=]BASE[+ADAPTER]`.
        data: data file, directory, hub id or `sample:polite`.
        samples: how many texts, taken evenly over languages and lengths.
        languages: only these.
        template: as in a run.
        progress: called with the steps done and their number.
        loading: `device`, `dtype` and others of `models.load_model`.

    Raises:
        SafetySpaceError: the model or the data cannot be read.
    """
    texts = _texts_for(data, samples, languages)
    loaded = load_model(parse_model(model), **({"device": "auto"} | loading))
    return bench_model(loaded, texts, num_texts=samples, template=template, progress=progress)


def _texts_for(data: str, number: int, languages: Sequence[str] | None) -> Samples:
    if number < 1:
        raise ConfigError(f"samples: got {number}, expected at least 1")
    return read_samples(data, languages=tuple(languages) if languages is not None else None)


def sample_columns(samples: Samples) -> dict[str, Any]:
    """The columns of a store's `samples` group."""
    return {
        "file_position": samples.file_position,
        "text_sha256": samples.text_sha256,
        "n_chars": [len(text) for text in samples.texts],
        "lang": samples.lang_index,
        "label": samples.labels,
        "pair": samples.pair,
        "item": samples.item,
        "fold": samples.fold,
    }


def axis_sizes(
    samples: Samples,
    hookpoints: Sequence[str],
    poolings: Sequence[str],
    hidden_size: int,
    proj_dim: int,
) -> dict[str, int]:
    """Length of every axis of a model's arrays."""
    return {
        "layer": len(hookpoints),
        "pooling": len(poolings),
        "sample": len(samples),
        "lang": len(samples.languages),
        "hidden": hidden_size,
        "proj": proj_dim,
        "component": COMPONENTS,
        "class": 2,
        "label": 2,
        "fold": NUM_FOLDS,
    }


def _run_model(
    spec: ModelSpec,
    config: RunConfig,
    samples: Samples,
    root: "zarr.Group",
    growth: Growth | None,
) -> Iterator[Event]:
    group = f"models/{spec.name}"
    attributes: dict[str, Any] = dict(root[group].attrs) if group in root else {}
    if attributes.get("complete"):
        clear(Place(config.out).work / spec.name)  # an interrupt may have come before `close`
        yield Note(spec.name, "complete in the store already; nothing to do")
        return
    impl = None if config.impl == "auto" else config.impl
    loading: dict[str, Any] = {
        "device": config.device,
        "dtype": config.dtype,
        "allow_pickle": config.allow_pickle,
        "trust_remote_code": config.trust_remote_code,
    }
    reading: dict[str, Any] = {
        "template": config.template,
        "poolings": config.poolings,
        "max_tokens": config.max_tokens,
    }
    if config.verify:
        verification = verify_model(
            spec, samples, layers=config.layers, impl=impl, **loading, **reading
        )
        if verification.problem is not None:
            raise ModelError(verification.problem)
        yield Verified(spec.name, verification)
    notes: list[str] = []
    model = load_model(spec, on_note=notes.append, **loading)
    hookpoints = resolve_layers(config.layers, model.hookpoints)
    tokens = tokenize(model, samples.texts, **reading)
    whole = tokens
    prefix, tokens, reason = share_prefix(model, whole)
    if reason is not None:
        notes.append(reason)
    if config.compile:
        compile_blocks(model, tokens, prefix)
    before, kept = growth.kept(spec.name) if growth else ({}, {})
    begun = attributes.get("manifest", before)
    budget = config.token_budget or begun.get("token_budget")
    budget = budget or token_budget(model, tokens, prefix)
    plan = make_plan(tokens, samples.lang_ranges, token_budget=budget)
    projection = seeded_projection(model.hidden_size, config.proj_dim, config.seed)
    manifest = _manifest(config, samples, model, hookpoints, tokens.template.sha256, plan, budget)
    sizes = axis_sizes(samples, hookpoints, config.poolings, model.hidden_size, config.proj_dim)
    writer = ModelWriter(root, spec.name, sizes)
    if before and "manifest" not in attributes:  # where texts are new, data and plan are too
        plans = manifest["plan_sha256"] | {lang: before["plan_sha256"][lang] for lang in kept}
        begun = before | {"data_sha256": samples.sha256, "plan_sha256": plans}
    if begun and (differing := [key for key in manifest if begun.get(key) != manifest[key]]):
        raise StoreError(
            f"{config.out}: model {spec.name!r} was begun with another {', '.join(differing)}; "
            "resume with the same settings, or give it another NAME="
        )
    writer.create(
        {
            "hookpoints": hookpoints,
            "poolings": config.poolings,
            "model": model.identity,
            "manifest": manifest,
        }
    )
    writer.write("n_tokens", tokens.n_text_tokens)  # each time: a crash may have come before it
    writer.write("truncated", tokens.truncated)
    row_shape = (len(hookpoints), len(config.poolings), model.hidden_size + config.proj_dim)
    progress = Progress(config.out, spec.name, row_shape)
    extraction = Extraction(
        model,
        samples,
        tokens,
        plan,
        hookpoints,
        projection,
        writer,
        progress,
        kept={samples.languages.index(lang): arrays for lang, arrays in kept.items()},
        impl=impl,
        prefix=prefix,
    )
    yield Planned(
        spec.name,
        hookpoints=len(hookpoints),
        hidden_size=model.hidden_size,
        texts=len(samples.texts),
        unique_texts=plan.unique_texts,
        texts_done=extraction.texts_done,
        prefix_tokens=whole.prefix_length if prefix is not None else 0,
        tokens=plan.tokens,
        padded_tokens=plan.padded_tokens,
        batches=sum(1 for _ in plan),
        truncated=int(tokens.truncated.sum()),
        segment_bytes=extraction.segment_bytes,
    )
    for note in notes:
        yield Note(spec.name, note)
    if growth:
        new = ", ".join(lang for lang in samples.languages if lang not in kept) or "none"
        yield Note(
            spec.name, f"languages kept from the store: {', '.join(kept) or 'none'}; to run: {new}"
        )
    yield from extraction
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    writer.finish(
        {
            "versions": info.package_versions(),
            "device": str(model.device),
            "impl": config.impl,
            "forward_seconds": extraction.forward_seconds,
            "finish_seconds": extraction.finish_seconds,
            "tokens": extraction.tokens,
            "ended": ended,
        }
    )
    progress.close()
    yield ModelDone(
        spec.name,
        texts=len(samples.texts),
        tokens=extraction.tokens,
        forward_seconds=extraction.forward_seconds,
        finish_seconds=extraction.finish_seconds,
        peak_device_bytes=extraction.peak_device_bytes,
    )


def _manifest(
    config: RunConfig,
    samples: Samples,
    model: LoadedModel,
    hookpoints: tuple[str, ...],
    template_sha256: str,
    plan: Plan,
    budget: int,
) -> dict[str, Any]:
    """All that decides the numbers of a model; a resumed run must agree in every entry."""
    return {
        "data_sha256": samples.sha256,
        **{key: model.identity[key] for key in ("weights_sha256", "config_sha256")},
        "tokenizer_sha256": model.identity["tokenizer_sha256"],
        "dtype": str(model.dtype).removeprefix("torch."),
        "template": config.template,
        "template_sha256": template_sha256,
        "hookpoints": list(hookpoints),
        "poolings": list(config.poolings),
        "max_tokens": config.max_tokens,
        "proj_dim": config.proj_dim,
        "seed": config.seed,
        "compile": config.compile,
        "token_budget": budget,
        "plan_sha256": dict(zip(samples.languages, plan.sha256, strict=True)),
    }
