# make demo: see it work.  make check: while you work.  make test: see it proven.  make help: the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo check test test/builds test/library test/sanitizers tools lint fuzz bench format clean dist/installed

PYTHON ?= python3
POCKETFORMER_CACHE ?= $(HOME)/.cache/pocketformer
export POCKETFORMER_CACHE
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Environments outlive the checkout: torch is large. Other Python, other requirements: another environment.
python_version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
key = $(python_version)-$(shell $(PYTHON) scripts/requirements.py $(1) | sha256sum | cut -c1-12)
test_tables := build project test lint
test_venv := $(POCKETFORMER_CACHE)/venv-$(call key,$(test_tables))
test_bin = $(test_venv)/bin
bench_tables := project bench
bench_venv := $(POCKETFORMER_CACHE)/bench-venv-$(call key,$(bench_tables))
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

check: lint build/check/ready  ## lint, then the quick tests on this checkout (a minute once it is built)
	PYTHONPATH=$(CURDIR)/build/check/site $(test_bin)/python -m pytest -q -x --quick

# Compilers and emulators, one Python, and the sanitizers when a core is free: none of them keeps two cores busy alone.
# All run to their ends: who waits half an hour is told of every failure.
test: tools dist/installed lint  ## lint, then run every test against the installed wheel
	$(MAKE) --keep-going --jobs=2 test/builds test/library test/sanitizers

pytest = $(test_bin)/python -m pytest -q -p no:cacheprovider --durations=15 --continue-on-collection-errors
sanitizers = tests/builds/test_fuzz.py

test/builds:
	$(pytest) tests/builds --ignore=$(sanitizers)

test/library:
	$(pytest) --ignore=tests/builds

test/sanitizers:
	$(pytest) $(sanitizers)

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
	rm -rf .venv build dist bench-results .pytest_cache .mypy_cache .ruff_cache

dist/wheel: $(sources)
	@echo "Building the wheel (a few minutes) ..."
	rm -rf dist build/wheel && mkdir dist
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist . -C build-dir=build/wheel
	touch $@

# Always: other checkouts share the environment.
dist/installed: dist/wheel $(test_venv)/ready
	$(test_bin)/pip install --quiet --force-reinstall --no-deps dist/*.whl

# A folder of this checkout's own, built on from what it had.
build/check/ready: $(sources) | $(test_venv)/ready
	$(test_bin)/pip install --quiet --upgrade --no-deps --no-build-isolation --target build/check/site . \
		-C build-dir=build/check/cmake
	touch $@

$(bench_venv)/ready:
	$(PYTHON) -m venv $(bench_venv)
	$(PYTHON) scripts/requirements.py $(bench_tables) | $(bench_bin)/pip install --quiet -r /dev/stdin
	touch $@

# cmake and ninja: what a build without isolation needs beside its requirements.
$(test_venv)/ready:
	$(PYTHON) -m venv $(test_venv)
	$(PYTHON) scripts/requirements.py $(test_tables) | $(test_bin)/pip install --quiet -r /dev/stdin cmake ninja
	touch $@
