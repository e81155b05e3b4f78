# Everything from a bare checkout: each target creates .venv and installs what it needs first.
#
#   make demo       the main job on two real tables; results in demo_output/
#   make test       the test suite (without the slow tests)
#   make test-slow  the slow tests alone
#   make lint       ruff, pyright and the import arrows
#   make bench      the committed benchmarks
#   make docs       the documentation, into site/
#   make lock       constraints.txt again, from pyproject.toml
#   make clean      remove .venv and outputs
#
# PYTHON      interpreter of the environment (3.11 to 3.13)
# TORCH_ARGS  more arguments for installing torch, for example an index with CPU-only builds

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
TORCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
# Slow connections need more patience than pip's 15 seconds.
export PIP_DEFAULT_TIMEOUT ?= 120
# Tests and demo draw to files only.
export MPLBACKEND := Agg
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-slow lint bench docs lock clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: $(VENV)/.installed-test
	for bench in benchmarks/*/bench.py; do $(BIN)/python $$bench || exit 1; done

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

# Left out: this package itself, pip, and the build of torch (`+cpu`), which is not a version.
lock: $(VENV)/.installed-dev
	$(BIN)/pip-compile --quiet --upgrade --all-extras --strip-extras --allow-unsafe --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --output-file=constraints.txt pyproject.toml
	{ echo '# The set that the tests run with, for Python 3.11 to 3.13. Written by `make lock`.'; \
	  grep -Ev '^($$|#|pip==|posteria @)' constraints.txt | sed -E 's/^(torch==[^+]+)\+.*/\1/'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) demo_output site

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python found; call make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that TORCH_ARGS concerns nothing else.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing posteria and its dependencies into $(VENV): a few minutes the first time"
	$(INSTALL) $(TORCH_ARGS) torch
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(INSTALL) --editable '.[$*]'
	@touch $@
