# make demo: set up, make data, convert, train, report.   make test: set up and run the tests.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo
# Environments that share a build of DeepSpeed's operators build it in turn, and wait on each other's locks.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions

.PHONY: demo test test-slow test-deep test-gpu fuzz check setup clean

setup: $(READY)

# The build of DeepSpeed's shared-memory operator happens here, once, in one process: processes that build it at the
# same time wait for each other's lock.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -c "from launch.engine.processes import init_processes as start, shutdown_processes as stop; start(); stop()"
	touch $@

$(DEMO)/synthetic.pkl: | $(READY)
	mkdir -p $(DEMO)
	$(BIN)/python -m data_shards.synthetic $@

$(DEMO)/shards/manifest.json: $(DEMO)/synthetic.pkl
	$(BIN)/python -m data_shards.convert $< --out $(DEMO)/shards

demo: $(DEMO)/shards/manifest.json
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/deepspeed --num_gpus 1 launch/train.py hscl/demo data=$(DEMO)/shards run_dir=$(DEMO)/run

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check core data_shards launch tune concord tests benchmarks examples setup.py
	$(BIN)/mypy

# Many tests wait for a process of one thread, so two at a time fill two cores.
test: check
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# CPU seconds of one test, measured: a demo training 64, a model on 1 to 3 ranks 36 and more, kernels for all
# shapes 54, two hosts 71, precisions 76, the alignment commands 66, a checkpoint's damage 32, a search 29.
test-slow: $(READY)
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m "slow and not deep"

# The whole matrices: every model on 1 to 4 ranks in every stage (150 CPU seconds for the baseline, the
# smallest), 30 random kills, each modality of the demo alone. Not run by .ci/run.
test-deep: $(READY)
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m deep

# What needs a CUDA device; skipped where there is none.
test-gpu: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m gpu

# Spoilt inputs by the ten thousand: 7,200 for each of seven doors, on two cores. make test-slow runs 2,000.
# What is found is run again with: make fuzz DOOR=tables SEED=123 CASES=1
DOOR ?= all
SEED ?= 1
CASES ?= 7200
fuzz: $(READY)
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR):$(CURDIR)/tests/fuzzing:$(CURDIR)/tests/helpers:$(CURDIR)/tests/helpers/data" \
		$(BIN)/python -m fuzz_workers --door $(DOOR) --seed $(SEED) --cases $(CASES)

clean:
	rm -rf $(DEMO) build *.egg-info
