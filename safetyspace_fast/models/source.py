"""The files of a model or an adapter: found in a directory or on the hub, checked, hashed.

Weights must be safetensors or GGUF; pickled ones pass only if the caller allows them by name.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ModelError, first_line
from .spec import ModelSpec, split_revision

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")  # as transformers prefers them
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # as PEFT prefers them
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tiktoken.model", "tekken.json"),
)


@dataclass(frozen=True)
class Source:
    """The files of a model or an adapter.

    asked: what the user typed, for messages.
    directory: the folder that holds the files.
    gguf: name of the GGUF file in it; None for a directory of safetensors.
    commit: of a model from the hub.
    """

    asked: str
    directory: Path
    gguf: str | None = None
    commit: str | None = None

    def weight_files(self) -> list[Path]:
        """The files from which transformers reads a model's weights, in name order."""
        if self.gguf is not None:
            return [self.directory / self.gguf]
        named = self._config().get("transformers_weights")
        for name in [named] if isinstance(named, str) else _SINGLE_FILES:
            if name.endswith(".index.json"):
                return self._shards(name)
            if (self.directory / name).is_file():
                return [self.directory / name]
            if (self.directory / f"{name}.index.json").is_file():
                return self._shards(f"{name}.index.json")
        return []

    def adapter_files(self) -> list[Path]:
        """The file from which PEFT reads an adapter's weights, or none."""
        return [file for name in _ADAPTER_FILES if (file := self.directory / name).is_file()][:1]

    def holds_adapter(self) -> bool:
        """Whether a PEFT adapter lies in the folder, beside a model or alone."""
        return (self.directory / _ADAPTER_CONFIG).is_file()

    def holds_two_models(self) -> bool:
        """Whether both a whole and a split model lie in the folder; only the whole one is read."""
        files = [file.name for file in self.weight_files()]
        return len(files) == 1 and (self.directory / f"{files[0]}.index.json").is_file()

    def _shards(self, index: str) -> list[Path]:
        return [self.directory / name for name in _index_files(self.directory / index)]

    def _config(self) -> dict[str, Any]:
        content = read_json(self.directory / "config.json")
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise ModelError(f"{self.directory / 'config.json'}: expected an object, got {kind}")
        return content

    def check(self, allow_pickle: bool) -> None:
        """Raise ModelError unless this is a complete model whose weights may be opened."""
        if self.gguf is not None:
            with (self.directory / self.gguf).open("rb") as file:
                if (magic := file.read(4)) != b"GGUF":
                    raise ModelError(
                        f"{self.asked}: expected a GGUF file, beginning with b'GGUF', got {magic!r}"
                    )
            if re.search(r"-of-\d+\.gguf$", self.gguf):
                raise ModelError(
                    f"{self.asked}: one part of a split GGUF file; join the parts with "
                    "`llama-gguf-split --merge`, then name the joined file"
                )
            return
        if not (self.directory / "config.json").is_file():
            hint = "it has no config.json"
            if self.holds_adapter():
                hint = f"it is an adapter; write BASE+{self.asked}"
            elif any(self.directory.glob("*.gguf")):
                hint = "it holds GGUF files; name one of them"
            raise ModelError(f"{self.asked}: not a model directory: {hint}")
        files = self.weight_files()
        if not files:
            raise ModelError(f"{self.asked}: {self._why_no_weights()}")
        _check_files(files, allow_pickle)

    def _why_no_weights(self) -> str:
        if self.holds_adapter():
            return f"not a model directory: it is an adapter; write BASE+{self.asked}"
        names = sorted(
            file.name
            for pattern in ("*.safetensors", *_PICKLES)
            for file in self.directory.glob(pattern)
        )
        for name in names:
            if shard := re.fullmatch(r"(.+)-\d+-of-\d+(\.\w+)", name):
                return (
                    f"{shard[1]}{shard[2]}.index.json is missing, which says what {name} and the "
                    "other parts hold; copy or download it again"
                )
        beside = f", found {names[0]}, which transformers does not read" if names else ""
        return (
            "it has no weights: expected model.safetensors, or its parts with "
            f"model.safetensors.index.json{beside}"
        )

    def check_alone(self) -> None:
        """Raise ModelError if an adapter lies beside the model: which of them is meant?"""
        if self.gguf is None and self.holds_adapter():
            if not self.adapter_files():
                raise ModelError(
                    f"{self.asked}: {_ADAPTER_CONFIG} lies beside the model, without an adapter's "
                    "weights; move it out"
                )
            raise ModelError(
                f"{self.asked}: it holds a model and an adapter; for the model alone move "
                f"{_ADAPTER_CONFIG} and adapter_model.* out of it; for the adapter merged into the "
                f"model write {self.asked}+{self.asked}"
            )

    def check_adapter(self, allow_pickle: bool) -> None:
        """Raise ModelError unless this is a complete PEFT adapter that may be opened."""
        if not self.holds_adapter():
            raise ModelError(f"{self.asked}: not a PEFT adapter: it has no {_ADAPTER_CONFIG}")
        files = self.adapter_files()
        if not files:
            raise ModelError(f"{self.asked}: it has no weights: expected {_ADAPTER_FILES[0]}")
        _check_files(files, allow_pickle)

    def tokenizer_files(self) -> list[Path]:
        """The files that hold a tokenizer, the one that identifies it first."""
        files = (self.directory / name for name in _TOKENIZER_FILES)
        return [file for file in files if file.is_file()]


def find_source(
    asked: str, revision: str | None, allow_pickle: bool, trust_remote_code: bool
) -> Source:
    """Find a model or an adapter; one on the hub is downloaded into the hub's cache.

    Args:
        asked: a directory, a `.gguf` file, or a hub id.
        revision: branch, tag or commit of a hub id.
        allow_pickle, trust_remote_code: download pickled weights, Python files as well.

    Raises:
        ModelError: it is nowhere, or a directory was given a revision.
    """
    path = Path(os.path.expanduser(asked))
    # os.path and not Path: it takes any string, however long, without raising.
    if os.path.isfile(path) and path.suffix == ".gguf":
        return Source(asked, path.parent, gguf=path.name)
    if os.path.isdir(path):
        if revision is not None:
            raise ModelError(f"{asked}: a directory has no revision, got {revision!r}")
        return Source(asked, path)
    if os.path.exists(path):
        raise ModelError(f"{asked}: expected a directory, a .gguf file or a hub id, got a file")
    if asked.startswith(("/", ".", "~")) or asked.count("/") > 1 or path.suffix == ".gguf":
        raise ModelError(f"{asked}: no such directory or file")
    return _download(asked, revision, allow_pickle, trust_remote_code)


def find_sources(
    spec: ModelSpec,
    allow_pickle: bool,
    trust_remote_code: bool,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[Source, list[Source]]:
    """Find and check the files of the base and of its adapters.

    Raises:
        ModelError: one is not there, or not complete.
    """
    source = find_source(spec.base, spec.revision, allow_pickle, trust_remote_code)
    source.check(allow_pickle)
    if source.holds_two_models():
        names = ", ".join(file.name for file in source.weight_files())
        note(f"{spec.base} holds a whole and a split model; transformers reads {names} only")
    if not spec.adapters:
        source.check_alone()
    adapters = []
    for asked in spec.adapters:
        adapter = find_source(*split_revision(asked), allow_pickle, trust_remote_code)
        adapter.check_adapter(allow_pickle)
        adapters.append(adapter)
    if source.holds_adapter() and all(a.directory != source.directory for a in adapters):
        note(f"the adapter that lies in {spec.base} is not merged")
    return source, adapters


def _download(
    repo_id: str, revision: str | None, allow_pickle: bool, trust_remote_code: bool
) -> Source:
    """Download the files that loading needs, or find them in the hub's cache."""
    import huggingface_hub

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    wanted += _PICKLES if allow_pickle else ()
    wanted += ["*.py"] if trust_remote_code else ()
    try:
        snapshot = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=wanted,
            # These are copies of the same weights in other formats.
            ignore_patterns=["*/*", "consolidated*"],
        )
    except Exception as error:
        raise _refused(repo_id, revision, error) from error
    return Source(repo_id, Path(snapshot), commit=Path(snapshot).name)


def fetch_file(repo_id: str, revision: str | None, name: str) -> Path:
    """Download one small file of a repository, or find it in the hub's cache.

    Raises:
        ModelError: it is nowhere, or may not be had.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repo_id, name, revision=revision))
    except Exception as error:
        raise _refused(repo_id, revision, error) from error


def _refused(repo_id: str, revision: str | None, error: Exception) -> ModelError:
    import huggingface_hub

    at_revision = f" at revision {revision}" if revision else ""
    advice = ""
    if isinstance(error, huggingface_hub.errors.GatedRepoError):
        advice = "; ask for access on its page, then log in with `hf auth login`"
    return ModelError(
        f"{repo_id}: no such directory, and the model hub does not give it{at_revision} "
        f"({type(error).__name__}: {first_line(error)}){advice}"
    )


def _check_files(files: list[Path], allow_pickle: bool) -> None:
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: the index names it, but it is missing")
        if file.suffix == ".safetensors":
            _check_safetensors(file)
        elif not allow_pickle:
            raise ModelError(
                f"{file}: pickled weights can run code when they are opened; expected "
                "safetensors: convert the file, or allow pickle if you trust its origin"
            )


def _check_safetensors(file: Path) -> None:
    """Read a file's header; safetensors compares it with the file's length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise ModelError(
            f"{file}: not a complete safetensors file ({error}); copy or download it again"
        ) from error


def read_json(file: Path) -> Any:  # whatever the file holds
    """Parse a JSON file; ModelError names one that cannot be read."""
    try:
        return json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: not readable as JSON ({first_line(error)})") from error


def _index_files(index: Path) -> list[str]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(
            f"{index}: expected a 'weight_map' from weights to files; copy or download it again"
        )
    return sorted(set(names.values()))


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal; a file that is the same is read once."""
    stat = file.stat()
    return _sha256(file.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(1024)  # a base with many adapters, a model that runs twice
def _sha256(file: Path, *_state: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
