# `make demo` and `make test` need Python, make and a package index; everything lands in .venv.

PYTHON ?= python3
BIN := .venv/bin
OUT := heterodox-results

# The main job: what three papers claim, at the size that takes seconds.
DEMO := sigmoid-attention softplus-attention softmax-collapse --scale smoke

# Where the types of shapes are checked as well.
COMPONENT_TESTS := $(wildcard $(addprefix tests/,attention losses optim probes layers models training))

.PHONY: demo test lint types docs clean

demo: .venv/.base
	$(BIN)/heterodox reproduce $(DEMO) --out $(OUT)
	@echo "The report: $(CURDIR)/$(OUT)/report.html"
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; then \
		$(BIN)/python -m webbrowser "file://$(CURDIR)/$(OUT)/report.html" || true; \
	fi

test: .venv/.dev
	$(BIN)/python -m pytest -q --jaxtyping-packages=heterodox,beartype.beartype $(COMPONENT_TESTS)
	$(BIN)/python -m pytest -q

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.dev
	$(BIN)/mypy

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Installed once, and again when what is to be installed changes.
$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch .venv/.base $@
