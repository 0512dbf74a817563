"""Files as they are published: columns and label values by name."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safetyspace_fast.data import Samples, read_samples
from safetyspace_fast.errors import ConfigError, DataError

ROWS = [{"words": f"text {i}", "class": ("bad", "worse", "good")[i % 3]} for i in range(12)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labels_of(samples: Samples) -> dict[str, int]:
    return dict(zip(samples.texts, samples.labels.tolist(), strict=True))


def test_columns_values_and_language_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    samples = read_samples(
        path,
        text_column="words",
        label_column="class",
        harmful=["BAD", "worse"],
        harmless="good",
        lang="en",
    )
    assert labels_of(samples) == {row["words"]: int(row["class"] != "good") for row in ROWS}
    assert samples.languages == ("en",)


@pytest.mark.parametrize(
    ("typed", "label", "note"),
    [
        (
            {"harmful": "good"},
            {"good": 1, "bad": 0, "worse": 0},
            "harmless: 'bad' (4), 'worse' (4)",
        ),
        (
            {"harmless": "good"},
            {"good": 0, "bad": 1, "worse": 1},
            "harmful: 'bad' (4), 'worse' (4)",
        ),
    ],
)
def test_with_one_list_every_other_label_means_the_other(
    tmp_path: Path, typed: dict[str, Any], label: dict[str, int], note: str
) -> None:
    path = write(tmp_path / "en.jsonl", ROWS)
    notes: list[str] = []
    samples = read_samples(
        path, text_column="words", label_column="class", on_note=notes.append, **typed
    )
    assert labels_of(samples) == {row["words"]: label[row["class"]] for row in ROWS}
    assert notes == [f"en: all other labels count as {note}"]


def test_labels_in_neither_list_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "en.jsonl", ROWS)
    options = {"text_column": "words", "label_column": "class", "harmful": "worse"}
    notes: list[str] = []
    samples = read_samples(path, harmless="good", on_note=notes.append, **options)
    assert notes[0] == "en: labels in neither list leave their texts out: 'bad' (4)"
    assert Counter(e.reason for e in samples.excluded) == {"class is in neither list": 4}
    with pytest.raises(DataError, match=r"^en\.jsonl:1: class is in neither list \(strict"):
        read_samples(path, harmless="good", strict=True, **options)


@pytest.mark.parametrize(
    ("operator", "harmful"),
    [(">=", {2, 3}), (">", {3}), ("<=", {0, 1, 2}), ("<", {0, 1}), ("==", {2})],
)
def test_a_score_has_a_threshold(tmp_path: Path, operator: str, harmful: set[int]) -> None:
    rows = [{"text": str(i), "score": score} for i, score in enumerate([0, 1.0, "2", "3.0"])]
    path = write(tmp_path / "en.jsonl", rows)
    for options in (
        {"harmful": f"score{operator}2"},
        {"harmful": f"{operator} 2.0", "label_column": "score"},
    ):
        found = labels_of(read_samples(path, **options))
        assert {int(text) for text, label in found.items() if label} == harmful


def test_scores_between_two_thresholds_and_odd_ones_are_left_out(tmp_path: Path) -> None:
    scores = [0.9, 0.1, 0.5, None, "high", float("nan"), True]
    rows = [{"text": str(i), "score": score} for i, score in enumerate(scores)]
    path = write(tmp_path / "en.jsonl", rows)
    samples = read_samples(path, harmful="score>=0.8", harmless="score<0.2")
    assert labels_of(samples) == {"0": 1, "1": 0, "6": 1}
    assert [(e.line, e.reason) for e in samples.excluded] == [
        (3, "score is between harmful and harmless"),
        (4, "no score"),
        (5, "score is not a number"),
        (6, "no score"),
    ]
    with pytest.raises(DataError, match=r"^en\.jsonl:1: score is 0\.9: both harmful \(score>=0\.8"):
        read_samples(path, harmful="score>=0.8", harmless="score<1")


COUNTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(counts=COUNTS)
def test_several_columns_are_joined_by_any(
    tmp_path: Path, counts: list[tuple[int, int, int]]
) -> None:
    counts = [(0, 0, 0), (0, 2, 0), *counts]
    rows = [{"text": str(i), **dict(zip("abc", row, strict=True))} for i, row in enumerate(counts)]
    path = write(tmp_path / "en.jsonl", rows)
    for options in ({"harmful": ">=1"}, {"harmful": ["1", "2"], "harmless": "0"}):
        found = labels_of(read_samples(path, label_column=("a", "b", "c"), **options))
        assert found == {str(i): int(any(row)) for i, row in enumerate(counts)}


def test_columns_of_ones_and_zeros_need_no_lists(tmp_path: Path) -> None:
    rows = [{"text": str(i), "a": i == 1, "b": i == 2} for i in range(4)]
    path = write(tmp_path / "en.jsonl", rows)
    found = labels_of(read_samples(path, label_column=["a", "b"]))
    assert found == {"0": 0, "1": 1, "2": 1, "3": 0}


def test_paths_lists_of_words_and_votes(tmp_path: Path) -> None:
    votes = [("hate", "hate", "none"), ("none", "none", "none"), ("hate", "none", "else")]
    rows = [
        {"post": {"words": ["a", str(i)]}, "votes": [{"label": vote} for vote in row]}
        for i, row in enumerate(votes)
    ]
    samples = read_samples(
        write(tmp_path / "en.jsonl", rows),
        text_column="post.words",
        label_column="votes.label",
        harmful="hate",
        harmless="none",
    )
    assert labels_of(samples) == {"a 0": 1, "a 1": 0}
    assert [e.reason for e in samples.excluded] == ["no majority in votes.label"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"text_column": "wrods", "label_column": "class"},
            r"x\.jsonl:1: no column .wrods.: the columns are .words., .class.; did you mean",
        ),
        ({"text_column": "words", "label_column": "klass"}, "no column 'klass'.*mean 'class'"),
        ({"text_column": ["a", "b"], "label_column": "class"}, "no column 'a' or 'b'"),
        ({"text_column": "words", "harmful": "clas>=1"}, "no column 'clas'.*mean 'class'"),
        ({"text_column": "words"}, "the columns are 'words', 'class': expected text, label"),
        (
            {"text_column": "words", "label_column": "class", "harmful": "goood"},
            r"harmful: no label is 'goood': the labels are 'bad' \(4\), 'good' \(4\), 'worse' "
            r"\(4\); did you mean 'good'",
        ),
        (
            {"text_column": "words", "label_column": "class"},
            "class is 'bad': expected 1 .*--harmful",
        ),
        (
            {
                "text_column": "words",
                "label_column": "class",
                "harmful": "bad",
                "languages": ["dee"],
            },
            "no texts in dee: its languages are de; did you mean 'de'",
        ),
    ],
)
def test_names_that_match_nothing_are_errors_with_the_nearest(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    with pytest.raises(DataError, match=message):
        read_samples(path, lang="de", **options)


def test_a_label_that_is_nowhere_beside_others_is_a_note(tmp_path: Path) -> None:
    notes: list[str] = []
    read_samples(
        write(tmp_path / "en.jsonl", ROWS),
        text_column="words",
        label_column="class",
        harmful=["bad", "OFF", "1"],
        harmless=["good", "worse"],
        on_note=notes.append,
    )
    assert notes == ["en: harmful: no label is 'OFF', '1'"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"harmful": "1", "harmless": ["0", "1.0"]}, "both name '1': name it once"),
        ({"lang": "en", "lang_column": "l"}, "lang and lang_column exclude each other"),
        ({"lang": "../en"}, "language '../en': expected a BCP 47"),
        ({"harmful": ["a", " "]}, "harmful: an empty name"),
        ({"label_column": []}, "label_column: an empty name"),
        ({"delimiter": "semikolon"}, "delimiter 'semikolon'.*did you mean 'semicolon'"),
        ({"quoting": "all"}, "quoting 'all': expected one of auto, csv, none"),
    ],
)
def test_options_that_contradict_themselves(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_samples(write(tmp_path / "en.jsonl", ROWS), **options)


def test_no_error_prints_a_text(tmp_path: Path) -> None:
    secret = "an unrepeatable thing to say"
    rows = [{"words": f"{secret} {i}", "class": f"{secret} {i}", "lang": secret} for i in range(4)]
    path = write(tmp_path / "x.jsonl", rows)
    bare = tmp_path / "x.txt"
    bare.write_text("".join(f"{secret}, he wrote {i}\tOFFENSE\tOTHER\n" for i in range(4)))
    table = tmp_path / "x.csv"
    table.write_text(bare.read_text().replace("\t", ","))
    json_of_texts = tmp_path / "x.json"
    json_of_texts.write_text(json.dumps([{f"{secret} {i}": 1 for i in range(3)}]))
    named = {"text_column": "words", "label_column": "class", "lang": "en"}
    for source, options in (
        (path, named),
        (path, named | {"harmful": "OFF"}),
        (path, named | {"harmful": "OFF", "harmless": "NOT"}),
        (path, {"text_column": "words", "harmful": "class>=1", "lang": "en"}),
        (path, {"text_column": "words", "label_column": "class", "harmful": "x"}),
        (path, {"text_column": "word"}),
        *((other, {}) for other in (bare, table, json_of_texts)),
        *((other, {"text_column": "text"}) for other in (bare, table, json_of_texts)),
        (bare, {"text_column": "2", "label_column": "1", "lang": "en"}),
    ):
        with pytest.raises(DataError) as caught:
            read_samples(source, **options)
        assert "unrepeatable" not in str(caught.value)


def test_a_file_without_a_header_names_columns_by_number(tmp_path: Path) -> None:
    path = tmp_path / "tweets.txt"
    path.write_text("".join(f"text {i}\t{('OFF', 'NOT')[i % 2]}\tx\n" for i in range(8)))
    with pytest.raises(DataError, match=r"does not look like column names.*by number, from 1"):
        read_samples(path)
    notes: list[str] = []
    samples = read_samples(
        path, text_column="1", label_column="2", harmful="OFF", harmless="NOT", lang="de",
        on_note=notes.append,
    )  # fmt: skip
    assert labels_of(samples) == {f"text {i}": (i + 1) % 2 for i in range(8)}
    assert notes == ["tweets.txt: read without a header, since columns are numbered"]
    table = tmp_path / "en.csv"
    table.write_text("1,2\nx,1\ny,0\n")
    assert labels_of(read_samples(table, text_column="1", label_column="2")) == {"x": 1, "y": 0}


@pytest.mark.parametrize(("harmful", "harmless"), [(1, 0), ([1.0], [0]), (True, False)])
def test_values_and_columns_may_be_numbers(tmp_path: Path, harmful: Any, harmless: Any) -> None:
    path = tmp_path / "en.txt"
    path.write_text("a\t1\nb\t0\n" if harmful is not True else "a\tTrue\nb\tFalse\n")
    options = {"text_column": 1, "label_column": 2, "harmful": harmful, "harmless": harmless}
    assert labels_of(read_samples(path, **options)) == {"a": 1, "b": 0}


def test_values_and_thresholds_join_columns(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": "NOT", "score": i / 4} for i in range(4)]
    path = write(tmp_path / "en.jsonl", [*rows, {"text": "off", "label": "OFF", "score": 0}])
    found = labels_of(read_samples(path, harmful=["OFF", "score>=0.7"], harmless="NOT"))
    assert found == {"0": 0, "1": 0, "2": 0, "3": 1, "off": 1}


def test_many_short_texts_as_labels_are_not_printed(tmp_path: Path) -> None:
    rows = [{"text": f"unrepeatable {i}", "label": i} for i in range(40)]
    notes: list[str] = []
    with pytest.raises(DataError) as caught:
        read_samples(
            write(tmp_path / "en.jsonl", rows),
            label_column="text",
            harmful="unrepeatable 1",
            harmless="x",
            on_note=notes.append,
        )
    assert "unrepeatable" not in f"{caught.value} {notes}"


@pytest.mark.parametrize("header", ["text, label", " text ,label "])
def test_blanks_around_the_names_of_columns(tmp_path: Path, header: str) -> None:
    path = tmp_path / "en.csv"
    path.write_text(header + "\na, 1\nb, 0\n")
    assert labels_of(read_samples(path)) == {"a": 1, "b": 0}


# Faults of what was typed, and messages that hold no text


@pytest.mark.parametrize("words", ["{m} {i}", "{m}{i}", "\u6bd2{m}\u8a9e{i}", "{m}-{i}."])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_no_message_holds_a_short_text(tmp_path: Path, words: str, suffix: str) -> None:
    marker = "qzx"
    texts = [words.format(m=marker, i=i) for i in range(5)]
    delimiter = "\t" if suffix == ".tsv" else ","
    rows = [{"text": text, "label": i % 2, "lang": "en"} for i, text in enumerate(texts)]
    path = tmp_path / f"x{suffix}"
    if suffix == ".jsonl":
        write(path, rows)
    else:
        fields = [["text", "label", "lang"], *([t, str(i % 2), "en"] for i, t in enumerate(texts))]
        path.write_text("".join(delimiter.join(row) + "\n" for row in fields))
    bare = tmp_path / f"bare{suffix}"
    if suffix == ".jsonl":
        write(bare, [{texts[0]: "x", "1": 1}])
    else:
        bare.write_text("".join(f"{t}{delimiter}{i % 2}\n" for i, t in enumerate(texts)))
    said: list[str] = []
    for source, options in (
        (path, {"label_column": "text"}),
        (path, {"label_column": "text", "harmful": "OFF"}),
        (path, {"label_column": "text", "harmful": "OFF", "harmless": "NOT"}),
        (path, {"label_column": "text", "harmful": ">=0.5"}),
        (path, {"text_column": "label", "label_column": "text", "harmless": "OFF"}),
        (path, {"lang": "de", "label_column": "text"}),
        (bare, {}),
        (bare, {"text_column": "text", "lang": "en"}),
    ):
        with pytest.raises((DataError, ConfigError)) as caught:
            read_samples(source, on_note=said.append, **options)
        said.append(str(caught.value))
    assert marker not in " ".join(said)


@pytest.mark.parametrize("text", ["\u4f60\u662f\u4e00\u4e2a\u574f\u4eba", "two words", "x" * 25])
def test_a_language_that_may_be_a_text_is_not_shown(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "x.jsonl", [{"text": text, "label": 1, "lang": text}])
    with pytest.raises(DataError, match=r"lang is a value of \d+ characters: expected") as caught:
        read_samples(path)
    assert text not in str(caught.value)


@pytest.mark.parametrize("scores", [[0.1, 0.25, 0.7], ["0,1", "0,7", 0.25], ["0,1", "high"]])
def test_a_threshold_that_holds_for_no_score_says_the_scores(
    tmp_path: Path, scores: list[Any]
) -> None:
    path = write(tmp_path / "en.jsonl", [{"text": f"t{s}", "score": s} for s in scores])
    numbers = [score for score in scores if isinstance(score, float)]
    words = [f"from {min(numbers):g} to {max(numbers):g}"] if numbers else []
    n_bad = len(scores) - len(numbers)
    words += [f"{n_bad} x not a number"] if n_bad else []
    with pytest.raises(
        DataError, match=f"no score is .score>=0.9.: the scores are {', '.join(words)}:"
    ):
        read_samples(path, harmful="score>=0.9")


@pytest.mark.parametrize(
    "harmful",
    [
        ["toxicity>=0", "5"],
        [">=0", "75"],
        *("toxicity>=0,5", "toxicity\u22650.5", "\u2265 1", "toxicity>=50%", "50%", "0.5 %"),
        *("toxicity=>0.5", "toxicity=0.5", "toxicity>=", ">=high", "toxicity>.5.1"),
    ],
)
def test_what_is_nearly_a_threshold_is_refused(tmp_path: Path, harmful: Any) -> None:
    path = write(tmp_path / "en.jsonl", [{"text": "x", "toxicity": 1, "label": 1}])
    with pytest.raises(
        ConfigError, match=r"^threshold .*(expected >=, |expected a number)"
    ) as caught:
        read_samples(path, harmful=harmful)
    assert str(caught.value).isprintable()


def test_thresholds_beside_values_are_read(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": "abc"[i], "score": i} for i in range(3)]
    path = write(tmp_path / "en.jsonl", rows)
    found = labels_of(read_samples(path, harmful=["score>=2", "b"], harmless=["a", "c"]))
    assert found == {"0": 0, "1": 1, "2": 1}


@pytest.mark.parametrize(
    "incomplete", [{}, {"text": "x", "lang": "en"}, {"label": 1, "lang": "en"}, {"id": 3}]
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_row_without_a_column_is_counted_wherever_it_stands(
    tmp_path: Path, incomplete: dict[str, Any], suffix: str
) -> None:
    rows = [{"text": f"{i}", "label": i % 2, "lang": "en"} for i in range(4)]
    found = []
    for at in (0, 2, 4):
        path = tmp_path / f"x{at}{suffix}"
        ordered = [*rows[:at], incomplete, *rows[at:]]
        if suffix == ".json":
            path.write_text(json.dumps(ordered))
        else:
            write(path, ordered)
        samples = read_samples(path)
        assert [e.line for e in samples.excluded] == [at + 1]
        found.append(samples.sha256)
    assert len(set(found)) == 1
    with pytest.raises(DataError, match=r"^x0\.json.?:1: .*\(strict"):
        read_samples(tmp_path / f"x0{suffix}", strict=True)


@pytest.mark.parametrize(
    ("options", "odd"),
    [
        ({}, {"text": "x", "toxic": 1, "lang": "en"}),
        ({}, {"toxic_sentence": "x", "neutral_sentence": "y", "lang": "en"}),
        ({"text_column": ["text", "b"]}, {"b": "x", "label": 1, "lang": "en"}),
        ({"lang_column": "lang"}, {"text": "x", "label": 1}),
        ({"harmful": "label>=1"}, {"text": "x", "lang": "en"}),
    ],
)
@pytest.mark.parametrize("name", ["x.jsonl", "harmful.jsonl"])
def test_columns_are_found_in_any_order_of_rows(
    tmp_path: Path, options: dict[str, Any], odd: dict[str, Any], name: str
) -> None:
    rows = [{"text": f"{i}", "label": i % 2, "lang": "en"} for i in range(4)]
    found = {
        read_samples(write(tmp_path / name, [*rows[:at], odd, *rows[at:]]), **options).sha256
        for at in range(5)
    }
    assert found == {read_samples(write(tmp_path / name, rows)).sha256}


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("empty", [{}, {"lang": ""}, {"lang": None}])
def test_a_row_without_a_language_is_counted(
    tmp_path: Path, at: int, empty: dict[str, Any]
) -> None:
    rows: list[dict[str, Any]] = [{"text": f"{i}", "label": i % 2, "lang": "en"} for i in range(4)]
    rows.insert(at, {"text": "x", "label": 0, **empty})
    samples = read_samples(write(tmp_path / "x.jsonl", rows))
    assert [(e.line, e.reason) for e in samples.excluded] == [(at + 1, "no language")]


@pytest.mark.parametrize("options", [{}, {"harmful": "1"}, {"harmless": "0"}])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_labels_that_are_not_a_number_are_missing(
    tmp_path: Path, options: dict[str, Any], suffix: str
) -> None:
    labels = [1, 0, float("nan")]
    path = tmp_path / f"en{suffix}"
    if suffix == ".csv":
        path.write_text("text,label\n" + "".join(f"t{i},{y}\n" for i, y in enumerate(labels)))
        options = options or {"harmful": "1"}
    else:
        write(path, [{"text": f"t{i}", "label": y} for i, y in enumerate(labels)])
    samples = read_samples(path, **options)
    assert labels_of(samples) == {"t0": 1, "t1": 0}
    assert [e.reason for e in samples.excluded] == ["no label"]


@pytest.mark.parametrize("name", ["is_safe", "safe", "Safe", "isSafe", "benign", "non-toxic"])
def test_a_label_column_of_safe_texts_needs_its_values(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"{i}", name: bool(i % 2)} for i in range(4)]
    path = write(tmp_path / "en.jsonl", rows)
    with pytest.raises(ConfigError, match=f"label column '{name}'.*--harmless true,1"):
        read_samples(path, label_column=name)
    found = labels_of(read_samples(path, label_column=name, harmless=["true", "1"]))
    assert found == {f"{i}": 1 - i % 2 for i in range(4)}


@pytest.mark.parametrize("options", [{"limit": "3"}, {"limit": 1.5}, {"languages": [5]}])
def test_options_of_another_type(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^(limit|language) .*: expected"):
        read_samples(write(tmp_path / "en.jsonl", ROWS), **options)


@pytest.mark.parametrize("option", ["lang_column", "lang", "split", "delimiter"])
def test_options_that_are_not_strings(tmp_path: Path, option: str) -> None:
    path = write(tmp_path / "en.jsonl", ROWS)
    with pytest.raises(ConfigError, match=f"{option} 3: expected a string"):
        read_samples(path, **{option: 3})


@pytest.mark.parametrize("options", [{}, {"languages": ["en"]}, {"languages": ["qzxa"]}])
def test_texts_that_are_read_as_languages_are_not_shown(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    rows = [{"text": f"qzx{chr(97 + i) * 2}", "label": i % 2} for i in range(20)]
    with pytest.raises(DataError) as caught:
        read_samples(write(tmp_path / "x.jsonl", rows), lang_column="text", **options)
    assert "qzxaa" not in str(caught.value)
    assert "qzxbb" not in str(caught.value)
