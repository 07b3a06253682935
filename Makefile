# `make demo` and `make test` need Python, make and a package index; everything lands in .venv.

PYTHON ?= python3
BIN := .venv/bin
OUT := heterodox-results

# The main job: some claims of three papers at laptop scale, in less than ten minutes on two cores.
DEMO := sigmoid-attention softplus-attention softmax-collapse --seeds 3 \
	--claim bias_of_minus_log_n_is_needed \
	--claim norm_without_bias_grows_with_length --claim norm_with_bias_is_that_of_softmax \
	--claim keeps_its_loss_at_8_times_the_length --claim matches_softmax_at_the_training_length \
	--claim perp_grad_is_faster_than_weight_decay --claim plain_training_only_scales_the_weights

# Where the types of shapes are checked as well.
COMPONENT_TESTS := $(wildcard $(addprefix tests/,attention compression losses optim probes layers \
	models sequence training))

.PHONY: demo test lint types docs clean

demo: .venv/.base
	$(BIN)/heterodox reproduce $(DEMO) --out $(OUT)
	@echo "The report: $(CURDIR)/$(OUT)/report.html"
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; then \
		$(BIN)/python -m webbrowser "file://$(CURDIR)/$(OUT)/report.html" || true; \
	fi

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile \
		--jaxtyping-packages=heterodox,beartype.beartype $(COMPONENT_TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

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
