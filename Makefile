# Set-up, the main job, the tests. All lives in .venv/, runs/ and tests/azure_local/node_modules/; `make clean` takes it away.

PYTHON ?= python3
BIN := .venv/bin
# Where the home folder cannot be written, as in some containers, uv and npm find no place for their caches.
NO_HOME := $(shell test -w "$$HOME" || echo yes)
INSTALL := $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --constraint constraints.txt \
	$(if $(NO_HOME),--no-cache) --editable ".[dev]"
# A company's TLS proxy signs with a certificate that the system trusts: uv is to trust the system, not a list of its own.
export UV_SYSTEM_CERTS ?= true
# Its name changes with what it was made from, so that a second make starts at once and a changed one installs again.
INSTALLED := .venv/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

# The blob service of the local Azure, which the tests talk to; the same game with its name.
AZURITE := tests/azure_local/node_modules/installed-$(shell cksum < tests/azure_local/package-lock.json | cut -d ' ' -f 1)

# Most tests wait for a process or a service: two workers for each core.
PARALLEL := --numprocesses $(shell expr 2 '*' $$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2))

.PHONY: help setup demo test test-slow torture azure-local azure-check check format docs bench check-gpu bench-azure constraints clean

help:
	@echo "make demo    set up, and train on 400 drawn flowers (runs/demo)"
	@echo "make test    set up, and run the checks and the tests of every promise"
	@echo "make test-slow  the tests that make test leaves out: further variants, longer runs"
	@echo "make torture  kill runs a hundred times, and compare them with runs left alone (about 15 minutes)"
	@echo "make azure-local  a shell that has its own Azure, on this machine"
	@echo "make azure-check WORKSPACE=config.json  go through everything once in a real workspace; costs at most one euro"
	@echo "make check   formatter, linter and type checker alone"
	@echo "make format  let the formatter and the linter repair what they can"
	@echo "make docs    write docs/options.md from the commands"
	@echo "make bench   time training against an earlier version and plain order, and checkpoints (benchmarks/results.json)"
	@echo "make check-gpu  on a machine with a GPU: checks what tests only there can show (gpu-check.json)"
	@echo "make bench-azure  time submit against the bare SDK (the same file)"
	@echo "make clean   remove .venv, runs/demo and Azurite"

setup: $(INSTALLED)

# PyTorch's own index has builds for just this machine's processor; where it cannot be reached, PyPI's build serves.
$(INSTALLED):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "msggan needs Python 3.10 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(INSTALL) --torch-backend=auto || { echo "PyTorch's own index did not serve; taking PyPI's build."; $(INSTALL); }
	@rm -f .venv/installed-*
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/draw_flowers.py runs/demo-images
	$(BIN)/msggan-aml submit --target local --name demo --data runs/demo-images \
		--resolution 32 --latent-size 32 --kimg 6

test: check $(AZURITE)
	$(BIN)/pytest $(PARALLEL) -m "not slow"

test-slow: $(INSTALLED) $(AZURITE)
	$(BIN)/pytest $(PARALLEL) -m slow

torture: $(INSTALLED)
	$(BIN)/python tests/torture.py

azure-local: $(INSTALLED) $(AZURITE)
	@echo "Try: msggan-aml provision --yes; msggan-aml submit --target azure --data FOLDER"
	@$(BIN)/python -m tests.azure_local

# In a real workspace: WORKSPACE is a config.json or the workspace's resource ID, ARGS are further options.
azure-check: $(INSTALLED)
	$(BIN)/python tests/azure_check.py --workspace "$(WORKSPACE)" $(ARGS)

# Without Node.js, or where npm's registry cannot be reached, the tests that need it say so and are skipped.
$(AZURITE):
	npm ci --prefix tests/azure_local --no-audit --no-fund --loglevel=error $(if $(NO_HOME),--cache .venv/npm) \
		&& touch $@ \
		|| echo "Azurite is not installed: the tests of Azure will be skipped."

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --num-workers 2

format: $(INSTALLED)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(INSTALLED)
	$(BIN)/python docs/write_options.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench $(if $(DEVICE),--device $(DEVICE))
	$(BIN)/python -m benchmarks.checkpoints
	$(BIN)/python -m benchmarks.overheads
	$(BIN)/python -m benchmarks.data

check-gpu: $(INSTALLED)
	$(BIN)/python tests/gpu_check.py $(ARGS)

bench-azure: $(INSTALLED) $(AZURITE)
	$(BIN)/python -m benchmarks.azure_submit

# After a change of the dependencies in pyproject.toml. CUDA's own packages follow from torch, where they are wanted.
constraints: $(INSTALLED)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-header --no-annotate \
		--no-emit-package triton --output-file constraints.txt pyproject.toml
	sed -i.bak -E '/^(nvidia|cuda)-/d' constraints.txt && rm constraints.txt.bak

clean:
	rm -rf .venv runs/demo runs/demo-images tests/azure_local/node_modules
