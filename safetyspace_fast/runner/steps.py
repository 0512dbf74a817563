"""The steps of a run on one model: load, prepare, begin."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import zarr

from .. import info
from ..config import MEAN_ALL, MEAN_WITHOUT_FIRST, RunConfig
from ..data import Samples, read_samples
from ..errors import ConfigError, ModelError
from ..extract import Extraction, Planned, Verified
from ..extract.plan import Batching
from ..extract.prepare import Prepared, prepare
from ..models import (
    LoadedModel,
    ModelSpec,
    Tokenized,
    choose_templates,
    device_errors,
    load_model,
    parse_model,
    tokenize,
)
from ..ops import STATISTICS
from ..store import Place, Session
from ..store.layout import Attributes
from ..verification import verify_model
from .output import axis_sizes

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_AGAIN = "repeat the command, on another --device if need be"


@dataclass(frozen=True)
class Steps:
    """The steps whose results several runs can share; a sweep gives functions that remember."""

    read: Callable[..., Samples] = read_samples
    choose_templates: Callable[..., dict[str, str | None]] = choose_templates
    load: Callable[..., LoadedModel] = load_model
    tokenize: Callable[..., Tokenized] = tokenize


def specs_of(models: Sequence[str]) -> list[ModelSpec]:
    """The models of one store; raises ConfigError if two have the same name, capitals aside."""
    specs = [parse_model(text) for text in models]
    names = [spec.name for spec in specs]
    if len({name.casefold() for name in names}) < len(names):  # some disks cannot tell these
        raise ConfigError(
            f"models: two have the same name in {', '.join(names)}, capitals aside; use NAME=MODEL"
        )
    return specs


def implementation(config: RunConfig) -> str | None:
    """The kernels that a config asks for; None: the best."""
    return None if config.impl == "auto" else config.impl


def verified(
    spec: ModelSpec, config: RunConfig, samples: Samples, chat_template: str | None
) -> Verified:
    """Compare the states of a few texts with transformers'.

    Raises:
        ModelError: they differ by more than rounding.
    """
    with device_errors(spec.name, _AGAIN):
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
            impl=implementation(config),
            allow_pickle=config.allow_pickle,
            trust_remote_code=config.trust_remote_code,
        )
    if verification.problem is not None:
        raise ModelError(verification.problem)
    return Verified(spec.name, verification)


def load_one(
    spec: ModelSpec,
    config: RunConfig,
    steps: Steps,
    chat_template: str | None,
    on_note: Callable[[str], None],
) -> LoadedModel:
    """Load a model as a config says."""
    with device_errors(spec.name, _AGAIN):
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


def prepare_one(
    model: LoadedModel,
    config: RunConfig,
    steps: Steps,
    samples: Samples,
    batching: Batching | None,
    on_note: Callable[[str], None],
    packed: bool | None = None,
) -> Prepared:
    """Prepare the batches of a model as a config says."""
    with device_errors(model.name, _AGAIN):
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
            impl=implementation(config),
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


def manifest_of(
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


def planned(
    name: str,
    samples: Samples,
    work: Prepared,
    extraction: Extraction,
    texts_done: int | None = None,
) -> Planned:
    """The event that says what is to be done."""
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


def now() -> str:
    """The time in UTC, as a model's attribute `ended` has it."""
    return time.strftime(TIME_FORMAT, time.gmtime())


def how_it_ran(device: str, impl: str) -> Attributes:
    """Attributes of a model that is complete now."""
    return {
        "versions": info.package_versions(),
        "device": device,
        "impl": impl,
        "ended": now(),
    }
