# Everything that is done with this repository. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export PODFLARE_HOME ?= $(CURDIR)/.podflare
# Relative, so that the path of this directory may have spaces.
BIN := target/x86_64-unknown-linux-gnu/release
PODFLARE := $(BIN)/podflare
PYTHON := .venv/sdk/bin
URL := http://127.0.0.1:7070
BENCH := PYTHONPATH=bench $(PYTHON)/python -m

# Targets start hosts and share the machine.
.NOTPARALLEL:
.PHONY: help setup build up down demo test test-units test-tiny test-vms test-sdk bench bench-compare bench-vmm soak \
	lint fmt clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what the build needs, as far as it is missing
	@scripts/setup

build: setup ## Build all programs
	cargo build --release --workspace

up: build ## Start the host on this machine (http://127.0.0.1:7070)
	$(PODFLARE) up

down: ## Stop the host
	@if [ -x $(PODFLARE) ]; then $(PODFLARE) down; else echo "Nothing is built, so nothing runs."; fi

demo: up ## Start the host and run the core loop on it
	PODFLARE_HOSTD_URL=$(URL) $(PYTHON)/python examples/core_loop.py
	@echo "The host stays up at $(URL) for more; \`make down\` stops it."

test: lint test-units test-vms test-sdk ## Run every check and test

test-units: setup ## Run the tests that need no virtual machine
	cargo test --release --workspace --exclude podflare-e2e
	cargo test --release -p podflare-e2e --lib
	cd bench && ../$(PYTHON)/pytest --quiet
	@if [ -w /dev/kvm ] && (: </dev/kvm) 2>/dev/null; then $(MAKE) test-tiny; \
	else echo "Not run here, where /dev/kvm does not open: the tests of test-tiny. test-vms runs them in the emulated host."; fi

test-tiny: build ## Run the tests of the VMM with a tiny guest on this machine's own KVM
	PODFLARE_BIN_DIR='$(CURDIR)/$(BIN)' cargo test --release -p podflare-e2e \
		--test tiny_guest --test tiny_save

test-vms: build ## Run the tests on virtual machines, natively or in an emulated host
	RUST_TEST_THREADS=1 CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$(BIN)/host-run \
		cargo test --release -p podflare-e2e --test '*'

test-sdk: build ## Run the SDK's tests and the published SDK's against a host of their own
	scripts/test-sdk

bench: build ## Measure the host and this machine's floors (N=100, ONLY=regex; see bench/README.md)
	@mkdir -p bench/results
	$(BIN)/host-run $(BIN)/bench-floors > bench/results/floors.json
	$(PODFLARE) up --listen $(URL:http://%=%)
	$(BENCH) podflare_bench --host $(URL) --floors bench/results/floors.json $(if $(N),--n $(N)) --only '$(ONLY)'

bench-compare: build ## Measure what is built here and REV=commit in turn (N=20, ROUNDS=4, ONLY=regex)
	$(BENCH) podflare_bench.compare '$(REV)' --home '$(PODFLARE_HOME)' $(if $(N),--n $(N)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) --only '$(ONLY)'

bench-vmm: build ## Measure the VMM's fork, idle and busy, and what an idle sandbox costs
	PODFLARE_BIN_DIR='$(CURDIR)/$(BIN)' $(BIN)/bench-tiny-fork
	PODFLARE_BIN_DIR='$(CURDIR)/$(BIN)' $(BIN)/bench-busy-fork tiny
	$(BIN)/host-run $(BIN)/bench-guest-fork
	$(BIN)/host-run $(BIN)/bench-busy-fork linux
	$(BIN)/host-run $(BIN)/bench-density

soak: build ## Run 1,000 rounds of everything, freeze and resume 1,000 Spaces, kill a host 300 times; takes hours
	$(BIN)/host-run $(BIN)/soak-rounds
	$(BIN)/host-run $(BIN)/soak-spaces
	$(BIN)/host-run $(BIN)/soak-kills

lint: setup ## Check format and lints
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cd sdk/python && ../../$(PYTHON)/ruff check . && ../../$(PYTHON)/ruff format --check . && ../../$(PYTHON)/mypy
	cd bench && ../$(PYTHON)/ruff check . && ../$(PYTHON)/ruff format --check .

fmt: setup ## Format the code
	cargo fmt
	cd sdk/python && ../../$(PYTHON)/ruff format .
	cd bench && ../$(PYTHON)/ruff format .

clean: down ## Remove all that was built, images and state included
	cargo clean
	rm -rf .podflare .venv
