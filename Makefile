# The README's commands. `make demo` and `make test` each set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Print only errors. pip's warning that one of several indexes lacks a package is not an error.
QUIET := --quiet --quiet
INSTALLED := $(VENV)/.installed

.PHONY: setup peers ccl cluster setup-ipex test-ipex demo test lint docs format clean

setup: $(INSTALLED)

# torch comes first and with its own dependencies, because its wheels differ in them (CPU, CUDA);
# the rest comes from the lock alone.
$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIET) --constraint requirements.lock torch
	$(BIN)/python -m pip install $(QUIET) --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install $(QUIET) --no-deps --no-build-isolation --editable .
	touch $@

# Other trainers, for `intel-ft bench train --peer`.
peers: setup
	$(BIN)/python -m pip install $(QUIET) --no-deps --requirement requirements-peers.lock

# oneCCL and Intel MPI (0.5 GB to fetch, 1.8 GB on disk), for several ranks under mpirun.
CCL := $(VENV)/.installed-ccl
ccl: $(CCL)
$(CCL): requirements-ccl.lock $(INSTALLED)
	$(BIN)/python -m pip install $(QUIET) --no-deps --requirement requirements-ccl.lock
	touch $@

# What the tests of several hosts and of Slurm need; without it (or without root) they are skipped.
# No service is started: the tests start their own.
cluster:
	apt-get update
	RUNLEVEL=1 apt-get install --yes --no-install-recommends \
	    iproute2 openssh-server openmpi-bin slurm-wlm munge

# backend.name=ipex in a separate environment (docs/ipex.md): torch 2.8, IPEX 2.8.0, oneCCL. The
# default index's torch 2.8 brings gigabytes of unused CUDA libraries; to avoid them:
#     make setup-ipex TORCH_INDEX=https://download.pytorch.org/whl/cpu
VENV_IPEX := .venv-ipex
BIN_IPEX := $(VENV_IPEX)/bin
IPEX := $(VENV_IPEX)/.installed
TORCH_INDEX ?=
setup-ipex: $(IPEX)
$(IPEX): requirements-ipex.lock requirements.lock requirements-ccl.lock pyproject.toml
	$(PYTHON) -m venv $(VENV_IPEX)
	$(BIN_IPEX)/python -m pip install $(QUIET) --constraint requirements-ipex.lock \
	    $(addprefix --index-url ,$(TORCH_INDEX)) torch
	grep -v '^torch==' requirements.lock > $(VENV_IPEX)/requirements.lock
	$(BIN_IPEX)/python -m pip install $(QUIET) --no-deps --requirement $(VENV_IPEX)/requirements.lock \
	    --requirement requirements-ipex.lock --requirement requirements-ccl.lock
	$(BIN_IPEX)/python -m pip install $(QUIET) --no-deps --no-build-isolation --editable .
	touch $@

# The tests that depend on the version of torch, and all IPEX tests; `make test` skips the latter.
test-ipex: setup-ipex
	OMP_NUM_THREADS=1 $(BIN_IPEX)/pytest tests/ipex tests/e2e/test_oneccl.py \
	    tests/unit/kernels/test_ops.py tests/unit/models/test_fused_decoder.py tests/unit/models/test_frozen_base.py

demo: setup
	rm -rf runs/demo
	$(BIN)/intel-ft demo --output runs/demo
	@echo
	@echo "Chat with it: $(BIN)/intel-ft chat runs/demo/openvino"

# One thread per test process, because more would compete for the cores, and two processes more than
# there are cores, because many tests wait. A file stays on one process, so that its fixtures are
# made once; tests/e2e, whose files take longest, comes first.
TEST_PROCESSES := $(shell n=$$(($$(nproc) + 2)); echo $$((n < 5 ? n : 5)))
test: setup ccl
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(TEST_PROCESSES) \
	    --dist loadfile --no-loadscope-reorder

CPP := $(wildcard intel_ft/*/*.cpp intel_ft/*/*.h intel_ft/*/*/*.cpp intel_ft/*/*/*.h)

lint: setup docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/lint-imports
	$(BIN)/mypy

# The documentation site, in site/; a broken link or a page outside the navigation is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf $(VENV) $(VENV_IPEX) runs build dist site *.egg-info
