"""Sweep files: what they may say, and how a mistake in one reads."""

import json
from pathlib import Path

import pytest

from safetyspace_fast.cli import main
from safetyspace_fast.config import RunConfig
from safetyspace_fast.errors import ConfigError
from safetyspace_fast.sweep import read_sweep
from safetyspace_fast.sweep.file import DATA_FIELDS, MODEL_FIELDS, decode_sweep

TOML = """
out = "stores"
poolings = ["last"]
limit = 40
harmful = [1, "yes"]
models = ["plain/model", {model = "other=dir/x+adapter", poolings = ["mean", "last"], seed = 3}]
data = [
    {data = "a.jsonl", name = "first", languages = ["en"]},
    {data = ["b.jsonl", "c.jsonl"], limit = 7},
]

[pairs]
tuned = ["org/base@main", "org/aligned"]
"""
SMALL = {"out": "o", "models": ["a"], "data": ["d.jsonl"]}


def test_a_file_becomes_one_run_for_each_model_and_data_set(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(TOML)
    configs = read_sweep(tmp_path / "sweep.toml").configs()
    assert [(*config.models, str(config.out)) for config in configs] == [
        (model, f"stores/{store}.zarr")
        for model in (
            "plain/model",
            "other=dir/x+adapter",
            "tuned.base=org/base@main",
            "tuned.aligned=org/aligned",
        )
        for store in ("first", "b")
    ]
    first, second, third = configs[:3]
    assert (first.poolings, first.limit, first.languages) == (("last",), 40, ("en",))
    assert (second.limit, second.languages, second.data) == (7, None, ("b.jsonl", "c.jsonl"))
    assert (third.poolings, third.seed, third.limit) == (("mean", "last"), 3, 40)
    assert all(config.harmful == ("1", "yes") and config.resume for config in configs)


def test_json_says_the_same_as_toml(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(SMALL | {"dtype": "float32"}))
    (config,) = read_sweep(tmp_path / "sweep.json").configs()
    assert config == RunConfig("a", "d.jsonl", "o/d.zarr", dtype="float32", resume=True)


def test_every_option_of_a_run_may_stand_in_a_file() -> None:
    own = {"models", "data", "out", "resume", "overwrite"}
    assert {*DATA_FIELDS, *MODEL_FIELDS} | own == set(RunConfig.__dataclass_fields__)
    defaults = {
        name: list(value) if isinstance(value, tuple) else value
        for name in (*DATA_FIELDS, *MODEL_FIELDS)
        if (value := RunConfig.__dataclass_fields__[name].default) is not None
    }
    (config,) = decode_sweep(SMALL | defaults).configs()
    assert config == RunConfig("a", "d.jsonl", "o/d.zarr", resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"poolng": ["mean"]}, "s.toml: poolng: no such key; did you mean 'poolings'?"),
        (
            {"models": ["a", {"model": "b", "poolling": []}]},
            "s.toml: models[1].poolling: no such key; did you mean 'poolings'?",
        ),
        ({"models": [{"modell": "b"}]}, "models[0].modell: no such key; did you mean 'model'?"),
        ({"models": [{"model": "b", "limit": 5}]}, "models[0].limit: no such key"),
        ({"data": [{"data": "d", "seed": 1}]}, "data[0].seed: no such key"),
        ({"models": [{"seed": 1}]}, "s.toml: models[0].model: missing; write [NAME=]BASE"),
        ({"data": [{"limit": 5}]}, "s.toml: data[0].data: missing; name a file"),
        ({"models": ["a", "x/a"]}, "models[1]: its name 'a' is also that of models[0]"),
        ({"models": ["a", "x/A"]}, "models[1]: its name 'A' is also that of models[0]"),
        ({"data": ["d", "b/d.csv"]}, "data[1]: its store 'o/d.zarr' is also that of data[0]"),
        ({"data": [{"data": "d", "name": "x/y"}]}, "data[0].name: got 'x/y', expected a name"),
        ({"models": []}, "s.toml: no models; add"),
        ({"data": []}, "s.toml: no data; add"),
        ({"models": [3]}, "s.toml: models[0]: expected `str | table`, got `int`"),
        ({"models": "a"}, "s.toml: models: expected `list`, got `str`"),
        ({"limit": "3"}, "s.toml: limit: expected `int | nothing`, got `str`"),
        ({"verify": 1}, "s.toml: verify: expected `bool`, got `int`"),
        ({"limit": 1}, "s.toml: limit: got 1, expected at least 2"),
        ({"data": [{"data": "d", "limit": 1}]}, "s.toml: data[0].limit: got 1, expected at least"),
        (
            {"models": [{"model": "a", "poolings": ["meen"]}]},
            "s.toml: models[0].poolings: got 'meen', expected one of mean, mean_all, last, "
            "last_text; did you mean 'mean'?",
        ),
        ({"models": ["a+"]}, "s.toml: models[0]: model '"),
        ({"pairs": {"x": ["a"]}}, "s.toml: pairs.x: expected `list` of length 2, got 1"),
        ({"pairs": {"x": ["a", 3]}}, "s.toml: pairs.x[1]: expected `str`, got `int`"),
        ({"pairs": {"x/y": ["a", "b"]}}, "s.toml: pairs.x/y: no name for models"),
        ({"pairs": {"x": ["a", ""]}}, "s.toml: pairs.x.aligned: model 'x.aligned': expected"),
        ({"resume": True}, "s.toml: resume: no such key"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode_sweep(SMALL | change, "s.toml")
    assert said.removeprefix("s.toml: ") in str(caught.value)
    assert str(caught.value).startswith("s.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.toml", "models = [", "not TOML"),
        ("s.json", "{", "not JSON"),
        ("s.json", "[" * 100_000, "not JSON"),
        ("s.toml", "a=" + "[" * 20_000, "not TOML"),
        ("s.json", "[]", "the file: expected `table`, got `list`"),
        ("s.toml", "models = ['a']", "out: missing; name a folder"),
        ("s.toml", b"\xff\xfe", "not TOML"),
    ],
)
def test_a_file_that_is_none_is_one_line_and_wrong_usage(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    content: str | bytes,
    said: str,
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["run", str(tmp_path / name)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert name in line
    assert said in line


def test_options_beside_a_file_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "s.toml")
    assert main(["run", file]) == 2
    assert "no sweep file can be read here" in capfd.readouterr().err
    for seed in ("3", "0"):
        assert main(["run", file, "--seed", seed]) == 2
        assert f"--seed and a sweep file; write it into {file}" in capfd.readouterr().err
    assert main(["run", file, "--overwrite"]) == 2
    assert "remove the stores yourself" in capfd.readouterr().err
    assert main(["run", "--dry-run", "--model", "a", "--data", "b", "--out", "c"]) == 2
    assert "--dry-run is for a sweep" in capfd.readouterr().err
