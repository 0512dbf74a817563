"""Builds safetyspace_fast/_C.abi3.so, or records why not; everything else is in pyproject.toml.

SAFETYSPACE_FAST_BUILD is one of
  auto  C++ kernels if a compiler works, CUDA kernels too if nvcc works with this torch (default)
  cpu   C++ kernels, or fail
  cuda  C++ and CUDA kernels, or fail
  none  no compiled kernels: everything runs on plain torch and Triton

The library uses the stable ABIs of Python and LibTorch (2.10 on), so that one wheel serves them
all, and picks the instruction set when it runs: no -march, no path of the machine that built it.
"""

import json
import os
import platform
import subprocess
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    raise SystemExit(
        "safetyspace-fast is built beside the torch that it will run with. First: pip install "
        "'setuptools>=77' torch; then: pip install --no-build-isolation ."
    ) from None

NAME = "safetyspace_fast._C"
ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("SAFETYSPACE_FAST_BUILD", "auto")
if MODE not in ("auto", "cpu", "cuda", "none"):
    raise SystemExit(f"SAFETYSPACE_FAST_BUILD: expected auto, cpu, cuda or none, got {MODE!r}")

DEFINES = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
GPUS = ("8.0", "9.0a", "10.0")


def cuda_missing():
    if not torch.version.cuda:
        return "this torch was built without CUDA"
    if not cpp_extension.CUDA_HOME or not Path(cpp_extension.CUDA_HOME, "bin/nvcc").exists():
        return "nvcc was not found (CUDA_HOME)"
    return None


def gpu_list():
    """The GPUs of `GPUS` that nvcc knows, and PTX for later ones; nvcc 12.6 knows no 10.0."""
    nvcc = Path(cpp_extension.CUDA_HOME, "bin/nvcc")
    known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
    gpus = [gpu for gpu in GPUS if f"compute_{gpu.replace('.', '').rstrip('a')}" in known]
    return ";".join([*gpus, *(f"{gpu.rstrip('a')}+PTX" for gpu in gpus[-1:])])


def sources(pattern):
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"csrc/{pattern}"))


def extension(with_cuda):
    where = [f"-ffile-prefix-map={path}=." for path in (ROOT, *cpp_extension.include_paths())]
    cxx = [*DEFINES, *where, "-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall"]
    cxx += ["-fopenmp-simd", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
    files = sources("*.cpp") + sources("cpu/*.cpp")
    headers = [file for kind in ("**/*.h", "**/*.inc", "cuda/*") for file in sources(kind)]
    arguments = {"py_limited_api": True, "extra_link_args": ["-Wl,-s"], "depends": headers}
    if not with_cuda:
        return cpp_extension.CppExtension(NAME, files, extra_compile_args={"cxx": cxx}, **arguments)
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = gpu_list()
    nvcc = [*DEFINES, "-DUSE_CUDA", "-std=c++20", "-O3"]
    nvcc += [word for flag in where for word in ("-Xcompiler", flag)]
    return cpp_extension.CUDAExtension(
        NAME,
        files + sources("cuda/*.cu"),
        extra_compile_args={"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": nvcc},
        **arguments,
    )


class Build(cpp_extension.BuildExtension):
    def build_extensions(self):
        self.reason, self.cuda_reason = None, CUDA_REASON
        try:
            if MODE == "none":
                raise RuntimeError("SAFETYSPACE_FAST_BUILD=none")
            self.build_what_works()
        except (Exception, SystemExit) as error:
            if MODE not in ("auto", "none"):
                raise
            self.reason = one_line(error)
            self.extensions[0].optional = True  # else setuptools looks for its file
            print(f"safetyspace-fast: no compiled kernels: {self.reason}")

    def build_what_works(self):
        try:
            super().build_extensions()
        except (Exception, SystemExit) as error:
            if MODE != "auto" or self.cuda_reason is not None:
                raise
            self.cuda_reason = one_line(error)
            print(f"safetyspace-fast: no CUDA kernels: {self.cuda_reason}")
            vars(self.extensions[0]).update(vars(extension(with_cuda=False)))
            super().build_extensions()

    def run(self):
        super().run()
        record = {
            "mode": MODE,
            "compiled": self.reason is None,
            "reason": self.reason,
            "cuda": None if self.reason or self.cuda_reason else torch.version.cuda,
            "cuda_reason": self.cuda_reason,
            "torch": str(torch.__version__),
            "compiler": compiler_version() if self.reason is None else None,
            "machine": platform.machine(),
        }
        library = Path(self.get_ext_fullpath(NAME))
        if self.reason:
            library.unlink(missing_ok=True)  # of an earlier build
        path = library.with_name("_build_record.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def one_line(error):
    return " ".join(str(error).split())


def compiler_version():
    command = [cpp_extension.get_cxx_compiler(), "--version"]
    return subprocess.check_output(command, text=True).splitlines()[0]


CUDA_REASON = cuda_missing() if MODE in ("auto", "cuda") else f"SAFETYSPACE_FAST_BUILD={MODE}"
if MODE == "cuda" and CUDA_REASON is not None:
    raise SystemExit(f"SAFETYSPACE_FAST_BUILD=cuda: {CUDA_REASON}")
setup(
    ext_modules=[extension(with_cuda=CUDA_REASON is None)],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
