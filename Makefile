# make demo: see it work.  make test: see it proven.  make help: the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test tools lint fuzz bench format clean dist/installed

PYTHON ?= python3
POCKETFORMER_CACHE ?= $(HOME)/.cache/pocketformer
export POCKETFORMER_CACHE
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The test environment outlives the checkout: torch is large. Other Python, other pyproject.toml: another environment.
python_version = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
environment = $(python_version)-$(shell sha256sum pyproject.toml | cut -c1-12)
test_venv = $(POCKETFORMER_CACHE)/venv-$(environment)
test_bin = $(test_venv)/bin
bench_venv = $(POCKETFORMER_CACHE)/bench-venv-$(environment)
bench_bin = $(bench_venv)/bin
sources = $(shell find csrc python -type f -not -name '*.so' -not -name '*.pyc') CMakeLists.txt pyproject.toml README.md
python_files = python tests scripts bench fuzz

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: .venv/installed  ## compress a real model and search with it
	.venv/bin/pocketformer demo

.venv/installed: dist/wheel
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --force-reinstall --no-deps dist/*.whl
	.venv/bin/pip install --quiet "$$(echo dist/*.whl)[compress]"
	touch $@

test: tools dist/installed lint  ## lint, then run every test against the installed wheel
	$(test_bin)/python -m pytest -q -x --durations=15

tools:
	scripts/install_tools.sh

lint: $(test_venv)/ready  ## ruff, mypy and clang-format
	$(test_bin)/ruff check $(python_files)
	$(test_bin)/ruff format --check $(python_files)
	$(test_bin)/mypy
	find csrc bench/native fuzz tests/native -name '*.h' -o -name '*.cpp' -o -name '*.inc' | xargs $(test_bin)/clang-format --dry-run -Werror

fuzz: tools  ## five minutes of fuzzing under the sanitizers
	scripts/fuzz.sh 300

# BENCH_OPTIONS=--everything takes an hour. The first run also fills the environment and converts the models.
bench: $(bench_venv)/ready  ## measure kernels, models and other runtimes (10 minutes): bench-results/
	$(bench_bin)/pip install --quiet --force-reinstall --no-deps . -C build-dir=build/bench \
		-C cmake.define.POCKETFORMER_NATIVE_BENCH=ON -C cmake.define.dnnl_DIR='$(bench_venv)/lib/cmake/dnnl'
	$(bench_bin)/python -m bench.run --native build/bench/bench/native $(BENCH_OPTIONS)

format: $(test_venv)/ready  ## format Python and C++ in place
	$(test_bin)/ruff check --fix $(python_files)
	$(test_bin)/ruff format $(python_files)
	find csrc bench/native fuzz tests/native -name '*.h' -o -name '*.cpp' -o -name '*.inc' | xargs $(test_bin)/clang-format -i

clean:  ## remove what was built here (not the cache)
	rm -rf .venv build dist bench-results .pytest_cache .mypy_cache .ruff_cache .hypothesis

dist/wheel: $(sources)
	@echo "Building the wheel (a few minutes) ..."
	rm -rf dist && mkdir dist
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	touch $@

# Always: other checkouts share the environment.
dist/installed: dist/wheel $(test_venv)/ready
	$(test_bin)/pip install --quiet --force-reinstall --no-deps dist/*.whl

$(bench_venv)/ready: | dist/wheel
	$(PYTHON) -m venv $(bench_venv)
	$(bench_bin)/pip install --quiet "$$(echo dist/*.whl)[bench]"
	touch $@

$(test_venv)/ready: | dist/wheel
	$(PYTHON) -m venv $(test_venv)
	$(test_bin)/pip install --quiet torch==2.13.0
	$(test_bin)/pip install --quiet "$$(echo dist/*.whl)[test,lint]"
	touch $@
