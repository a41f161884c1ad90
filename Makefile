# One environment, made from pyproject.toml: the one place that states versions. Another with VENV=FOLDER PYTHON=...
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint docs notebooks wheel newest release-check benchmarks baseline hooks clean

demo: $(VENV)/installed
	$(BIN)/nfd-jax compare

test: $(VENV)/tested
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" --nbmake notebooks tests

test-all: $(VENV)/tested
	$(BIN)/pytest -n 2 --dist worksteal --nbmake notebooks tests

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# The site, in docs/_build/html: any warning fails, and nothing is fetched
docs: $(VENV)/documented
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html
	@! grep -rlE '<(script|link|img|iframe)[^>]* (src|href)="(https?:)?//' --include=*.html docs/_build/html
	@echo "docs/_build/html/index.html"

# Executed at full size and stored with their outputs; tests run them at small size (notebooks/conftest.py)
notebooks: $(VENV)/tested
	$(BIN)/python notebooks/execute.py

# What `make lint` runs, before every commit
hooks: $(VENV)/tested
	$(BIN)/pre-commit install

# The sdist and the wheel, what is in them, and the wheel used in an empty environment
wheel: $(VENV)/tested
	.ci/wheel $(BIN)/python

# The fast tests on the newest Python that is here, with the newest packages that it can have; types and shapes checked
newest:
	.ci/newest test

# Everything, compiled as users have it, and the fast tests at both ends of what pyproject.toml allows: an hour and a half
release-check: lint wheel docs
	OPTIMISED=1 $(MAKE) test-all
	.ci/newest test
	.ci/oldest test

# All at small sizes, beside what is stored for this kind of machine; `make baseline` on a quiet one stores it
benchmarks: $(VENV)/installed
	$(BIN)/python benchmarks/laptop.py

baseline: $(VENV)/installed
	$(BIN)/python benchmarks/laptop.py --store

$(BIN)/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed: make PYTHON=...'"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/tested: pyproject.toml | $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/documented: pyproject.toml | $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv .programs results docs/_build docs/claims docs/notebooks
