# `make demo` and `make test` are all that a fresh machine needs (Python >= 3.11 with pip, make, git).
PYTHON ?= python3
BIN := .venv/bin
export MPLBACKEND := Agg
# tests run many small operators: threads would only wait for each other
export OMP_NUM_THREADS ?= 1
TEST_PROCESSES ?= 2

.PHONY: demo test lint bench docs clean

demo: .venv/demo.stamp ## install the package with what a comparison needs, and run one
	$(BIN)/torchplug compare --model torchplug:resnet8 --plug se --plug cbam --plug gc \
	  --seeds 5 --data digits --name demo

test: lint ## everything that CI runs
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/bench.stamp ## every module against its plain form and other libraries, on one core
	$(BIN)/python -m benchmarks --store benchmarks/results/cpu.json
	$(BIN)/python -m docs.build

docs: .venv/dev.stamp ## write the pages of the catalogue
	$(BIN)/python -m docs.build

# pip >= 25.1 knows dependency groups
.venv/pip.stamp:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

.venv/demo.stamp: pyproject.toml constraints.txt .venv/pip.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cli,compare,report]"
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt .venv/pip.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $@ .venv/demo.stamp

.venv/bench.stamp: .venv/dev.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
