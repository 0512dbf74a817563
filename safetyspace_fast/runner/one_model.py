"""One model of a run, for workers that share it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ..config import RunConfig, TemplateMode
from ..data import Samples
from ..errors import StoreError
from ..extract import Event, Extraction, Planned
from ..extract.finish import Basis
from ..extract.loop import Output
from ..extract.prepare import Prepared
from ..models import LoadedModel
from ..store import Place, Run, alone, half_made
from ..store.layout import Attributes
from ..store.session import refuse_other
from .bases import bases_in_store, foreign_bases, refuse_other_bases
from .earlier import as_today, batching_of, refuse_other_mean, refuse_other_run
from .output import RunOutput, axis_sizes
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
        steps: Steps,
    ) -> None:
        """Check what can be checked before a model is loaded.

        Args:
            config: of one model; a store that exists is added to.
            samples: what the store holds, or is to hold.
            templates: of `choose_templates`, for all models of the store.
            claimed: these models' names; the caller has claimed them.
            steps: how models are loaded and texts tokenised.

        Raises:
            StoreError: the store has the model from other files, or run in another way; or it has
                other texts: only a run in one process makes a store grow.
        """
        (self.spec,) = specs_of(config.models)
        self.name = self.spec.name
        self.samples = samples
        self._config, self._template = config, templates.get(self.name)
        self._steps = steps
        none = templates.get(self.name, "") is None
        template: TemplateMode = "none" if none else config.template
        self._used = replace(config, weights="load", template=template)
        self._output = RunOutput(replace(config, resume=True), claimed, samples)
        self._foreign = foreign_bases(self.name, config)
        self._refuse_other_texts()
        refuse_other_run(self.spec, config, self._stored(), self._foreign)

    @property
    def out(self) -> str:
        """The store, as the config names it."""
        return str(self._config.out)

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
            yield verified(self.spec, self._used, self.samples, self._template)

    def load(self, on_note: Callable[[str], None]) -> LoadedModel:
        """Load the model."""
        return load_one(self.spec, self._used, self._steps, self._template, on_note)

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
        work = prepare_one(
            model, self._used, self._steps, self.samples, batching_of(earlier), on_note, packed
        )
        manifest = manifest_of(model, self._config, self.samples, work)
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
        refuse_other_mean(self._output, self.name, manifest)
        own = {"hookpoints": list(work.hookpoints), "poolings": list(work.tokens.poolings)}
        alike = (
            name
            for name, plan in begun.items()
            if plan["sizes"]["hidden"] == len(work.projection)
            and all(plan["attributes"][key] == own[key] for key in own)
        )
        bases = [*sorted({*bases_in_store(self.place, work), *alike}), *self._foreign]
        if "manifest" in stored:
            bases = stored.get("bases", [])
            refuse_other_bases(self._output, self.name, bases, self._foreign)
        session = begin(
            model,
            self.samples,
            work,
            self.place,
            root,
            manifest=manifest,
            earlier=as_today(stored.get("manifest", {})),
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
        impl = implementation(self._config)
        return Extraction(model, self.samples, work, output, impl=impl, bases=reads)

    def planned(self, work: Prepared, extraction: Extraction, texts_done: int) -> Planned:
        """The event that says what is to be done."""
        return planned(self.name, self.samples, work, extraction, texts_done)
