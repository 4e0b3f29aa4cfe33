# Every job of the house, the same here, in CI and on a bare machine. Needs python3 (3.10 or newer) with venv, make
# and git; everything else goes into .venv/ by scripts/install.py, once. `make clean` takes it away again.

PYTHON ?= python3
WORKERS ?= 4
BROKER ?= redis
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Fault tests differ from 10 ms to 30 s: an idle process takes work from a busy one.
SIDE_BY_SIDE := -n $(WORKERS) --dist worksteal
DOCS_TESTS := tests/test_repository.py $(wildcard tests/docs tests/test_docs.py)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: demo test check test-full bench docs format clean help lint server

demo: .venv/.demo ## show what reliq does: plain Dramatiq and reliq side by side under faults (BROKER=rabbitmq, DEMO_ARGS=--help)
	@$(BIN)/reliq demo --broker $(BROKER) $(DEMO_ARGS)

test: lint server ## all checks and tests, as CI runs them (PYTEST_ARGS="-k name")
	$(PYTEST) $(SIDE_BY_SIDE) $(PYTEST_ARGS)

check: lint ## the fast part of it: lint, format, types, architecture; no server
	$(PYTEST) -q tests/test_architecture.py

test-full: lint server .venv/.oldest ## the long forms too, then the tests again on the oldest packages we support
	@echo "test-full covers, beside all of 'make test' (hypothesis at 2,000 examples), these long forms:"
	@$(PYTEST) --collect-only -q -m full || test $$? -eq 5
	RELIQ_HYPOTHESIS=full $(PYTEST) $(SIDE_BY_SIDE) -m "" --timeout 1800 $(PYTEST_ARGS)
	@echo "and again on: $$(cat .venv/.oldest)"
	PYTHONPATH=$(CURDIR)/.venv/oldest $(PYTEST) $(SIDE_BY_SIDE) -W default $(PYTEST_ARGS)

bench: .venv/.dev server ## throughput against bare Dramatiq, counts verified in the broker (BENCH_ARGS=--help)
	$(BIN)/python benchmarks/throughput.py $(BENCH_ARGS)

docs: .venv/.dev server ## run every code block of the docs, check their links and the tests they name
	$(PYTEST) -q $(DOCS_TESTS)

format: .venv/.dev ## write the code in the one form that `make check` accepts
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove all that these commands made, .venv included
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' Makefile | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

# ---------------------------------------------------------------- steps of the above, not for the command line

# The architecture tests run with the others in `make test`, hence apart from this.
lint: .venv/.dev
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

server: .venv/.dev
	@scripts/servers.sh

# A venv that could not be finished (no ensurepip) would look whole to the next run.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "reliq needs Python 3.10 or newer, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 2; }

# The stamps make repeated runs instant; a changed pyproject.toml installs again.
.venv/.demo: pyproject.toml scripts/install.py | .venv/bin/python
	@$(BIN)/python scripts/install.py redis,rabbitmq,demo
	@touch $@

.venv/.dev: pyproject.toml scripts/install.py | .venv/bin/python
	@$(BIN)/python scripts/install.py dev
	@touch .venv/.demo $@

.venv/.oldest: .venv/.dev
	@$(BIN)/python scripts/install.py --oldest .venv/oldest > $@
