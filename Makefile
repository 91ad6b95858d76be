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
.PHONY: help install demo test test-gpu fuzz kills faults lint format clean

help:
	@echo "make demo     enlarge sample photographs into demo/"
	@echo "make install  .venv with everything that development needs"
	@echo "make test     run the tests"
	@echo "make test-gpu run those that need a CUDA device"
	@echo "make fuzz     read Pillow's broken test images and 10,000 damaged files (PILLOW=folder of them)"
	@echo "make kills    kill a folder run 50 times and compare what it comes to"
	@echo "make faults   kill training, 200 times while it writes a checkpoint, and resume"
	@echo "make lint     check format, style, import directions and types"
	@echo "make format   format the code and repair what ruff can repair"
	@echo "make clean    remove what was built, but .venv"

install: .venv/.dev

demo: .venv/.demo
	$(BIN)/python examples/demo.py demo

# Two processes of one thread each: most tests are of small things, which threads do not make faster.
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-gpu: .venv/.dev
	$(BIN)/python -m pytest -m gpu

# Pillow's source distribution of the tested version holds the images, its wheel does not.
PILLOW_VERSION := $(shell sed -n 's/^pillow==//p' constraints.txt)
PILLOW ?= build/pillow-$(PILLOW_VERSION)/Tests/images

fuzz: .venv/.dev $(PILLOW)
	$(BIN)/python tests/imaging/malformed.py --pillow $(PILLOW)

build/pillow-$(PILLOW_VERSION)/Tests/images:
	$(BIN)/python -m pip download --no-deps --no-binary :all: --dest build pillow==$(PILLOW_VERSION)
	tar --extract --gzip --file build/pillow-$(PILLOW_VERSION).tar.gz --directory build

kills: .venv/.dev
	$(BIN)/python -m pytest -m slow tests/cli/test_kill.py --log-cli-level=INFO

faults: .venv/.dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/training/test_resume.py
	$(BIN)/python benchmarks/faults.py

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
	@echo "installing .[dev,train,quantize,eval,openvino] into .venv"
	@$(BIN)/python -m pip install --quiet --editable ".[dev,train,quantize,eval,openvino]"
	@touch $@
