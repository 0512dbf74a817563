"""A run: its models one after the other, from a config to a complete store.

Each model takes five steps: load, prepare, begin, extract, finish.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from ..config import RunConfig, data_fields
from ..data import Samples
from ..extract import Event, Extraction, ModelDone, Note
from ..extract.blocks import StreamedExtraction, refuse_small_scratch
from ..extract.finish import Basis
from ..models import LoadedModel, ModelSpec, device_errors
from ..store import Claim, Kept, Place, Run, Session, Shared, alone, clear, consolidate, settle
from .bases import Foreign, bases_in_store, foreign_bases, refuse_other_bases
from .earlier import as_today, batching_of, refuse_other_mean, refuse_other_run, usable
from .output import RunOutput, refuse_existing
from .steps import (
    Steps,
    begin,
    how_it_ran,
    implementation,
    load_one,
    manifest_of,
    planned,
    prepare_one,
    specs_of,
    verified,
)

_ALONE = Steps()
"""Of a run that shares nothing with others."""


def run_models(config: RunConfig, steps: Steps = _ALONE) -> Generator[Event, None, None]:
    """Run every model of a config; yields events, and stops cleanly when it is closed.

    Args:
        config: what to run.
        steps: how data are read, models loaded and texts tokenised.

    Raises:
        SafetySpaceError: the reason, in one line; finished work is kept.
    """
    specs = specs_of(config.models)
    names = [spec.name for spec in specs]
    place = Place(config.out)
    refuse_existing(config)
    notes: list[str] = []
    samples = steps.read(
        config.data,
        on_note=notes.append,
        **data_fields(config),
    )
    for note in notes:
        yield Note("", note)
    with ExitStack() as claims:
        with alone(place.work):
            settle(place)
            left_by = {}
            for name in names:
                claim = Claim(place.work / name, f"{place}: model {name!r}")
                left_by[name] = claims.enter_context(claim).left_by
            output = RunOutput(config, names, samples)
            if output.goes_on():
                output.open()
        for name, owner in left_by.items():
            if owner is not None:
                process = f"process {owner['pid']} on {owner['host']}"
                yield Note(name, f"taken over from {process}, which has ended")
        told: list[str] = []
        templates = steps.choose_templates(
            specs,
            config.template,
            allow_pickle=config.allow_pickle,
            trust_remote_code=config.trust_remote_code,
            on_note=told.append,
        )
        for note in told:
            yield Note("", note)
        foreign = {spec.name: foreign_bases(spec.name, config) for spec in specs}
        for spec in specs:
            refuse_other_run(spec, config, output.attributes(spec.name), foreign[spec.name])
        for spec in specs:
            yield from _run_model(
                spec, config, steps, samples, output, templates, foreign[spec.name]
            )
        with alone(place.work):
            consolidate(str(output.place))
            waiting = output.growth.finish(names) if output.growth else None
        if waiting:
            yield Note("", waiting)


def _run_model(
    spec: ModelSpec,
    config: RunConfig,
    steps: Steps,
    samples: Samples,
    output: RunOutput,
    templates: Mapping[str, str | None],
    foreign: Mapping[str, Foreign],
) -> Iterator[Event]:
    """Run one model, if the store does not have it yet."""
    name = spec.name
    stored = output.attributes(name)
    if stored.get("complete"):
        clear(output.place.work / name)  # a crash may have left them
        yield Note(name, "complete in the store already; nothing to do")
        return
    template = templates.get(name)
    used = replace(config, template="none") if templates.get(name, "") is None else config
    if config.verify:
        yield verified(spec, used, samples, template)
    growth = output.growth
    kept = growth.kept(name) if growth else Kept()
    earlier = stored.get("manifest", kept.manifest)
    notes: list[str] = []
    model = load_one(spec, used, steps, template, notes.append)
    work = prepare_one(model, used, steps, samples, batching_of(earlier), notes.append)
    manifest = manifest_of(model, config, samples, work)
    refuse_other_mean(output, name, manifest)
    if model.streamed is not None:
        refuse_small_scratch(model, work, output.place.work, config.scratch)
    kept = usable(kept, manifest, notes.append)
    root = output.root
    if root is None:
        with alone(output.place.work):
            root = output.open()
    # What a model began with, it keeps: an earlier version began it without bases.
    for basis in foreign.values():
        notes += basis.check(work, samples.languages)
    bases = [*bases_in_store(output.place, work), *foreign]
    if "manifest" in stored:
        bases = stored.get("bases", [])
        refuse_other_bases(output, name, bases, foreign)
    session = begin(
        model,
        samples,
        work,
        output.place,
        root,
        manifest=manifest,
        earlier=as_today(stored.get("manifest", kept.manifest_with(manifest))),
        bases=bases,
    )
    impl = implementation(config)
    run = Run(str(output.place))
    reads: dict[str, Callable[[str], Basis]] = {
        other: foreign[other].read if other in foreign else partial(Basis.read, run, other)
        for other in bases
    }
    computed = Shared(output.place, name).computed(samples.languages)
    extraction = _extraction(
        config,
        model,
        samples,
        work,
        session,
        kept={**kept.with_bases(bases), **computed},
        impl=impl,
        bases=[reads[other] for other in bases],
    )
    yield planned(name, samples, work, extraction)
    if growth:
        notes.append(_what_is_kept(samples.languages, kept))
    for note in notes:
        yield Note(name, note)
    with device_errors(
        name,
        "finished batches are kept: repeat the command with --resume to go on, on another --device "
        "if need be",
    ):
        yield from extraction
    yield _finish(model, config, samples, session, extraction)


def _extraction(config: RunConfig, model: LoadedModel, *work: Any, **options: Any) -> Extraction:
    """What runs a model's batches: all blocks at once, or one after the other from disk."""
    if model.streamed is None:
        return Extraction(model, *work, **options)
    return StreamedExtraction(model, *work, scratch=config.scratch, **options)


def _what_is_kept(languages: Sequence[str], kept: Kept) -> str:
    old = ", ".join(kept.languages) or "none"
    new = ", ".join(lang for lang in languages if lang not in kept.languages) or "none"
    return f"languages taken from the store: {old}; to run: {new}"


def _finish(
    model: LoadedModel,
    config: RunConfig,
    samples: Samples,
    session: Session,
    extraction: Extraction,
) -> ModelDone:
    """Mark the model complete; returns the last event."""
    session.finish(
        {
            **how_it_ran(str(model.device), config.impl),
            "tensor_parallel": config.tensor_parallel,
            "forward_seconds": extraction.forward_seconds,
            "finish_seconds": extraction.finish_seconds,
            "tokens": extraction.tokens,
        }
    )
    return ModelDone(
        model.name,
        texts=len(samples),
        tokens=extraction.tokens,
        forward_seconds=extraction.forward_seconds,
        finish_seconds=extraction.finish_seconds,
        peak_device_bytes=extraction.peak_device_bytes,
    )
