# pockmobile: `make` lists what can be done. Each target makes the environment if it is missing.

PYTHON ?= python3.11
VENV ?= .venv
# Training on the phone is compiled on the CPU: the CPU build of torch spares 2 GB of CUDA.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests run in parallel processes, so each keeps to one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(or $(JOBS),2) -q

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-all demo bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the environment in .venv (Python 3.11)

# A wheel from the indexes that pip is configured with is preferred, so that a mirror or a folder
# of wheels works without the network; else torch comes from its own index.
$(STAMP): pyproject.toml
	@echo "making the environment in $(VENV) (a minute or two)"
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing; install Python 3.11 or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check '$(TORCH)' 2>/dev/null \
		|| $(BIN)/pip install -qq --disable-pip-version-check --extra-index-url $(TORCH_INDEX) '$(TORCH)'
	@$(BIN)/pip install -qq --disable-pip-version-check --editable '.[dev,plots,qnn]'
	@touch $@

check: $(STAMP) ## Lint, formatting, types and architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format the code and repair what can be repaired
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(STAMP) ## Tests, without the long matrix
	$(PYTEST) -m 'not slow' tests

test-all: $(STAMP) ## Tests, with the long matrix
	$(PYTEST) tests

demo: $(STAMP) ## Export a model, train it through its .pte, compare with eager PyTorch
	$(BIN)/python scripts/demo.py

bench: $(STAMP) ## Time training steps against eager PyTorch, in a short form (a few minutes)
	$(BIN)/python scripts/bench.py mobilenet_v2-0.35-96 keyboard_lm-32 --batch 8 \
		--variants ours ours-full eager-same eager-full \
		--cache build/bench -o build/bench/results.json

clean: ## Remove the environment and the caches
	rm -rf $(VENV) build *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
