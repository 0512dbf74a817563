"""What a build puts into the wheel, and what it does when it cannot compile."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]
ABSENT = shutil.ignore_patterns("*.so", "__pycache__", "_build_record.json")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")


def build(folder, **environment):
    """Build a wheel from a clean copy of the sources; the process, and the wheel or None."""
    source = folder / "source"
    for name in ("csrc", "safetyspace_fast"):
        shutil.copytree(REPO / name, source / name, ignore=ABSENT)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (REPO / name).exists():
            shutil.copy(REPO / name, source)
    process = subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", folder / "dist"],
        cwd=source,
        capture_output=True,
        text=True,
        env={**os.environ, "MAX_JOBS": "1", "SAFETYSPACE_FAST_BUILD": "auto", **environment},
    )
    wheels = list((folder / "dist").glob("*.whl"))
    return process, (wheels[0] if wheels else None)


def record_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("safetyspace_fast/_build_record.json"))


@needs_compiler
def test_a_wheel_serves_every_machine(tmp_path):
    process, wheel = build(tmp_path)
    assert process.returncode == 0, process.stderr
    assert re.search(r"-cp311-abi3-\w+\.whl$", wheel.name)
    record = record_of(wheel)
    assert record["compiled"] is True
    assert record["reason"] is None
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        everything = {name: archive.read(name) for name in names}
    assert [name for name in names if name.endswith(".so")] == ["safetyspace_fast/_C.abi3.so"]
    here = [str(path).encode() for path in (tmp_path, REPO, Path(torch.__file__).parent)]
    for name, content in everything.items():
        assert not any(path in content for path in here), name
    library = tmp_path / "_C.abi3.so"
    library.write_bytes(everything["safetyspace_fast/_C.abi3.so"])
    if record["machine"] == "x86_64" and shutil.which("objdump"):
        code = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True
        ).stdout
        for register in ("zmm", "ymm", "xmm"):
            assert code.count(register) > 100, register


def test_without_a_compiler_it_installs_and_says_why(tmp_path):
    (tmp_path / "empty").mkdir()
    process, wheel = build(tmp_path, PATH=str(tmp_path / "empty"))
    assert process.returncode == 0, process.stderr
    record = record_of(wheel)
    assert record["compiled"] is False
    assert "No such file or directory" in record["reason"]
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())


def test_none_compiles_nothing(tmp_path):
    process, wheel = build(tmp_path, SAFETYSPACE_FAST_BUILD="none")
    assert process.returncode == 0, process.stderr
    assert record_of(wheel)["reason"] == "SAFETYSPACE_FAST_BUILD=none"


def test_what_was_asked_for_and_cannot_be_had_fails(tmp_path):
    (tmp_path / "empty").mkdir()
    process, wheel = build(tmp_path, PATH=str(tmp_path / "empty"), SAFETYSPACE_FAST_BUILD="cpu")
    assert process.returncode != 0
    assert wheel is None


def test_an_impossible_cuda_build_fails(tmp_path):
    if torch.version.cuda and shutil.which("nvcc"):
        pytest.skip("here it is possible")
    process, wheel = build(tmp_path, SAFETYSPACE_FAST_BUILD="cuda")
    assert process.returncode != 0
    assert "SAFETYSPACE_FAST_BUILD=cuda: " in process.stderr
    assert wheel is None


def test_an_unknown_mode_is_named(tmp_path):
    process, _ = build(tmp_path, SAFETYSPACE_FAST_BUILD="fast")
    assert process.returncode != 0
    assert "expected auto, cpu, cuda or none, got 'fast'" in process.stderr
