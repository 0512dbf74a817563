"""The command line as a person types it."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import save_tiny

from safetyspace_fast import terminal
from safetyspace_fast.cli import main
from safetyspace_fast.cli.run import interrupt_at_signals

UNFORESEEN = terminal.unforeseen
RUN = [sys.executable, "-m", "safetyspace_fast.cli"]


@pytest.fixture(autouse=True)
def _no_last_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that nobody foresaw fail the test that finds them."""

    def fail(error: Exception) -> None:
        raise error

    monkeypatch.setattr(terminal, "unforeseen", fail)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run.zarr"
    arguments = ["--data", "sample:polite", "--languages", "en,de,ru", "--out", str(out)]
    assert main(["run", "--model", str(tiny), *arguments]) == 0
    return out


def test_run_prints_what_it_did_and_what_is_next(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.zarr"
    command = ["run", "--model", str(tiny), "--data", "sample:polite", "--out", str(out)]
    assert main([*command, "--languages", "en"]) == 0
    printed, progress = capfd.readouterr()
    assert re.search(r"^tiny-llama: \d+ texts, [\d,]+ tokens in [\d.]+ s", printed)
    assert f"safetyspace-fast separation {out}" in printed
    assert "5 hookpoints x 32" in progress
    assert main([*command, "--languages", "en"]) == 1
    assert "--resume" in capfd.readouterr().err
    assert main([*command, "--languages", "en", "--resume"]) == 0
    assert "nothing to do" in capfd.readouterr().err


def test_run_json_is_json(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.zarr"
    command = ["run", "--model", f"a={tiny}", "--data", "sample:polite", "--out", str(out)]
    assert main([*command, "--languages", "de", "--layers=-1,embed", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["out"] == str(out)
    (model,) = result["models"]
    assert model["model"] == "a"
    assert model["texts"] > 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "{m}", "--data", "nothing.jsonl"], 1, "nothing.jsonl"),
        (["--model", "{d}/no-model", "--data", "sample:polite"], 1, "no-model"),
        (["--model", "{m}", "--data", "sample:polite", "--layers", "block.9"], 2, "block.9"),
        (["--model", "{m}", "--data", "sample:polite", "--poolings", "median"], 2, "median"),
        (["--model", "{m}", "--model", "{m}", "--data", "sample:polite"], 2, "same name"),
        (["--model", "../x={m}", "--data", "sample:polite"], 1, "../x"),
        (["--model", "{m}", "--data", "sample:polite", "--device", "cuda:7"], None, "cuda"),
        (["--model", "{m}", "--data", "sample:polite", "--impl", "triton"], 1, "triton"),
        (["--model", "{m}", "--data", "sample:polite", "--languages", "xx"], None, "xx"),
    ],
)
def test_errors_are_one_line(
    tiny: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int | None,
    message: str,
) -> None:
    filled = [a.replace("{m}", str(tiny)).replace("{d}", str(tmp_path)) for a in arguments]
    got = main(["run", *filled, "--out", str(tmp_path / "run.zarr")])
    assert got == status or (status is None and got in (1, 2))
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("safetyspace-fast: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_without_arguments_it_is_a_guide(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    guide, nothing = capfd.readouterr()
    commands = re.findall(r"^  safetyspace-fast (\w+)", guide, re.MULTILINE)
    assert commands == ["run", "separation", "report", "explain"]
    assert "--help" in guide
    assert not nothing
    assert max(map(len, guide.splitlines())) <= 100


def test_wrong_usage_exits_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert "--model is missing" in capfd.readouterr().err
    for arguments in (["fly"], ["run", "--token-budget", "many"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    capfd.readouterr()


@pytest.mark.parametrize(
    "command", [[], ["run"], ["separation"], ["compare"], ["languages"], ["explain"], ["info"]]
)
def test_help_teaches(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capfd.readouterr().out
    assert text.startswith("usage: safetyspace-fast")
    if command in ("run", "separation", "compare"):
        assert "examples:" in text


def test_separation_prints_a_table(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["separation", str(store)]) == 0
    table = capfd.readouterr().out
    for word in ("en", "de", "ru", "final_norm"):
        assert word in table
    assert max(map(len, table.splitlines())) <= 100


def test_separation_writes_every_format(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = ["separation", str(store), "--metric", "rho", "--layers", "final_norm"]
    assert main([*chosen, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert {row["lang"] for row in rows} == {"de", "en", "ru"}
    assert all(0 <= float(row["value"]) <= 1 for row in rows if row["metric"] == "rho")
    assert main([*chosen, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)
    target = tmp_path / "table.parquet"
    assert main([*chosen, "--format", "parquet", "-o", str(target)]) == 0
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(target).num_rows == len(rows)
    assert main([*chosen, "--format", "parquet"]) == 2
    assert main(["separation", str(store), "--metric", "beauty"]) == 2
    assert "rho" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["separation", "compare"])
def test_statistics_name_a_device_that_is_not_there(
    store: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pair = ["--base", "tiny-llama", "--aligned", "tiny-llama"] if command == "compare" else []
    typed = [command, str(store), *pair, "--metric", "rho", "--layers=-1", "--device"]
    assert main([*typed, "cpu"]) == 0
    capfd.readouterr()
    assert main([*typed, "cuda:99"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "cuda:99" in line


def test_explain_and_compare(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "rho"]) == 0
    assert "between" in capfd.readouterr().out.lower()
    assert main(["explain", "beauty"]) == 2
    assert "rho" in capfd.readouterr().err
    pair = ["--base", "tiny-llama", "--aligned", "tiny-llama", "--metric", "rho", "--json"]
    assert main(["compare", str(store), *pair, "--layers=-1"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert "difference" in json.dumps(rows)


def test_models_of_different_templates_are_compared_only_if_asked(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same weights, bare and inside a template."""
    chat, out = tmp_path / "chat", str(tmp_path / "run.zarr")
    shutil.copytree(tiny, chat)
    config = json.loads((chat / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    (chat / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    rest = ["--data", "sample:polite", "--languages", "en", "--layers=-1", "--out", out]
    assert main(["run", "--model", f"base={tiny}", "--template", "none", *rest]) == 0
    assert main(["run", "--model", f"chat={chat}", "--template", "chat", "--resume", *rest]) == 0
    compare = ["compare", out, "--base", "base", "--aligned", "chat", "--metric", "rho"]
    capfd.readouterr()
    assert main(compare) == 2
    refused = capfd.readouterr().err
    assert "with template none, 'chat' with chat" in refused
    assert refused.count("\n") == 1
    assert main([*compare, "--different-templates"]) == 0
    differ = "not run alike: template: none (base), chat"
    assert differ in " ".join(capfd.readouterr().out.split())
    for command in (["separation", out, "--metric", "rho"], ["languages", out]):
        assert main(command) == 0
        assert differ in " ".join(capfd.readouterr().out.split())


def test_info_tells_what_runs_and_why(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capfd.readouterr().out
    assert "pool_project" in text
    assert "usable" in text
    assert "linear layers" in text
    assert main(["info", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["implementations"]["pool_project"]["reference"] == []


def test_the_command_starts_fast_and_imports_nothing_heavy() -> None:
    script = (
        "import sys, safetyspace_fast.cli\n"
        "heavy = {'torch', 'transformers', 'zarr', 'triton', 'xarray', 'numpy'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@pytest.fixture
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # What starts the tests in the background may have had them ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers_as_before")
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_an_interrupt(signum: int) -> None:
    interrupt_at_signals()
    handler = signal.getsignal(signum)
    assert callable(handler)
    with pytest.raises(KeyboardInterrupt):
        handler(signum, None)


@pytest.mark.parametrize(
    "signum", [SIGNALS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in SIGNALS[1:])]
)
def test_a_signal_saves_and_resume_finishes(tiny: Path, tmp_path: Path, signum: int) -> None:
    out = tmp_path / "run.zarr"
    command = ["run", "--model", str(tiny), "--data", "sample:polite", "--out", str(out)]
    command += ["--languages", "en,de,ru", "--dtype", "float32", "--token-budget", "1"]
    process = subprocess.Popen(
        [*RUN, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # as above
    )
    segments = out.with_name(out.name + ".work")
    deadline = time.monotonic() + 120
    while not list(segments.rglob("*.seg")):
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signum)
    _, progress = process.communicate(timeout=120)
    assert process.returncode == 130, progress
    assert "interrupted" in progress
    assert "Traceback" not in progress
    assert not list(segments.rglob("owner.json"))
    assert main([*command, "--resume"]) == 0


@pytest.mark.usefixtures("_handlers_as_before")
def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt_at_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_run_may_be_started_in_a_thread(tiny: Path, tmp_path: Path) -> None:
    command = ["run", "--model", str(tiny), "--data", "sample:polite", "--languages", "en"]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, [*command, "--out", str(tmp_path / "run.zarr")]).result() == 0


@pytest.mark.parametrize(
    "error", [TypeError("first\nsecond"), MemoryError(), OSError(5, "sick"), KeyError("\x1b")]
)
def test_an_unforeseen_error_is_one_line_and_a_log(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(terminal, "unforeseen", UNFORESEEN)
        patch.setattr("tempfile.tempdir", str(tmp_path))
        patch.setattr("safetyspace_fast.info.environment", fail)
        assert main(["info"]) == 1
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert f"unforeseen error: {type(error).__name__}: " in line
    assert "\x1b" not in line
    (log,) = tmp_path.iterdir()
    assert str(log) in line
    assert "Traceback (most recent call last)" in log.read_text("utf-8")


def test_an_unforeseen_error_without_room_for_a_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(terminal, "unforeseen", UNFORESEEN)
        patch.setattr("tempfile.tempdir", "/no/such/folder")
        patch.setattr("safetyspace_fast.info.environment", lambda: 1 / 0)
        assert main(["info"]) == 1
    assert "cannot be written (No such file or directory)" in capfd.readouterr().err


def test_languages_prints_matrices_and_rows(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = ["languages", str(store), "--layers=-1", "--poolings", "last"]
    assert main(chosen) == 0
    text = capfd.readouterr().out
    for word in ("transfer_auc", "direction_reliability", "semantic", "de", "ru"):
        assert word in text
    assert main([*chosen, "--json"]) == 0
    whole = json.loads(capfd.readouterr().out)
    assert len(whole["rows"]) == 9
    assert {"lang", "other_lang", "transfer_auc", "semantic"} <= set(whole["rows"][0])
    assert whole["definitions"]["language"]["definition"]


def test_everything_in_the_results_explains_itself(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = [str(store), "--layers=-1", "--poolings", "last", "--json"]
    quick = ["--metric", "all", "--bootstraps", "9", "--permutations", "9"]
    axes = {"layer", "pooling", "lang", "model", "metric", "other_lang", "space"}
    names = {"groups", "group_value"}
    for command in (
        ["separation", *chosen, *quick],
        [
            "compare",
            *chosen,
            *quick,
            "--base",
            "tiny-llama",
            "--aligned",
            "tiny-llama",
            "--reference",
            "de",
        ],
        ["languages", *chosen],
        ["curve", *chosen],
        ["separation", *chosen, "--metric", "rho", "--sensitivity"],
        ["power", *chosen, "--metric", "rho", "--difference", "0.1"],
    ):
        assert main(command) == 0
        whole = json.loads(capfd.readouterr().out)
        names |= set(whole["rows"][0]) - axes | {row.get("metric", "p") for row in whole["rows"]}
        names |= set(whole["definitions"])
    assert {"excess_p_family", "cka", "tokens0", "semantic_high", "hotelling_pc2"} <= names
    for name in names:
        assert main(["explain", name]) == 0, name
        assert capfd.readouterr().out.startswith(f"{name}: ")


def test_separation_keeps_its_results_and_goes_on_where_it_cannot(
    store: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ["separation", str(store), "--metric", "rho", "--layers=-1", "--bootstraps", "0"]
    assert main(chosen) == 0
    assert (store / "separation" / "tiny-llama" / "rho" / "zarr.json").exists()
    from safetyspace_fast import api
    from safetyspace_fast.errors import StoreError

    def refuse(*_: object) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(api, "save_results", refuse)
    capfd.readouterr()
    assert main(chosen) == 0
    printed, said = capfd.readouterr()
    assert "rho" in printed
    assert "not saved in the store: read-only" in said


def test_a_wrong_analysis_is_done_with_a_warning(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = ["separation", str(store), "--metric", "rho", "--layers=-1", "--unpaired"]
    assert main(chosen) == 0
    assert "what both texts of a pair share" in capfd.readouterr().err


VALUE = st.one_of(
    st.integers(-3, 50).map(str),
    st.sampled_from(["", ",", "all", "none", "auto", "chat", "mean", "last", "-1", "-1,embed"]),
    st.sampled_from(["en", "de", "en,de", "xx", "rho", "mean_shift", "tiny-llama", "table", "csv"]),
    st.sampled_from(["nan", "1e9", "9" * 30, "9" * 5000, "x" * 300, "../x", "/", "\udc80", "a\nb"]),
    st.text(max_size=8).filter(lambda text: "\0" not in text),
)
SELECTION = ("--layers", "--poolings", "--languages", "--format", "-o")
RESAMPLED = (*SELECTION, "--metric", "--bootstraps", "--permutations", "--seed", "--high", "--low")
READING = (
    *("--text-column", "--label-column", "--harmful", "--harmless", "--lang", "--lang-column"),
    *("--split", "--delimiter", "--quoting", "--languages", "--limit"),
)
OPTIONS = {
    "data": READING,
    "run": (
        *READING,
        *("--layers", "--poolings", "--template", "--proj-dim", "--seed"),
        *("--device", "--dtype", "--token-budget", "--max-tokens", "--impl", "--preset"),
        "--basis",
    ),
    "separation": (*RESAMPLED, "--models", "--preset"),
    "compare": (*RESAMPLED, "--base", "--aligned", "--reference"),
    "languages": (*SELECTION, "--models"),
    "transfer": (*SELECTION, "--models"),
    "curve": (*SELECTION, "--models", "--metric"),
    "power": (*SELECTION, "--difference", "--model", "--versus", "--level", "--power"),
    "verify": (*READING, "--layers", "--poolings", "--samples", "--device", "--dtype"),
    "check": (),
    "explain": (),
}
COMMAND = st.sampled_from(sorted(OPTIONS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(st.tuples(st.sampled_from(OPTIONS[name] or ("--json",)), VALUE), max_size=3),
        VALUE,
    )
)


def type_something(
    tiny: Path, store: Path, folder: Path, command: tuple[str, list[tuple[str, str]], str]
) -> None:
    """Whatever is typed, a command does it or says why not; the code tells which."""
    name, options, word = command
    data = ["--data", "sample:polite", "--languages", "en"]
    fixed = {
        "run": ["--model", str(tiny), *data, "--limit", "2", "--out", str(folder / "run.zarr")],
        "verify": ["--model", str(tiny), *data, "--samples", "2"],
        "data": ["sample:polite"],
        "explain": [word],
        "check": [word],
        "transfer": [str(store), str(store)],
        "compare": [str(store), "--base", "tiny-llama", "--aligned", "tiny-llama"],
    }.get(name, [str(store)])
    fixed += ["--overwrite"] if name == "run" else []
    fixed += ["--metric", "rho"] if name in ("separation", "compare", "power") else []
    fixed += ["--difference", "0.1"] if name == "power" else []
    typed = [f"{option}={value}" for option, value in options if name not in ("check", "explain")]
    said, printed = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with redirect_stderr(said), redirect_stdout(printed):
            code = main([name, *fixed, *typed])
    except SystemExit as stop:  # argparse has said how the command is used
        code = -int(str(stop.code))
    finally:
        os.chdir(before)
    lines = [x for x in said.getvalue().splitlines() if x.startswith("safetyspace-fast: ")]
    errors = [line for line in lines if ": warning: " not in line and "not kept" not in line]
    assert (code, len(errors)) in ((0, 0), (1, 1), (2, 1), (-2, 0))
    assert "Traceback" not in said.getvalue()


TYPED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=30, **TYPED)
@given(command=COMMAND)
def test_whatever_is_typed(
    tiny: Path, store: Path, tmp_path: Path, command: tuple[str, list[tuple[str, str]], str]
) -> None:
    type_something(tiny, store, tmp_path, command)


@pytest.mark.slow
@settings(max_examples=500, **TYPED)
@given(command=COMMAND)
def test_much_that_is_typed(
    tiny: Path, store: Path, tmp_path: Path, command: tuple[str, list[tuple[str, str]], str]
) -> None:
    type_something(tiny, store, tmp_path, command)
