"""Reading a data set: columns are recognised, rows checked, unusable rows counted and listed."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..config import QUOTINGS, Names, Quoting, several_names
from ..errors import ConfigError, DataError
from ..names import languages_meant, nearest, primary_language
from .checks import (
    BOTH_LABELS,
    ONE_CLASS,
    NotUtf8Error,
    broken_pairs,
    checked_name,
    checked_text,
    label_conflicts,
    may_be_texts,
    one_class_languages,
)
from .columns import RECOGNISED, Columns, Layout, lookup, no_column
from .formats import MAX_ROWS, Form, format_of, read_records
from .json_rows import BROKEN_UTF8
from .labels import Labels, UnusableError, counted, rules, shown, word
from .samples import Exclusion, Row, Samples, Splits, arrange
from .separated import delimiter_named
from .sources import DataFile, find_sources, is_language, printable

MAX_TOTAL_BYTES = 4 << 30
"""Of all texts together, which are kept in memory."""
MAX_LANGUAGES = 10_000
"""More than ISO 639-3 names; a store numbers languages in 16 bits."""

_LANGUAGE_ADVICE = "expected a BCP 47 name such as en, pt-BR or zh-Hans"
_MAX_FIELDS = 1000
"""Different fields of a JSON file that messages may name."""
_ENOUGH_BROKEN = 3
"""Rows; with fewer, a file of a few rows would be refused for one of them."""


def read_samples(
    source: str | Path | Sequence[str | Path],
    *,
    text_column: Names | None = None,
    label_column: Names | None = None,
    harmful: Names | None = None,
    harmless: Names | None = None,
    lang_column: str | None = None,
    lang: str | None = None,
    split: str | None = None,
    delimiter: str | None = None,
    quoting: Quoting = "auto",
    strict: bool = False,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Samples:
    """Read a data set into samples in canonical order.

    Columns that are recognised: `text`, `label` (or `toxic`) and `lang`; optionally `pair` (joins a
    harmful and a harmless text) and `item` (the same for the same content in several languages). Or
    `toxic_sentence` and `neutral_sentence`, which make two samples joined as a pair. A row's `lang`
    takes precedence over the language in the file's name.

    Args:
        source: one or more, each a file (JSON Lines or a JSON array, CSV or TSV, each also as .gz
            or .zip, or Parquet), a directory of files of one format, a hub data set (owner/name or
            owner/name@revision), or the packaged `sample:polite`. `harmful=` or `harmless=` before
            it labels all its texts; the name of a known data set and a colon, as in `olid:FILE`,
            say what its columns mean. Pairs join texts of one source, or of those with a label.
        text_column: the column of the text, or several of which each file has one; a path such as
            `a.b` leads into objects; a number, from 1, for a file without a header.
        label_column: one or more columns; a text is harmful if any of them says so.
        harmful, harmless: values of the label columns, or thresholds such as `>=0.5` of them and
            `toxicity>=0.5` of another. If only one is given, all other values mean the other; a
            value in neither of two lists leaves its text out.
        lang_column: the column of the language.
        lang: the language of all texts, whatever the data say.
        split: read only the files whose split, name or folder is this; all by default.
        delimiter: of CSV and the like: `comma`, `tab`, `semicolon`, `pipe` or a character; found by
            default.
        quoting: `csv`: fields may stand in quotation marks; `none`: these are part of the text;
            `auto`: found.
        strict: raise on the first unusable row instead of listing it in `excluded`.
        languages: keep only these; `zh` also means `zh-CN` where the data have no `zh`.
        limit: at most this many samples of each language and label, drawn by text hash and seed;
            both texts of a pair are drawn or neither.
        seed: of the folds and of the limit's draw.
        revision: of a hub data set.
        on_note: called with one-line notes (the hub revision, how many rows were left out).

    Raises:
        DataError: the data cannot be used; the message names file and line.
        ConfigError: a wrong argument.
    """
    typed = Columns(
        text=_several("text_column", text_column),
        label=_several("label_column", label_column),
        lang_column=lang_column or "",
        lang=lang or "",
        harmful=_several("harmful", harmful),
        harmless=_several("harmless", harmless),
    )
    options = {"lang_column": lang_column, "lang": lang, "split": split, "delimiter": delimiter}
    for name, value in options.items():
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{name} {value!a}: expected a string")
    wanted = _check_arguments(typed, quoting, languages, limit)
    form = Form(frozenset(), (), None if delimiter is None else delimiter_named(delimiter), quoting)
    note = on_note or _ignore
    several = [source] if isinstance(source, str | Path) else list(source)
    data = find_sources(several, typed, split, revision, note)
    reader = _Reader(data.files, form, strict, wanted, note)
    for file in data.files:
        reader.read(file)
    reader.check_text_column(typed.text)
    reader.keep_languages(wanted, data.name)
    for line in reader.labels.notes(typed.harmful, typed.harmless, data.name):
        note(line)
    for find_unusable in (label_conflicts, broken_pairs, one_class_languages):
        reader.drop(find_unusable(reader.rows))

    excluded = reader.exclusions()
    if not reader.rows:
        advice = ""
        if any(exclusion.reason.startswith(ONE_CLASS) for exclusion in excluded):
            advice = ": add the other class, as in --data harmful=FILE --data harmless=FILE"
        reason = _summary(excluded) or "it is empty"
        raise DataError(f"{data.name}: no usable texts: {reason}{advice}")
    if excluded:
        note(f"{data.name}: {_summary(excluded)}")
    splits = reader.splits()
    notes_on_files = (*_notes_on_splits(splits, split), *reader.notes_on_copies())
    for line in (*notes_on_files, *_notes_on_languages(reader.rows)):
        note(f"{data.name}: {line}")
    return arrange(data.name, reader.rows, excluded, splits=splits, limit=limit, seed=seed)


def _ignore(note: str) -> None:
    pass


def _several(field: str, names: Names | None) -> tuple[str, ...]:
    several = several_names(names)
    if several is None:
        return ()
    if not several or not all(map(str.strip, several)):
        raise ConfigError(f"{field}: an empty name: give at least one, or leave it out")
    return several


def _check_arguments(
    typed: Columns, quoting: Quoting, languages: Sequence[str] | None, limit: int | None
) -> tuple[str, ...]:
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"limit {limit!a}: expected at least 1 sample of a language and label")
    if isinstance(languages, str):
        raise ConfigError(f"languages {languages!r}: expected several names, as in ('en', 'de')")
    if languages is not None and not languages:
        raise ConfigError("languages: none named: name at least one, or leave the argument out")
    if quoting not in QUOTINGS:
        raise ConfigError(f"quoting {quoting!r}: expected one of {', '.join(QUOTINGS)}")
    if typed.lang and typed.lang_column:
        raise ConfigError("lang and lang_column exclude each other: give one of them")
    both = {word(rule.typed) for rule in rules(typed.harmful)}.intersection(
        word(rule.typed) for rule in rules(typed.harmless)
    )
    if both:
        raise ConfigError(f"harmful and harmless both name {min(both)!a}: name it once")
    wanted = tuple(languages or ())
    for lang in (*wanted, *filter(None, [typed.lang])):
        if not isinstance(lang, str) or not is_language(lang):
            raise ConfigError(f"language {_quoted(lang)}: {_LANGUAGE_ADVICE}")
    return wanted


def _summary(excluded: Sequence[Exclusion]) -> str:
    """Sum up exclusions in one line, with the first file and line of the commonest reasons."""
    if not excluded:
        return ""
    first: dict[str, Exclusion] = {}
    for exclusion in excluded:
        first.setdefault(exclusion.reason, exclusion)
    counts = Counter(exclusion.reason for exclusion in excluded)
    common = counts.most_common(3)
    if BOTH_LABELS in counts and BOTH_LABELS not in dict(common):
        common.append((BOTH_LABELS, counts[BOTH_LABELS]))
    parts = [f"{n} x {reason} ({first[reason].file}:{first[reason].line})" for reason, n in common]
    more = f", {len(first) - len(common)} more reasons" if len(first) > len(common) else ""
    return f"{len(excluded)} texts left out: {', '.join(parts)}{more}"


class _NoLanguageError(UnusableError):
    """Nothing says the language of a row."""


def _no_language(where: str) -> DataError:
    return DataError(
        f"{where}: no language: give --lang or --lang-column, add a lang column, or name the file "
        "or its folder after the language (en.jsonl, en/train.csv)"
    )


class _Reader:
    """Usable rows and exclusions, collected over the files of one data set."""

    def __init__(
        self,
        files: Sequence[DataFile],
        form: Form,
        strict: bool,
        languages: Sequence[str],
        on_note: Callable[[str], None],
    ) -> None:
        self.rows: list[Row] = []
        self.labels = Labels()
        self._meant: dict[str, bool] = {}  # language: whether it may be one of those wanted
        self._spellings: dict[str, str] = {}
        self._form = form
        self._strict = strict
        self._languages = languages
        self._note = on_note
        self._excluded: list[tuple[int, str]] = []  # position, reason
        self._files = files
        self._starts: list[int] = []  # position of each file's first line
        self._next_position = 0
        self._pair_uses: Counter[str] = Counter()
        self._total_bytes = 0
        self._replaced: Counter[str] = Counter()  # languages that --lang replaces
        self._without_text: tuple[str, Mapping[str, Any]] | None = None  # a row's place, the row
        self._has_named_text = False

    def read(self, file: DataFile) -> None:
        start = self._next_position
        self._starts.append(start)
        layout: Layout | None = None
        may_differ = format_of(file.path, file.name)[1] in ("json", "jsonl")
        self._has_language = False
        named = file.columns.names()
        thresholds = rules((*file.columns.harmful, *file.columns.harmless))
        scores = {rule.column for rule in thresholds if rule.column}
        form = self._form._replace(columns=frozenset({*RECOGNISED, *named, *scores}), named=named)
        n_rows = n_broken = 0
        no_language = ""
        for line, record in read_records(file.path, file.name, form, self._note):
            position = start + line - 1
            self._next_position = position + 1
            where = f"{file.name}:{line}"
            n_rows += 1
            try:
                if isinstance(record, str):
                    raise (NotUtf8Error if record == BROKEN_UTF8 else UnusableError)(record)
                if layout is None:
                    held = self._fields(file, form) if may_differ else record
                    layout = Layout(file.columns, file.label, held, where, self.labels)
                    self._note_text_column(layout, where, held)
                self._add(record, layout, file, where, position)
            except _NoLanguageError as reason:
                if not may_differ and layout is not None and layout.lang_column not in record:
                    raise _no_language(where) from None
                no_language = no_language or where
                self._exclude(position, str(reason))
            except UnusableError as reason:
                self._exclude(position, str(reason))
                n_broken += isinstance(reason, NotUtf8Error)
            if len(self.rows) + len(self._excluded) > MAX_ROWS:
                raise DataError(f"{where}: more than {MAX_ROWS} rows: split the data")
            if self._total_bytes > MAX_TOTAL_BYTES:
                raise DataError(f"{where}: over {MAX_TOTAL_BYTES} bytes of text: split the data")
        if n_broken >= _ENOUGH_BROKEN and 20 * n_broken > n_rows:
            raise DataError(
                f"{file.name}: {n_broken} of {n_rows} rows are not UTF-8, perhaps Windows-1252: "
                "save it as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8)"
            )
        if no_language and not self._has_language:
            raise _no_language(no_language)
        if layout is not None and layout.unread_labels:
            label = ("harmless", "harmful")[layout.every or 0]
            self._note(
                f"{file.name}: all its texts count as {label}; its column "
                f"{layout.unread_labels!a} is not read"
            )
        if self._replaced:
            is_known = all(map(is_language, self._replaced)) and not may_be_texts(self._replaced)
            replaced = counted(self._replaced) if is_known else f"{len(self._replaced)} others"
            self._note(f"{file.name}: lang {file.columns.lang} in place of {replaced}")
            self._replaced.clear()

    def _fields(self, file: DataFile, form: Form) -> dict[str, None]:
        """The fields that any row of a JSON file has, so that the order of rows does not matter;
        of those that are not asked for, the first ones."""
        asked = form.columns | {name.partition(".")[0] for name in form.columns}
        fields: dict[str, None] = {}
        records = read_records(file.path, file.name, form, self._note)
        for _, record in islice(records, MAX_ROWS):
            if not isinstance(record, str) and not record.keys() <= fields.keys():
                room = max(0, _MAX_FIELDS - len(fields))
                fields |= dict.fromkeys(islice((key for key in record if key not in fields), room))
                fields |= dict.fromkeys(key for key in record if key in asked)
        return fields

    def _add(
        self,
        record: Mapping[str, Any],
        layout: Layout,
        file: DataFile,
        where: str,
        position: int,
    ) -> None:
        pair = checked_name(record.get("pair"), "pair")
        if pair and file.part:
            pair = f"{file.part}\x1f{pair}"
        item = checked_name(record.get(layout.item_column), layout.item_column)
        cluster = checked_name(record.get("cluster"), "cluster")
        for column, lang in layout.texts:
            if lang and column not in record:
                continue
            if not lang:
                lang = self._language(lookup(record, layout.lang_column), file, where)
            if self._is_wanted(lang, where):
                label = layout.label(record, where)
                text = checked_text(lookup(record, column), column, layout.joins_words)
                self._keep(label, text, lang, pair, item, cluster, position)
        if layout.is_pair:
            lang = self._language(lookup(record, layout.lang_column), file, where)
            if self._is_wanted(lang, where):
                toxic, neutral = (
                    checked_text(record.get(name), name)
                    for name in ("toxic_sentence", "neutral_sentence")
                )
                pair = pair or self._pair_of(lang, toxic[1] + neutral[1])
                self._keep(1, toxic, lang, pair, item, cluster, position)
                self._keep(0, neutral, lang, pair, item, cluster, position)

    def _keep(
        self,
        label: int,
        checked: tuple[str, bytes, int],
        lang: str,
        pair: str | None,
        item: str | None,
        cluster: str | None,
        position: int,
    ) -> None:
        text, sha256, size_bytes = checked
        self.rows.append(Row(text, label, lang, pair, item, cluster, position, sha256, size_bytes))
        self._total_bytes += size_bytes

    def _language(self, value: object, file: DataFile, where: str) -> str:
        """The language of a row."""
        columns = file.columns
        if isinstance(value, str):
            value = columns.languages.get(value.casefold(), value)
        if columns.lang:
            said = value if isinstance(value, str) and value else file.lang
            if said and said != columns.lang and len(self._replaced) < 100:
                self._replaced[said] += 1
            return columns.lang
        if value is None or value == "":
            if file.lang is None:
                raise _NoLanguageError("no language")
            return file.lang
        if not isinstance(value, str) or not is_language(value):
            raise DataError(f"{where}: lang is {shown(value)}: {_LANGUAGE_ADVICE}")
        return value

    def _note_text_column(self, layout: Layout, where: str, record: Mapping[str, Any]) -> None:
        self._has_named_text |= layout.has_named_text
        if self._without_text is None and not layout.has_named_text:
            self._without_text = where, record

    def check_text_column(self, named: Sequence[str]) -> None:
        """Check that a text column that was named is in one of the files.

        Raises:
            DataError: it is in none; a known set's own column was read in its place.
        """
        if named and self._without_text is not None and not self._has_named_text:
            where, record = self._without_text
            raise DataError(no_column(where, named, record))

    def _is_wanted(self, lang: str, where: str) -> bool:
        """Whether a language may be one of those wanted; which is certain when all are known."""
        self._has_language = True
        if lang not in self._meant:
            self._see(lang, where)
            self._meant[lang] = not self._languages or any(
                languages_meant(name, [lang]) for name in self._languages
            )
        return self._meant[lang]

    def _see(self, lang: str, where: str) -> None:
        """Check a new language; refuse another spelling of a known one, which would split it."""
        other = self._spellings.setdefault(lang.replace("_", "-").casefold(), lang)
        if other != lang:
            raise DataError(f"{where}: lang is {lang!r}, earlier {other!r}: use one")
        if len(self._spellings) > MAX_LANGUAGES:
            raise DataError(f"{where}: more than {MAX_LANGUAGES} languages")

    def keep_languages(self, wanted: Sequence[str], data_name: str) -> None:
        """Keep the rows of the languages that are wanted.

        Raises:
            DataError: the data have none that a name means.
        """
        if not wanted:
            return
        meant = {name: languages_meant(name, self._meant) for name in wanted}
        if missing := [name for name, langs in meant.items() if not langs]:
            seen = ", ".join(sorted(self._meant)) or "none"
            if may_be_texts(self._meant):
                seen = f"{len(self._meant)} different ones"
            raise DataError(
                f"{data_name}: no texts in {', '.join(sorted(missing))}: its languages are {seen}"
                f"{'' if may_be_texts(self._meant) else nearest(missing[0], self._meant)}"
            )
        kept = {lang for langs in meant.values() for lang in langs}
        self.rows = [row for row in self.rows if row.lang in kept]

    def _pair_of(self, lang: str, content: bytes) -> str:
        """Name a pair by its content, so that the file's order does not matter."""
        name = f"{lang} {content.hex()}"
        self._pair_uses[name] += 1
        return f"{name} {self._pair_uses[name]}"

    def _exclude(self, position: int, reason: str) -> None:
        if self._strict:
            i_file = self._file_at(position)
            raise DataError(
                f"{self._files[i_file].name}:{position - self._starts[i_file] + 1}: {reason} "
                "(strict: no row may be left out)"
            )
        self._excluded.append((position, reason))

    def drop(self, reasons: dict[int, str]) -> None:
        """Exclude rows by their index."""
        for i, reason in reasons.items():
            self._exclude(self.rows[i].position, reason)
        if reasons:
            self.rows = [row for i, row in enumerate(self.rows) if i not in reasons]

    def exclusions(self) -> list[Exclusion]:
        excluded = []
        for position, reason in sorted(self._excluded):
            i_file = self._file_at(position)
            line = position - self._starts[i_file] + 1
            excluded.append(Exclusion(self._files[i_file].name, line, reason))
        return excluded

    def splits(self) -> Splits:
        """How the usable rows lie in the splits that the files' names say."""
        texts: Counter[str] = Counter()
        first: dict[tuple[str, bytes], str] = {}
        shared: set[tuple[str, bytes]] = set()
        if len({file.split for file in self._files} - {None}) > 1:
            for row in self.rows:
                split = self._files[self._file_at(row.position)].split or "other"
                texts[split] += 1
                key = (row.lang, row.sha256)
                if first.setdefault(key, split) != split:
                    shared.add(key)
        return Splits(dict(texts), len(shared))

    def notes_on_copies(self) -> Iterator[str]:
        """Files of one split that hold the same texts, as configurations of a data set do."""
        first: dict[tuple[str, bytes, str | None], int] = {}
        shared: set[tuple[str, bytes, str | None]] = set()
        indices: set[int] = set()
        for row in self.rows if len(self._files) > 1 else ():
            i_file = self._file_at(row.position)
            key = (row.lang, row.sha256, self._files[i_file].split)
            i_first = first.setdefault(key, i_file)
            if i_first != i_file:
                shared.add(key)
                indices |= {i_first, i_file}
        if shared:
            names = [self._files[i].name for i in sorted(indices)]
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
            yield (
                f"{len(shared)} texts are in more than one file of the same split ({shown}); "
                "choose a folder, file or split of one with --split, as in --split full/test"
            )

    def _file_at(self, position: int) -> int:
        return bisect_right(self._starts, position) - 1


def _notes_on_splits(splits: Splits, asked: str | None) -> Iterator[str]:
    if splits.texts and asked is None:
        texts = ", ".join(f"{name} ({n} texts)" for name, n in splits.texts.items())
        yield (
            f"splits read together: {texts}; {splits.shared} texts are in more than one; choose "
            "one with --split"
        )


def _notes_on_languages(rows: Sequence[Row]) -> Iterator[str]:
    """Languages under codes of two and of three letters, as en and eng_Latn: perhaps one."""
    by_primary: dict[str, set[str]] = {}
    for lang in {row.lang for row in rows}:
        by_primary.setdefault(primary_language(lang), set()).add(lang)
    for langs in by_primary.values():
        if len({lang.replace("_", "-").split("-")[0].casefold() for lang in langs}) > 1:
            yield f"{', '.join(sorted(langs))} may be one language, and are kept apart"


def _quoted(value: object) -> str:
    """A value as it appears in a one-line message."""
    return printable(ascii(value)[:60])
