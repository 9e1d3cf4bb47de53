# `make demo` and `make test` set everything up on a machine that has only Python and make.
PYTHON ?= python3
BIN := .venv/bin
LLAVA := llava-torch==1.2.2.post1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-fast regress bench lint format clean

demo: .venv/.installed  ## lmms-eval on the embedded model, then the sweep: table, JSON and PNG in demo/
	mkdir -p demo
	$(BIN)/lmms-textweighted config shapes --output demo/config.yaml
	$(BIN)/lmms-eval --config demo/config.yaml --output_path demo/lmms-eval
	@find demo/lmms-eval -name '*_results.json' -newer demo/config.yaml | grep -q . # lmms-eval exits with 0 even when it failed
	$(BIN)/lmms-textweighted sweep --num-samples 200 --tokens 576,448,320,256,192,128,96,64,48,32,24,16 \
		--output-dir demo/sweep

# Two or more processes with a thread each: small models gain little from more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

test: lint regress  ## ruff, mypy, the regression subset and the whole test suite
	$(PYTEST)

test-fast: .venv/.tested  ## the tests that take seconds
	$(PYTEST) -m "not slow"

regress: .venv/.tested  ## 48 documents against baselines/tiny.json; see docs/regress.md
	$(BIN)/lmms-textweighted regress --baseline baselines/tiny.json

bench: .venv/.tested  ## what this machine can measure; table and JSON in benchmarks/results/
	$(BIN)/python -W ignore -m benchmarks

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,lint]"
	# Without its own requirements, which are pinned to versions of 2023: an extra cannot say that.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(LLAVA)
	touch $@
