# Plain verbs; `make help` lists them. Everything that is made goes below .cache.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .cache/venv
BIN := $(CURDIR)/$(VENV)/bin
LAB := molecule/shared/lab
export PATH := $(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

.DEFAULT_GOAL := help
.PHONY: help demo test lint unit molecule bench clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.made ## a running mail host in a container, with proof that mail flows
	@$(LAB) setup
	@$(LAB) up
	@$(LAB) run ansible-playbook -i inventories/demo site.yml molecule/shared/publish.yml \
		playbooks/verify.yml molecule/shared/settings.yml

test: $(VENV)/.made ## everything that must pass: lint, unit, molecule
	@$(BIN)/python tests/run.py lint unit molecule

lint: $(VENV)/.made ## style and types: yamllint, ansible-lint, ruff, mypy, ansible-test sanity
	@$(BIN)/python tests/run.py lint

unit: $(VENV)/.made ## unit tests
	@$(BIN)/python tests/run.py unit

molecule: $(VENV)/.made ## protocol tests against real hosts in containers
	@$(BIN)/python tests/run.py molecule

bench: $(VENV)/.made ## how long runs take, messages a second, memory
	@$(LAB) setup
	@$(LAB) up internet
	@$(LAB) run python3 tests/bench/converge.py
	@$(LAB) run $(BIN)/python tests/bench/mailflow.py

clean: ## remove the lab with its images, and all that was made
	@if [ -x $(LAB) ]; then $(LAB) destroy --images; fi
	rm -rf .cache .ansible

# Debian ships Python without the part that makes virtual environments.
$(VENV)/.made: requirements-dev.txt constraints.txt
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update -q && apt-get install -q -y python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	touch $@
