"""The maker of small real models, on made packages in place of the real ones."""

import hashlib
import shutil
import subprocess
import sys

import pytest

from benchmarks import small_models
from benchmarks.small_models import SmallModel, make, small_gguf, small_model

PARTS = (b"GGUF first half", b" and second")
FAKE = SmallModel(
    directory="fake-1m",
    requirements=("no-such-package==1",),
    parts=("fake_part1/*.part00", "fake_part2/*.part01"),
    sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache whose packages are there, and a conversion that copies the joined file."""
    for i, content in enumerate(PARTS):
        (tmp_path / "packages" / f"fake_part{i + 1}").mkdir(parents=True)
        (tmp_path / "packages" / f"fake_part{i + 1}" / f"m.gguf.part0{i}").write_bytes(content)
    monkeypatch.setitem(small_models.MODELS, "fake", FAKE)

    def convert(gguf, target):
        target.mkdir()
        (target / "model").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(small_models, "_convert", convert)
    return tmp_path


def test_made_once_from_the_joined_parts(cache, monkeypatch):
    assert small_model("fake", cache) is None
    path = make("fake", cache)
    assert path == small_model("fake", cache) == cache / "models" / "fake-1m"
    assert (path / "model").read_bytes() == b"".join(PARTS)
    assert list((cache / "models").iterdir()) == [path]
    monkeypatch.delattr(small_models, "_convert")
    assert make("fake", cache) == path


def test_a_ready_directory_is_copied(cache, monkeypatch):
    folder = cache / "packages" / "ready_package" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    ready = SmallModel(
        directory="ready-1m",
        requirements=(),
        parts=("ready_package/model/model.safetensors",),
        sha256=hashlib.sha256(b"weights").hexdigest(),
        ready=True,
    )
    monkeypatch.setitem(small_models.MODELS, "ready", ready)
    path = make("ready", cache)
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]
    (folder / "model.safetensors").write_bytes(b"others")
    shutil.rmtree(path)
    with pytest.raises(SystemExit, match="expected"):
        make("ready", cache)


def test_a_broken_part_leaves_nothing_behind(cache):
    (cache / "packages" / "fake_part2" / "m.gguf.part01").write_bytes(b" but other")
    with pytest.raises(SystemExit, match=r"expected .*; delete .*fake_part1"):
        make("fake", cache)
    assert list((cache / "models").iterdir()) == []


def test_a_failed_conversion_leaves_nothing_behind(cache, monkeypatch):
    def fail(_gguf, target):
        target.mkdir()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(small_models, "_convert", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        make("fake", cache)
    assert list((cache / "models").iterdir()) == []


def test_missing_packages_are_installed(cache, monkeypatch):
    part = cache / "packages" / "fake_part2" / "m.gguf.part01"
    part.unlink()
    assert small_gguf("fake", cache / "joined", cache) is None

    def install(requirements, packages):
        assert (requirements, packages) == (FAKE.requirements, cache / "packages")
        part.write_bytes(PARTS[1])

    monkeypatch.setattr(small_models, "_install", install)
    assert make("fake", cache).is_dir()


def test_naming_a_made_model_is_quick(tmp_path):
    for model in small_models.MODELS.values():
        (tmp_path / "models" / model.directory).mkdir(parents=True)
    code = (
        "import sys; from benchmarks.small_models import main; main();"
        "sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "gemma", "smollm2", "--dir", str(tmp_path)]
    repository = small_models.__file__.rpartition("benchmarks")[0]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    expected = [tmp_path / "models" / name for name in ("gemma-3-270m", "smollm2-135m-instruct")]
    assert result.stdout.split() == list(map(str, expected))
