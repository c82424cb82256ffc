# Every target sets itself up: make demo and make smoke install what a run needs, make docs also what
# renders its pages, the others also what the tests need; each once, and again when pyproject.toml changes.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.ready-to-run
TEST   := $(VENV)/.ready-to-test
SITE   := $(VENV)/.ready-for-docs
JOBS   ?= auto
# One thread per test process: two that each take all cores are slower than one after the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

.PHONY: help demo smoke test test-all gpu-report lint format docs clean

help:
	@echo "make demo       the whole HuBERT loop on generated speech, on a CPU, in twelve to twenty minutes"
	@echo "make smoke      the same stages in one minute, learning nothing"
	@echo "make test       the quick tests, in under ten minutes on two cores"
	@echo "make test-all   all tests: also loops, kills, several processes, SLURM, wheels"
	@echo "make gpu-report all of docs/benchmarks.md for a GPU, in eight minutes: runs/gpu_report"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff rewrite the code"
	@echo "make docs       the documentation site, build/site/index.html"
	@echo "make clean      remove what builds and tools left; runs/ stays"

demo: $(RUN)
	$(BIN)/hubert-pretrain +recipe=demo

smoke: $(RUN)
	$(BIN)/hubert-pretrain +recipe=smoke

test: $(TEST)
	$(PYTEST) -m "not slow and not slurm and not long" tests

test-all: $(TEST)
	$(PYTEST) tests

# Once: a second report needs another folder.
gpu-report: $(TEST)
	$(BIN)/python tools/gpu_report.py --out runs/gpu_report

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(SITE)
	$(BIN)/python tools/site.py

# Runs and their checkpoints are nobody's but the user's.
clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(SITE): pyproject.toml | $(RUN)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# transformers 4 and s3prl do not go together with the other packages: each lies in a folder of its
# own, which the tests that compare with it put first.
$(TEST): pyproject.toml | $(RUN)
	$(BIN)/python -m pip install --quiet --editable '.[dev,demo]'
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/transformers4 --upgrade 'transformers==4.57.1' 'huggingface-hub<1' 'tokenizers<=0.23'
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/s3prl --upgrade s3prl==0.4.18
	touch $@
