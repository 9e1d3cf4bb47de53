# `make demo` and `make test` set everything up on a machine that has only Python and make.
PYTHON ?= python3
BIN := .venv/bin
LATEST := .venv-latest/bin
DIST := .venv-dist/bin
# Without its own requirements, which are pinned to versions of 2023: an extra cannot say that.
LLAVA := llava-torch==1.2.2.post1
# The versions that are installed; `make lock` renews them. See CONTRIBUTING.md.
UPSTREAM := lmms_textweighted/upstream
LOCK := $(UPSTREAM)/constraints.txt
PIP := python -m pip --quiet --disable-pip-version-check
# Variables, since --constraint does not reach the environments that pip makes to build packages in: up to pip 25.2 the
# first one does, from 25.3 on the second.
LOCKED := PIP_CONSTRAINT=$(LOCK) PIP_BUILD_CONSTRAINT=$(LOCK)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-fast test-slow test-real test-latest regress bench errors models lint format lock audit dist clean

# $(1): an environment's bin folder, $(2): a folder for the results.
# lmms-eval exits with 0 even when it failed: its results file says whether it did.
define EVALUATE_SHAPES
mkdir -p $(2)
$(1)/lmms-textweighted config shapes --output $(2)/config.yaml
$(1)/lmms-eval --config $(2)/config.yaml --output_path $(2)/lmms-eval
@find $(2)/lmms-eval -name '*_results.json' -newer $(2)/config.yaml | grep -q . \
	|| { echo "lmms-eval wrote no results file into $(2)/lmms-eval"; exit 1; }
endef

demo: .venv/.installed  ## lmms-eval on the embedded model, then a sweep of each of the two, as demo/page.html
	$(call EVALUATE_SHAPES,$(BIN),demo)
	$(BIN)/lmms-textweighted sweep --model-path tiny-qwen --num-samples 100 --tokens 144,64,32,16 \
		--output-dir demo/sweep-qwen --overwrite --html demo/page-qwen.html
	$(BIN)/lmms-textweighted sweep --num-samples 200 --tokens 576,448,320,256,192,128,96,64,48,32,24,16 \
		--output-dir demo/sweep --overwrite --html demo/page.html
	@echo "open this page in a browser: $(CURDIR)/demo/page.html (and of the second model: page-qwen.html beside it)"

# Two or more processes with a thread each: small models gain little from more threads.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4
ONE_THREAD := OMP_NUM_THREADS=1

test: lint regress  ## ruff, mypy, import contracts, the regression subset and the whole test suite
	$(ONE_THREAD) $(BIN)/python $(PYTEST)

test-fast: .venv/.tested  ## the tests that take seconds
	$(ONE_THREAD) $(BIN)/python $(PYTEST) -m "not slow"

test-slow: .venv/.tested  ## every test, also those marked nightly, and 1,000 examples of each property instead of 100
	$(ONE_THREAD) $(BIN)/python $(PYTEST) --nightly

# Off unless LMMS_TEXTWEIGHTED_REAL names a checkpoint: a hub name (then the hub is asked), or a folder.
test-real: export HF_HUB_OFFLINE := 0
test-real: $(if $(LMMS_TEXTWEIGHTED_REAL),.venv/.tested)  ## a real checkpoint against lmms-eval's own model of it
	@$(if $(LMMS_TEXTWEIGHTED_REAL),$(BIN)/python -W ignore -m tests.real,echo "LMMS_TEXTWEIGHTED_REAL is not set: \
	give a hub name or a folder, make test-real LMMS_TEXTWEIGHTED_REAL=Qwen/Qwen2.5-VL-3B-Instruct")

test-latest:  ## the newest of everything that the bounds allow, in .venv-latest: see latest/versions.txt
	rm -rf .venv-latest latest
	$(PYTHON) -m venv .venv-latest
	$(LATEST)/$(PIP) install --editable .
	$(LATEST)/python -m pip check # now: a wheel of decord, which the tests need, names another platform than its own
	$(LATEST)/$(PIP) install --editable ".[test]"
	$(LATEST)/$(PIP) install --no-deps $(LLAVA)
	$(LATEST)/python -m lmms_textweighted.upstream.report --output latest/versions.txt
	$(call EVALUATE_SHAPES,$(LATEST),latest)
	$(ONE_THREAD) $(LATEST)/python $(PYTEST) -m "not slow" || { cat latest/versions.txt; exit 1; }

regress: .venv/.tested  ## 48 documents against baselines/tiny.json and tiny-qwen.json; see docs/regress.md
	$(BIN)/lmms-textweighted regress --baseline baselines/tiny.json
	$(BIN)/lmms-textweighted regress --baseline baselines/tiny-qwen.json

bench: .venv/.tested  ## what this machine can measure; table and JSON in benchmarks/results/
	$(BIN)/python -W ignore -m benchmarks

errors: .venv/.tested  ## docs/errors.md anew, from the bad inputs that the tests try
	$(ONE_THREAD) $(BIN)/python -W ignore -m tests.errors_page

models: .venv/.tested  ## the table of kinds of models in README and docs/models.md anew, from their tests
	mkdir -p runs
	-$(ONE_THREAD) $(BIN)/python $(PYTEST) --junitxml=runs/models.xml \
		tests/test_families.py tests/test_vlm_prompts.py tests/test_equal_to_lmms_eval.py
	$(BIN)/python -W ignore -m tests.models_page runs/models.xml

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/.tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: .venv-lock/bin/uv  ## the newest versions that the bounds allow, for Python 3.10 to 3.13
	.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 \
		--all-extras --group build --group release --constraint $(UPSTREAM)/measured.txt \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file $(LOCK) pyproject.toml

audit: .venv-audit/bin/pip-audit  ## the lock against the database of known weaknesses; needs a network that reaches it
	.venv-audit/bin/pip-audit --requirement $(LOCK) --no-deps --disable-pip --strict --progress-spinner off

dist:  ## the wheel and the source archive in dist/: looked over, and the wheel answers a question in .venv-dist
	rm -rf dist build .venv-dist
	$(PYTHON) -m venv .venv-dist
	$(LOCKED) $(DIST)/$(PIP) install build twine
	$(LOCKED) $(DIST)/python -m build
	$(DIST)/python -m twine check --strict dist/*
	$(LOCKED) $(DIST)/$(PIP) install dist/*.whl
	cd .venv-dist && bin/lmms-textweighted sweep --num-samples 1 --tokens 64 --output-dir answer

clean:
	rm -rf .venv .venv-latest .venv-lock .venv-audit .venv-dist demo latest build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml $(LOCK) | .venv/bin/python
	$(LOCKED) $(BIN)/$(PIP) install --editable .
	touch $@

.venv/.tested: .venv/.installed
	$(LOCKED) $(BIN)/$(PIP) install --editable ".[test,lint]"
	$(BIN)/$(PIP) install --no-deps $(LLAVA)
	touch $@

.venv-lock/bin/uv:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/$(PIP) install uv

.venv-audit/bin/pip-audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/$(PIP) install pip-audit
