"""The check and the measurements for a GPU, in small on a CPU, before a GPU sees them."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpus import need_cuda

from benchmarks import gpu, gpu_check, gpu_goals, gpu_parts, gpu_run, gpu_static, gpu_subject
from safetyspace_fast import extract

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def _one_model() -> Iterator[None]:
    """The model is made once for all tests."""
    made = gpu_subject.make_subject("tiny", torch.device("cpu"), Path())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_run, "make_subject", lambda _name, _device, out: replace(made, out=out))
        yield


def read(folder: Path) -> dict[str, Any]:
    """The one report in a folder."""
    (file,) = folder.glob("gpu-run-*.json")
    report: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return report


def tiny(folder: Path, *options: str) -> dict[str, Any]:
    arguments = ["--model", "tiny", "--device", "cpu", "--out", str(folder), *options]
    assert gpu_run.main(arguments) == 0
    return read(folder)


def test_every_part_runs_on_a_cpu_or_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tiny(tmp_path)
    parts = report["parts"]
    assert list(parts) == list(gpu_parts.PARTS)
    without = {name for name, part in parts.items() if "left_out" in part}
    assert without == {"kernels", "host waits", "graphs", "trace"}
    assert all("result" in part for name, part in parts.items() if name not in without)
    assert max(parts["agreement"]["result"].values()) < 1e-5
    assert parts["capture"]["result"]["8x16"]["roofline"]["capture_share"] > 0
    assert list(parts["finish of a cell"]["result"]) == ["60x64", "60x64, all alike"]
    block = parts["streamed weights"]["result"]
    assert block["bytes"] == 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)
    assert block["tokens_to_hide"] > 0
    run = parts["whole run"]["result"]
    assert run["ratio"] == run["usual_s"] / run["seconds"]
    reasons = [goal["reason"] for goal in report["goals"].values()]
    assert reasons == [None] + ["needs a GPU"] * 4
    shown = capsys.readouterr().out
    assert shown.count("host waits: left out: no GPU") == 2  # while it runs, and at the end
    assert "weights of a block (0.148 MB) from their file" in shown
    assert report["card"] in shown
    assert shown.splitlines()[-2:] == [
        "goals: 1 met, 0 missed, 4 not judged; parts that failed: 0",
        f"all figures: {next(tmp_path.glob('gpu-run-*.json'))}",
    ]


def test_without_time_everything_is_left_out_and_named(tmp_path: Path) -> None:
    report = tiny(tmp_path, "--seconds", "0")
    assert {part["left_out"][:8] for part in report["parts"].values()} == {"0 s left"}


def test_a_part_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(subject: object) -> dict[str, Any]:
        raise SystemExit("a kernel is off")  # as `benchmarks gpu` says it

    parts = {"first": (fail, 1.0), "second": (lambda subject: {"figure": 3}, 1.0)}
    monkeypatch.setattr(gpu_run, "PARTS", parts)
    arguments = ["--model", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert gpu_run.main(arguments) == 1
    report = read(tmp_path)
    assert report["parts"]["first"]["failed"] == "SystemExit: a kernel is off"
    assert report["parts"]["second"]["result"] == {"figure": 3}
    shown = capsys.readouterr().out
    assert shown.count("first: FAILED: SystemExit: a kernel is off") == 2
    assert "parts that failed: 1" in shown


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_run.main(["--device", "cuda:99", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_all_is_measured_on_the_card_that_was_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Kernels and graphs take the current device."""
    current: list[object] = []
    second = torch.device("cuda", 1)

    def make(_name: str, device: torch.device, _out: Path) -> None:
        assert current == [device]
        raise InterruptedError

    monkeypatch.setattr(gpu_run, "find_device", lambda _: second)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(gpu_run, "make_subject", make)
    with pytest.raises(InterruptedError):
        gpu_run.main(["--device", "cuda:1", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("model", "advice"), [("8b", "use --model 0.6b or tiny"), ("tiny", "free some of it")]
)
def test_a_model_that_does_not_fit_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: str,
    advice: str,
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous")

    monkeypatch.setattr(gpu_run, "make_subject", full)
    assert gpu_run.main(["--device", "cpu", "--model", model, "--out", str(tmp_path)]) == 2
    why = "does not fit into the memory of cpu (CUDA error: out of memory)"
    assert capsys.readouterr().err == f"--model {model}: {why}; {advice}\n"


def test_results_need_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert gpu_run.main(["--device", "cpu", "--out", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("--out: expected a folder: ")
    assert said.count("\n") == 1


PLANTED: dict[str, Any] = {
    "agreement": {"reference": 1e-7, "cuda": 2e-7},
    "capture": {
        "256x64": {
            "shares": {"empty hooks": 0.5, "cuda": 0.008, "triton": 0.03},
            "default": "cuda",
        },
        "16x64": {"shares": {"cuda": 0.3}, "default": "cuda"},  # here the host is the limit
    },
    "kernels": {
        "a, cuda": {"roofline_share": 0.95, "default": True},
        "a, triton": {"roofline_share": 0.5, "default": False},
        "a, reference": {"roofline_share": 0.1, "default": False},
    },
    "host waits": {"waits": 0, "lines": {}},
    "whole run": {"texts": 100, "ratio": 6.0},
}


def planted(model: str = "8b", device: str = "cuda:0", **changes: Any) -> dict[str, Any]:
    """A report with these results, or how a part went without any."""
    parts = {
        name: result if "left_out" in result or "failed" in result else {"result": result}
        for name, result in (PLANTED | changes).items()
    }
    report = {"model": model, "device": device, "parts": parts}
    return report | {"goals": gpu_goals.verdicts(report)}


def met(report: dict[str, Any]) -> list[bool | None]:
    return [goal["met"] for goal in report["goals"].values()]


def test_all_goals_are_met() -> None:
    assert met(planted()) == [True] * 5
    assert not any("MISSED" in line for line in gpu_goals.lines_of(planted()))


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("agreement", {"cuda": 2e-5}, "cuda 2.0e-05"),
        ("agreement", {"cuda": float("nan")}, "cuda nan"),
        (
            "capture",
            {"8x2048": {"shares": {"triton": 0.011, "cuda": 0.0}, "default": "triton"}},
            "8x2048 triton +1.10%",
        ),
        # A faster kernel that no run takes does not help.
        (
            "kernels",
            {
                "b, cuda": {"roofline_share": 0.89, "default": True},
                "b, triton": {"roofline_share": 0.99, "default": False},
            },
            "b, cuda 89%",
        ),
        ("kernels", {"c, reference": {"roofline_share": 0.2, "default": True}}, "c, reference 20%"),
        ("kernels", {"d": {"failed": "SystemExit: d: off"}}, "d: SystemExit: d: off 0%"),
        ("host waits", {"lines": {"mask.py:7 if x.all():": 2}}, "mask.py:7 if x.all(): 2"),
        ("whole run", {"ratio": 4.9}, "100 texts 4.90"),
    ],
)
def test_a_missed_goal_names_the_rows_that_miss_it(
    part: str, change: dict[str, Any], named: str
) -> None:
    report = planted(**{part: PLANTED[part] | change})
    assert sorted(map(str, met(report))) == ["False", "True", "True", "True", "True"]
    lines = gpu_goals.lines_of(report)
    (at,) = (i for i, line in enumerate(lines) if "MISSED by" in line)
    assert " ".join(lines[at + 1].split()) == named
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"device": "cpu"}, [None] + ["needs a GPU"] * 4),
        (
            {"model": "tiny"},
            [None, "needs --model 8b", None, None, "needs --model 8b or 0.6b"],
        ),
        ({"kernels": {"failed": "SystemExit: off"}}, [None, None, "'kernels' failed", None, None]),
        ({"kernels": {"left_out": "3 s left"}}, [None, None, "3 s left", None, None]),
        ({"kernels": {}}, [None, None, "there is no such figure", None, None]),
    ],
)
def test_a_goal_that_cannot_be_judged_says_why(
    changes: dict[str, Any], reasons: list[str | None]
) -> None:
    report = planted(**changes)
    assert [goal["reason"] for goal in report["goals"].values()] == reasons
    assert met(report) == [None if reason else True for reason in reasons]
    lines = gpu_goals.lines_of(report)
    assert [line.partition("not judged: ")[2] or None for line in lines] == reasons


def test_a_bare_forward_pass_differs_from_a_captured_one_only_by_the_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the share of capture would hold that of other kernels of attention, or of a wait."""
    subject = gpu_subject.make_subject("tiny", torch.device("cpu"), tmp_path)
    backbone = subject.model.backbone
    subject = replace(subject, cache=gpu_subject.NoCache.of(backbone, subject.device))
    inside: list[object] = []

    @contextmanager
    def kernels(_: object) -> Iterator[None]:
        inside.append(None)
        yield
        inside.pop()

    for module in (gpu_subject, extract.capture):
        monkeypatch.setattr(module, "attention_kernels", kernels)
    calls: list[tuple[int, dict[str, Any]]] = []
    backbone.register_forward_pre_hook(
        lambda _model, _args, options: calls.append((len(inside), options)), with_kwargs=True
    )
    tokens, batch = gpu_subject.even(2, 8)
    with subject.capture() as capture:
        capture.run(tokens, batch)
    subject.bare(tokens, batch)
    subject.usual(tokens, batch)
    (depth, captured), (depth_bare, bare), (depth_usual, usual) = calls
    assert depth == depth_bare == 1
    assert depth_usual == 0
    assert torch.equal(captured.pop("input_ids"), bare.pop("input_ids"))
    assert captured.pop("attention_mask") is None
    assert captured == bare
    assert bare["past_key_values"] is subject.cache
    assert "past_key_values" not in usual


def test_the_table_of_a_card_has_its_kernels_graphs_and_waits(tmp_path: Path) -> None:
    report = tiny(tmp_path) | {"device": "cuda:0", "model": "0.6b"}
    name = "pairwise_reduce float32 euclidean rows=cols L=1 N=5000 D=4096 C=2 G=0, triton"
    on_card = {
        "kernels": {
            name: {"device_ms": 2.0, "roofline_share": 0.5, "default": True},
            "b": {"failed": "SystemExit: b: cuda is off by 1e-01; nothing was timed"},
        },
        "graphs": {"256x64": {"graph": {"ms": 3.0}, "share": 0.75}},
        "host waits": {"lines": {"mask.py:7 if x.all():": 2}},
        "whole run": report["parts"]["whole run"]["result"] | {"ratio": 5.5},
    }
    report["parts"] |= {part: {"result": figures} for part, figures in on_card.items()}
    report["goals"] = gpu_goals.verdicts(report)
    lines = [" ".join(line.split()) for line in gpu_run.text_of(report).splitlines()]
    assert f"{name} 2.000 ms 1.000 ms 50%" in lines
    assert "b failed" in lines
    assert "forward pass, 256 x 64 tokens, as one CUDA graph 3.000 ms" in lines
    assert "share of the time of separate launches (pays up to 90%) 75%" in lines
    assert "host waits: mask.py:7 if x.all(): 2 0" in lines
    assert lines[-1] == "goals: 2 met, 2 missed, 1 not judged; parts that failed: 0"


@pytest.mark.parametrize("native", [True, False])
def test_kernels_are_judged_by_what_a_run_takes_and_by_the_devices_time(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    """In a graph the launches wait for no host, so its time is the device's."""
    x = torch.ones(4)
    case = gpu_static.Case("double", "double", lambda _: (x,), bytes=32)
    kernels = {
        name: SimpleNamespace(call=lambda x: (2 * x,), unsupported=lambda _, no=no: no)
        for name, no in {
            "reference": [],
            "cuda": [] if native else ["not built"],
            "triton": [],
        }.items()
    }
    replay = lambda: None  # noqa: E731 - compared below
    monkeypatch.setattr(gpu, "IMPLEMENTATIONS", {"double": kernels})
    broken = gpu_static.Case("broken", "absent", lambda _: (x,), bytes=32)
    monkeypatch.setattr(gpu_static, "CASES", [broken, case])
    monkeypatch.setattr(gpu, "_host_us", lambda _: 1.0)
    monkeypatch.setattr(gpu, "_quantiles_ms", lambda call: [2.0 if call is replay else 5.0] * 3)
    monkeypatch.setattr(gpu.harness, "as_graph", lambda call: (replay, call()))
    peaks = {"bytes_per_s": 32e3, "matrix_flops_per_s": 1.0}  # at best 1 ms
    subject: Any = SimpleNamespace(device=torch.device("cuda", 0), peaks=peaks)
    rows = gpu_parts.kernels(subject)
    taken = "cuda" if native else "triton"
    assert [name for name, row in rows.items() if row.get("default")] == [f"double, {taken}"]
    assert rows[f"double, {taken}"]["roofline_share"] == pytest.approx(0.5)
    assert rows["double, reference"]["roofline_share"] == pytest.approx(0.2)
    assert rows["broken"] == {"failed": "KeyError: 'absent'"}
    assert len(rows) == (4 if native else 3)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_subject.Subject:
    """The tiny model on the CPU, which says that it is on a GPU; a graph runs its call again."""

    class OnGpu(gpu_subject.Subject):
        device = torch.device("cuda", 0)

    def as_graph(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        result = call()

        @torch.inference_mode()
        def replay() -> None:
            result.last_hidden_state.copy_(call().last_hidden_state)

        return replay, result

    made = gpu_subject.make_subject("tiny", torch.device("cpu"), tmp_path)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(gpu_parts.harness, "as_graph", as_graph)
    return OnGpu(**vars(made))


def test_a_forward_pass_is_timed_as_a_graph_on_the_same_batch(
    stand_in: gpu_subject.Subject,
) -> None:
    figures = gpu_parts.graphs(stand_in)
    assert list(figures) == ["8x16", "2x64"]
    for timings in figures.values():
        assert timings["gap"] == 0
        assert timings["share"] == timings["graph"]["ms"] / timings["launches"]["ms"]


def test_a_graph_that_computes_something_else_is_not_timed(
    stand_in: gpu_subject.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not read the new tokens."""
    monkeypatch.setattr(gpu_parts.harness, "as_graph", lambda call: (lambda: None, call()))
    with pytest.raises(SystemExit, match="off by"):
        gpu_parts.graphs(stand_in)


def test_a_model_that_cannot_be_a_graph_is_left_out(
    stand_in: gpu_subject.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu_parts.harness, "as_graph", refuse)
    with pytest.raises(gpu_parts.LeftOut, match="cannot be a graph: CUDA error: operation not"):
        gpu_parts.graphs(stand_in)


@pytest.mark.needs_cuda
def test_on_a_card_a_graph_gives_the_states_of_separate_launches(tmp_path: Path) -> None:
    need_cuda()
    subject = gpu_subject.make_subject("tiny", torch.device("cuda", 0), tmp_path)
    assert max(figures["gap"] for figures in gpu_parts.graphs(subject).values()) < 1e-2


@pytest.mark.slow
def test_without_zarr_all_but_the_store_is_measured(tmp_path: Path) -> None:
    script = (
        "import importlib.util as util, sys\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'zarr' else find(name, *rest)\n"
        "from benchmarks import gpu_run\n"
        "sys.exit(gpu_run.main(sys.argv[1:]))"
    )
    arguments = ["--model", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=REPO, check=True)
    parts = read(tmp_path)["parts"]
    assert parts["whole run"]["left_out"] == "zarr or numcodecs is not installed"
    assert all("result" in parts[name] for name in ("agreement", "capture", "finish of a cell"))


@pytest.mark.parametrize("packed", [False, True])
def test_waits_are_counted_with_their_lines(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """A batch that warns as torch does where the host waits; only the third run is counted."""
    modes: list[str] = []

    class Engine(nullcontext[Any]):
        def __enter__(self) -> Any:
            return self

        def run(self, *_: object) -> None:
            if modes and modes[-1] == "warn":
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
                warnings.warn("something else", stacklevel=1)

    subject: Any = SimpleNamespace(
        device=torch.device("cuda", 0), shapes=[(2, 4)], model=None, capture=lambda **_: Engine()
    )
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    reason = None if packed else "it has none"
    monkeypatch.setattr(gpu_parts, "why_not_packed", lambda _: reason)
    counts = gpu_parts.waits(subject)
    (line,) = counts["lines"]
    assert __file__ in line
    assert counts["waits"] == counts["lines"][line] == (2 if packed else 1)
    assert modes[-1] == "default"


BARE = """
import sys, pytest

@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    absent = ("zarr", "numcodecs", "peft", "accelerate", "gguf", "obstore", "hypothesis", "sklearn")
    sys.modules.update(dict.fromkeys(absent))
"""


@pytest.mark.slow
def test_a_bare_machine_collects_all_tests_of_kernels(tmp_path: Path) -> None:
    """Without a store, adapters, hypothesis and scikit-learn; nor is any plugin there."""
    (tmp_path / "bare.py").write_text(BARE)
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPO)]), "CI": ""}

    def collected(*options: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", *options, "-m", "needs_cuda", "--collect-only"]
        done = subprocess.run(
            [*command, "-q", str(REPO / "tests")], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout[-2000:]
        return [line for line in done.stdout.splitlines() if line.startswith("tests/ops/")]

    bare = collected("-p", "bare")
    assert any(line.startswith("tests/ops/test_pairwise.py") for line in bare)
    assert bare == collected()


# The check


@pytest.mark.parametrize(
    ("card", "venv", "said"),
    [
        (False, False, "no NVIDIA GPU answers here (nvidia-smi -L). Without one: python -m bench"),
        (True, False, "cannot use the GPU: another build of torch or a newer driver is needed"),
        (True, True, "measures with .venv"),
    ],
)
def test_make_says_at_once_why_a_machine_cannot_be_checked(
    tmp_path: Path, card: bool, venv: bool, said: str
) -> None:
    """Of the system's python and `.venv` only the latter may have torch with CUDA."""
    if not shutil.which("make"):
        pytest.skip("needs make")

    def program(name: str, script: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    program("nvidia-smi", f"exit {0 if card else 9}")
    has_cuda = f'[ "$1" = -c ] && exit {0 if venv else 1}; echo measures with .venv'
    program("venv/bin/python", has_cuda)
    for stamp in (".torch", ".package", ".test"):
        (tmp_path / "venv" / stamp).touch()
        os.utime(tmp_path / "venv" / stamp, (4e9, 4e9))  # installed already
    done = subprocess.run(
        [
            *("make", "-C", str(REPO), "gpu-check", f"VENV={tmp_path / 'venv'}"),
            f"GPU_PYTHON={program('python', 'exit 1')}",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )
    assert said in done.stdout
    assert (done.returncode == 0) == venv


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A machine with a GPU; returns what the check runs on it."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 1 if "pytest" in command else 0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    return ran


@pytest.mark.parametrize("sanitizer", [None, "/cuda/compute-sanitizer"])
def test_the_check_runs_every_step_also_after_one_that_fails(
    machine: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sanitizer: str | None,
) -> None:
    monkeypatch.setattr(gpu_check.shutil, "which", lambda _: sanitizer)
    monkeypatch.setattr(gpu_check, "is_built", lambda: False)
    assert gpu_check.main(["--model", "tiny"]) == 1
    assert [sys.executable, "setup.py"] == machine[0][:2]
    assert machine[-1][1:4] == ["-m", "benchmarks", "gpu-run"]
    assert len(machine) == (3 if sanitizer is None else 4)
    shown = capsys.readouterr().out
    assert "tests: FAILED: exit 1" in shown
    assert ("memory: compute-sanitizer is not here" in shown) == (sanitizer is None)
    assert "measure: ok" in shown
    assert not any("pip" in word for command in machine for word in command)


def test_one_step_alone(machine: list[list[str]]) -> None:
    assert gpu_check.main(["--step", "measure"]) == 0
    assert len(machine) == 1


def test_a_small_model_is_measured_beside_the_large_one(
    machine: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """It decides on graphs, which the large one cannot."""
    steps = ("--step", "measure", "--step", "small")
    assert gpu_check.main([*steps]) == 0
    large, small = machine
    assert large[large.index("--model") + 1] == "8b"
    assert small[small.index("--model") + 1] == "0.6b"
    asked = [small[i + 1] for i, word in enumerate(small) if word == "--part"]
    assert "graphs" in asked
    assert set(asked) <= set(gpu_parts.PARTS)
    assert gpu_check.main(["--model", "tiny", *steps]) == 0
    assert len(machine) == 3
    assert "small: only beside the 8b model" in capsys.readouterr().out


def test_a_library_is_built_again_when_its_sources_or_torch_are_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "safetyspace_fast"
    for folder in (tmp_path / "csrc", package):
        folder.mkdir()
    for file in (tmp_path / "setup.py", tmp_path / "csrc/a.cu"):
        file.write_text("")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "PACKAGE", package)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert not gpu_check.is_built()
    record = {"torch": str(torch.__version__), "cuda": "13.0"}
    (package / "_build_record.json").write_text(json.dumps(record))
    library = package / "_C.abi3.so"
    library.write_text("")
    later = library.stat().st_mtime + 10
    os.utime(library, (later, later))
    assert gpu_check.is_built()
    os.utime(tmp_path / "csrc/a.cu", (later + 1, later + 1))
    assert not gpu_check.is_built()
    os.utime(tmp_path / "csrc/a.cu", (1, 1))
    (package / "_build_record.json").write_text(json.dumps(record | {"cuda": None}))
    assert not gpu_check.is_built()
