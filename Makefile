PYTHON ?= python3
IN_ENVIRONMENT = PATH="$(CURDIR)/.venv/bin:$$PATH"

.PHONY: setup tools demo test lint bench fresh

setup: ; @$(PYTHON) bootstrap.py
tools: ; @$(PYTHON) bootstrap.py --dev
demo: setup ; @$(IN_ENVIRONMENT) dvc repro && $(IN_ENVIRONMENT) assay ranking
test: tools ; @$(IN_ENVIRONMENT) pytest -n 2 --dist loadfile --no-loadscope-reorder
lint: tools ; @$(IN_ENVIRONMENT) ruff check && $(IN_ENVIRONMENT) ruff format --check && $(IN_ENVIRONMENT) mypy && $(IN_ENVIRONMENT) lint-imports
bench: tools ; @$(IN_ENVIRONMENT) python -m tests.bench
fresh: setup ; @$(IN_ENVIRONMENT) python -m tests.fresh
