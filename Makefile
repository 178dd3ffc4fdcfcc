# `make lab` and `make test` do everything, from nothing: see `make help`.

PYTHON ?= python3
VENV ?= .venv
LAB_ARGS ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=

# On processors with AMX, GCC leaves out part of llama.cpp's set-up of it, and the first prompt would crash
# (ggml-org/llama.cpp, pull request 26954). Without AMX the other vector instructions are used.
CMAKE_ARGS ?= -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__
export CMAKE_ARGS

BIN := $(VENV)/bin
NOTEBOOK := notebooks/01_first_prompt.ipynb
COMMA := ,
TIERS := unit native notebook notebooks browser
# Jupyter refuses to run as root unless told.
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help lab test check format bench docs install clean $(TIERS:%=test-%)

help:
	@echo "make lab         install everything and open the first notebook in JupyterLab (LAB_ARGS='--port 9999')"
	@echo "make test        install everything and run all checks and tests"
	@echo "make check       ruff, ruff format and mypy"
	@echo "make test-TIER   one tier of tests: $(TIERS) (PYTEST_ARGS='-k name')"
	@echo "make bench       measure, and write the figures to benchmarks/ (BENCH_ARGS)"
	@echo "make format      let ruff format and fix the code"
	@echo "make docs        make docs/magics.md, the notebooks' outputs and the pictures again"
	@echo "make clean       delete caches (the environment in $(VENV) stays)"
	@echo "PYTHON=python3.12 picks the Python, VENV=folder the environment"

lab: $(VENV)/.lab
	$(BIN)/jupyter lab $(ROOT_FLAG) --LabApp.default_url=/lab/tree/$(NOTEBOOK) $(LAB_ARGS)

# The checks and the tests of the first tier use one core each, so they run side by side; the others measure time.
test: $(VENV)/.test
	@echo "ruff, mypy and the unit tests, side by side: a minute or two, silently"
	$(MAKE) --no-print-directory -j2 $(if $(filter output-sync,$(.FEATURES)),-O) check test-unit
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(patsubst %,tests/%,$(filter-out unit,$(TIERS)))

$(TIERS:%=test-%): test-%: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/$*

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: $(VENV)/.test
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/notebooks.py
	$(BIN)/python docs/screenshots.py

install: $(VENV)/.test

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/browser/shots
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment ---
# An empty file in the environment says what is installed, so that a second run starts at once and without a network.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "llama_magic needs Python 3.10 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
		|| echo "No C++ compiler found. If llama-cpp-python has to be built, install one (Debian: apt install g++)."
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "Could not make an environment. On Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }

define install
@$(BIN)/python -c 'import llama_cpp' 2>/dev/null \
	|| echo "The first time, pip builds llama.cpp. That takes about ten minutes on two cores and is silent."
$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[$(1)]'
endef

$(VENV)/.lab: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,demo)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,demo$(COMMA)test$(COMMA)bench)
	@touch $(VENV)/.lab $@
