# SPDX-License-Identifier: Apache-2.0
# Everything a user or a contributor does, each from a bare machine with Python and make: run `make` to see it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
RECENT := 'import sys; sys.exit(sys.version_info < (3, 11))'
# The first Python that is new enough; `make PYTHON=/path/to/python` overrides it.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	"$$name" -c $(RECENT) 2>/dev/null && echo "$$name" && break; done)
# Tests at a time: as many as there are cores, at most 8.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n > 8 ? 8 : n)))

# What must have every line covered: the code whose mistakes would be silent.
GATE := src/fedweave/contract.py,src/fedweave/reduce/*,src/fedweave/algorithms/*,src/fedweave/coordinator/*,src/fedweave/policy/*,src/fedweave/store/clients.py,src/fedweave/store/pages.py,src/fedweave/wiring.py,src/fedweave/frames.py,src/fedweave/assignment.py

.PHONY: help demo test test-all test-faults check docs bench bench-alone format proto clean
.NOTPARALLEL:

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name job; do printf '  make %-11s %s\n' "$$name" "$$job"; done

demo: $(VENV)/.ready-all ## Train FedAvg and FedSGD on handwritten digits, print the table, write the report
	@$(BIN)/fedweave demo

test: check ## Check style, types, import floors and docs; run the tests with the coverage gate
	$(call pytest,-m "not slow")

test-all: check ## The same, with the slow tests
	$(call pytest,)

check: $(VENV)/.ready-dev
	@echo "== style"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== types"
	@$(BIN)/mypy
	@echo "== import floors"
	@$(BIN)/lint-imports --no-cache --no-logo
	@echo "== documentation"
	@$(BIN)/zensical build --clean --strict

# Many processes with one thread each finish sooner than few with many that share the cores.
define pytest
	@echo "== tests, $(JOBS) at a time"
	@rm -f .coverage .coverage.*
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal --cov --cov-report= $(1)
	@echo "== coverage"
	@$(BIN)/coverage report --include='$(GATE)' --fail-under=100 --show-missing
endef

docs: $(VENV)/.ready-dev ## Build the documentation into site/ (open site/index.html)
	@$(BIN)/zensical build --clean --strict

FUZZ_SECONDS ?= 60
KILLS ?= 200
SEED ?= 0
FAULTS := tests/net/test_faults.py tests/net/test_disks.py tests/net/test_clocks.py tests/net/test_proxy.py tests/net/test_databases.py
test-faults: $(VENV)/.ready-dev ## kill -9 at KILLS (200) random times and at each durable step; disks, clocks, networks; fuzz for FUZZ_SECONDS (60)
	@FEDWEAVE_KILLS=$(KILLS) FEDWEAVE_SEED=$(SEED) OMP_NUM_THREADS=1 $(BIN)/pytest -q -s $(FAULTS)
	@$(BIN)/python -m pip install -q --disable-pip-version-check atheris==3.0.0 2>/dev/null || echo "atheris cannot be installed: going by chance"
	@$(BIN)/python tests/net/fuzz.py $(FUZZ_SECONDS)

# Short forms, a few minutes together; each script's own defaults take longer and are what the documentation shows.
BENCHMARKS := overhead.py|--rounds|1000 rounds.py|--passes|2 steps.py|--passes|2 scaling.py|--quick memory.py reductions.py|--quick \
  matching.py|--quick

bench-alone: $(VENV)/.ready-dev ## Measure fedweave alone, in a few minutes
	@for job in $(foreach job,$(BENCHMARKS),'$(job)'); do \
	  echo "== benchmarks/$${job//|/ }"; $(BIN)/python benchmarks/$${job//|/ } || exit 1; \
	done

bench: $(VENV)/.ready-dev ## Measure fedweave beside other simulators (25 minutes, and 5 more once for their environments)
	@$(BIN)/python benchmarks/peers/run.py

format: $(VENV)/.ready-dev ## Format the code and mend what can be mended by itself
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

proto: $(VENV)/.ready-dev ## Generate the code of the network protocol from its .proto
	@$(BIN)/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src src/fedweave/wire/fedweave.proto

clean: ## Remove the environment and everything that was built
	@rm -rf $(VENV) site dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written when its installation is complete. Until then $(VENV)/.unfinished stands; whoever finds it knows that an
# earlier installation was interrupted, and starts from an empty environment. What is installed for `test` serves `demo` too.
$(VENV)/.ready-all: EXTRA = all
$(VENV)/.ready-dev: EXTRA = dev
$(VENV)/.ready-all $(VENV)/.ready-dev: pyproject.toml constraints.txt
	@set -eu; \
	dev=$(VENV)/.ready-dev; \
	if [ $(EXTRA) = all ] && [ -e $$dev ] && [ $$dev -nt pyproject.toml ] && [ $$dev -nt constraints.txt ]; then touch $@; exit 0; fi; \
	if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c $(RECENT) 2>/dev/null; then \
	  echo "fedweave needs Python 3.11 or newer; '$(if $(PYTHON),$(PYTHON),python3)' is not." >&2; \
	  echo "Install it (Debian, Ubuntu: apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "'$(PYTHON)' cannot make a virtual environment: its module venv is missing." >&2; \
	  echo "Install it (Debian, Ubuntu: apt-get install python3-venv) and run make again." >&2; exit 1; \
	fi; \
	if [ -e $(VENV)/.unfinished ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then rm -rf $(VENV); fi; \
	mkdir -p $(VENV); touch $(VENV)/.unfinished; \
	[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV); \
	echo "== installing fedweave[$(EXTRA)] into $(VENV): about 2 minutes the first time, longer on a slow network"; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$(EXTRA)]' --constraint constraints.txt; \
	rm -f $(VENV)/.unfinished; touch $@
