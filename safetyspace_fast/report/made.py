"""How the results of a store were made: models, hashes, versions, and the command again."""

import shlex
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..analysis.settings import settings_of

if TYPE_CHECKING:
    from ..store import ModelStore, Run


@dataclass
class Made:
    """One store, and a table with a column for each of its models."""

    name: str
    about: str
    models: list[str]
    rows: list[tuple[str, list[str]]]
    command: str


def made(name: str, run: "Run") -> Made:
    """Describe a store and its complete models."""
    stores = [run.model(model) for model in run.models]
    facts = [_facts(store) for store in stores]
    names = dict.fromkeys(key for one in facts for key in one)
    rows = [(key, [one.get(key, "-") for one in facts]) for key in names]
    digest = str(run.attrs.get("data_sha256", ""))
    about = (
        f"{len(run.samples.label):,} texts in {len(run.languages)} languages of the data "
        f"\u2068{run.attrs.get('data_name', '-')}\u2069 (SHA-256 {digest[:16]}), "
        f"{run.attrs.get('created_by', '')}."
    )
    return Made(name, about, list(run.models), rows, _command(name, run, stores))


def _facts(store: "ModelStore") -> dict[str, str]:
    attrs, manifest = store.attrs, store.manifest
    model = attrs.get("model") or {}
    versions = attrs.get("versions") or {}
    seconds = attrs.get("forward_seconds")
    facts = {
        "model": _short(model.get("id")),
        "revision": model.get("commit") or model.get("revision"),
        "adapter": _short(model.get("adapter")),
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


def _short(value: Any) -> str:
    """A model's name; of a path on this machine only the last part, as a page may be shared."""
    text = str(value or "")
    return PurePath(text).name if text.startswith(("/", "~", ".")) else text


def _command(name: str, run: "Run", stores: "list[ModelStore]") -> str:
    """The command that fills such a store; paths are shortened to names."""
    parts = ["safetyspace-fast", "run"]
    for store in stores:
        model = store.attrs.get("model") or {}
        adapter = f"+{_short(model['adapter'])}" if model.get("adapter") else ""
        parts += ["--model", f"{store.name}={_short(model.get('id'))}{adapter}"]
    manifest = stores[0].manifest
    parts += ["--data", str(run.attrs.get("data_name", "DATA"))]
    parts += ["--languages", ",".join(run.languages)]
    parts += ["--poolings", ",".join(stores[0].poolings)]
    for option, key in (("--template", "template"), ("--dtype", "dtype"), ("--seed", "seed")):
        if manifest.get(key) is not None:
            parts += [option, str(manifest[key])]
    return " ".join(map(shlex.quote, [*parts, "--out", name]))
