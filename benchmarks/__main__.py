"""`python -m benchmarks NAME [options]`: tables with peers and the machine's limits."""

import sys
from importlib import import_module

NAMES = {
    "ops": "the CPU kernels, against the libraries that people use",
    "end-to-end": "a whole run, against the usual script",
    "separation": "all metrics with intervals and nulls, against loops over NumPy and scikit-learn",
    "coverage": "how often intervals cover and p rejects, on drawn states, through a whole run",
    "store": "writing a store, against zarr-python layer by layer; memory, files, size",
    "sweep": "a sweep of four small models, against its bare forward passes and its estimate",
    "workers": "two workers of one core each, against one: processes, or Ray's",
    "streamed": "weights that stay on disk, against memory and accelerate's disk offload",
    "report-page": "the page of a large store: size by part, opening, a step of the slider",
    "gpu-static": "what the GPU kernels compile to, without a GPU",
    "gpu": "the GPU kernels, on a GPU",
    "gpu-check": "on a GPU: the build, the tests, memory accesses, and gpu-run",
    "gpu-run": "the whole path, on a GPU or in small on a CPU",
}


def main() -> int:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in NAMES:
        lines = [f"  {known:<12} {text}" for known, text in NAMES.items()]
        print("usage: python -m benchmarks NAME [--json] [--help]", *lines, sep="\n")
        return 0 if name in ("-h", "--help") else 2
    return int(import_module(f"benchmarks.{name.replace('-', '_')}").main(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
