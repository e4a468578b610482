# Two commands on a fresh machine with Python 3.11, make and git: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
VENV39 := .venv-tl39
BIN := $(VENV)/bin
BIN39 := $(VENV39)/bin
PIP := -m pip install --quiet --disable-pip-version-check
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test check bench docs notebooks clean

# torch comes first: with it in place nothing replaces it by another build
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt torch
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	touch $@

# the oldest supported TransformerLens, where HookedTransformer still exists; everything else as above
$(VENV39)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV39)
	sed 's/^transformer-lens==.*/transformer-lens==3.9.0/' constraints.txt > $(VENV39)/constraints.txt
	$(BIN39)/python $(PIP) -c $(VENV39)/constraints.txt torch
	$(BIN39)/python $(PIP) -c $(VENV39)/constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/lens-ablation demo --output demo-report

# what rests on the engine alone runs on the oldest release for HookedTransformer only
test: $(VENV)/.ready $(VENV39)/.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal
	$(BIN39)/python -m pytest -n 2 --dist worksteal -m model -k "hooked or not (attribution or optimal or empirical or modularity)"

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# without the type checks of tests; half an hour on two cores, best with nothing else running
bench: $(VENV)/.ready
	$(BIN)/python -m pytest tests/benchmarks -o addopts=--strict-markers --benchmark-only --benchmark-quiet \
		--timeout 7200 --bench-table docs/performance.json

docs: $(VENV)/.ready
	$(BIN)/python -m pytest tests/test_docs.py

notebooks: $(VENV)/.ready
	$(BIN)/python notebooks/run.py

clean:
	rm -rf $(VENV) $(VENV39) demo-report
