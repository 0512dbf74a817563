"""How the results of a store were made: models, hashes, versions, and the command again."""

import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..analysis.settings import settings_of

if TYPE_CHECKING:
    from ..store import ModelStore, Run

Attributes = dict[str, Any]
_RANDOM = "random:"


@dataclass
class Made:
    """One store, and a table with a column for each of its models."""

    name: str
    about: str
    models: list[str]
    rows: list[tuple[str, list[str]]]
    command: str


def made(name: str, run: "Run") -> Made:
    """Describe a store and its complete models, in the order in which they were run."""
    stores = [run.model(model) for model in run.models]
    stores.sort(key=lambda store: len(store.attrs.get("bases") or ()))
    facts = [_facts(store) for store in stores]
    names = dict.fromkeys(key for one in facts for key in one)
    rows = [(key, [one.get(key, "-") for one in facts]) for key in names]
    digest = str(run.attrs.get("data_sha256", ""))
    about = (
        f"{len(run.samples.label):,} texts in {len(run.languages)} languages of the data "
        f"\u2068{run.attrs.get('data_name', '-')}\u2069 (SHA-256 {digest[:16]}), "
        f"{run.attrs.get('created_by', '')}."
    )
    return Made(name, about, [store.name for store in stores], rows, _commands(name, run, stores))


def _facts(store: "ModelStore") -> dict[str, str]:
    attrs, manifest = store.attrs, store.manifest
    model = attrs.get("model") or {}
    versions = attrs.get("versions") or {}
    seconds = attrs.get("forward_seconds")
    facts = {
        "model": _base(model),
        "revision": model.get("commit") or model.get("revision"),
        "adapter": "+".join(_adapters(model)),
        "architecture": model.get("architecture"),
        "weights SHA-256": _digest(manifest.get("weights_sha256")),
        "tokenizer SHA-256": _digest(manifest.get("tokenizer_sha256")),
        "config SHA-256": _digest(manifest.get("config_sha256")),
        **settings_of(store),
        "layers": len(store.hookpoints),
        "poolings": ", ".join(store.poolings),
        "projection": f"{manifest.get('proj_dim')} dimensions, seed {manifest.get('seed')}",
        "tokens": f"{attrs['tokens']:,}" if isinstance(attrs.get("tokens"), int) else None,
        "forward passes": f"{seconds:.1f} s" if isinstance(seconds, float) else None,
        "ended": attrs.get("ended"),
        "kernels": attrs.get("impl"),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }
    return {key: str(value) for key, value in facts.items() if value}


def _digest(value: Any) -> str:
    return str(value)[:16] if value else ""


def _base(model: Attributes) -> str:
    """The base of a model as it was asked for, `random:` included."""
    asked = str(model.get("id") or "")
    base = asked.removeprefix(_RANDOM)
    return asked[: len(asked) - len(base)] + _short(base, model.get("commit"))


def _adapters(model: Attributes) -> list[str]:
    names = str(model.get("adapter") or "")
    commits = str(model.get("adapter_commit") or "")
    pairs = zip_longest(names.split("+"), commits.split("+")) if names else ()
    return [_short(str(name or ""), commit) for name, commit in pairs]


def _short(asked: str, commit: object) -> str:
    """An id of the hub, which has a commit; of a path the last part, as a page may be shared."""
    return asked if commit else PurePath(asked).name or asked


def _commands(name: str, run: "Run", stores: "list[ModelStore]") -> str:
    """A line for all models that were run alike; from the second on they are added to the store."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for store in stores:
        alike.setdefault(tuple(_options(store)), []).append(_model(store))
    lines: list[str] = []
    for options, models in alike.items():
        parts = ["safetyspace-fast", "run"]
        for model in models:
            parts += ["--model", model]
        parts += ["--data", str(run.attrs.get("data_name", "DATA"))]
        parts += ["--languages", ",".join(run.languages), *options, "--out", name]
        lines.append(" ".join(map(shlex.quote, parts + ["--resume"] * bool(lines))))
    return "\n".join(lines)


def _model(store: "ModelStore") -> str:
    """What `--model` takes; of a model from the hub with its commit."""
    model = store.attrs.get("model") or {}
    commit = f"@{model['commit']}" if model.get("commit") else ""
    return f"{store.name}={'+'.join([_base(model) + commit, *_adapters(model)])}"


def _options(store: "ModelStore") -> list[str]:
    """Options that decide the numbers of a model."""
    manifest, layers = store.manifest, store.hookpoints
    parts = ["--poolings", ",".join(store.poolings)]
    if layers != ("embed", *(f"block.{i}" for i in range(len(layers) - 2)), "final_norm"):
        parts += ["--layers", ",".join(layers)]
    for key in ("template", "dtype", "proj_dim", "seed", "max_tokens"):
        if manifest.get(key) is not None:
            parts += [f"--{key.replace('_', '-')}", str(manifest[key])]
    return parts + ["--compile"] * bool(manifest.get("compile"))
