# Everything runs in .venv, which is set up when it is missing and again when pyproject.toml or constraints.txt changed.
#   make run ARGS="-o rounds=3"      make test ARGS="-k partition"      make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
SETUP := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run test check docs docs-serve proto clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/installed  ## run a whole federation on this machine: gRPC server, clients, FedDKD (ARGS="-o rounds=3")
	$(VENV)/bin/feddkd run $(ARGS)

test: $(VENV)/installed-dev  ## run the fast tests, in minutes (ARGS="-m slow" for the others)
	PYTHON=$(VENV)/bin/python scripts/test $(ARGS)

check: $(VENV)/installed-dev  ## check format, lint, types, imports, the wire contract and its generated code
	PYTHON=$(VENV)/bin/python scripts/check

docs: $(VENV)/installed-dev  ## build the documentation into site/; a warning is an error
	PYTHON=$(VENV)/bin/python scripts/docs build

docs-serve: $(VENV)/installed-dev  ## show the documentation on http://127.0.0.1:8000 while pages are edited
	PYTHON=$(VENV)/bin/python scripts/docs serve

proto: $(VENV)/installed-dev  ## regenerate feddkd/transport/pb from protos/
	PYTHON=$(VENV)/bin/python scripts/proto

clean:  ## remove .venv and the caches of the tools; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site

$(VENV)/installed: $(SETUP) | $(VENV)/bin/pip
	PYTHON=$(VENV)/bin/python scripts/install plot
	@touch $@

# The development set-up holds all that a run needs, hence both stamps.
$(VENV)/installed-dev: $(SETUP) | $(VENV)/bin/pip
	PYTHON=$(VENV)/bin/python scripts/install dev
	@touch $(VENV)/installed $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import platform, sys; sys.exit("feddkd needs Python 3.11 or newer, $(PYTHON) is " + platform.python_version() + ": make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
