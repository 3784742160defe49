# Each target sets up all it needs: a virtual environment in .venv, installed from pyproject.toml.
# Needs make and Python 3.11, 3.12 or 3.13 (PYTHON=... picks one).

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test coverage lint format bench cassettes matrix oldest clean

demo: $(STAMP)
	$(BIN)/python -m pytest examples/two_nodes/test_graph.py -rP

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# Branch by branch, those of inner runs included: the suite takes half as long again.
coverage: $(STAMP)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 --dist loadgroup
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks.bench

cassettes: $(STAMP)
	$(BIN)/python -m pytest -p examples.author_cassettes --agenttrace-record -q examples

# The suite's core on each Python and on old and new libraries, with a table at the end; `oldest` is its first cell.
matrix: $(STAMP)
	$(BIN)/nox -f tests/matrix/noxfile.py

oldest: $(STAMP)
	$(BIN)/nox -f tests/matrix/noxfile.py -s oldest

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed (PYTHON=/path/to/python)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
