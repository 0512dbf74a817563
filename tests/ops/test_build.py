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
import triton
from sources import REPO, copy_sources

LIBRARY = "safetyspace_fast/_C.abi3.so"
RECORD = "safetyspace_fast/_build_record.json"
CUBINS = ["sm_100", "sm_80", "sm_90a"]
# Instructions that not every x86-64 processor has, by name: AVX and later, BMI, SSE3 to SSE4.
BEYOND_BASELINE = re.compile(
    r"v\w+|popcnt|[lt]zcnt|mulx|andn|bextr|bls\w+|bzhi|pdep|pext|rorx|s[ah][lr]x|movbe|crc32\w*"
    r"|pshufb|palignr|phadd\w+|pabs[bwd]|pmulhrsw|round[ps][sd]|pmov[sz]x\w+|pmulld|p?blend\w+"
    r"|dpp[sd]|p(?:ext|ins)r[bdq]|ptest|p(?:min|max)(?:sb|sd|uw|ud)|h(?:add|sub)p[sd]|addsubp[sd]"
    r"|movddup|movs[lh]dup|lddqu"
)


def run(folder, *command, **environment):
    environment = {"MAX_JOBS": "1", "SAFETYSPACE_FAST_BUILD": "auto", **environment}
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def build(folder, **environment):
    """Build a wheel as a user would, out of a clean copy; the process, and the wheel or None."""
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", folder / "dist"]
    command = [sys.executable, "-m", "pip", "wheel", *options, copy_sources(folder)]
    process = run(folder, *command, **environment)
    wheels = list((folder / "dist").glob("*.whl"))
    return process, (wheels[0] if wheels else None)


def record_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read(RECORD))


def paths_in(library):
    """Absolute paths in the bytes of a file; packed cubins hold some of few letters by chance."""
    found = re.findall(rb"(?<![\w.])/(?:[\w.+@-]+/)+[\w.+@-]+", library)
    return [path for path in found if len(path) >= 16]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler (g++)")
    folder = tmp_path_factory.mktemp("built")
    process, wheel = build(folder)
    assert process.returncode == 0, process.stderr
    return folder, wheel


def test_a_wheel_serves_every_machine(built):
    folder, wheel = built
    assert re.search(r"-cp311-abi3-\w+\.whl$", wheel.name)
    record = record_of(wheel)
    assert record["compiled"] is True
    assert record["reason"] is None
    with zipfile.ZipFile(wheel) as archive:
        everything = {name: archive.read(name) for name in archive.namelist()}
    assert [name for name in everything if name.endswith(".so")] == [LIBRARY]
    here = [str(path).encode() for path in (folder, REPO, Path(torch.__file__).parent)]
    for name, content in everything.items():
        assert not any(path in content for path in here), name
    assert paths_in(everything[LIBRARY]) == []
    assert paths_in(everything[RECORD]) == []


def test_what_is_not_dispatched_runs_on_every_x86_64(built):
    """Only functions in the namespaces avx2 and avx512, chosen at run time, go beyond SSE2."""
    folder, wheel = built
    if record_of(wheel)["machine"] != "x86_64" or not shutil.which("objdump"):
        pytest.skip("needs an x86-64 processor and objdump")
    objects = [str(path) for path in (folder / "source/build").rglob("*.o")]
    assert len(objects) == len(list((REPO / "csrc").rglob("*.cpp")))
    code = run(folder, "objdump", "-d", "--no-show-raw-insn", *objects).stdout
    beyond, function = set(), ""
    for line in code.splitlines():
        if found := re.match(r"[0-9a-f]+ <(\S+)>:$", line):
            function = found[1]
        found = re.match(r"\s*[0-9a-f]+:\s+(\w+)", line)
        if found and BEYOND_BASELINE.fullmatch(found[1]):
            beyond.add(function)
    dispatched = {name for name in beyond if "4avx2" in name or "6avx512" in name}
    assert beyond - dispatched == set()
    assert any("4avx2" in name for name in dispatched)
    assert any("6avx512" in name for name in dispatched)
    assert "%zmm" in code


# setup.py as it runs beside a torch that has CUDA: version and place of the toolkit are all that it
# asks for. What such a torch brings for linking is in `stubs`.
PRETEND = """
import runpy, sys, torch
from torch.utils import cpp_extension
torch.version.cuda, cpp_extension.CUDA_HOME = sys.argv[1:3]
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
STUB = "int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }"


@pytest.fixture(scope="module")
def cuda_built(tmp_path_factory):
    """Sources with the library that SAFETYSPACE_FAST_BUILD=cuda builds, and the build's output."""
    if not shutil.which("nvcc") or not shutil.which("g++"):
        pytest.skip("needs the CUDA compiler (nvcc) and g++")
    folder = tmp_path_factory.mktemp("cuda")
    source = copy_sources(folder)
    (folder / "stub.cu").touch()
    trace = run(folder, "nvcc", "--dryrun", "-c", "stub.cu").stderr
    home = Path(re.search(r"^#\$ TOP=(.+)$", trace, re.MULTILINE)[1].strip()).resolve()
    version = re.search(r"release ([\d.]+)", run(folder, "nvcc", "--version").stdout)[1]
    (folder / "stub.c").write_text(STUB)
    for name in ("c10_cuda", "torch_cuda"):
        command = ["gcc", "-shared", "-fPIC", "stub.c", "-o", f"lib{name}.so"]
        assert run(folder, *command).returncode == 0
    compiler = folder / "c++"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')  # `built` has the C++ kernels as shipped
    compiler.chmod(0o755)
    process = run(
        source,
        *(sys.executable, "-c", PRETEND, version, home),
        SAFETYSPACE_FAST_BUILD="cuda",
        LIBRARY_PATH=str(folder),
        CXX=str(compiler),
        NVCC_APPEND_FLAGS="-Xptxas=-v",
    )
    output = process.stdout + process.stderr
    assert process.returncode == 0, output[-4000:]
    assert json.loads((source / RECORD).read_text())["cuda"] == version
    return source, home, output


def test_a_cuda_build_has_every_target(cuda_built):
    source, _, output = cuda_built
    library = source / LIBRARY
    assert paths_in(library.read_bytes()) == []
    cuobjdump = triton.knobs.nvidia.cuobjdump.path
    elf = run(source, cuobjdump, "--list-elf", library).stdout
    ptx = run(source, cuobjdump, "--list-ptx", library).stdout
    assert sorted(re.findall(r"\.(sm_\w+)\.cubin", elf)) == CUBINS, output
    assert re.findall(r"\.(sm_\w+)\.ptx", ptx) == ["sm_100"]


def test_a_cuda_build_loads_and_registers(cuda_built):
    source, home, _ = cuda_built
    code = """
import torch
from safetyspace_fast import ops
assert ops.implementations()["pool_project"]["cuda"] == []
spans = torch.tensor([[[0, 2]]], dtype=torch.int32)
print(ops.pool_project(torch.tensor([[[1.0], [3.0]]]), spans, impl="cpu")[0].item())
"""
    process = run(
        source,
        *(sys.executable, "-c", code),
        PYTHONPATH=str(source),
        LD_LIBRARY_PATH=f"{source.parent}:{home / 'lib64'}",
    )
    assert process.stdout == "2.0\n", process.stderr


def test_cuda_kernels_do_not_spill(cuda_built):
    """Two operators, three types, few and many spans, aligned and not; and the sum of chunks."""
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", cuda_built[2])
    assert frames == [("0", "0", "0")] * ((2 * 3 * 2 * 2 + 2) * len(CUBINS))


def test_cuda_registers_leave_room_for_two_blocks(cuda_built):
    """With mean and last token: 256 threads a block, 65,536 registers a multiprocessor."""
    kernels = re.findall(r"function '(\S+)'.*?Used (\d+) registers", cuda_built[2], re.DOTALL)
    few_spans = [int(registers) for name, registers in kernels if "Li2E" in name]
    assert len(few_spans) == (2 * 3 * 2 + 1) * len(CUBINS)
    assert max(few_spans) <= 65536 // (2 * 256)


NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.0" ;;
  --list-gpu-arch) printf 'compute_%s\\n' 75 80 {newest} ;;
  *) echo "no such GPU" >&2; exit 1 ;;
esac
"""
# Makes every file that it is asked for, empty.
COMPILER = """#!/bin/sh
case "$*" in *--version*|*-dumpfullversion*|-v*) exec g++ "$@" ;; esac
while [ $# -gt 0 ]; do case "$1" in -o|-MF) : > "$2" ;; esac; shift; done
"""


@pytest.mark.parametrize(
    ("version", "newest", "gpus"),
    [
        ("13.0", "90 100", "8.0;9.0a;10.0;10.0+PTX"),
        ("13.0", "90", "8.0;9.0a;9.0+PTX"),
        ("12.6", "90", None),  # torch refuses a compiler of another major version
    ],
)
def test_without_a_cuda_compiler_that_works_the_other_kernels_are_built(
    tmp_path, version, newest, gpus
):
    """And the CUDA compiler is asked for no GPU that it does not know."""
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler (g++)")
    for name, script in (
        ("nvcc", NVCC.format(version=version, newest=newest)),
        ("c++", COMPILER),
    ):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(script)
        file.chmod(0o755)
    source = copy_sources(tmp_path)
    code = f"{PRETEND}import os; print('GPUs:', os.environ['TORCH_CUDA_ARCH_LIST'])"
    options = {"CXX": str(tmp_path / "bin/c++"), "TORCH_CUDA_ARCH_LIST": ""}
    process = run(source, sys.executable, "-c", code, "13.0", tmp_path, **options)
    assert process.returncode == 0, process.stderr
    record = json.loads((source / RECORD).read_text())
    assert (record["compiled"], record["reason"], record["cuda"]) == (True, None, None)
    assert record["cuda_reason"]
    assert f"no CUDA kernels: {record['cuda_reason']}" in process.stdout
    assert (source / LIBRARY).exists()
    assert gpus is None or f"GPUs: {gpus}\n" in process.stdout


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
        pytest.skip("tests a machine that cannot build for CUDA; this one can")
    process, wheel = build(tmp_path, SAFETYSPACE_FAST_BUILD="cuda")
    assert process.returncode != 0
    assert "SAFETYSPACE_FAST_BUILD=cuda: " in process.stdout + process.stderr
    assert wheel is None


def test_an_unknown_mode_is_named(tmp_path):
    process, _ = build(tmp_path, SAFETYSPACE_FAST_BUILD="fast")
    assert process.returncode != 0
    assert "expected auto, cpu, cuda or none, got 'fast'" in process.stdout + process.stderr
