# The two commands: `make demo` shows what prunekit does, `make test` shows that it works. Both set up first.

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c .ci/constraints.txt
READY := $(VENV)/ready
CODE := prunekit methods tests docs/scripts
DEMO := .demo/sample-trsp-30

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick check fix docs wheel-test sample-model clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## make .venv with the tested versions (TORCH_INDEX=https://download.pytorch.org/whl/cpu: no CUDA)

$(READY): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than Python 3.11; try: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) -e '.[dev]'
	@touch $(READY)

demo: setup  ## take 30 % of the bundled sample's blocks out and compare the result with the original
	@mkdir -p $(dir $(DEMO))
	$(BIN)/prunekit prune sample --method trsp --ratio 0.3 --samples 64 --output $(DEMO) --force --offline
	$(BIN)/prunekit eval $(DEMO) --baseline sample --windows 64 --offline

test: setup  ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

quick: setup  ## run the tests except those marked slow, in under two minutes
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

check: setup  ## lint, formatting, types and who imports whom
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

fix: setup  ## repair what ruff can repair
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: setup  ## write docs/cli.md, the table of docs/recipes.md and docs/schemas again from the code
	$(BIN)/python docs/scripts/cli_page.py docs/cli.md
	$(BIN)/python docs/scripts/settings_table.py docs/recipes.md
	$(BIN)/python docs/scripts/schemas.py docs/schemas

wheel-test: setup  ## build the wheel, install it elsewhere, prune the sample there
	TORCH_INDEX=$(TORCH_INDEX) bash .ci/wheel-test $(BIN)/python

sample-model: setup  ## train the bundled sample again (about an hour on two cores)
	$(BIN)/python docs/scripts/train_sample.py --out prunekit/sample

clean:  ## remove what make made
	rm -rf $(VENV) .demo build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
