# Every target makes what it needs: a virtual environment in .venv with the versions of
# constraints.txt. The first run downloads several GB (PyTorch); a second run installs nothing.

PYTHON ?= python3
BIN := .venv/bin

# Holds everything that pip installs, the build backend included, at the tested versions.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Waiting threads sleep: with spinning ones, small tensors on few cores run many times slower.
export OMP_WAIT_POLICY := PASSIVE
# pyright comes with its own Node.js and should not look for newer versions.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format clean

help:
	@echo "make demo     enlarge sample photographs into demo/"
	@echo "make install  .venv with everything that development needs"
	@echo "make test     run the tests"
	@echo "make lint     check format, style, import directions and types"
	@echo "make format   format the code and repair what ruff can repair"
	@echo "make clean    remove what was built, but .venv"

install: .venv/.dev

demo: .venv/.demo
	$(BIN)/python examples/demo.py demo

test: .venv/.dev
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-cache # its cache outlives what it describes
	$(BIN)/pyright

format: .venv/.dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf build demo dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment; a stamp for each set of extras, renewed when a requirement changes.
$(BIN)/pip:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing .[demo] into .venv"
	@$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing .[dev,train,quantize] into .venv"
	@$(BIN)/python -m pip install --quiet --editable ".[dev,train,quantize]"
	@touch $@
