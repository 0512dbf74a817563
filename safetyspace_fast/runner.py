"""A run: its models one after the other, from a config to a complete store.

Each model takes five steps: load, prepare, begin, extract, finish.
"""

import calendar
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from . import info
from .config import (
    MEAN_ALL,
    MEAN_WITHOUT_FIRST,
    RunConfig,
    TemplateMode,
    data_fields,
    names_of,
)
from .data import NUM_FOLDS, Samples, lexical_scores, read_samples
from .errors import ConfigError, ModelError, StoreError
from .extract import Event, Extraction, ModelDone, Note, Planned, Verified
from .extract.blocks import StreamedExtraction
from .extract.chance import AXES as CHANCE_AXES
from .extract.finish import Basis
from .extract.loop import Output
from .extract.plan import Batching
from .extract.prepare import Prepared, prepare
from .models import (
    LoadedModel,
    ModelSpec,
    Tokenized,
    choose_templates,
    device_errors,
    hookpoint_names,
    load_model,
    parse_model,
    resolve_layers,
    tokenize,
    weights_changed,
)
from .ops import STATISTICS
from .store import (
    Claim,
    Contents,
    Growth,
    Kept,
    Place,
    Run,
    Session,
    Shared,
    alone,
    clear,
    consolidate,
    create_run,
    discard,
    half_made,
    resume_run,
    settle,
)
from .store.layout import COMPONENTS, Array, Attributes
from .store.session import refuse_other
from .verification import verify_model

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Steps:
    """The steps whose results several runs can share; a sweep gives functions that remember."""

    read: Callable[..., Samples] = read_samples
    choose_templates: Callable[..., dict[str, str | None]] = choose_templates
    load: Callable[..., LoadedModel] = load_model
    tokenize: Callable[..., Tokenized] = tokenize


def run_models(config: RunConfig, steps: Steps = Steps()) -> Generator[Event, None, None]:
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
            output = _Output(config, names, samples)
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
        foreign = {spec.name: _foreign_bases(spec.name, config) for spec in specs}
        for spec in specs:
            _refuse_other(spec, config, output.attributes(spec.name), foreign[spec.name])
        for spec in specs:
            yield from _run_model(
                spec, config, steps, samples, output, templates, foreign[spec.name]
            )
        with alone(place.work):
            consolidate(str(output.place))
            waiting = output.growth.finish(names) if output.growth else None
        if waiting:
            yield Note("", waiting)


def refuse_existing(config: RunConfig) -> None:
    """Raise StoreError if the store exists, and is neither to be gone on with nor overwritten."""
    place = Place(config.out)
    if place.exists() and not (config.overwrite or config.resume or half_made(place)):
        raise StoreError(f"{place}: exists already; continue with --resume, or --overwrite it")


def start_afresh(config: RunConfig, names: Sequence[str]) -> None:
    """Replace a store by one without models, to which workers then add these."""
    samples = read_samples(config.data, on_note=lambda _: None, **data_fields(config))
    place = Place(config.out)
    with ExitStack() as claims:
        for name in names:
            claims.enter_context(Claim(place.work / name, f"{place}: model {name!r}"))
        with alone(place.work):
            settle(place)
            _Output(config, names, samples).open()


def specs_of(models: Sequence[str]) -> list[ModelSpec]:
    """The models of one store; raises ConfigError if two have the same name."""
    specs = [parse_model(text) for text in models]
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ConfigError(f"models: two have the same name in {', '.join(names)}; use NAME=MODEL")
    return specs


class _Output:
    """The store of a run. One that is not there yet is made when its first model is ready."""

    def __init__(self, config: RunConfig, names: Sequence[str], samples: Samples) -> None:
        """Open and make nothing yet.

        Args:
            config: of the run.
            names: the models that the run has claimed.
            samples: what the store is to hold.
        """
        self.place = Place(config.out)
        """Where models are written; of a store that grows, another place until all is done."""
        self.root: zarr.Group | None = None
        """None: not opened yet."""
        self.growth: Growth | None = None
        """How the store grows, if it has fewer samples."""
        self._config = config
        self._names = names
        self._samples = samples

    def goes_on(self) -> bool:
        """Whether the run adds to a store that is there."""
        return self._config.resume and self.place.exists() and not half_made(self.place)

    def open(self) -> zarr.Group:
        """Open or make the store; the caller is `alone`.

        Raises:
            StoreError: it cannot be opened, made or replaced.
        """
        contents: Contents = {
            "created_by": f"safetyspace-fast {info.package_versions()['safetyspace-fast']}",
            "data_name": self._samples.name,
            "data_sha256": self._samples.sha256,
            "languages": self._samples.languages,
            "samples": sample_columns(self._samples),
        }
        if not self.goes_on():
            discard(self.place, self._names)
            self.root = create_run(str(self.place), overwrite=self._config.overwrite, **contents)
            return self.root
        run = Run(str(self.place))
        if run.attrs["data_sha256"] == self._samples.sha256:
            self.root = resume_run(str(self.place), samples=contents["samples"])
            return self.root
        self.growth = Growth(run, self._samples.languages, contents["samples"])
        self.root = self.growth.open(self._names, **contents)
        self.place = Place(self.growth.location)
        return self.root

    def attributes(self, name: str) -> Attributes:
        """The attributes of a model in the store; empty if it is not in it."""
        group = f"models/{name}"
        return dict(self.root[group].attrs) if self.root is not None and group in self.root else {}


def sample_columns(samples: Samples) -> dict[str, Array]:
    """The arrays of a store's group `samples`, by name."""
    return {
        "file_position": samples.file_position,
        "text_sha256": samples.text_sha256,
        "n_chars": np.array([len(text) for text in samples.texts]),
        "lang": samples.lang_index,
        "label": samples.labels,
        "pair": samples.pair,
        "item": samples.item,
        "cluster": samples.cluster,
        "fold": samples.fold,
        "lexical_score": lexical_scores(samples),
    }


def axis_sizes(samples: Samples, work: Prepared, n_bases: int = 0) -> dict[str, int]:
    """Lengths of the axes of a model's arrays."""
    hidden_size, proj_dim = work.projection.shape
    return {
        "layer": len(work.hookpoints),
        "pooling": len(work.tokens.poolings),
        "sample": len(samples),
        "lang": len(samples.languages),
        "hidden": hidden_size,
        "proj": proj_dim,
        "component": COMPONENTS,
        "basis": n_bases,
        "class": 2,
        "label": 2,
        "fold": NUM_FOLDS,
        **CHANCE_AXES,
    }


def _refuse_other(
    spec: ModelSpec, config: RunConfig, stored: Attributes, foreign: Collection[str]
) -> None:
    """Raise StoreError if a finished model of this name was run from other files or in another way.

    An unfinished one is compared when its session begins.
    """
    if not stored.get("complete"):
        return
    try:
        manifest, identity = dict(stored["manifest"]), dict(stored["model"])
        hookpoints = list(manifest["hookpoints"])
        ended = calendar.timegm(time.strptime(stored["ended"], _TIME_FORMAT))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{config.out}: model {spec.name!r}: damaged metadata; `check` lists all damage"
        ) from error
    asked = {
        key: getattr(config, key)
        for key in ("template", "max_tokens", "proj_dim", "seed", "compile")
    } | {"poolings": list(config.poolings)}
    if config.dtype != "auto":
        asked["dtype"] = config.dtype
    differing = [key for key in asked if key in manifest and manifest[key] != asked[key]]
    if not _are_layers(config.layers, hookpoints):
        differing.append("layers")
    if weights_changed(
        spec,
        identity,
        ended,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
    ):
        differing.append("weights")
    if not set(foreign) <= set(stored.get("bases", [])):
        differing.append("basis")
    if differing:
        raise StoreError(
            f"{config.out}: model {spec.name!r} is complete, and was run with another "
            f"{', '.join(differing)}; leave it out, or choose another NAME="
        )


def _are_layers(asked: str | Sequence[str], stored: Sequence[str]) -> bool:
    """Whether these are the hookpoints that a finished model has."""
    if asked == "all":
        return tuple(stored) == hookpoint_names(len(stored) - 2)
    try:
        return resolve_layers(asked, stored) == tuple(stored)
    except ConfigError:
        return False


def _run_model(
    spec: ModelSpec,
    config: RunConfig,
    steps: Steps,
    samples: Samples,
    output: _Output,
    templates: Mapping[str, str | None],
    foreign: Mapping[str, "_Foreign"],
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
        yield _verified(spec, used, samples, template)
    growth = output.growth
    kept = growth.kept(name) if growth else Kept()
    earlier = stored.get("manifest", kept.manifest)
    notes: list[str] = []
    model = _load(spec, used, steps, template, notes.append)
    work = _prepare(model, used, steps, samples, _batching(earlier), notes.append)
    manifest = _manifest(model, config, samples, work)
    _refuse_other_mean(output, name, manifest)
    kept = _usable(kept, manifest, notes.append)
    root = output.root
    if root is None:
        with alone(output.place.work):
            root = output.open()
    # What a model began with, it keeps: an earlier version began it without bases.
    for basis in foreign.values():
        notes += basis.check(work, samples.languages)
    bases = [*_bases(output.place, work), *foreign]
    if "manifest" in stored:
        bases = stored.get("bases", [])
        _refuse_other_bases(output, name, bases, foreign)
    session = begin(
        model,
        samples,
        work,
        output.place,
        root,
        manifest=manifest,
        earlier=_as_today(stored.get("manifest", kept.manifest_with(manifest))),
        bases=bases,
    )
    impl = _implementation(config)
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
    yield _planned(name, samples, work, extraction)
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


def _as_today(manifest: Attributes) -> Attributes:
    """A stored manifest, with what those of earlier versions do not say.

    Their `mean` was `mean_all`, and all devices had the batches of a CPU.
    """
    usual = {key: value for key, value in asdict(Batching(0)).items() if key != "token_budget"}
    return {"mean": MEAN_ALL} | usual | manifest if manifest else manifest


def _batching(manifest: Attributes) -> Batching | None:
    """How an earlier run cut its batches; None: there was none."""
    if "token_budget" not in manifest:
        return None
    today = _as_today(manifest)
    return Batching(**{field.name: today[field.name] for field in fields(Batching)})


def _other_mean(earlier: Attributes, manifest: Attributes) -> bool:
    """Whether both manifests have the pooling `mean`, over different tokens."""
    both = "mean" in earlier.get("poolings", ()) and "mean" in manifest
    return both and _as_today(earlier)["mean"] != manifest["mean"]


def _usable(kept: Kept, manifest: Attributes, on_note: Callable[[str], None]) -> Kept:
    """What of a model can be taken over: nothing if its `mean` is another one."""
    if not _other_mean(kept.manifest, manifest):
        return kept
    on_note("its `mean` held the first position of a prompt, so all languages run again")
    return Kept()


def _refuse_other_mean(output: _Output, name: str, manifest: Attributes) -> None:
    """Raise StoreError if an earlier version began the model with another `mean`."""
    if _other_mean(output.attributes(name).get("manifest", {}), manifest):
        raise StoreError(
            f"{output.place}: model {name!r} was begun by an earlier version, whose `mean` holds "
            "the first position of a prompt; --overwrite the store, or choose another NAME="
        )


def _bases(place: Place, work: Prepared) -> list[str]:
    """The finished models in whose components the states of a new one are expressed too.

    They have the same layers, poolings and hidden size, and were not run by an earlier version.
    """
    run = Run(str(place))
    return [
        name
        for name in run.models
        if (other := run.model(name)).has("fold_mean")
        and tuple(other.hookpoints) == tuple(work.hookpoints)
        and tuple(other.poolings) == tuple(work.tokens.poolings)
        and other.read("fold_mean", layer=0, pooling=0, lang=0).shape[-1] == len(work.projection)
    ]


@dataclass(frozen=True)
class _Foreign:
    """A finished model of another store, in whose components states are expressed too."""

    run: Run
    model: str

    def read(self, lang: str) -> Basis:
        """What a language is in it."""
        return Basis.read(self.run, self.model, lang, foreign=True)

    def check(self, work: Prepared, languages: Sequence[str]) -> list[str]:
        """Say which languages it does not have.

        Raises:
            ConfigError: it has other layers, poolings or hidden size, or no directions.
        """
        store, where = self.run.model(self.model), f"basis {self.run.place}:{self.model}"
        if not store.has("fold_mean"):
            raise ConfigError(f"{where}: an earlier version ran it; run it again")
        width = store.read("fold_mean", layer=0, pooling=0, lang=0).shape[-1]
        for what, own, other in (
            ("layers", work.hookpoints, store.hookpoints),
            ("poolings", work.tokens.poolings, store.poolings),
            ("hidden size", (len(work.projection),), (width,)),
        ):
            if tuple(own) != tuple(other):
                has, runs = (", ".join(map(str, names)) for names in (other, own))
                raise ConfigError(f"{where}: has {what} {has}, but this run {runs}; give the same")
        missing = [lang for lang in languages if lang not in self.run.languages]
        return [f"{where}: has no texts in {', '.join(missing)}"] if missing else []


def _foreign_bases(name: str, config: RunConfig) -> dict[str, _Foreign]:
    """The models of `--basis` for a model of this name, by identity.

    Raises:
        StoreError: there is no such store or model.
    """
    found = {}
    for text in names_of("basis", config.basis, single=True):
        path, colon, model = text.rpartition(":")
        if not colon or "/" in model or not model or Path(text).exists():
            path, model = text, name
        run = Run(path)
        found[run.model(model).identity] = _Foreign(run, model)
    return found


def _refuse_other_bases(
    output: _Output, name: str, begun: Sequence[str], foreign: Collection[str]
) -> None:
    """Raise StoreError if a model was begun with other models of other stores as bases."""
    before = {basis for basis in begun if "@" in basis}
    if before != set(foreign):
        raise StoreError(
            f"{output.place}: model {name!r} was begun with basis {', '.join(before) or 'none'}, "
            f"now it is {', '.join(foreign) or 'none'}; give the same --basis, or --overwrite"
        )


def _implementation(config: RunConfig) -> str | None:
    return None if config.impl == "auto" else config.impl


def _verified(
    spec: ModelSpec, config: RunConfig, samples: Samples, chat_template: str | None
) -> Verified:
    """Compare the states of a few texts with transformers'.

    Raises:
        ModelError: they differ by more than rounding.
    """
    verification = verify_model(
        spec,
        samples,
        layers=config.layers,
        poolings=config.poolings,
        template=config.template,
        chat_template=chat_template,
        max_tokens=config.max_tokens,
        device=config.device,
        dtype=config.dtype,
        impl=_implementation(config),
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
    )
    if verification.problem is not None:
        raise ModelError(verification.problem)
    return Verified(spec.name, verification)


def _load(
    spec: ModelSpec,
    config: RunConfig,
    steps: Steps,
    chat_template: str | None,
    on_note: Callable[[str], None],
) -> LoadedModel:
    return steps.load(
        spec,
        device=config.device,
        dtype=config.dtype,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
        chat_template=chat_template,
        weights=config.weights,
        tensor_parallel=config.tensor_parallel,
        on_note=on_note,
    )


def _prepare(
    model: LoadedModel,
    config: RunConfig,
    steps: Steps,
    samples: Samples,
    batching: Batching | None,
    on_note: Callable[[str], None],
    packed: bool | None = None,
) -> Prepared:
    return prepare(
        model,
        samples.texts,
        samples.lang_ranges,
        layers=config.layers,
        poolings=config.poolings,
        template=config.template,
        max_tokens=config.max_tokens,
        proj_dim=config.proj_dim,
        seed=config.seed,
        token_budget=config.token_budget,
        batching=batching,
        packed=packed,
        compiled=config.compile,
        impl=_implementation(config),
        encode=steps.tokenize,
        on_note=on_note,
    )


def begin(
    model: LoadedModel,
    samples: Samples,
    work: Prepared,
    place: Place,
    root: zarr.Group,
    *,
    manifest: Attributes,
    earlier: Attributes | None = None,
    bases: Sequence[str] = (),
) -> Session:
    """Begin to write a model, or go on where an earlier run stopped.

    Args:
        model, samples, work: loaded, read and prepared.
        place, root: of the store; the caller has claimed the model.
        manifest: all that decides the model's numbers.
        earlier: the manifest that an earlier run began the model with; None: a new model.
        bases: models of the store in whose components the states are expressed too.

    Raises:
        StoreError: the manifests differ.
    """
    session = Session(
        place,
        root,
        model.name,
        axis_sizes(samples, work, len(bases)),
        languages=samples.lang_ranges,
        parts=[[part.number for part in parts] for parts in work.plan.languages],
        attributes={
            "hookpoints": work.hookpoints,
            "poolings": work.tokens.poolings,
            "statistics": list(STATISTICS),
            "texts_of_first_position": int(work.tokens.only_first.sum()),
            "model": model.identity,
            "manifest": manifest,
            "bases": list(bases),
        },
        earlier=earlier,
    )
    # Also when a run is resumed: the crash may have come before these lines.
    session.arrays.write("n_tokens", work.tokens.n_text_tokens)
    session.arrays.write("truncated", work.tokens.truncated)
    return session


def _manifest(
    model: LoadedModel, config: RunConfig, samples: Samples, work: Prepared
) -> Attributes:
    """All that decides the numbers of a model; a resumed run must have the same entries."""
    mean = MEAN_WITHOUT_FIRST if work.tokens.begins_with_text.any() else MEAN_ALL
    return {
        "data_sha256": samples.sha256,
        **{key: model.identity[key] for key in ("weights_sha256", "config_sha256")},
        "tokenizer_sha256": model.identity["tokenizer_sha256"],
        "dtype": str(model.dtype).removeprefix("torch."),
        "template": config.template,
        "template_sha256": work.tokens.template.sha256,
        "hookpoints": list(work.hookpoints),
        "poolings": list(config.poolings),
        **({"mean": mean} if "mean" in config.poolings else {}),
        "max_tokens": config.max_tokens,
        "proj_dim": config.proj_dim,
        "seed": config.seed,
        "compile": config.compile,
        **asdict(work.batching),
        "plan_sha256": dict(zip(samples.languages, work.plan.sha256, strict=True)),
    }


def _planned(
    name: str,
    samples: Samples,
    work: Prepared,
    extraction: Extraction,
    texts_done: int | None = None,
) -> Planned:
    return Planned(
        name,
        hookpoints=len(work.hookpoints),
        hidden_size=len(work.projection),
        texts=len(samples),
        unique_texts=work.plan.unique_texts,
        texts_done=extraction.texts_done if texts_done is None else texts_done,
        prefix_tokens=work.prefix_tokens,
        tokens=work.plan.tokens,
        padded_tokens=work.plan.padded_tokens,
        batches=sum(1 for _ in work.plan),
        truncated=int(work.tokens.truncated.sum()),
        segment_bytes=extraction.segment_bytes,
    )


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


def how_it_ran(device: str, impl: str) -> Attributes:
    """Attributes of a model that is complete now."""
    return {
        "versions": info.package_versions(),
        "device": device,
        "impl": impl,
        "ended": time.strftime(_TIME_FORMAT, time.gmtime()),
    }


class OneModel:
    """The steps of a run on one model, one by one, for workers that share the model.

    All take what `run_models` takes, and give what it gives.
    """

    def __init__(
        self,
        config: RunConfig,
        samples: Samples,
        templates: Mapping[str, str | None],
        claimed: Sequence[str],
    ) -> None:
        """Check what can be checked before a model is loaded.

        Args:
            config: of one model; a store that exists is added to.
            samples: what the store holds, or is to hold.
            templates: of `choose_templates`, for all models of the store.
            claimed: these models' names; the caller has claimed them.

        Raises:
            StoreError: the store has the model from other files, or run in another way; or it has
                other texts: only a run in one process makes a store grow.
        """
        (self.spec,) = specs_of(config.models)
        self.name = self.spec.name
        self.samples = samples
        self._config, self._template = config, templates.get(self.name)
        none = templates.get(self.name, "") is None
        template: TemplateMode = "none" if none else config.template
        self._used = replace(config, weights="load", template=template)
        self._output = _Output(replace(config, resume=True), claimed, samples)
        self._foreign = _foreign_bases(self.name, config)
        self._refuse_other_texts()
        _refuse_other(self.spec, config, self._stored(), self._foreign)

    @property
    def place(self) -> Place:
        """The store."""
        return self._output.place

    def _stored(self) -> Attributes:
        """The attributes of the model in the store, as they are now."""
        if not self.place.exists() or half_made(self.place):
            return {}
        root = self.place.group(read_only=True)
        group = f"models/{self.name}"
        return dict(root[group].attrs) if group in root else {}

    def _refuse_other_texts(self) -> None:
        if not self.place.exists() or half_made(self.place):
            return
        if Run(str(self.place)).attrs["data_sha256"] != self.samples.sha256:
            raise StoreError(
                f"{self.place}: has other texts; a store grows in one process: leave out "
                "--devices, --rank and --world-size, or write a new store"
            )

    def is_complete(self) -> bool:
        """Whether the model is complete in the store."""
        return bool(self._stored().get("complete"))

    def verify(self) -> Iterator[Event]:
        """Compare a few texts with transformers, if that was asked for."""
        if self._config.verify:
            yield _verified(self.spec, self._used, self.samples, self._template)

    def load(self, on_note: Callable[[str], None]) -> LoadedModel:
        """Load the model."""
        return _load(self.spec, self._used, Steps(), self._template, on_note)

    def prepare(
        self, model: LoadedModel, plan: Attributes | None, on_note: Callable[[str], None]
    ) -> tuple[Prepared, Attributes]:
        """Prepare the batches; returns them and the manifest.

        Args:
            model: loaded.
            plan: of the worker that began the model; None: measure what an earlier run has not.
            on_note: called with each message for the user.

        Raises:
            StoreError: this worker's model, texts or settings are not those of the plan.
        """
        earlier = plan["attributes"]["manifest"] if plan else self._stored().get("manifest", {})
        packed = plan["packed"] if plan else None
        work = _prepare(
            model, self._used, Steps(), self.samples, _batching(earlier), on_note, packed
        )
        manifest = _manifest(model, self._config, self.samples, work)
        if plan:
            refuse_other(f"{self.place}: model {self.name!r}", manifest, earlier)
        for basis in self._foreign.values():
            notes = basis.check(work, self.samples.languages)
            for note in [] if plan else notes:
                on_note(note)
        return work, manifest

    def begin(
        self,
        model: LoadedModel,
        work: Prepared,
        manifest: Attributes,
        begun: Mapping[str, Attributes],
    ) -> Attributes:
        """Begin the model in the store, which is made if it is missing.

        Args:
            model, work, manifest: loaded and prepared.
            begun: plans of the models before this one in the list that are not complete yet; those
                that fit become bases, as if they were.

        Returns:
            The plan: all that another process needs to merge the model without loading it.
        """
        with alone(self.place.work):
            self._refuse_other_texts()
            root = self._output.open()
        stored = self._stored()
        _refuse_other_mean(self._output, self.name, manifest)
        own = {"hookpoints": list(work.hookpoints), "poolings": list(work.tokens.poolings)}
        alike = (
            name
            for name, plan in begun.items()
            if plan["sizes"]["hidden"] == len(work.projection)
            and all(plan["attributes"][key] == own[key] for key in own)
        )
        bases = [*sorted({*_bases(self.place, work), *alike}), *self._foreign]
        if "manifest" in stored:
            bases = stored.get("bases", [])
            _refuse_other_bases(self._output, self.name, bases, self._foreign)
        session = begin(
            model,
            self.samples,
            work,
            self.place,
            root,
            manifest=manifest,
            earlier=_as_today(stored.get("manifest", {})),
            bases=bases,
        )
        ranges = self.samples.lang_ranges
        spans = work.tokens.spans
        return {
            "attributes": session.attributes,
            "sizes": axis_sizes(self.samples, work, len(bases)),
            "languages": [[samples.start, samples.stop] for samples in ranges],
            "parts": [[part.number for part in parts] for parts in work.plan.languages],
            "written": [session.is_written(i_lang) for i_lang in range(len(ranges))],
            "pooled": int((spans[..., 0] < spans[..., 1]).sum()),
            "packed": work.packed,
            "dtype": manifest["dtype"],
            **how_it_ran(str(model.device), self._config.impl),
        }

    def extraction(
        self, model: LoadedModel, work: Prepared, output: Output, bases: Sequence[str]
    ) -> Extraction:
        """The extraction of a model that was begun."""
        run = Run(str(self.place))
        reads: list[Callable[[str], Basis]] = [
            self._foreign[other].read if other in self._foreign else partial(Basis.read, run, other)
            for other in bases
        ]
        impl = _implementation(self._config)
        return Extraction(model, self.samples, work, output, impl=impl, bases=reads)

    def planned(self, work: Prepared, extraction: Extraction, texts_done: int) -> Planned:
        """The event that says what is to be done."""
        return _planned(self.name, self.samples, work, extraction, texts_done)
