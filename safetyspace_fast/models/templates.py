"""The chat templates of a run: chosen before anything is loaded, one for all models of one base.

A model before tuning and the same with an adapter are compared, so both must get the same prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError, first_line
from .loading import find_sources
from .source import Source, read_json
from .spec import ModelSpec
from .tokenizer import load_tokenizer, tokenizer_source

_FILE = "chat_template.jinja"
_OF_PROCESSORS = ("chat_template.json", "processor_config.json")


@dataclass(frozen=True)
class _Model:
    """Where a model's files are, and the chat template of its tokenizer."""

    name: str
    base: Source
    adapters: list[Source]
    own: str | None

    @property
    def of_base(self) -> str | None:
        return self.own if not self.adapters else _read(self.base)


def choose_templates(
    specs: Sequence[ModelSpec],
    mode: str,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    on_note: Callable[[str], None],
) -> dict[str, str | None]:
    """Find the files of all models, and choose the chat template of each.

    Models of one base get the base's template. If it has none, `auto` takes none for all of them,
    `chat` that of the first adapter that has one.

    Args:
        specs: the models of a run.
        mode: `auto`, `chat` or `none`.
        allow_pickle, trust_remote_code: as in `load_model`.
        on_note: called with what was chosen where a user could expect another choice.

    Returns:
        Of models that share a base, by name: the template as Jinja text, None for the text alone.
        Every other model keeps its own.

    Raises:
        ModelError: a model is not there or not complete; or `chat`, and there is no template.
    """
    models = []
    for spec in specs:
        base, adapters = find_sources(spec, allow_pickle, trust_remote_code)
        own = None if mode == "none" else _read(tokenizer_source(base, adapters))
        models.append(_Model(spec.name, base, adapters, own))
    if mode == "none":
        return {}
    chosen: dict[str, str | None] = {}
    shared: dict[str, str | None] = {}
    for family in _families(models):
        template = _of_family(family, mode)
        if len(family) > 1 or template is None or family[0].of_base != template:
            for line in _said_of(family, template):
                on_note(line)
        for model in family:
            if mode == "chat" and template is None:
                unread = "".join(f"; one lies in {place}" for place in _elsewhere(model)[:1])
                raise ModelError(
                    f"{model.name}: its tokenizer has no chat template{unread}; use template "
                    "'none' or 'auto'"
                )
            chosen[model.name] = template
        if len(family) > 1:
            shared |= dict.fromkeys((model.name for model in family), template)
    if len(set(chosen.values())) > 1:
        with_none = [name for name, template in chosen.items() if template is None]
        without = f", {', '.join(with_none)} none" if with_none else ""
        on_note(
            f"the models have different chat templates{without}: `compare` refuses such pairs; "
            "--template none gives all models the text alone"
        )
    return shared


def _families(models: Sequence[_Model]) -> list[list[_Model]]:
    """Models of one base together, if one of them has an adapter; others alone."""
    of_base: dict[tuple[Path, str | None], list[_Model]] = {}
    for model in models:
        of_base.setdefault((model.base.directory.resolve(), model.base.gguf), []).append(model)
    families = []
    for family in of_base.values():
        together = any(model.adapters for model in family)
        families += [family] if together else [[model] for model in family]
    return families


def _of_family(family: Sequence[_Model], mode: str) -> str | None:
    if len(family) == 1:
        return family[0].own
    template = family[0].of_base
    if template is None and mode == "chat":
        template = next((model.own for model in family if model.own), None)
    return template


def _said_of(family: Sequence[_Model], template: str | None) -> list[str]:
    """What a user should know of the choice, a line each."""
    names = ", ".join(model.name for model in family)
    lines = []
    if len(family) > 1:
        others = [model.name for model in family if model.own not in (None, template)]
        source = "none, as their base has none" if template is None else "that of their base"
        if template is not None and template != family[0].of_base:
            source = f"that of {next(m.name for m in family if m.own == template)}"
        unused = f" ({', '.join(others)} has another, which is not used)" if others else ""
        lines.append(f"{names}: one chat template for all: {source}{unused}")
    elif template is not None:
        lines.append(f"{names}: its chat template is that of its adapter, not of its base")
    if template is None:
        unread = dict.fromkeys(place for model in family for place in _elsewhere(model))
        lines += [
            f"{names}: {place} holds a chat template, which the tokenizer does not read; to use "
            f"it, save it as {_FILE} beside the tokenizer"
            for place in unread
        ]
    return lines


def _read(source: Source) -> str | None:
    """The chat template of the tokenizer in a folder, as transformers reads it."""
    if source.gguf is not None:
        tokenizer = load_tokenizer(source, trust_remote_code=False)
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    file = source.directory / _FILE
    if file.is_file():
        try:
            return file.read_text("utf-8") or None
        except (OSError, ValueError) as error:
            raise ModelError(f"{file}: cannot be read: {first_line(error)}") from error
    return _written_in(source.directory / "tokenizer_config.json")


def _written_in(file: Path) -> str | None:
    """The entry `chat_template` of a JSON file: a text, or several by name."""
    content = read_json(file) if file.is_file() else None
    written = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(written, list):
        written = {part["name"]: part["template"] for part in written if "template" in part}
    if isinstance(written, dict):
        written = written.get("default")
    return written if isinstance(written, str) and written else None


def _elsewhere(model: _Model) -> list[Path]:
    """Files that hold a chat template which the model's tokenizer does not read."""
    home = tokenizer_source(model.base, model.adapters)
    files = []
    for source in (model.base, *model.adapters):
        files += [source.directory / name for name in _OF_PROCESSORS]
        if source.directory != home.directory:
            files += [source.directory / "tokenizer_config.json", source.directory / _FILE]
    return [
        file
        for file in files
        if (file.is_file() if file.name == _FILE else _written_in(file) is not None)
    ]
