# Every target makes .venv from the hash-pinned locks when it is missing or stale; nothing else is needed but Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTRUMENTS ?=
WORK ?=
PART ?=
WORKERS ?= 3
ROUNDS ?= 30

# Else each worker, and each command that a test runs, compiles the project anew.
unexport PYTHONDONTWRITEBYTECODE
# Neighbours stay in one worker, which makes what they share once; a worker that has done its own takes from the others.
SPREAD = -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-components test-debian soak check docs bench coverage lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV) || { echo "make: the venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.run: $(VENV)/bin/python requirements/run.lock pyproject.toml
	@echo "Installing what the project runs on into $(VENV) ..." >&2
	@$(PIP) install --require-hashes -r requirements/run.lock
	@$(PIP) install --require-hashes -r requirements/build.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.lock
	@echo "Installing the tools of development into $(VENV) ..." >&2
	@$(PIP) install --require-hashes -r requirements/dev.lock
	@touch $@

$(VENV)/.bench: $(VENV)/.dev requirements/bench.lock
	@echo "Installing the peers of the benchmark into $(VENV) ..." >&2
	@$(PIP) install --require-hashes -r requirements/bench.lock
	@touch $@

demo: $(VENV)/.run ## the main job on a built-in PostgreSQL (INSTRUMENTS=f)
	@$(BIN)/panda demo $(if $(INSTRUMENTS),--instruments "$(INSTRUMENTS)") $(ARGS)

test: $(VENV)/.dev ## the tests that need Python packages alone
	@$(BIN)/python -m pytest $(SPREAD) -m "not component" $(ARGS)

test-components: $(VENV)/.dev ## those that need Debian packages
	@$(BIN)/python -m pytest -m component $(ARGS)

test-debian: $(VENV)/.dev ## the tests of `make test` on Debian's PostgreSQL
	@$(BIN)/python -m tests.cluster.debian $(SPREAD) -m "not component" $(ARGS)

soak: $(VENV)/.dev ## kill -9 under writer, loader and key rotation (ROUNDS=30)
	@PANDA_SOAK_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -s tests/test_snapshot_ledger.py tests/test_trading_instruments.py tests/test_key_rotation.py -k "kill" $(ARGS)

check: $(VENV)/.dev ## ruff, pyright strict, import-linter, squawk
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --warnings
	@$(BIN)/lint-imports
	@$(BIN)/panda migrate lint --quiet
	@$(BIN)/python docs/reference.py --check

docs: $(VENV)/.dev ## docs/reference anew, from the docstrings
	@$(BIN)/python docs/reference.py

bench: $(VENV)/.bench ## this project against its peers (WORK=a,b), or PART=x
	@$(BIN)/python -m bench$(if $(PART),.$(PART)) $(if $(WORK),--work "$(WORK)") $(ARGS)

coverage: $(VENV)/.dev ## branch coverage of core/ by the tests
	@$(BIN)/python -m pytest $(SPREAD) -m "not component" --cov --cov-report=term-missing:skip-covered $(ARGS)

lock: $(VENV)/.dev ## pin the ranges of pyproject.toml anew, with hashes
	@$(BIN)/python requirements/lock.py

clean: ## remove what was made here, save the demo database
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov dist build bench/results
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
