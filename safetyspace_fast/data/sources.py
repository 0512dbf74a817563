"""Finding a data set: files, directories, hub ids or the packaged sample."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError, DataError, first_line
from ..names import is_known_code, nearest
from .columns import Columns, words_of
from .formats import FORMATS, KINDS, PACKED, format_of, split_format
from .json_rows import SPLIT_WORDS
from .sets import columns_of, known_sets

SAMPLE_PREFIX = "sample:"

# The form of BCP 47 names, also with "_" (zh_CN, deu_Latn). Languages become names in a store.
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8}){0,4}")
# In names of files and folders only what is surely a language counts: not "my_tweets", "en_old".
_LANGUAGE_IN_PATH = re.compile(r"([A-Za-z]{2,3})((?:[-_][A-Za-z0-9]{2,4}){0,2})")
_REGION = re.compile(r"[A-Z]{2}|[0-9]{3}")
_LOWER_REGIONS = {"en-gb", "en-us", "es-mx", "fr-ca", "pt-br", "pt-pt", "zh-cn", "zh-hk", "zh-tw"}
_SCRIPTS = frozenset(
    word
    for line in """
    Adlm Arab Armn Beng Cakm Cans Cher Cyrl Deva Ethi Geor Grek Gujr Guru Hang Hani Hans Hant Hebr
    Hira Java Jpan Kana Khmr Knda Kore Laoo Latn Lisu Mlym Mong Mtei Mymr Nkoo Olck Orya Rohg Sinh
    Sund Syrc Taml Telu Tfng Thaa Thai Tibt Yiii arab cyrl deva hans hant latn
    """.splitlines()
    for word in line.split()
)
# Usual in data sets, and without a code of two letters.
_OTHER_CODES = frozenset(
    word
    for line in """
    ace acm acq aeb apc ars ary arz ast awa azb ban bar bem bho bjn bug ceb ckb crh dsb fil fon fur
    gsw hak hil hne hsb ilo iw kab kam kea lij lmo ltg luo lus mag mai mfe mhr min mni mos myv nan
    nds nqo nso nus pag pam pap pcm prs sah sat scn sco sh shn szl tpi tum tyv udm umb vec war wuu
    yue
    """.splitlines()
    for word in line.split()
)
# Other codes of three letters count where they are the whole name, unless they are such words.
_NO_LANGUAGES = frozenset(
    word
    for line in """
    all any bad big bin csv cut dat end hof hsd ids iid img json log low mid mix neg new non not off
    old one ood org out pos pre raw rel sep set src sub sum tab tmp top tox trn tsv tst two txt web
    zip
    """.splitlines()
    for word in line.split()
)
_SHARD = re.compile(r"-\d+-of-\d+$")
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)


_LABEL_WORDS = {"harmful": 1, "harmless": 0, "benign": 0}
_OTHER_WORDS = {
    *_LABEL_WORDS,
    *SPLIT_WORDS,
    *("clean", "hate", "hateful", "labeled", "labelled", "labels", "neutral", "non", "nontoxic"),
    *("not", "offensive", "safe", "toxic", "unsafe"),
}
# Codes that are English words before words of that kind: my_train, is_toxic, no_hate.
_ENGLISH_WORDS = {"as", "is", "my", "no", "or", "so"}
_SET_NAME = re.compile(r"([A-Za-z][\w-]+):(.+)", re.DOTALL)


class DataFile(NamedTuple):
    """One file of a data set.

    name: as messages show it, printable and short.
    lang: the language that its name or folder says, if any.
    label: the label that its name or folder says, if any: 1 harmful, 0 harmless.
    split: the split that its name or folder says, if any.
    columns: what its columns mean.
    part: the number of the source that it belongs to; pairs join texts of one part. Sources whose
        label was named are one part.
    """

    path: Path
    name: str
    lang: str | None
    label: int | None
    split: str | None
    columns: Columns = Columns()
    part: int = 0


class Source(NamedTuple):
    """A data set's name and its files in reading order."""

    name: str
    files: tuple[DataFile, ...]


def is_language(name: str) -> bool:
    """Whether `name` has the form of a BCP 47 name, which is also safe as a name in a store."""
    return _LANGUAGE.fullmatch(name) is not None


def find_sources(
    sources: Sequence[str | Path],
    columns: Columns,
    split: str | None,
    revision: str | None,
    on_note: Callable[[str], None],
) -> Source:
    """Find the files of a data set, which may come from several sources.

    Args:
        sources: each `[harmful=|harmless=][SET:]PLACE`, where the place is a file, a directory, a
            hub id or a packaged sample, and SET a known data set.
        columns: as typed; they come before those of a known set.
        split: keep the files of this split only.
        revision: of a hub data set.
        on_note: called with one-line notes.

    Raises:
        DataError: there is nothing to read, or no such split.
        ConfigError: no source is given, or a revision of a local one.
    """
    if not sources:
        raise ConfigError("data: none given: name a file, a directory or a hub id")
    known_sources = []
    for number, text in enumerate(sources):
        label, known, place = _parsed(text)
        meant = (columns_of(known) if known else Columns()).overridden(columns)
        if label:
            meant = replace(meant, every=label)
        source = find_source(place, revision, on_note)
        files = tuple(
            file._replace(
                columns=meant,
                lang=_lang_word(file, meant) or file.lang,
                part=0 if label else number,
            )
            for file in source.files
        )
        known_sources.append(Source(source.name, files))
    name = "+".join(source.name for source in known_sources)
    files = tuple(file for source in known_sources for file in source.files)
    if split is not None:
        files = _of_split(files, split, name)
    return Source(printable(name), files)


def _parsed(text: str | Path) -> tuple[str, str, str | Path]:
    """Split a source into label, known data set and place; a path that exists is only a place."""
    label = known = ""
    if isinstance(text, Path) or os.path.exists(text):
        return label, known, text
    prefix, equals, rest = text.partition("=")
    if equals and prefix in ("harmful", "harmless"):
        label, text = prefix, rest
    match = None if os.path.exists(text) else _SET_NAME.fullmatch(text)
    if match and not text.startswith(SAMPLE_PREFIX) and not match[2].startswith("//"):
        known, text = match[1], match[2]
        columns_of(known)  # a wrong name is an error even where the path is wrong too
    return label, known, text


def _lang_word(file: DataFile, columns: Columns) -> str | None:
    """The language that a word of a file's path names, in the words of a known data set."""
    words = reversed(list(words_of(file.name)))
    return next((columns.languages[word] for word in words if word in columns.languages), None)


def _of_split(files: Sequence[DataFile], split: str, name: str) -> tuple[DataFile, ...]:
    """The files whose split, stem or folder has this name, or whose path ends in it: `full/test`.

    Raises:
        DataError: there is none.
    """
    folder, slash, last = split.casefold().strip("/").rpartition("/")
    wanted = f"{folder}{slash}{SPLIT_WORDS.get(last, last)}"
    kept = tuple(file for file in files if wanted in _split_names(file))
    if kept:
        return kept
    known = sorted(set().union(*map(_split_names, files)))
    shown = [printable(word) for word in known if "/" in wanted or "/" not in word]
    raise DataError(
        f"{name}: no split {split!r}: its splits are {', '.join(shown[:12]) or 'none'}"
        f"{nearest(split, known)}"
    )


def _split_names(file: DataFile) -> set[str]:
    """Names of a file's split, of its folders, and of folders together with these: `full/test`."""
    *folders, last = Path(file.name.casefold()).parts
    stem = _SHARD.sub("", split_format(last)[0])
    names = {stem, *([file.split] if file.split else [])}
    for i in range(len(folders)):
        inside = ["/".join(folders[i:j]) for j in range(i + 1, len(folders) + 1)]
        names |= {*inside, *(f"{inside[-1]}/{name}" for name in (stem, file.split) if name)}
    return names


def find_source(source: str | Path, revision: str | None, on_note: Callable[[str], None]) -> Source:
    """Find the files of one source; a data set on the hub is downloaded into the hub's cache.

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
        if str(source) in known_sets():
            raise DataError(f"{source}: a known data set: name its file too, as in {source}:FILE")
        raise DataError(
            f"{printable(str(source))}: no such file or directory: expected a data file "
            f"({FORMATS}), a directory of them, a hub id (owner/name) or {SAMPLE_PREFIX}polite"
        )
    name = printable(path.name)
    stem, kind = format_of(path, name)
    if kind is None:
        raise DataError(f"{name}: unknown file format: expected {FORMATS}, or .txt with columns")
    return Source(printable(stem), (_file(path, Path(path.name), stem),))


def _file(path: Path, inside: Path, stem: str) -> DataFile:
    """A data file, with what its name and, from the innermost on, its folders say."""
    names = (stem, *reversed(inside.parts[:-1]))
    labels = (_label_of(name) for name in names)
    splits = (_split_of(name) for name in names)
    return DataFile(
        path,
        printable(inside.as_posix()),
        lang=next(filter(None, map(_language_of, names)), None),
        label=next((label for label in labels if label is not None), None),
        split=next((split for split in splits if split is not None), None),
    )


def _label_of(name: str) -> int | None:
    labels = {_LABEL_WORDS[word] for word in words_of(name) if word in _LABEL_WORDS}
    return labels.pop() if len(labels) == 1 else None


def _split_of(name: str) -> str | None:
    """A usual name of a split among the words, or what stands before the number of a shard."""
    splits = {SPLIT_WORDS[word] for word in words_of(name) if word in SPLIT_WORDS}
    if len(splits) == 1:
        return splits.pop()
    stem = _SHARD.sub("", name)
    is_other = _language_of(name) is None and _label_of(name) is None
    return stem.casefold() if stem != name and is_other and not splits else None


def printable(name: str) -> str:
    """A name as it appears in a one-line message."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 200 else f"{name[:200]}..."


def _packaged(name: str) -> Source:
    folder = Path(__file__).parent
    known = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if name not in known:
        raise DataError(f"no packaged sample {name!r}: expected {', '.join(known)}")
    return Source(name, (_file(known[name], Path(known[name].name), name),))


def _layout(folder: Path, data_name: str) -> tuple[DataFile, ...]:
    """List the data files below `folder`, each with the language that its path says."""
    files: dict[str, list[DataFile]] = {}
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
            files.setdefault(kind, []).append(_file(path, inside, stem))
    if not files:
        raise _no_data_files(data_name)
    if len(files) > 1:
        files.pop("json", None)  # beside data in another format, it is about them
    if len(files) > 1:
        examples = ", ".join(of_kind[0].name for of_kind in files.values())
        raise DataError(
            f"{data_name}: files of several formats, perhaps the same data twice ({examples}): "
            "name one file, or a directory with one format"
        )
    (of_kind,) = files.values()
    return tuple(sorted(of_kind, key=lambda file: file.path.relative_to(folder).parts))


def _no_data_files(data_name: str) -> DataError:
    return DataError(f"{data_name}: no data files: expected {FORMATS}")


def _unreadable(error: OSError) -> None:
    raise DataError(f"{printable(str(error.filename))}: cannot be read ({error.strerror})")


def _language_of(name: str) -> str | None:
    """The language that a name is, without words of splits and labels and the number of a shard."""
    name = _SHARD.sub("", name)
    words = list(re.finditer(r"[^\W_]+", name))
    others = [word[0].casefold() in _OTHER_WORDS for word in words]
    while words and (others[-1] or (words[-1][0].isdecimal() and any(others[-2:]))):
        words.pop()
        others.pop()
    start = others.index(False) if False in others else len(words)
    code = name[words[start].start() : words[-1].end()] if words[start:] else ""
    return code if _is_surely_language(code, is_whole=code == name) else None


def _is_surely_language(code: str, *, is_whole: bool) -> bool:
    """Whether a name, or what is left of it, is a language and nothing else.

    Any code of three letters is one if it is the whole name and no usual word; with a script, too.
    """
    match = _LANGUAGE_IN_PATH.fullmatch(code)
    if match is None:
        return False
    primary = match[1].casefold()
    subtags = re.split("[-_]", match[2])[1:]
    has_script = not _SCRIPTS.isdisjoint(subtags)
    if code.replace("_", "-") not in _LOWER_REGIONS and not all(
        subtag in _SCRIPTS or _REGION.fullmatch(subtag) for subtag in subtags
    ):
        return False
    if is_known_code(primary) or primary in _OTHER_CODES:
        return is_whole or code not in _ENGLISH_WORDS
    is_alone = is_whole and not subtags
    return len(primary) == 3 and primary not in _NO_LANGUAGES and (is_alone or has_script)


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
    patterns = ["*.parquet"] + [f"*.{kind}{packed}" for kind in KINDS for packed in PACKED]
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
