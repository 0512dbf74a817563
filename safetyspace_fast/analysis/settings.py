"""How the models of a store were run: what a comparison needs to be equal, and what it must say."""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config import MEAN_ALL, MEAN_WITHOUT_FIRST
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..store import ModelStore, Run

NOT_RECORDED = "not recorded"
_BARE = hashlib.sha256(json.dumps(["none", "", ""]).encode()).hexdigest()
"""What a manifest says of texts without a template."""
_MEAN_BEFORE = (
    "over all tokens of a text, and without BOS the first position of a prompt too, which may make "
    "it a measure of length (an earlier version ran it: run it again, or use pooling last)"
)


def settings_of(model: "ModelStore") -> dict[str, str]:
    """Template, dtype, largest number of tokens, and device of a model's run, in words."""
    manifest, attrs = model.manifest, model.attrs
    template = manifest.get("template_sha256")
    words = {
        "template": "none" if template == _BARE else template and f"chat {template[:8]}",
        "dtype": manifest.get("dtype"),
        "max_tokens": manifest.get("max_tokens", NOT_RECORDED) or "none",
        "device": attrs.get("device"),
    }
    return {name: str(word or NOT_RECORDED) for name, word in words.items()}


def _mean_of(model: "ModelStore") -> str:
    """What the `mean` of a model is over: as in its manifest, or `_MEAN_BEFORE`."""
    bare = model.manifest.get("template_sha256") == _BARE and "mean" in model.poolings
    return str(model.manifest.get("mean", _MEAN_BEFORE if bare else MEAN_ALL))


def _only_if_different(
    model: "ModelStore", poolings: Sequence[str], tokenizers: bool
) -> dict[str, str]:
    """Settings that are worth a word only where models differ in them, or `mean` is an old one."""
    manifest = model.manifest
    words = {"projection": f"{manifest.get('proj_dim')} dimensions, seed {manifest.get('seed')}"}
    if "mean" in poolings:
        mean = _mean_of(model)
        words["mean"] = mean if mean == _MEAN_BEFORE else MEAN_WITHOUT_FIRST
    if tokenizers:
        digest = manifest.get("tokenizer_sha256")
        words["tokenizer"] = digest[:8] if isinstance(digest, str) else NOT_RECORDED
    return words


def told(
    run: "Run", models: Sequence[str], poolings: Sequence[str], *, tokenizers: bool = False
) -> dict[str, str]:
    """The settings as attributes of a result.

    Args:
        run: the store.
        models, poolings: of the result.
        tokenizers: say it if their tokenizers differ, which may add other special tokens.

    Returns:
        `run_as`: the settings that all models share. `settings_differ`: the others, with the models
        that have each, or an empty string.
    """
    stores = {name: run.model(name) for name in models}
    by_model = {
        name: settings_of(store) | _only_if_different(store, poolings, tokenizers)
        for name, store in stores.items()
    }
    quiet = {"projection", "tokenizer", "mean"}
    shared, differing = [], []
    for setting in next(iter(by_model.values()), {}):
        holders: dict[str, list[str]] = {}
        for name, words in by_model.items():
            holders.setdefault(words[setting], []).append(name)
        if len(holders) == 1 and setting in quiet and _MEAN_BEFORE not in holders:
            continue
        if len(holders) == 1:
            shared.append(f"{setting} {next(iter(holders))}")
        else:
            each = (f"{word} ({', '.join(names)})" for word, names in holders.items())
            differing.append(f"{setting}: {', '.join(each)}")
    return {"run_as": ", ".join(shared), "settings_differ": "; ".join(differing)}


def require_same_model(first: "Run", second: "Run", name: str) -> None:
    """Check that a name means the same model, with the same prompts, in two stores.

    Raises:
        ConfigError: weights, template or `mean` differ.
    """
    one, other = (run.model(name) for run in (first, second))
    differing = [
        key
        for key in ("weights", "template")
        if one.manifest.get(f"{key}_sha256") != other.manifest.get(f"{key}_sha256")
    ]
    if (_mean_of(one) == _MEAN_BEFORE) != (_mean_of(other) == _MEAN_BEFORE):
        differing.append("mean")
    if differing:
        raise ConfigError(
            f"transfer: {name!r} differs in {', '.join(differing)} between {first.place} and "
            f"{second.place}; run the same model with the same options into both"
        )


def require_comparable(
    run: "Run",
    base: str,
    aligned: str,
    *,
    compared: Sequence[str],
    different_templates: bool,
) -> None:
    """Check that two models saw the same prompts, and have the same layers and poolings.

    Args:
        run: the store.
        base, aligned: the models.
        compared: the poolings that are compared.
        different_templates: allow different templates.

    Raises:
        ConfigError: they do not; the message says what to do.
    """
    first, second = run.model(base), run.model(aligned)
    if first.manifest.get("data_sha256") != second.manifest.get("data_sha256"):
        raise ConfigError(
            f"compare: {base!r} and {aligned!r} were run on different data; run both again with "
            "--resume on the same"
        )
    for what, one, other in (
        ("layers", first.hookpoints, second.hookpoints),
        ("poolings", first.poolings, second.poolings),
    ):
        if tuple(one) != tuple(other):
            only = ((base, one, other), (aligned, other, one))
            each = (
                f"{name!r} alone has {', '.join(x for x in own if x not in others)}"
                for name, own, others in only
                if set(own) - set(others)
            )
            raise ConfigError(
                f"compare: {base!r} and {aligned!r} have different {what} "
                f"({'; '.join(each) or 'in another order'}); run both with the same"
            )
    before, after = (model.manifest.get("template_sha256") for model in (first, second))
    if before != after and not different_templates:
        words = [settings_of(model)["template"] for model in (first, second)]
        raise ConfigError(
            f"compare: {base!r} was run with template {words[0]}, {aligned!r} with {words[1]}, so "
            "that not only the weights differ; run both again with --template none, or allow it "
            "with --different-templates (different_templates=True in Python)"
        )
    means = {_mean_of(first): base, _mean_of(second): aligned}
    if "mean" in compared and set(means) == {_MEAN_BEFORE, MEAN_WITHOUT_FIRST}:
        old, new = means[_MEAN_BEFORE], means[MEAN_WITHOUT_FIRST]
        raise ConfigError(
            f"compare: pooling mean of {old!r} holds the first position of a prompt (an earlier "
            f"version ran it), that of {new!r} does not; run both into a new store, or compare "
            "other poolings, as with --poolings last"
        )
