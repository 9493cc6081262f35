# Each target installs what it needs into .venv when that is missing; the stamp file lets later runs go without a
# network. PYTHON names the interpreter that .venv is made with: 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-slow gpu lint bench corpus train bundled picture clean

demo: $(STAMP)
	$(BIN)/fimls demo

test: $(STAMP)
	$(PYTEST) -m "not gpu and not slow and not editors"

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu and not editors"

gpu: $(STAMP)
	$(PYTEST) -m gpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.responsiveness

# The bundled model from its ingredients: about two minutes, twenty seconds, and as long as training/config.toml says.
corpus: training/data/manifest.json
training/data/manifest.json: training/packages.toml | $(STAMP)
	$(BIN)/python -m training.corpus training/data

training/data/tokenizer.json: training/data/manifest.json
	$(BIN)/python -m training.tokenizer training/data 8192

train: training/data/tokenizer.json
	. training/allocator.sh && nice -n 19 $(BIN)/python -m training.train training/config.toml training/data training/runs/first

bundled: training/data/tokenizer.json
	$(BIN)/python -m training.export training/runs/first training/data model/bundled

picture: $(STAMP)
	mkdir -p docs
	FIMLS_DEMO_SVG=docs/demo.svg $(BIN)/fimls demo

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fimls needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist test-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
