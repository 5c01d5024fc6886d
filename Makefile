PYTHON ?= python3
IN_ENVIRONMENT = PATH="$(CURDIR)/.venv/bin:$$PATH"

.PHONY: setup demo test lint bench

setup: ; @$(PYTHON) bootstrap.py
demo: setup ; @$(IN_ENVIRONMENT) dvc repro && $(IN_ENVIRONMENT) assay ranking
test: setup ; @$(IN_ENVIRONMENT) pytest -n 2 --dist loadfile --no-loadscope-reorder
lint: setup ; @$(IN_ENVIRONMENT) ruff check && $(IN_ENVIRONMENT) ruff format --check && $(IN_ENVIRONMENT) mypy && $(IN_ENVIRONMENT) lint-imports
bench: setup ; @$(IN_ENVIRONMENT) python -m tests.bench
