"""What is packed can be installed, and works outside the source tree."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from sources import copy_sources
from tiny_models import save_tiny

PIP = [sys.executable, "-m", "pip"]

SMOKE = """\
import sys
from pathlib import Path
import safetyspace_fast as ssf
from safetyspace_fast import info
assert Path(ssf.__file__).is_relative_to(sys.argv[1]), ssf.__file__
run = ssf.run(models=sys.argv[2], data="sample:polite", out="smoke.zarr", languages=["en"])
table = ssf.separation(run, metrics=["rho"], layers=["final_norm"], bootstraps=20)
assert table["value"].notnull().all()
print("compiled:", info.build_record()["compiled"])
"""


def command(*arguments: object, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        env={**os.environ, "MAX_JOBS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("install"))


def test_without_torch_the_build_says_what_to_do_first(source: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "pip install 'setuptools>=77' torch" in line
    assert "pip install --no-build-isolation ." in line


def test_what_is_packed_has_the_page_the_fonts_and_their_licence(
    source: Path, tmp_path: Path
) -> None:
    package = source / "safetyspace_fast"
    beside = (".py", ".md", ".png", ".ipynb")
    wanted = {
        file.relative_to(source).as_posix()
        for file in package.rglob("*")
        if file.is_file() and file.suffix not in beside
    }
    fonts = "safetyspace_fast/report/static/fonts"
    assert {f"{fonts}/LiberationSans-Regular.woff", f"{fonts}/OFL.txt"} <= wanted
    folders = ("sdist", "-d", tmp_path / "sdist", "build_py", "-d", tmp_path / "lib")
    command(sys.executable, "setup.py", "-q", *folders, folder=source)
    with tarfile.open(next((tmp_path / "sdist").iterdir())) as archive:
        assert wanted <= {name.partition("/")[2] for name in archive.getnames()}
    assert all((tmp_path / "lib" / name).is_file() for name in wanted)


@pytest.mark.slow
def test_an_sdist_makes_a_wheel_that_works_elsewhere(source: Path, tmp_path: Path) -> None:
    command(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path / "sdist", folder=source)
    (sdist,) = (tmp_path / "sdist").iterdir()
    options = ["-q", "--no-build-isolation", "--no-deps"]
    command(*PIP, "wheel", *options, "-w", tmp_path / "wheel", sdist, folder=tmp_path)
    (wheel,) = (tmp_path / "wheel").iterdir()
    target = tmp_path / "installed"
    command(*PIP, "install", "-q", "--no-deps", "--target", target, wheel, folder=tmp_path)
    model = save_tiny("llama", tmp_path / "tiny")
    found = {"PYTHONPATH": str(target)}
    smoke = command(sys.executable, "-c", SMOKE, target, model, folder=tmp_path, **found)
    assert "compiled: True" in smoke or not shutil.which("g++")
    cli = [sys.executable, "-m", "safetyspace_fast.cli", "separation", "smoke.zarr"]
    assert "final_norm" in command(*cli, folder=tmp_path, **found)
    assert (target / "safetyspace_fast" / "store" / "layout.py").exists()
