"""What a user's editor and a user's notebook see of the package."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from tiny_models import save_tiny

import safetyspace_fast as ssf
from safetyspace_fast.config import RunConfig, RunFields

REPO = Path(__file__).parents[1]
SCRIPT = """\
import safetyspace_fast as ssf

run = ssf.run(models="gpt2", data="sample:polite", out="try.zarr", poolings=["mean"])
config = ssf.RunConfig(models=("gpt2", "b=c+d"), data="texts.jsonl", out="two.zarr")
for event in ssf.iter_run(config):
    if isinstance(event, ssf.ModelDone):
        print(event.model, event.forward_seconds)
table = ssf.separation(run, metrics=["rho", "silhouette"], layers=["final_norm"])
texts = ssf.power(run, metrics="rho", difference=0.02, versus="gpt2")["needed0"]
value: float = table["value"].sel(metric="rho").item()
verdict: str = ssf.verify("gpt2", "sample:polite", samples=4).verdict
"""


MISTAKES = [
    ('poolings=["mean"]', 'poolings="mean"'),
    ('out="try.zarr"', 'out="try.zarr", template="chatty"'),
    ('metrics=["rho", "silhouette"]', 'metric=["rho", "silhouette"]'),
    ('metrics=["rho", "silhouette"]', 'metrics=["rho", "silhuette"]'),
    ("ssf.separation", "ssf.seperation"),
]


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of the script, and of the script with each of the mistakes.

    With the options and the cache of `make lint`, which need not check the package again.
    """
    folder = tmp_path_factory.mktemp("typed")
    scripts = {"right.py": SCRIPT}
    for i, (right, wrong) in enumerate(MISTAKES):
        assert right in SCRIPT
        scripts[f"wrong_{i}.py"] = SCRIPT.replace(right, wrong)
    for name, script in scripts.items():
        (folder / name).write_text(script)
    options = ["--config-file", str(REPO / "pyproject.toml"), "--no-error-summary"]
    options += ["--cache-dir", str(REPO / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *options, *scripts]
    package = {**os.environ, "MYPYPATH": str(Path(ssf.__file__).parents[1])}
    checked = subprocess.run(
        command, cwd=folder, env=package, capture_output=True, text=True, check=False
    )
    assert not checked.stderr
    lines = checked.stdout.splitlines()
    return {name: [line for line in lines if line.startswith(name)] for name in scripts}


def test_a_users_script_is_typed(errors: dict[str, list[str]]) -> None:
    assert errors["right.py"] == []


@pytest.mark.parametrize("i", range(len(MISTAKES)))
def test_mistakes_are_found_before_the_run(errors: dict[str, list[str]], i: int) -> None:
    assert errors[f"wrong_{i}.py"]


def test_fields_of_a_config_and_arguments_of_run_are_the_same() -> None:
    assert get_type_hints(RunFields) == get_type_hints(RunConfig)


def test_one_model_may_be_a_string_and_lists_become_tuples() -> None:
    config = RunConfig(models="gpt2", data="x", out="y", poolings=["last"], languages=["en"])
    assert (config.models, config.poolings, config.languages) == (("gpt2",), ("last",), ("en",))
    assert RunConfig(models=["a", "b"], data="x", out="y", layers=["-1"]).layers == ("-1",)
    assert config.data == RunConfig(models="gpt2", data=Path("x"), out="y").data == ("x",)
    several = RunConfig(models="m", data=["x", Path("y")], out="y", harmful="1", label_column=["a"])
    assert (several.data, several.harmful, several.label_column) == (("x", "y"), ("1",), ("a",))
    assert hash(config) == hash(
        RunConfig(("gpt2",), "x", "y", poolings=("last",), languages=("en",))
    )


@pytest.mark.parametrize("field", ["poolings", "languages"])
def test_a_string_where_a_tuple_belongs_is_refused(field: str) -> None:
    with pytest.raises(
        ssf.SafetySpaceError, match=f"{field}: got the string 'mean', expected a tup"
    ):
        RunConfig(models="m", data="x", out="y", **{field: "mean"})


def test_run_takes_a_config_or_its_fields(tmp_path: Path) -> None:
    model = str(save_tiny("llama", tmp_path / "tiny"))
    fields = {"models": model, "data": "sample:polite", "languages": ["en"], "layers": ["-1"]}
    events: list[ssf.Event] = []
    run = ssf.run(**fields, out=tmp_path / "a.zarr", on_event=events.append)
    assert run.model("tiny").hookpoints == ("final_norm",)
    assert isinstance(events[-1], ssf.ModelDone)
    config = RunConfig(**fields, out=tmp_path / "b.zarr")
    assert [type(event) for event in ssf.iter_run(config)] == [type(event) for event in events]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": "m", "out": "y"}, "run: data missing"),
        ({"models": "m", "data": "x", "out": "y", "layer": "-1"}, "run: no argument layer"),
        ({"config": RunConfig("m", "x", "y"), "resume": True}, "a config and resume; give one"),
    ],
)
def test_run_says_what_is_missing_or_unknown(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ssf.SafetySpaceError, match=message):
        ssf.run(**arguments)
