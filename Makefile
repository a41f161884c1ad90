# One environment, .venv, made from pyproject.toml: the one place that states versions.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint benchmarks clean

demo: .venv/installed
	$(BIN)/nfd-jax compare

test: .venv/tested
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow" --nbmake tests notebooks

test-all: .venv/tested
	$(BIN)/pytest -n 2 --dist loadfile --nbmake tests notebooks

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

benchmarks: .venv/installed
	$(BIN)/python benchmarks/revealed_against_dense.py

.venv/bin/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed: make PYTHON=...'"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/tested: pyproject.toml | .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv results
