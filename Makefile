# One target per chore; `make help` lists them. Every target that needs Python brings its own .venv.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.nap-setup
# One process per core, two at most: the tests start Ray clusters of their own.
JOBS  ?= 2
# Extra arguments: make test ARGS="-k layout", make bench ARGS="--help".
ARGS  ?=

.PHONY: help setup demo test check stubs format bench soak hosts clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with everything (again only when pyproject.toml or constraints.txt change)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@bash scripts/setup.sh $(VENV)
	@touch $@

demo: setup ## Decode one word problem on three workers
	$(BIN)/nap decode 'A shirt costs $$50 and is on sale for 20% off. What is the final price?' \
	  --workers 3 --steps 33 $(ARGS)

test: setup ## Run the tests; those for a GPU skip themselves where there is none
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: setup ## Lint, format, types, import contracts, stub drift; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/stubs.py --check
	$(BIN)/python scripts/protolint.py

format: setup ## Format, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stubs: setup ## Generate the gRPC stubs from proto/
	$(BIN)/python scripts/stubs.py

docs: setup ## Build the documentation as a site in build/site; a broken link is an error
	$(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

bench: setup ## Decodes and their peers on this machine (ARGS="--shape llada-8b --device cuda" on a GPU)
	$(BIN)/nap bench $(ARGS)

soak: setup ## Run the long tests
	$(BIN)/python -m pytest -m soak --timeout 0 $(ARGS)

hosts: setup ## Several hosts on this machine, from ray up to an answer (root; installs openssh-server where missing)
	@bash tests/multihost/install.sh $(CURDIR)/$(BIN)/python
	$(BIN)/python -m pytest tests/multihost -m "" -s --timeout 900 $(ARGS)

clean: ## Remove caches and builds; keeps .venv
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +
