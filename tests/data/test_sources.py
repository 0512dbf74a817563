"""Where data sets lie: files, split-per-language layouts, the packaged sample."""

import json
import os
import sys
from pathlib import Path

import pytest

from safetyspace_fast.data import Samples, read_samples
from safetyspace_fast.errors import DataError


def write(path: Path, *words: str, **columns: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": word, "toxic": i % 2} | columns for i, word in enumerate(words)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("name", "lang"),
    [
        ("en.jsonl", "en"),
        ("data/en-00000-of-00001.jsonl", "en"),
        ("en/train.jsonl", "en"),
        ("en/train-00000-of-00002.jsonl", "en"),
        ("en/dev.jsonl", "en"),
        ("data/zh-Hans/0.jsonl", "zh-Hans"),
        ("data/hin.jsonl", "hin"),
        ("raw/all/deu_Latn.jsonl", "deu_Latn"),
        ("en/de.jsonl", "de"),
    ],
)
def test_language_from_the_layout(tmp_path: Path, name: str, lang: str) -> None:
    write(tmp_path / name, "x", "y")
    assert read_samples(tmp_path).languages == (lang,)


def test_language_from_a_single_file(tmp_path: Path) -> None:
    write(tmp_path / "fr" / "en.jsonl", "x", "y")
    assert read_samples(str(tmp_path / "fr" / "en.jsonl")).languages == ("en",)


@pytest.mark.parametrize("name", ["train.jsonl", "dev.jsonl", "data/test-00000-of-00001.jsonl"])
def test_split_names_are_no_languages(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "x", "y")
    with pytest.raises(DataError, match=rf"^{name}:1: no language"):
        read_samples(tmp_path)


def test_the_lang_column_wins(tmp_path: Path) -> None:
    write(tmp_path / "en.jsonl", "x", "y", lang="de")
    assert read_samples(tmp_path).languages == ("de",)


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    write(tmp_path / "set" / "en-00001-of-00002.jsonl", "good", "nasty")
    write(tmp_path / "set" / "en-00000-of-00002.jsonl", "sweet", "a", "b")
    write(tmp_path / "set" / "de.jsonl", "gut", "boese")
    (tmp_path / "set" / "README.md").write_text("about")
    write(tmp_path / "set" / ".cache" / "de.jsonl", "hidden", "away")
    samples = read_samples(tmp_path / "set")
    assert samples.name == "set"
    # Read in the order de, en-00000, en-00001: 2 + 3 + 2 rows.
    order = dict(zip(samples.texts, samples.file_position.tolist(), strict=True))
    words = ["gut", "boese", "sweet", "a", "b", "good", "nasty"]
    assert order == {word: i for i, word in enumerate(words)}


def test_exclusions_name_the_file(tmp_path: Path) -> None:
    write(tmp_path / "de.jsonl", "gut", "boese")
    write(tmp_path / "en" / "train.jsonl", "good", "", "nice", "nasty")
    (exclusion,) = read_samples(tmp_path).excluded
    assert (exclusion.file, exclusion.line) == ("en/train.jsonl", 2)


def test_the_same_data_in_two_formats_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "en.jsonl", "x", "y")
    (tmp_path / "en.csv").write_text("text,label\nx,0\ny,1\n")
    with pytest.raises(DataError, match=r"files of several formats, .*en\.csv.*: name one file"):
        read_samples(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.jsonl", r"^no/such/file\.jsonl: no such file or directory: expected a data"),
        ("nothing", "^nothing: no such file or directory"),
        ("", "^: no such file or directory"),
        ("odd\nname", r"^'odd\\nname': no such file or directory"),
        ("nul\0", r"^'nul\\x00': no such file or directory"),
        ("x" * 5000, r"^x+\.\.\.: no such file or directory"),
        ("/dev/null", "^/dev/null: no such file"),
        ("sample:rude", "^no packaged sample 'rude': expected polite"),
        ("sample:../polite", r"^no packaged sample '\.\./polite'"),
    ],
)
def test_sources_that_are_not_there(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_samples(source)
    assert "\n" not in str(caught.value)


def test_unknown_kinds_of_file(tmp_path: Path) -> None:
    for name in ("x.xlsx", "x.parquet.gz", ".jsonl", "x"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=r"unknown file format: expected \.jsonl"):
            read_samples(tmp_path / name)
    with pytest.raises(DataError, match="no data files: expected"):
        read_samples(tmp_path)


def test_links_and_pipes_in_a_layout(tmp_path: Path) -> None:
    write(tmp_path / "store" / "blob", "x", "y")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "en.jsonl").symlink_to(tmp_path / "store" / "blob")  # as in the hub's cache
    assert read_samples(folder).texts == ["x", "y"]
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    assert len(read_samples(folder)) == 2
    os.mkfifo(folder / "de.jsonl")
    with pytest.raises(DataError, match=r"de\.jsonl is not a regular file"):
        read_samples(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_odd_file_names_stay_on_one_line(tmp_path: Path) -> None:
    odd = tmp_path / "set\n\udcff" / "\u202e line\nfeed.jsonl"
    write(odd, "", "y", "x", lang="en")
    samples = read_samples(odd.parent)
    assert samples.name.isprintable()
    assert samples.excluded[0].file.isprintable()
    with pytest.raises(DataError) as caught:
        read_samples(odd.parent, strict=True)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "lang"),
    [
        *((f"{name}.jsonl", "en") for name in ("en_train", "train.en", "en-test-0001", "EN_dev")),
        *((f"{name}.jsonl", "de") for name in ("de_harmless", "toxic-de", "de_non_toxic_val")),
        ("es-train-00000-of-00001.jsonl", "es"),
        ("yue_train.jsonl", "yue"),
        ("ace_Arab-test.jsonl", "ace_Arab"),
        *((f"{name}.jsonl", name) for name in ("zh-CN", "pt_BR", "pt-br", "es-419", "sr_Latn_RS")),
        *((f"{name}.jsonl", name) for name in ("fil", "zh_hant", "gab", "zho_Hans")),
        ("de/my_data.jsonl", "de"),
    ],
)
def test_splits_and_classes_are_no_part_of_a_language(tmp_path: Path, name: str, lang: str) -> None:
    write(tmp_path / name, "x", "y")
    assert read_samples(tmp_path).languages == (lang.replace("en", "EN") if "EN" in name else lang,)


@pytest.mark.parametrize(
    "name",
    [
        *("my_tweets", "my_train", "my_Data", "hs_tweets", "hs_EN", "tox_train", "dev_data"),
        *("new_data", "set_one", "new", "tox", "en_old", "en_de", "run_1", "is_toxic", "gab_test"),
        *("mhc_test_suite_german", "harmless_test", "toxic-chat_annotation_train"),
    ],
)
def test_words_in_names_are_no_languages(tmp_path: Path, name: str) -> None:
    write(tmp_path / f"{name}.jsonl", "x", "y")
    with pytest.raises(DataError, match=rf"^{name}\.jsonl:1: no language: give --lang"):
        read_samples(tmp_path)


def test_files_of_two_classes_are_of_one_language(tmp_path: Path) -> None:
    write(tmp_path / "en_harmful.jsonl", "nasty", "foul")
    write(tmp_path / "en_harmless.jsonl", "good", "nice")
    samples = read_samples([f"{y}={tmp_path}/en_{y}.jsonl" for y in ("harmful", "harmless")])
    assert samples.languages == ("en",)
    assert samples.labels.sum() == 2


def test_folders_with_the_same_texts_are_said_and_chosen(tmp_path: Path) -> None:
    for folder in ("30k", "330k"):
        for split in ("train", "test"):
            shared = [f"{split} 0", f"{split} 1"]
            write(tmp_path / "set" / folder / f"{split}.jsonl", *shared, f"{folder} {split}")
    notes: list[str] = []

    def read(split: str | None) -> Samples:
        return read_samples(tmp_path / "set", split=split, lang="en", on_note=notes.append)

    read(None)
    assert any(
        "4 texts are in more than one file of the same split (30k/test.jsonl, 30k/train.jsonl, "
        "330k/test.jsonl, 330k/train.jsonl); choose" in note
        for note in notes
    )
    notes.clear()
    assert len(read("330k")) == 6
    assert set(read("330k/train").texts) == {"train 0", "train 1", "330k train"}
    assert not any("more than one file" in note for note in notes)
    with pytest.raises(DataError, match=r"no split '3k/train': .*; did you mean '30k/train'"):
        read("3k/train")
