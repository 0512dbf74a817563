"""Finding a data set: a file, a directory, a hub id or the packaged sample."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError, DataError, first_line
from .formats import split_format

FORMATS = ".jsonl, .csv, .tsv (each also .gz) or .parquet"
SAMPLE_PREFIX = "sample:"

# The form of BCP 47 names, also with "_" (zh_CN, deu_Latn). Languages become names in a store.
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8}){0,4}")
# In file and folder names only codes of two or three letters count: "train" is not a language.
_LANGUAGE_IN_PATH = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,3}")
_SPLIT_NAMES = {"all", "dev", "raw", "val"}
_SHARD = re.compile(r"-\d+-of-\d+$")
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)


class DataFile(NamedTuple):
    """One file of a data set.

    name: as messages show it, printable and short.
    lang: the language that its name or folder says, if any.
    """

    path: Path
    name: str
    lang: str | None


class Source(NamedTuple):
    """A data set's name and its files in reading order."""

    name: str
    files: tuple[DataFile, ...]


def is_language(name: str) -> bool:
    """Whether `name` has the form of a BCP 47 name, which is also safe as a name in a store."""
    return _LANGUAGE.fullmatch(name) is not None


def find_source(source: str | Path, revision: str | None, on_note: Callable[[str], None]) -> Source:
    """Find the files of a data set; one on the hub is downloaded into the hub's cache.

    Raises:
        DataError: there is nothing to read.
        ConfigError: a revision of a local source.
    """
    # os.path and not Path: it takes any string, however long, without raising.
    if isinstance(source, str) and not os.path.exists(source):
        if source.startswith(SAMPLE_PREFIX):
            return _packaged(source.removeprefix(SAMPLE_PREFIX))
        hub_id = _HUB_ID.fullmatch(source)
        if hub_id and split_format(source)[1] is None:
            return _hub(hub_id[1], hub_id[2], revision, on_note)
    if revision is not None:
        raise ConfigError(f"revision {revision!r}: only a hub data set has one")
    path = Path(source)
    if os.path.isdir(source):
        return Source(printable(path.resolve().name), _layout(path, printable(str(path))))
    if not os.path.isfile(source):
        raise DataError(
            f"{printable(str(source))}: no such file or directory: expected a data file "
            f"({FORMATS}), a directory of them, a hub id (owner/name) or {SAMPLE_PREFIX}polite"
        )
    stem, kind = split_format(path.name)
    if kind is None:
        raise DataError(f"{printable(path.name)}: unknown file format: expected {FORMATS}")
    file = DataFile(path, printable(path.name), _language_of(stem))
    return Source(printable(stem), (file,))


def printable(name: str) -> str:
    """A name as it appears in a one-line message."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 200 else f"{name[:200]}..."


def _packaged(name: str) -> Source:
    folder = Path(__file__).parent
    known = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if name not in known:
        raise DataError(f"no packaged sample {name!r}: expected {', '.join(known)}")
    return Source(name, (DataFile(known[name], known[name].name, None),))


def _layout(folder: Path, data_name: str) -> tuple[DataFile, ...]:
    """List the data files below `folder`, each with the language that its path says."""
    files = []
    kinds: dict[str, str] = {}
    for parent, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            stem, kind = split_format(name)
            if kind is None or name.startswith("."):
                continue
            path = Path(parent, name)
            inside = path.relative_to(folder)
            if not path.is_file():
                raise DataError(
                    f"{data_name}: {inside} is not a regular file, perhaps a broken link"
                )
            kinds.setdefault(kind, inside.as_posix())
            lang = next(filter(None, map(_language_of, (stem, *reversed(inside.parts[:-1])))), None)
            files.append(DataFile(path, printable(inside.as_posix()), lang))
    if not files:
        raise _no_data_files(data_name)
    if len(kinds) > 1:
        examples = ", ".join(printable(name) for name in kinds.values())
        raise DataError(
            f"{data_name}: files of several formats, perhaps the same data twice ({examples}): "
            "name one file, or a directory with one format"
        )
    return tuple(sorted(files, key=lambda file: file.path.relative_to(folder).parts))


def _no_data_files(data_name: str) -> DataError:
    return DataError(f"{data_name}: no data files: expected {FORMATS}")


def _unreadable(error: OSError) -> None:
    raise DataError(f"{printable(str(error.filename))}: cannot be read ({error.strerror})")


def _language_of(name: str) -> str | None:
    name = _SHARD.sub("", name)
    return name if _LANGUAGE_IN_PATH.fullmatch(name) and name not in _SPLIT_NAMES else None


def _hub(
    repo: str, pinned: str | None, revision: str | None, on_note: Callable[[str], None]
) -> Source:
    if pinned and revision and pinned != revision:
        raise ConfigError(f"{repo}@{pinned}: revision {revision!r} is given too; give one of them")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = revision or pinned
    patterns = ["*.parquet"] + [
        f"*.{kind}{gz}" for kind in ("jsonl", "csv", "tsv") for gz in ("", ".gz")
    ]
    try:
        folder = Path(
            snapshot_download(repo, repo_type="dataset", revision=wanted, allow_patterns=patterns)
        )
    except GatedRepoError as error:
        raise DataError(f"{repo}: a gated data set: accept its terms on the hub, log in") from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{repo}: neither a local path nor a data set on the hub: check the name, or log in "
            "if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"{repo}: no revision {wanted!r} on the hub") from error
    except HFValidationError as error:
        raise DataError(f"{printable(repo)}: not a hub id (owner/name)") from error
    except Exception as error:  # the errors of its network layers have no common base
        raise DataError(
            f"{repo}: no such local path, and it can neither be fetched from the hub nor found in "
            f"the hub's cache: go online, or give the path of a copy "
            f"({printable(first_line(error))})"
        ) from error
    on_note(f"{repo}: hub revision {folder.name}")
    if not folder.is_dir():  # the client makes none where no file matches
        raise _no_data_files(repo)
    return Source(repo, _layout(folder, repo))
