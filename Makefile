# Needs python3 (3.11 or newer) and make; `make check` also needs npm, for buf, and the tests need g++, which compiles GPU
# kernels as C++. The rest is set up here, from the locks.

PYTHON ?= python3
# How many tests run at once: `logical` is one for each processor, 0 runs them in this process.
TEST_PROCESSES ?= logical
# For options, as in `make test TESTS="tests/core -k adam"`.
TESTS ?=

BIN := .venv/bin
GENERATED := client/python/stepwell/v1
PROTOS := $(sort $(wildcard proto/stepwell/v1/*.proto))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ Use

.PHONY: demo
demo: .venv/.installed ## Train on real data through a live server, and draw what happened (DEMO="--help" for options)
	$(BIN)/stepwell demo $(DEMO)

.PHONY: bench
bench: .venv/.installed ## Print the benchmark tables; install PyTorch (make test-references) to compare with it, too
	$(BIN)/stepwell bench $(BENCH)

.PHONY: bench-gpu
bench-gpu: .venv/.installed ## Print the GPU's table; install CuPy (the extra cuda12 or cuda13) into .venv before
	$(BIN)/python -m stepwell_server.benchmarks.gpu $(BENCH)

.PHONY: experiments
experiments: .venv/.installed ## Measure what is claimed of the optimizers; write docs/experiments.md and its pictures
	$(BIN)/stepwell experiments --output docs/experiments.md

.PHONY: parity
parity: .venv/.installed .venv/.references ## Compare everything with PyTorch, optax, Keras and others; write docs/parity.md
	$(BIN)/python tests/references/parity.py $(PARITY)

##@ Test

.PHONY: test
test: .venv/.installed ## Run the tests that take minutes in all
	$(BIN)/pytest -n $(TEST_PROCESSES) $(TESTS)

.PHONY: test-references
test-references: .venv/.installed .venv/.references ## Install PyTorch, optax, Keras and others into the same environment and compare with them
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadgroup -m "references and not long" $(TESTS)

.PHONY: test-long
test-long: .venv/.installed ## Run the tests that need long; those that need gigabytes run one after another
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadgroup -m "long and not references" $(TESTS)

.PHONY: test-typescript
test-typescript: .venv/.installed ## Check and test the TypeScript client against a real server; needs Node.js 20 or newer
	cd client/typescript && npm ci --no-audit --no-fund --loglevel=error && npm run check && npm test

.PHONY: test-cpp
test-cpp: .venv/.installed ## Build the C++ client and test it against a real server; needs g++, CMake, gRPC for C++, doctest
	@command -v cmake >/dev/null || { echo "the C++ client needs CMake; on Debian: apt-get install cmake g++ pkg-config" \
	  "libgrpc++-dev libprotobuf-dev protobuf-compiler doctest-dev" >&2; exit 1; }
	cmake -S client/cpp -B build/cpp
	cmake --build build/cpp --parallel 2
	STEPWELL_SERVER=$(abspath $(BIN)/stepwell) ctest --test-dir build/cpp --output-on-failure

.PHONY: test-languages
test-languages: .venv/.installed ## Python, TypeScript and C++ on one run: at once, and in turn; needs what the two above need
	cd client/typescript && npm ci --no-audit --no-fund --loglevel=error && npm run build
	cmake -S client/cpp -B build/cpp
	cmake --build build/cpp --parallel 2 --target languages_worker sample_quickstart sample_two_workers \
	  sample_resume sample_table
	$(BIN)/pytest -m languages tests/languages $(TESTS)

.PHONY: docs
docs: .venv/.installed .venv/.references ## Write the API reference to build/docs; two of its pages need PyTorch and JAX
	$(BIN)/python -m tools.reference build/docs

.PHONY: check
check: check-python check-generated check-proto check-containers ## Everything that is wrong without running it

.PHONY: check-python
check-python: .venv/.installed # style, layering (the ruff.toml in each layer's folder), types, the lock against pyproject.toml
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pip check

.PHONY: check-generated
check-generated: .venv/.installed # the generated code is what the contract says
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call generate,$$fresh) \
	&& diff -r -x __pycache__ "$$fresh/stepwell/v1" $(GENERATED) \
	|| { echo "$(GENERATED) is not what proto/ says; run 'make proto' and commit the result" >&2; exit 1; }

.PHONY: check-proto
check-proto: node_modules/.installed # the contract's style, a comment on everything in it, its format
	node_modules/.bin/buf lint
	node_modules/.bin/buf format --diff --exit-code

.PHONY: check-containers
check-containers: .venv/.installed
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

##@ Change

.PHONY: format
format: .venv/.installed node_modules/.installed ## Format the code and the contract, and mend what can be mended by machine
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	node_modules/.bin/buf format --write

.PHONY: proto
proto: .venv/.installed ## Generate the Python code of the contract anew
	rm -rf $(GENERATED)
	@$(call generate,client/python)

.PHONY: lock
lock: .venv/.installed ## Resolve the locks anew; versions stay unless LOCK=--upgrade (or LOCK="--upgrade-package numba")
	$(UV_COMPILE) pyproject.toml --extra demo --group dev --output-file requirements.lock
	$(UV_COMPILE) --group build --constraint requirements.lock --output-file requirements-build.lock
	$(UV_COMPILE) pyproject.toml --extra server --constraint requirements.lock --output-file requirements-server.lock
	$(UV_COMPILE) pyproject.toml --extra demo --constraint requirements.lock --output-file requirements-demo.lock
	printf '%s\n' $(REFERENCES) | MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile - $(UV_OPTIONS) \
	  --python-platform macos --constraint requirements.lock --output-file requirements-references.lock

.PHONY: clean
clean: ## Remove everything that make and the tools have made here
	rm -rf .venv node_modules build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find client server tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help: ## Show this
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	      /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- Environments: each stamp is newer than the files that it was made from ---

# What the numerics are compared with, in the versions that they were written after. Their lock is resolved as if for
# macOS: there PyTorch's wheel has no CUDA packages below it, so the lock holds what every build needs, and whichever
# build of this version pip finds brings its own. Hashes are left out for the same reason: they would tie the lock to
# one build.
REFERENCES := torch==2.13.0 optax==0.2.8 keras==3.15.1 transformers==5.23.0 schedulefree==1.4.1 prodigyopt==1.1.2 \
  lightning==2.6.6 accelerate==1.15.0
UV_OPTIONS = --quiet --python-version 3.11 --custom-compile-command "make lock" $(LOCK)
UV_COMPILE = $(BIN)/uv pip compile $(UV_OPTIONS) --universal --fork-strategy fewest --generate-hashes

PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.venv/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "stepwell needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up .venv from requirements.lock (about a minute the first time)"
	@$(PYTHON) -m venv .venv
	@$(PIP_INSTALL) --require-hashes --requirement requirements.lock
	@touch $@

.venv/.installed: .venv/.locked pyproject.toml
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.references: .venv/.locked requirements-references.lock
	$(PIP_INSTALL) --requirement requirements-references.lock
	@touch $@

# Not `npm ci`: it wants buf's packages for every platform in the lock, and some registries hold only some of them.
# With --no-save the lock decides the versions, is compared with what arrives, and stays as it is.
node_modules/.installed: package.json package-lock.json
	@command -v npm >/dev/null || { echo "buf, which checks the contract, needs npm (Node.js 18 or newer)" >&2; exit 1; }
	npm install --no-save --no-audit --no-fund --loglevel=error
	@touch $@

# $(call generate,DIRECTORY): write stepwell/v1 below it.
define generate
$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(PROTOS) \
&& echo '"""Generated from proto/stepwell/v1 by `make proto`; not to be edited."""' > $(1)/stepwell/v1/__init__.py
endef
