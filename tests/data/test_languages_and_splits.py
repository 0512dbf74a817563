"""Files as they are published: languages, sources and splits by name."""

from collections import Counter
from pathlib import Path

import pytest
from test_columns import labels_of, write

from safetyspace_fast.data import read_samples
from safetyspace_fast.errors import ConfigError, DataError


def test_one_language_for_all_texts_says_what_it_replaces(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": i % 2, "lang": ("de", "fr")[i // 2]} for i in range(4)]
    notes: list[str] = []
    path = write(tmp_path / "x.jsonl", rows)
    assert read_samples(path, lang="en", on_note=notes.append).languages == ("en",)
    assert notes == ["x.jsonl: lang en in place of 'de' (2), 'fr' (2)"]


def test_a_column_holds_the_language(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": i % 2, "locale": "pt-BR"} for i in range(4)]
    path = write(tmp_path / "en.jsonl", rows)
    assert read_samples(path, lang_column="locale").languages == ("pt-BR",)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("zh", ("zh-CN",)),
        ("zho_Hans", ("zh-CN",)),
        ("zh_cn", ("zh-CN",)),
        ("en", ("en",)),
        ("eng", ("en", "eng_Latn")),
        ("pt", ("pt-BR", "pt-PT")),
        ("pt-PT", ("pt-PT",)),
    ],
)
def test_languages_are_found_by_what_they_mean(
    tmp_path: Path, asked: str, found: tuple[str, ...]
) -> None:
    langs = ("zh-CN", "en", "eng_Latn", "pt-BR", "pt-PT")
    rows = [{"text": f"{i}", "label": i % 2, "lang": lang} for lang in langs for i in range(2)]
    samples = read_samples(write(tmp_path / "x.jsonl", rows), languages=[asked])
    assert samples.languages == found
    assert len(samples) == 2 * len(found)


def test_one_language_under_two_codes_is_said(tmp_path: Path) -> None:
    rows = [
        {"text": f"{i}", "label": i % 2, "lang": lang}
        for lang in ("en", "eng_Latn", "zh-CN", "zh-TW")
        for i in range(2)
    ]
    notes: list[str] = []
    samples = read_samples(write(tmp_path / "x.jsonl", rows), on_note=notes.append)
    assert samples.languages == ("en", "eng_Latn", "zh-CN", "zh-TW")
    assert notes == ["x: en, eng_Latn may be one language, and are kept apart"]


def test_several_sources_are_one_data_set(tmp_path: Path) -> None:
    en = write(tmp_path / "en.jsonl", [{"text": f"{i}", "label": i % 2} for i in range(4)])
    de = write(tmp_path / "de.jsonl", [{"text": f"d{i}", "label": i % 2} for i in range(4)])
    samples = read_samples([en, str(de)])
    assert samples.name == "en+de"
    assert samples.languages == ("de", "en")
    assert dict(zip(samples.texts, samples.file_position.tolist(), strict=True)) == {
        **{f"{i}": i for i in range(4)},
        **{f"d{i}": 4 + i for i in range(4)},
    }
    with pytest.raises(ConfigError, match="data: none given"):
        read_samples([])


def test_pairs_join_texts_of_one_source(tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "label": i % 2, "pair": i // 2, "lang": "en"} for i in range(4)]
    one = write(tmp_path / "one.jsonl", rows)
    two = write(tmp_path / "two.jsonl", [row | {"text": f"two {row['text']}"} for row in rows])
    samples = read_samples([one, two])
    assert samples.excluded == ()
    assert sorted(Counter(samples.pair.tolist()).values()) == [2, 2, 2, 2]


@pytest.mark.parametrize("pairs", [False, True])
def test_two_files_are_labelled_by_what_stands_before_them(tmp_path: Path, pairs: bool) -> None:
    paths = [
        write(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"{name} {i}", **({"pair": i} if pairs else {})} for i in range(3)],
        )
        for name in ("first", "second")
    ]
    samples = read_samples(
        [f"harmful={paths[0]}", f"harmless={paths[1]}"], text_column="prompt", lang="en"
    )
    assert labels_of(samples) == {
        f"{n} {i}": n == "first" for n in ("first", "second") for i in range(3)
    }
    assert (samples.pair >= 0).all() == pairs


def test_a_label_before_a_file_wins_over_its_label_column(tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "label": 0} for i in range(2)]
    paths = write(tmp_path / "en.jsonl", rows), write(tmp_path / "two" / "en.jsonl", rows[:1])
    notes: list[str] = []
    with pytest.raises(DataError, match="the other class"):
        read_samples(f"harmful={paths[0]}", on_note=notes.append)
    assert notes == ["en.jsonl: all its texts count as harmful; its column 'label' is not read"]


@pytest.mark.parametrize(
    "names",
    [
        ("harmful.jsonl", "harmless.jsonl"),
        ("harmful_train.jsonl", "harmless_train.jsonl"),
        ("data/harmful-behaviors.jsonl", "data/benign-behaviors.jsonl"),
        ("harmful/en.jsonl", "harmless/en.jsonl"),
    ],
)
def test_labels_come_from_the_names_of_files_and_folders(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for i_file, name in enumerate(names):
        write(tmp_path / "d" / name, [{"text": f"{i_file} {i}"} for i in range(3)])
    found = labels_of(read_samples(tmp_path / "d", lang="en"))
    assert found == {f"{i_file} {i}": 1 - i_file for i_file in range(2) for i in range(3)}


def test_a_label_column_wins_over_the_name_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "harmful.jsonl", [{"text": f"{i}", "label": i % 2} for i in range(4)])
    assert labels_of(read_samples(path, lang="en")) == {f"{i}": i % 2 for i in range(4)}


def test_one_class_alone_says_how_to_add_the_other(tmp_path: Path) -> None:
    path = write(tmp_path / "harmful.jsonl", [{"text": "x", "lang": "en"}])
    with pytest.raises(DataError, match="add the other class, as in --data harmful=FILE --data h"):
        read_samples(path)


def splits(folder: Path) -> Path:
    for i_split, split in enumerate(("train", "test")):
        rows = [{"text": f"{split} {i}", "label": i % 2} for i in range(2 + 2 * i_split)]
        write(
            folder / "en" / f"{split}-00000-of-00001.jsonl", [*rows, {"text": "both", "label": 1}]
        )
    return folder


def test_splits_that_are_read_together_are_said(tmp_path: Path) -> None:
    notes: list[str] = []
    samples = read_samples(splits(tmp_path / "set"), on_note=notes.append)
    assert samples.splits == ({"test": 5, "train": 3}, 1)
    assert notes == [
        "set: splits read together: test (5 texts), train (3 texts); 1 texts are in more than one; "
        "choose one with --split"
    ]


@pytest.mark.parametrize("name", ["train", "TRAIN", "training"])
def test_a_split_is_read_by_name(tmp_path: Path, name: str) -> None:
    notes: list[str] = []
    samples = read_samples(splits(tmp_path / "set"), split=name, on_note=notes.append)
    assert sorted(samples.texts) == ["both", "train 0", "train 1"]
    assert notes == []


def test_splits_of_other_names(tmp_path: Path) -> None:
    for name in ("30k_train", "330k_train", "dev"):
        write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}", "label": i} for i in range(2)])

    def read(split: str) -> list[str]:
        return sorted(read_samples(tmp_path, split=split, lang="en").texts)

    assert read("30k_train") == ["30k_train 0", "30k_train 1"]
    assert read("validation") == read("dev") == read("val") == ["dev 0", "dev 1"]
    assert len(read("train")) == 4


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'tets': its splits are .*; did you mean 'test'"):
        read_samples(splits(tmp_path / "set"), split="tets")
