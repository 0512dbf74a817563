"""Sweeps: shared work, failures that stop no other model, and the same bytes after any break."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import hub
import pytest
import warm
from tiny_models import save_adapter, save_tiny

from safetyspace_fast import api, terminal
from safetyspace_fast.cli import main
from safetyspace_fast.errors import ModelError, StoreError
from safetyspace_fast.models import choose_templates, device, parse_model
from safetyspace_fast.runner import output
from safetyspace_fast.sweep import RunBegun, RunEnded, RunForecast, drive, run_sweep, shared
from safetyspace_fast.sweep.file import decode_sweep
from safetyspace_fast.sweep.forecast import forecast
from safetyspace_fast.sweep.templates import templates_of

SETTINGS = {"token_budget": 256, "dtype": "float32", "template": "none", "poolings": ["last"]}
TWO_SETS = [
    {"data": "sample:polite", "name": "one", "languages": ["en", "de"], "limit": 8},
    {"data": "sample:polite", "name": "two", "languages": ["hi"], "limit": 6},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of one tokenizer: `a`, `broken` (its download stopped), and `b`."""
    folder = tmp_path_factory.mktemp("models")
    for name, kind in (("a", "llama"), ("broken", "qwen2"), ("b", "qwen2")):
        save_tiny(kind, folder / name, num_hidden_layers=1)
    os.truncate(folder / "broken" / "model.safetensors", 3000)
    return folder


def tree(folder: Path, out: Path, *names: str, **changes: object) -> dict[str, object]:
    listed = [str(folder / name) for name in names]
    return SETTINGS | {"models": listed, "data": TWO_SETS, "out": str(out)} | changes


def write(file: Path, content: dict[str, object]) -> str:
    file.write_text(json.dumps(content))
    return str(file)


def files(folder: Path) -> dict[str, bytes]:
    """Every chunk of all stores; metadata hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "zarr.json"
    }


@pytest.fixture(scope="module")
def plain(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What `run` with both models writes, one data set after the other."""
    out = tmp_path_factory.mktemp("plain")
    for data in TWO_SETS:
        reading = {key: value for key, value in data.items() if key != "name"}
        names = [str(models / name) for name in ("a", "b")]
        api.run(models=names, out=out / f"{data['name']}.zarr", **reading, **SETTINGS)
    return files(out)


def test_one_that_fails_stops_no_other_and_the_bytes_are_those_of_plain_runs(
    models: Path, plain: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "s.json", tree(models, tmp_path / "out", "a", "broken", "b"))
    assert main(["run", file]) == 1
    said = capfd.readouterr()
    assert files(tmp_path / "out") == plain
    assert "4 runs done, 2 failed" in said.out
    assert "time: estimated" in said.out
    assert "failed: broken -> " in said.out
    assert "not a complete safetensors file" in said.out
    assert f"safetyspace-fast run {file} --resume" in said.err.splitlines()[-1]
    states = [line.split(": ")[1] for line in said.err.splitlines() if line.startswith("[3/6]")]
    assert states == ["running", "failed"]


def test_repeating_with_resume_runs_only_what_failed(
    models: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = shutil.copytree(models, tmp_path / "models")
    content = tree(own, tmp_path / "out", "a", "broken", data=TWO_SETS[1:])
    file = write(tmp_path / "s.json", content)
    assert main(["run", file]) == 1
    assert main(["run", file]) == 1
    assert "exists already; continue the sweep with --resume" in capfd.readouterr().err
    with monkeypatch.context() as slurm:  # whose ranks may add to a store, but not those of Ray
        slurm.setenv("SLURM_PROCID", "0")
        slurm.setenv("SLURM_NTASKS", "4")
        assert main(["run", file, "--ray", "127.0.0.1:1"]) == 1
    assert "exists already; continue the sweep with --resume" in capfd.readouterr().err
    shutil.copy(own / "b" / "model.safetensors", own / "broken")
    assert main(["run", file, "--resume", "--json"]) == 0
    records = {run["model"]: run for run in json.loads(capfd.readouterr().out)["runs"]}
    assert records["a"]["seconds"] == 0
    assert records["a"]["truth"] is None
    assert records["broken"]["truth"]["store_bytes"] > 0
    assert api.open_run(tmp_path / "out" / "two.zarr").models == ("a", "broken")


def test_data_tokens_and_models_are_used_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(owner, name: str):
        function = getattr(owner, name)

        def call(*args, **options):
            calls.append(name)
            return function(*args, **options)

        return call

    for name in ("read_samples", "tokenize", "load_model"):
        monkeypatch.setattr(shared, name, counted(shared, name))
    monkeypatch.setattr(output, "lexical_scores", counted(output, "lexical_scores"))
    save_tiny("llama", tmp_path / "c", num_hidden_layers=1)  # reads as many tokens as `a`
    listed = [str(models / "a"), str(tmp_path / "c")]
    configs = decode_sweep(tree(models, tmp_path / "out", models=listed)).configs()
    events = list(run_sweep(configs))
    assert all(e.error is None for e in events if isinstance(e, RunEnded))
    assert {name: calls.count(name) for name in calls} == {
        "read_samples": 2,
        "tokenize": 2,
        "load_model": 2,
        "lexical_scores": 2,
    }


def test_texts_are_tokenised_again_where_the_tokenizer_or_the_template_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    save_tiny("llama", tmp_path / "a", num_hidden_layers=1)
    save_tiny("llama", tmp_path / "b", num_hidden_layers=1, chat_template=template)
    save_tiny("llama", tmp_path / "c", num_hidden_layers=1, adds_bos=False)
    listed = [str(tmp_path / name) for name in "abc"]
    content = tree(tmp_path, tmp_path / "out", models=listed, data=TWO_SETS[1:], template="auto")
    list(run_sweep(decode_sweep(content).configs()))
    run = api.open_run(tmp_path / "out" / "two.zarr")
    for name in "abc":
        options = SETTINGS | {"template": "auto"}
        alone = api.run(
            models=str(tmp_path / name), data="sample:polite", languages=["hi"], limit=6,
            out=tmp_path / f"{name}.zarr", **options,
        )  # fmt: skip
        both = [store.model(name).read("projected").tobytes() for store in (run, alone)]
        assert both[0] == both[1], name


def test_models_of_one_base_get_one_template_as_in_one_run(tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    base = save_tiny("llama", tmp_path / "base", num_hidden_layers=1)
    adapter = save_adapter(base, tmp_path / "adapter")
    save_tiny("llama", tmp_path / "other", chat_template=template, num_hidden_layers=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tmp_path / "other" / name, adapter)
    pair = {"pairs": {"p": [str(base), f"{base}+{adapter}"]}, "template": "auto"}
    content = tree(tmp_path, tmp_path / "out", data=TWO_SETS[1:], **pair)
    events = list(run_sweep(decode_sweep(content).configs()))
    assert [e.error for e in events if isinstance(e, RunEnded)] == [None, None]
    manifests = [
        dict(api.open_run(tmp_path / "out" / "two.zarr").model(f"p.{role}").attrs["manifest"])
        for role in ("base", "aligned")
    ]
    assert manifests[0]["template_sha256"] == manifests[1]["template_sha256"]


@pytest.mark.parametrize("mode", ["auto", "chat"])
def test_runs_of_a_sweep_and_workers_choose_the_templates_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.chdir(tmp_path)
    base = save_tiny("llama", tmp_path / "base", num_hidden_layers=1)
    adapter = save_adapter(base, tmp_path / "adapter")
    save_tiny("llama", tmp_path / "other", chat_template="{{ messages }}", num_hidden_layers=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tmp_path / "other" / name, adapter)
    models = ["base", f"tuned={base}+{adapter}"]  # one base, written in two ways
    content = tree(tmp_path, tmp_path / "out", models=models, data=TWO_SETS[1:], template=mode)
    configs = decode_sweep(content).configs()
    specs = [parse_model(model) for model in models]
    together = choose_templates(specs, mode, on_note=print)
    assert together == dict.fromkeys(
        ("base", "tuned"), "{{ messages }}" if mode == "chat" else None
    )
    code = {"allow_pickle": False, "trust_remote_code": False, "on_note": print}
    steps = shared.SharedWork(configs).steps
    assert [steps.choose_templates([spec], mode, **code) for spec in specs] == [together] * 2
    assert templates_of(configs, print) == together
    missing = replace(configs[0], models="missing=no/such/model")
    assert templates_of([*configs, missing], print) == together


@pytest.mark.parametrize(
    "stop_after", [11, *(pytest.param(number, marks=pytest.mark.slow) for number in (3, 17))]
)
def test_a_stopped_sweep_goes_on_to_the_same_bytes(
    models: Path, plain: dict[str, bytes], tmp_path: Path, stop_after: int
) -> None:
    configs = decode_sweep(tree(models, tmp_path, "a", "b")).configs()
    events = run_sweep(configs)
    list(islice(events, stop_after))
    events.close()
    list(run_sweep(configs))
    assert files(tmp_path) == plain


def run_killed(file: str, number: int, batches: int) -> None:
    """Be a command that gets a signal after so many batches."""

    class Display(terminal.SweepDisplay):
        left = batches

        def show(self, event: api.Event) -> None:
            super().show(event)
            Display.left -= isinstance(event, api.Progressed)
            if not Display.left:
                os.kill(os.getpid(), number)

    terminal.SweepDisplay = Display
    sys.exit(main(["run", file]))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGUSR1, 130)])
def test_a_killed_sweep_is_finished_by_repeating_it(
    models: Path, plain: dict[str, bytes], tmp_path: Path, number: int, code: int
) -> None:
    file = write(tmp_path / "s.json", tree(models, tmp_path / "out", "a", "b"))
    killed = warm.start(run_killed, file, number, 7)
    killed.join(120)
    assert killed.exitcode == code
    assert files(tmp_path / "out") != plain
    assert main(["run", file, "--resume"]) == 0
    assert files(tmp_path / "out") == plain


def test_a_second_sweep_on_one_store_leaves_the_models_of_the_first_alone(
    models: Path, tmp_path: Path
) -> None:
    first = run_sweep(decode_sweep(tree(models, tmp_path, "a", data=TWO_SETS[1:])).configs())
    while not isinstance(next(first), api.Progressed):
        pass
    second = decode_sweep(tree(models, tmp_path, "a", "b", data=TWO_SETS[1:])).configs()
    ended = {e.model: e.error for e in run_sweep(second) if isinstance(e, RunEnded)}
    assert isinstance(ended["a"], StoreError)
    assert "model 'a'" in str(ended["a"])
    assert ended["b"] is None
    assert [e.error for e in first if isinstance(e, RunEnded)] == [None]
    assert api.open_run(tmp_path / "two.zarr").models == ("a", "b")


def test_what_nobody_foresaw_stops_no_other_model(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_models = drive.run_models

    def broken(config, steps):
        if config.models == (str(models / "a"),):
            raise ZeroDivisionError("of a test")
        return run_models(config, steps)

    monkeypatch.setattr(drive, "run_models", broken)
    configs = decode_sweep(tree(models, tmp_path, "a", "b", data=TWO_SETS[1:])).configs()
    ended = {e.model: e.error for e in run_sweep(configs) if isinstance(e, RunEnded)}
    assert isinstance(ended["a"], ZeroDivisionError)
    assert ended["b"] is None


def test_the_next_model_is_read_ahead_while_one_runs(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, *_: asked.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    configs = decode_sweep(tree(models, tmp_path, "a", "b", data=TWO_SETS[1:])).configs()
    for event in run_sweep(configs):
        if isinstance(event, RunBegun) and event.model == "b":
            assert asked == [str(models / "b" / "model.safetensors")]


AHEAD = """
import sys, time
from pathlib import Path
from safetyspace_fast.config import RunConfig
from safetyspace_fast.sweep.drive import _ReadAhead
with _ReadAhead() as ahead:
    ahead.begin(RunConfig(models="org/next", data="sample:polite", out="unused"))
    while not Path(sys.argv[1]).exists():
        time.sleep(0.1)
"""


@pytest.mark.slow
def test_a_download_ahead_does_not_outlive_the_sweep(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, begun, over = tmp_path / "served", tmp_path / "begun", threading.Event()
    shutil.copytree(models / "a", served / "models" / "org" / "next" / "main")

    def send_slowly(source, target):
        if source.name.endswith(".safetensors"):
            begun.touch()
            over.wait(120)
        target.write(source.read())

    monkeypatch.setattr(hub, "shutil", SimpleNamespace(copyfileobj=send_slowly))
    with hub.serve(served) as url:
        env = hub.environment(url, tmp_path / "home") | {"HF_HUB_DOWNLOAD_TIMEOUT": "120"}
        process = subprocess.Popen([sys.executable, "-c", AHEAD, str(begun)], env=env)
        try:
            while not begun.exists():
                assert process.poll() is None
                time.sleep(0.1)
            assert process.wait(30) == 0
        finally:
            over.set()
            process.kill()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere", "model 'nowhere': .*nowhere: no such directory or file"),
        ("empty", "model 'empty': .*not a model directory: it has no config.json"),
        ("bare", "model 'bare': .*it has no weights"),
        ("a+nowhere", "model 'nowhere': .*nowhere: no such directory or file"),
    ],
)
def test_what_is_not_there_is_said_before_anything_runs(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], model: str, said: str
) -> None:
    (models / "empty").mkdir(exist_ok=True)
    shutil.copytree(
        models / "a", models / "bare", ignore=lambda *_: ["model.safetensors"], dirs_exist_ok=True
    )
    text = "+".join(str(models / part) for part in model.split("+"))
    content = tree(models, tmp_path / "out", models=[str(models / "b"), text])
    assert main(["run", write(tmp_path / "s.json", content)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(said, line), line
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_read_are_said_before_anything_runs(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = tree(models, tmp_path / "out", "a", data=["sample:polite", "nowhere.jsonl"])
    assert main(["run", write(tmp_path / "s.json", content)]) != 0
    assert "nowhere.jsonl" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", ["stream", "auto"])
def test_a_scratch_file_for_less_than_a_token_is_said_before_anything_runs(
    models: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
) -> None:
    b = {"model": str(models / "b"), "weights": weights, "scratch": 50}
    content = tree(models, tmp_path / "out", models=[str(models / "a"), b])
    file = write(tmp_path / "s.json", content)
    if weights == "auto":  # a scratch file that no model needs is none of the sweep's business
        assert main(["run", file, "--dry-run"]) == 0
        monkeypatch.setattr(device, "available_bytes", lambda: 0)
    capfd.readouterr()
    assert main(["run", file]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    # 32 numbers of a state, and as many for each of three layers.
    assert "model 'b': scratch: 50 bytes, but a single token keeps 536 between two blocks" in line
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing_and_says_what_would_run(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "s.json", tree(models, tmp_path / "out", "a", "b"))
    assert main(["run", file, "--dry-run", "--json"]) == 0
    runs = json.loads(capfd.readouterr().out)["runs"]
    assert [(run["model"], Path(run["out"]).name) for run in runs] == [
        ("a", "one.zarr"), ("a", "two.zarr"), ("b", "one.zarr"), ("b", "two.zarr"),
    ]  # fmt: skip
    assert all(run["seconds"] > 0 and run["store_bytes"] > 0 for run in runs)
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_made_has_no_estimate_and_stops_no_other(
    models: Path, tmp_path: Path
) -> None:
    odd = shutil.copytree(models / "a", tmp_path / "odd")
    (odd / "config.json").write_text('{"model_type": "unheard-of"}')
    listed = [str(odd), str(models / "b")]
    configs = decode_sweep(tree(models, tmp_path, models=listed, data=TWO_SETS[1:])).configs()
    first, second = forecast(configs, shared.SharedWork(configs), timed=False)
    assert "unheard-of" in (first.why or "")
    assert second.why is None
    ended = {e.model: e.error for e in run_sweep(configs) if isinstance(e, RunEnded)}
    assert isinstance(ended["odd"], ModelError)
    assert ended["b"] is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((2.0, 3.0), "3 runs: about 5.0 s and 3 kB of disk; no estimate for 1 of them"),
        ((0.0, None), "3 runs: about 3 kB of disk; no estimate for 1 of them"),  # nobody measured
    ],
)
def test_a_forecast_counts_only_what_has_none(
    seconds: tuple[float, float | None], said: str
) -> None:
    known = [
        RunForecast(f"m{i}", "o", 8, seconds=one, store_bytes=1500) for i, one in enumerate(seconds)
    ]
    line = terminal.forecast_line([*known, RunForecast("odd", "o", 8, why="unheard-of")])
    assert line == said


def test_a_template_that_raises_has_no_estimate_and_stops_no_other(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    odd = shutil.copytree(models / "a", tmp_path / "odd")
    (odd / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    listed = [str(odd), str(models / "b")]
    changes = {"models": listed, "data": TWO_SETS[1:], "template": "auto"}
    assert main(["run", write(tmp_path / "s.json", tree(models, tmp_path / "out", **changes))]) == 1
    said = capfd.readouterr()
    assert "no estimate for 1 of them" in said.err
    assert "1 runs done, 1 failed" in said.out
    assert "no such role" in said.out


def test_a_template_that_is_no_text_is_one_clear_line(models: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(models / "a", tmp_path / "odd")
    (odd / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"chat_template\.jinja: cannot be read: 'utf-8'"):
        choose_templates([parse_model(str(odd))], "auto", on_note=print)


def test_a_pair_without_access_is_said_before_anything_runs(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    served = tmp_path / "served" / "models" / "org"
    for name in ("open", "closed"):
        shutil.copytree(models / "a", served / name / "main")
    (served / "closed" / "GATED").touch()
    pairs = {"p": ["org/open", "org/closed"]}
    content = tree(models, tmp_path / "out", data=TWO_SETS[1:], pairs=pairs)
    with hub.serve(tmp_path / "served") as url:
        hub.point_client_at(url, tmp_path / "cache", monkeypatch)
        assert main(["run", write(tmp_path / "s.json", content)]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert "model 'p.aligned': org/closed: " in line
        assert "ask for access on its page" in line
        assert not list((tmp_path / "cache").rglob("*.safetensors"))
        (served / "closed" / "GATED").unlink()
        assert main(["run", write(tmp_path / "s.json", content)]) == 0
    assert api.open_run(tmp_path / "out" / "two.zarr").models == ("p.aligned", "p.base")


def test_a_terminal_shows_one_table_that_is_drawn_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((60, 10)))
    runs = [(f"m{i}", "out/a-store-with-a-long-name.zarr") for i in range(30)]
    display = terminal.SweepDisplay(runs)
    for model, out in runs[:2]:
        display.show(RunBegun(model, out=out))
        display.show(api.Note(model, "a note"))
        error = ModelError("x" * 200) if model == "m0" else None
        display.show(RunEnded(model, error, out=out))
    display.show(RunBegun(runs[2][0], out=runs[2][1]))
    shown = capsys.readouterr().err
    assert shown.count("m0: a note") == 1
    *_, last = shown.split("\x1b[J")
    assert last.splitlines()[0] == "1 done, 1 running, 1 failed, 27 waiting"
    assert [line.split()[:2] for line in last.splitlines()[1:4]] == [
        ["failed", "m0"],
        ["running", "m2"],
        ["waiting", "m3"],
    ]
    assert len(last.splitlines()) <= 9
    assert all(len(line) < 60 for line in last.splitlines())
