# Every target makes what it needs; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export PYTHON
# Tests start hundreds of processes, each of which would compile the code anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[36m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: ## Make .venv and install everything into it
	@scripts/install

.PHONY: demo
demo: install ## Install, run the farm and its main job to pulled engines, leave nothing running
	@FARM_HOME="$(CURDIR)/.demo" $(BIN)/farm demo

.PHONY: test
test: install lint test-run ## Install, check the style and the types, run the tests

# On two cores three processes: what tests start, and wait for, leaves a third of them idle otherwise.
.PHONY: test-run
test-run: ## Run the tests; FARM_TEST_DATABASE_URL and FARM_TEST_BROKER_URL choose the services
	@$(BIN)/python -m pytest -n 3 -m "not heavy" $(ARGS)

.PHONY: test-heavy
test-heavy: install ## Run the tests that take long: a storm, whole models of the zoo
	@$(BIN)/python -m pytest -n 2 -m heavy $(ARGS)

.PHONY: test-services
test-services: install ## Run what uses a database or a broker on a real Postgres and Redis; scripts/services installs them
	@scripts/test-services

.PHONY: test-client
test-client: ## Test the client from its wheel, alone, on each Python from 3.11 to 3.14 that is here; ARGS=python3.12
	@scripts/test-client $(ARGS)

.PHONY: chaos
chaos: install ## Kill whatever runs, at random, under hundreds of builds; ARGS="--seed N --builds N"
	@$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: lint
lint: ## Check format, style, types and the direction of imports
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache >.lint-imports.log 2>&1 || { cat .lint-imports.log; exit 1; }; rm -f .lint-imports.log

.PHONY: format
format: install ## Format the code and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: docs-site
docs-site: install ## Make the documentation's site, in site/
	@$(BIN)/zensical build --strict --clean

.PHONY: docs-pictures
docs-pictures: install ## Make the documentation's pictures of the page, in docs/pictures; needs chromium
	@CI=1 FARM_DOCS_PICTURES=1 $(BIN)/python -m pytest -q -m heavy tests/browser/test_pictures.py

.PHONY: bench
bench: install ## Measure the farm against its peers in one run; ARGS="dispatch jobs" measures these alone
	@$(BIN)/python -m bench $(ARGS)

.PHONY: docs
docs: install ## Make the reference pages and the OpenAPI document from the code
	@$(BIN)/python scripts/make_docs.py

.PHONY: constraints
constraints: install ## Write down the versions that are installed now
	@{ $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; \
	   grep -E '^(onnxruntime-gpu|tensorflow-cpu|tensorrt-cu13|tf2onnx)' constraints.txt; } | LC_ALL=C sort -f >constraints.new
	@mv constraints.new constraints.txt

.PHONY: check-compose
check-compose: install ## Check docker-compose.yml and the Dockerfiles without Docker
	@$(BIN)/python -m pytest -q tests/contract/test_compose.py

.PHONY: check-tensorrt
check-tensorrt: install ## Check the adapter against classic TensorRT's published types and names
	@$(BIN)/python scripts/check_tensorrt.py

.PHONY: check-oci
check-oci: install ## Run OCI's conformance suite against a farm; SUITE=a checkout of distribution-spec, or the suite's binary
	@scripts/oci-conformance "$(SUITE)"

.PHONY: support-matrix
support-matrix: install ## Build the zoo for every GPU in every precision; write docs/support-matrix.md; ARGS=--again
	@$(BIN)/python -m tests.zoo support-matrix $(ARGS)

.PHONY: gpu-architectures
gpu-architectures: install ## Build BERT-base and ResNet-50 for every GPU in every precision; write docs/gpu-architectures.md
	@$(BIN)/python -m tests.zoo gpu-architectures $(ARGS)

.PHONY: release-notes
release-notes: install ## Write down a version, and its notes from changelog.d; VERSION=1.2.3
	@scripts/release prepare "$(VERSION)"

.PHONY: release
release: install ## Check, build both distributions into dist/, try them in a fresh environment, tag; DRY_RUN=1 tags nothing
	@scripts/release make

.PHONY: clean
clean: ## Remove what the targets made
	@rm -rf .venv .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .zoo .oci-conformance
	@find . -name __pycache__ -prune -exec rm -rf {} +
