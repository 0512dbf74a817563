"""The chat templates of a sweep's models: one for all of one base, as for models of one run."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..config import RunConfig
from ..errors import ModelError, SafetySpaceError
from ..models import ModelSpec, choose_templates, find_sources, parse_model


def templates_of(
    configs: Sequence[RunConfig], on_note: Callable[[str], None]
) -> dict[str, str | None]:
    """The chat template of each model that shares a base, by name; see `choose_templates`.

    A model that is missing has none here; loading it says why.

    Args:
        configs: each with one model.
        on_note: called with what was chosen where a user could expect another choice.
    """
    families: dict[object, list[RunConfig]] = {}
    for config in configs:
        families.setdefault(_family(config), []).append(config)
    together: dict[object, list[RunConfig]] = {}
    for family in families.values():
        there = [config for config in family if _is_complete(config)]
        with suppress(ModelError):
            _choose(there, lambda _: None)
            together.setdefault((family[0].template, _code(there)), []).extend(there)
    chosen: dict[str, str | None] = {}
    for alike in together.values():
        chosen |= _choose(alike, on_note)
    return chosen


def template_of(
    config: RunConfig, configs: Sequence[RunConfig], on_note: Callable[[str], None]
) -> dict[str, str | None]:
    """The same for one model and those that share its base; no other is looked at.

    Raises:
        ModelError: the model is not there or not complete; or it has no template, and needs one.
    """
    of_spec = {_spec(other): other for other in configs if _family(other) == _family(config)}
    spec = _spec(config)
    family = [other for own, other in of_spec.items() if own == spec or _is_complete(other)]
    return _choose(family, on_note)


def _spec(config: RunConfig) -> ModelSpec:
    return parse_model(*config.models)


def _family(config: RunConfig) -> tuple[object, ...]:
    """The base of a model, however its path is written, and its template."""
    spec = _spec(config)
    path = os.path.expanduser(spec.base)
    base = os.path.realpath(path) if os.path.exists(path) else spec.base
    return base, spec.revision, config.template


def _code(configs: Sequence[RunConfig]) -> tuple[bool, bool]:
    """Whether files may be opened that run code: what one model may, others of its base may."""
    return (
        any(config.allow_pickle for config in configs),
        any(config.trust_remote_code for config in configs),
    )


def _is_complete(config: RunConfig) -> bool:
    try:
        find_sources(_spec(config), config.allow_pickle, config.trust_remote_code)
    except SafetySpaceError:
        return False
    return True


def _choose(configs: Sequence[RunConfig], on_note: Callable[[str], None]) -> dict[str, str | None]:
    if not configs:
        return {}
    allow_pickle, trust_remote_code = _code(configs)
    return choose_templates(
        [_spec(config) for config in configs],
        configs[0].template,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        on_note=on_note,
    )
