PYTHON ?= python3
IN_ENVIRONMENT = PATH="$(CURDIR)/.venv/bin:$$PATH"

.PHONY: setup tools demo test nightly lint docs bench fresh newest

setup: ; @$(PYTHON) bootstrap.py
tools: ; @$(PYTHON) bootstrap.py --dev
# The ranking is worth printing also where a stage behind it fails, as `outcome` does for an artifact that failed.
demo: setup ; @$(IN_ENVIRONMENT) sh -c 'dvc repro; code=$$?; [ ! -e selection.json ] || assay ranking; exit $$code'
# The whole flow runs by itself: its image must reach the speed that was measured, which beside other tests it does not.
# Then the folder with the longest file comes first: what is left in the end is short, and both processes have some of it.
FLOW = tests/e2e/test_flow.py
test: tools
	@$(IN_ENVIRONMENT) sh -c 'pytest --durations=20 $(FLOW); flow=$$?; \
	pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=40 --ignore=$(FLOW) tests/e2e tests/contract tests/unit && exit $$flow'
nightly: tools ; @$(IN_ENVIRONMENT) pytest -m nightly -n 2 --dist loadfile --no-loadscope-reorder && $(IN_ENVIRONMENT) python -m tests.fresh.newest
lint: tools ; @$(IN_ENVIRONMENT) ruff check && $(IN_ENVIRONMENT) ruff format --check && $(IN_ENVIRONMENT) mypy && $(IN_ENVIRONMENT) lint-imports && $(MAKE) --no-print-directory docs
docs: tools ; @$(IN_ENVIRONMENT) zensical build --strict
bench: tools ; @$(IN_ENVIRONMENT) python -m tests.bench
newest: tools ; @$(IN_ENVIRONMENT) python -m tests.fresh.newest
fresh: setup ; @$(IN_ENVIRONMENT) python -m tests.fresh
