# Everything from a fresh clone. Each target makes the environment first, once.

PYTHON ?= python3.11
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
WORKERS ?= 3
bin := $(VENV)/bin
installed := $(VENV)/.installed

.PHONY: help install demo test test-all crds vllm test-vllm seeds bench bench-vllm lint format ir clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST)

install: $(installed)  ## the environment, in $(VENV)

# torch is named first: left to other packages, pip would take another build of it.
$(installed): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
		{ echo "make: needs Python 3.11 (with venv) as '$(PYTHON)'; another path: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet --upgrade pip
	@# setuptools warns in every editable installation that a folder here could hide the package; none does
	PYTHONWARNINGS=ignore $(bin)/python -m pip install --quiet torch==2.13.0 --editable '.[dev]'
	touch $@

demo: $(installed)  ## the whole pipeline on this machine, on generated videos
	$(bin)/vthink run --preset laptop

test: $(installed)  ## the tests, without the slow ones
	$(bin)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: $(installed)  ## all tests
	$(bin)/python -m pytest -n $(WORKERS)

crds:  ## released CRDs and KFP's API, which tests need; another place than GitHub: make crds FROM=folder-or-address
	$(PYTHON) tests/released.py $(if $(FROM),--from $(FROM))

vllm:  ## an environment with the real vLLM, in $(VENV_VLLM); kept while its pins are the same
	$(PYTHON) tests/vllm/environment.py $(VENV_VLLM)

test-vllm: vllm  ## the tests of tests/vllm against the real engine, on the CPU
	$(VENV_VLLM)/bin/python -m pytest tests/vllm

seeds: $(installed)  ## does the demo learn? three seeds with controls; writes the README's table
	$(bin)/python tests/bench/bench_seeds.py --readme README.md

bench: $(installed)  ## how fast, against the stock way on the same work; writes .vthink/bench.json
	@set -e; for script in tests/bench/bench_*.py; do \
		case $$script in */bench_seeds.py|*/bench_vllm.py) continue;; esac; \
		echo "$$script"; $(bin)/python $$script; done

bench-vllm: vllm  ## our own engine against vLLM, both on the CPU
	$(VENV_VLLM)/bin/python tests/bench/bench_vllm.py

lint: $(installed)  ## format, lint, types, and the rules of the house
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/lint-imports
	@# mypy finds the package by its name, so it gets a folder in which the repository is called that
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/vthink
	cd $(VENV)/types && ../bin/mypy --config-file vthink/pyproject.toml -p vthink.components -p vthink.pipelines

format: $(installed)  ## write the format and the fixes that ruff knows
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

ir: $(installed)  ## compile the pipeline to pipelines/vthink.yaml
	$(bin)/vthink compile --output pipelines/vthink.yaml

clean:  ## remove the environment and what runs wrote
	rm -rf $(VENV) $(VENV_VLLM) .vthink
