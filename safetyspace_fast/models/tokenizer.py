"""Tokenizers: where a model's is, loaded with character offsets, hashed.

transformers is imported inside functions: it takes seconds.
"""

import copy
import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ModelError, first_line
from .quiet import quiet_transformers
from .source import Source, read_json, sha256

KEPT_TOKENIZERS = 4
"""Tokenizers that stay in memory for models with the same files: parsing one takes seconds."""
_FILES_BESIDE = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "processor_config.json"),
)
_OF_CONFIG = ("model_type", "tokenizer_class", "transformers_version")
"""What transformers reads of config.json before it chooses a class."""
_recent: dict[str, tuple[Any, list[str]]] = {}
"""By a hash of its files, a tokenizer and the notes on it; the latest at the end."""


def tokenizer_source(source: Source, adapters: list[Source]) -> Source:
    """Where a model's tokenizer is: in the folder of the last adapter that has one, or its own."""
    return next((a for a in reversed(adapters) if a.tokenizer_files()), source)


def load_tokenizer(
    source: Source, trust_remote_code: bool, note: Callable[[str], None] = lambda _: None
) -> Any:
    """Load a tokenizer that gives character offsets, or take the one of equal files.

    The chat template of what is returned may be replaced; all else is shared.

    Args:
        source: the folder that holds its files.
        trust_remote_code: as in `load_model`.
        note: called with notes of one line, warnings of transformers among them.

    Raises:
        ModelError: there is none, or it gives no offsets.
    """
    key = None if trust_remote_code or source.gguf is not None else _content(source)
    known = None if key is None else _recent.pop(key, None)
    tokenizer, notes = known or _load(source, trust_remote_code)
    if key is not None:
        _recent[key] = tokenizer, notes
        while len(_recent) > KEPT_TOKENIZERS:
            del _recent[next(iter(_recent))]
    for line in notes:
        note(line)
    return copy.copy(tokenizer)


def _content(source: Source) -> str:
    """A hash of all that decides what tokenizer is read from a folder."""
    written = read_json(file) if (file := source.directory / "config.json").is_file() else {}
    of_config = [written.get(key) for key in _OF_CONFIG] if isinstance(written, dict) else []
    beside = (source.directory / name for name in _FILES_BESIDE)
    templates = sorted(source.directory.glob("additional_chat_templates/*"))
    files = [*source.tokenizer_files(), *filter(Path.is_file, beside), *templates]
    return json.dumps([of_config, [(file.name, sha256(file)) for file in files]])


def _load(source: Source, trust_remote_code: bool) -> tuple[Any, list[str]]:
    import transformers

    # Mistral's own tokenizers give no character offsets; transformers converts their files.
    options: dict[str, Any] = {"mistral_format": False}
    if source.gguf is not None:
        options["gguf_file"] = source.gguf
    notes: list[str] = []
    try:
        with quiet_transformers(notes.append), _without_collection():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source.directory,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                **options,
            )
    except Exception as error:
        reason = first_line(error)
        if not source.tokenizer_files() and source.gguf is None:
            reason = "there is no tokenizer.json or other file of one"
        raise ModelError(f"{source.asked}: no usable tokenizer: {reason}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{source.asked}: {type(tokenizer).__name__} gives no character offsets, which tell a "
            "text's tokens from others; expected a fast tokenizer (tokenizer.json)"
        )
    _check_bos(source, tokenizer, notes.append)
    _keep_spaces_in_offsets(tokenizer.backend_tokenizer)
    return tokenizer, notes


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from looking for cycles in the objects of a vocabulary: half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_bos(source: Source, tokenizer: Any, note: Callable[[str], None]) -> None:
    """Begin prompts with BOS where only the file's own reader would; say where none is added."""
    file = next(iter(source.tokenizer_files()), None)
    if source.gguf is not None or file is None:
        return
    if file.name == "tekken.json":  # Mistral's own reader of this file begins every prompt so
        tokenizer.bos_token, tokenizer.add_bos_token = "<s>", True
        note("its tokenizer is read from tekken.json; prompts begin with <s>")
    elif file.suffix == ".model" and "add_bos_token" not in tokenizer.init_kwargs:
        bos = tokenizer.bos_token_id
        if bos is not None and bos not in tokenizer("a").input_ids:
            note(
                f"its tokenizer is converted from {file.name} and puts no {tokenizer.bos_token} "
                "before prompts; if the model was trained with it, write add_bos_token: true into "
                "tokenizer_config.json"
            )


def _keep_spaces_in_offsets(backend: Any) -> None:
    """Let offsets include a token's leading spaces, which some post-processors cut off.

    Without them, a token of spaces covers no character and would count as none of the text's.
    """
    post_processor = backend.post_processor
    if post_processor is None:
        return
    state = json.loads(post_processor.__getstate__())
    parts = [state, *state.get("processors", ())]
    if any(part.get("trim_offsets") for part in parts):
        for part in parts:
            if "trim_offsets" in part:
                part["trim_offsets"] = False
        post_processor.__setstate__(json.dumps(state).encode())
        backend.post_processor = post_processor


def tokenizer_sha256(source: Source, tokenizer: Any) -> str:
    """The hash of the file that identifies a tokenizer, or of the tokenizer as it was built."""
    files = source.tokenizer_files()
    if source.gguf is None and files:
        return sha256(files[0])
    return backend_sha256(tokenizer.backend_tokenizer)


@lru_cache(KEPT_TOKENIZERS)  # a large vocabulary takes a second
def backend_sha256(backend: Any) -> str:
    """The hash of a tokenizer as it was built."""
    return hashlib.sha256(backend.to_str().encode()).hexdigest()
