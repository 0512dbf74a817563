"""What an earlier run decided: it is kept, or another run under the same name is refused."""

import calendar
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, fields

from ..config import MEAN_ALL, RunConfig
from ..errors import ConfigError, StoreError
from ..extract.plan import Batching
from ..models import ModelSpec, hookpoint_names, resolve_layers, weights_changed
from ..store import Kept
from ..store.layout import Attributes
from .output import RunOutput
from .steps import TIME_FORMAT


def refuse_other_run(
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
        ended = calendar.timegm(time.strptime(stored["ended"], TIME_FORMAT))
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


def as_today(manifest: Attributes) -> Attributes:
    """A stored manifest, with what those of earlier versions do not say.

    Their `mean` was `mean_all`, and all devices had the batches of a CPU.
    """
    usual = {key: value for key, value in asdict(Batching(0)).items() if key != "token_budget"}
    return {"mean": MEAN_ALL} | usual | manifest if manifest else manifest


def batching_of(manifest: Attributes) -> Batching | None:
    """How an earlier run cut its batches; None: there was none."""
    if "token_budget" not in manifest:
        return None
    today = as_today(manifest)
    return Batching(**{field.name: today[field.name] for field in fields(Batching)})


def _other_mean(earlier: Attributes, manifest: Attributes) -> bool:
    """Whether both manifests have the pooling `mean`, over different tokens."""
    both = "mean" in earlier.get("poolings", ()) and "mean" in manifest
    return both and as_today(earlier)["mean"] != manifest["mean"]


def usable(kept: Kept, manifest: Attributes, on_note: Callable[[str], None]) -> Kept:
    """What of a model can be taken over: nothing if its `mean` is another one."""
    if not _other_mean(kept.manifest, manifest):
        return kept
    on_note("its `mean` held the first position of a prompt, so all languages run again")
    return Kept()


def refuse_other_mean(output: RunOutput, name: str, manifest: Attributes) -> None:
    """Raise StoreError if an earlier version began the model with another `mean`."""
    if _other_mean(output.attributes(name).get("manifest", {}), manifest):
        raise StoreError(
            f"{output.place}: model {name!r} was begun by an earlier version, whose `mean` holds "
            "the first position of a prompt; --overwrite the store, or choose another NAME="
        )
