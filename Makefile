# Each target sets up .venv by itself, once: again only when the dependencies change.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DIGITS := calib_data/digits

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint bench docs clean

help:
	@echo "make quickstart   quantise the digits model that ships to 4 bits; compare it with float"
	@echo "make test         lint, types, import rules, tests"
	@echo "make lint         the first three of these"
	@echo "make bench        what is measured: speed, memory, size"
	@echo "make docs         the documentation as a site, in out/site"
	@echo "make clean        remove the environment and everything that was made"

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install it, or give another as make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt --upgrade pip setuptools
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[test,bench,tvm,docs]'
	@touch $@

quickstart: $(READY)
	@mkdir -p out
	$(BIN)/ptq quantize $(DIGITS)_cnn.onnx -o out/digits_w4a8.onnx --bits 4 \
		--calib $(DIGITS)_calib.npz --eval $(DIGITS)_eval.npz --force

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread a worker: two workers with a pool each would only wait for one another.
test: lint
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(READY)
	@for script in benchmarks/bench_*.py; do \
		[ -e "$$script" ] || { echo "no benchmarks yet" >&2; break; }; \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

docs: $(READY)
	cd docs && NO_MKDOCS_2_WARNING=1 $(abspath $(BIN))/mkdocs build --quiet

clean:
	rm -rf $(VENV) out build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache
