# All tasks of this repository. `make` alone lists them.

# The interpreter for the environments, 3.11 or newer. Empty: the first suitable one.
PYTHON ?=
# More arguments for pytest, such as ARGS="-k watch", or for the benchmarks, such as ARGS="--scale small".
ARGS ?=
# Tests run in one process more than there are processors, up to four (tests/conftest.py). ARGS="-n 0" runs them in one, as a debugger needs.
PYTEST = -m pytest -n auto --dist worksteal

SERVER := .venv
LMMS := .envs/lmms
SERVER_READY := $(SERVER)/.installed
LMMS_READY := $(LMMS)/.installed
ENGINE_READY := $(LMMS)/.engine-installed
LM_EVAL := .envs/lm-eval
INSPECT := .envs/inspect
LM_EVAL_READY := $(LM_EVAL)/.installed
INSPECT_READY := $(INSPECT)/.installed
VLLM := .envs/vllm
VLLM_READY := $(VLLM)/.installed
PEER := .envs/peer
PEER_READY := $(PEER)/.installed
EXPORTERS := .envs/exporters
EXPORTERS_READY := $(EXPORTERS)/.installed
TINY_LLAVA := .demo/models/tiny-llava
BASELINE := protos/v1.baseline.binpb

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup envs envs-more envs-peer envs-exporters demo demo-training test test-all test-fast test-engines campaign bench check format proto sync-client docs dist baseline clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(SERVER_READY) ## Set up the server and its tools in .venv

envs: $(LMMS_READY) ## Set up lmms-eval in .envs/lmms

envs-more: $(LM_EVAL_READY) $(INSPECT_READY) $(ENGINE_READY) ## Set up lm-eval, inspect-ai and an engine in .envs too

envs-peer: $(PEER_READY) ## Set up lmms-eval's own HTTP server in .envs/peer, as a peer for `make bench`

envs-exporters: $(EXPORTERS_READY) ## Set up MLflow and W&B in .envs/exporters, for a test of exports that is else skipped

demo: setup envs $(TINY_LLAVA) ## Start a server, run a real evaluation on it, and watch it
	@$(SERVER)/bin/python demo/demo.py

demo-training: setup envs envs-more ## Train a tiny model, and have each of its checkpoints decided over by a suite
	@$(SERVER)/bin/python demo/training/demo_training.py

# Else every server and every command that a test starts compiles all its modules anew.
unexport PYTHONDONTWRITEBYTECODE

# What the tests with real harnesses use. Tests whose variable is not set are skipped, with a message.
LMMS_PARTS = EVALRPC_TEST_LMMS_PYTHON=$(CURDIR)/$(LMMS)/bin/python EVALRPC_TEST_TINY_LLAVA=$(CURDIR)/$(TINY_LLAVA)
MORE_PARTS = EVALRPC_TEST_LM_EVAL_PYTHON=$(CURDIR)/$(LM_EVAL)/bin/python \
	EVALRPC_TEST_INSPECT_PYTHON=$(CURDIR)/$(INSPECT)/bin/python \
	$(addprefix EVALRPC_TEST_EXPORTERS_PYTHON=,$(wildcard $(CURDIR)/$(EXPORTERS)/bin/python))

test: setup envs $(TINY_LLAVA) ## Run some tests of every part, with the real lmms-eval
	$(LMMS_PARTS) $(SERVER)/bin/python $(PYTEST) -m "not slow and not exhaustive" $(ARGS)

test-all: setup envs envs-more $(TINY_LLAVA) ## Run all tests, with every harness and the clients in other languages
	$(LMMS_PARTS) $(MORE_PARTS) $(SERVER)/bin/python $(PYTEST) $(ARGS)

test-engines: setup $(LM_EVAL_READY) $(VLLM_READY) ## Run the tests with vLLM, for which .envs/vllm takes 3.5 GB
	$(MORE_PARTS) EVALRPC_TEST_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(SERVER)/bin/python -m pytest \
		tests/acceptance/test_real_vllm.py $(ARGS)

test-fast: setup ## Run the same tests, without lmms-eval
	$(SERVER)/bin/python $(PYTEST) -m "not slow and not exhaustive" $(ARGS)

# The number of kills, of kills where jobs ask served models, of faults on a cluster and of several servers, hostile combinations,
# fuzzed messages and forged tokens in the campaigns, and the seed of their random choices.
KILLS ?= 200
SERVED_KILLS ?= 100
SLURM_FAULTS ?= 100
HOST_FAULTS ?= 100
HOSTILE ?= 100
INPUTS ?= 1000000
SEED ?= 1

campaign: setup ## Kill servers, runs, engines and parts of Slurm; run hostile jobs beside good ones; send bad messages and forged tokens
	PYTHONPATH=tests:tests/support $(SERVER)/bin/python -m campaigns.kills --kills $(KILLS) --seed $(SEED)
	PYTHONPATH=tests:tests/support $(SERVER)/bin/python -m campaigns.served --kills $(SERVED_KILLS) --seed $(SEED)
	PYTHONPATH=tests:tests/support $(SERVER)/bin/python -m campaigns.slurm --faults $(SLURM_FAULTS) --seed $(SEED)
	PYTHONPATH=tests:tests/support $(SERVER)/bin/python -m campaigns.hosts --faults $(HOST_FAULTS) --seed $(SEED)
	PYTHONPATH=tests:tests/support $(SERVER)/bin/python -m campaigns.hostile --combined $(HOSTILE) --seed $(SEED)
	PYTHONPATH=tests:tests/support $(SERVER)/bin/python -m campaigns.fuzz --inputs $(INPUTS) --seed $(SEED)
	PYTHONPATH=tests:tests/support $(SERVER)/bin/python -m campaigns.sign_in --inputs $(INPUTS) --seed $(SEED)

bench: setup envs-peer ## Measure speed against its limit and the peer, in the same run; ARGS="--scale small" takes minutes
	$(SERVER)/bin/python -m benchmarks $(ARGS)

check: setup ## Check format, lint, types, imports, generated code and docs, and the schema
	$(SERVER)/bin/ruff format --check
	$(SERVER)/bin/ruff check
	$(SERVER)/bin/mypy
	$(SERVER)/bin/mypy demo/demo.py demo/training/demo_training.py benchmarks
	$(SERVER)/bin/lint-imports
	scripts/check-stubs
	scripts/generate-sync-client --check
	$(SERVER)/bin/python scripts/generate-settings-doc --check
	$(SERVER)/bin/buf lint
	$(SERVER)/bin/buf breaking --against $(BASELINE)

format: setup ## Format the code, and fix what lint can fix
	$(SERVER)/bin/ruff check --fix
	$(SERVER)/bin/ruff format

proto: setup ## Generate evalrpc/v1 from protos/
	scripts/generate-stubs .

sync-client: setup ## Generate the blocking client from the asyncio one
	scripts/generate-sync-client

docs: setup ## Generate docs/settings.md from evalrpc/config/
	$(SERVER)/bin/python scripts/generate-settings-doc

dist: setup ## Build the sdist, and the wheel from it, in dist/
	$(SERVER)/bin/python -m build --no-isolation

# `make check` rejects a schema that breaks clients of the baseline. Run this once per release, and never to silence the check.
baseline: setup ## Record the current schema as the last released one
	$(SERVER)/bin/buf build --exclude-source-info --output $(BASELINE)

clean: ## Remove the environments, build output and caches
	rm -rf $(SERVER) .envs .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SERVER_READY): pyproject.toml
	@PYTHON="$(PYTHON)" scripts/make-venv $(SERVER)
	$(SERVER)/bin/pip install --editable '.[dev]'
	@touch $@

$(ENGINE_READY): scripts/requirements-engine.txt $(LMMS_READY)
	$(LMMS)/bin/pip install --requirement scripts/requirements-engine.txt
	@touch $@

$(LM_EVAL_READY): scripts/requirements-torch.txt scripts/requirements-lm-eval.txt
	@PYTHON="$(PYTHON)" scripts/make-venv $(LM_EVAL)
	$(LM_EVAL)/bin/pip install --requirement scripts/requirements-torch.txt
	$(LM_EVAL)/bin/pip install --requirement scripts/requirements-torch.txt --requirement scripts/requirements-lm-eval.txt
	@touch $@

# torch comes first, so that it is the one for the CPU. Without a model for images or sound the rest is only in the way.
$(VLLM_READY): scripts/requirements-torch.txt scripts/requirements-vllm.txt
	@PYTHON="$(PYTHON)" scripts/make-venv $(VLLM)
	$(VLLM)/bin/pip install --requirement scripts/requirements-torch.txt
	$(VLLM)/bin/pip install --requirement scripts/requirements-vllm.txt
	$(VLLM)/bin/pip uninstall --yes torchvision torchaudio torchcodec
	@touch $@

$(INSPECT_READY): scripts/requirements-inspect.txt
	@PYTHON="$(PYTHON)" scripts/make-venv $(INSPECT)
	$(INSPECT)/bin/pip install --requirement scripts/requirements-inspect.txt
	@touch $@

$(PEER_READY): scripts/requirements-peer.txt scripts/requirements-lmms-eval.txt
	@PYTHON="$(PYTHON)" scripts/make-venv $(PEER)
	$(PEER)/bin/pip install --requirement scripts/requirements-peer.txt
	$(PEER)/bin/pip install --no-deps --requirement scripts/requirements-lmms-eval.txt
	@touch $@

$(EXPORTERS_READY): scripts/requirements-exporters.txt
	@PYTHON="$(PYTHON)" scripts/make-venv $(EXPORTERS)
	$(EXPORTERS)/bin/pip install --requirement scripts/requirements-exporters.txt
	@touch $@

$(LMMS_READY): scripts/requirements-torch.txt $(wildcard scripts/requirements-lmms-eval*.txt)
	@PYTHON="$(PYTHON)" scripts/make-venv $(LMMS)
	@scripts/install-lmms $(LMMS)
	@touch $@

# The folder is created atomically, so its existence is enough.
$(TINY_LLAVA): demo/make_tiny_llava.py | $(LMMS_READY)
	$(LMMS)/bin/python demo/make_tiny_llava.py $@
