# make demo, make test and make lint do all set-up themselves: a .venv on first use, made again when pyproject.toml changes.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= auto

.PHONY: help demo smoke test lint format clean

help:
	@echo "make demo    the whole HuBERT loop on generated speech, on a CPU, in ten to seventeen minutes"
	@echo "make smoke   the same in under two minutes, learning nothing"
	@echo "make test    all tests"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite the code"

demo: $(READY)
	$(BIN)/python -m hubert_pretrain.run +recipe=demo

smoke: $(READY)
	$(BIN)/python -m hubert_pretrain.run +recipe=smoke

# One thread per test process: two that each take all cores are slower than one after the other.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The last two are for tests alone, which put them first for one network: they do not go together with the other packages.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,demo]'
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/transformers4 --upgrade 'transformers==4.57.1' 'huggingface-hub<1' 'tokenizers<=0.23'
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/s3prl --upgrade s3prl==0.4.18
	touch $(READY)
