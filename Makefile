# Two commands do everything on a fresh machine with Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Small models on a small machine: as many threads as cores, unless the caller says otherwise.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export TOKENIZERS_PARALLELISM ?= false
# Progress bars and results, not the library's advice.
export TRANSFORMERS_VERBOSITY ?= error

.PHONY: demo study test test-slow test-gpu test-quantization test-torchvision lint types docs bench clean

# DEMO_MINUTES=30 make demo: more time, better policy. make demo FROM_SCRATCH=1: pretrain the small VLM too.
DEMO_MINUTES ?= 10
DEMO_DIR ?= outputs/demo_$(DEMO_MINUTES)_minutes
demo: $(VENV)/.installed
	$(BIN)/kivla demo --output_dir $(DEMO_DIR) --minutes $(DEMO_MINUTES) $(if $(FROM_SCRATCH),--from_scratch true)

study: $(VENV)/.installed
	$(BIN)/kivla study

# Two lanes: `make test` is fast, `make test-slow` runs what is marked slow. A worker for each core, of one thread each
# (tiny models gain nothing from a second one): TEST_WORKERS=4 TEST_THREADS=2 make test. One file of tests, or other
# options of pytest: make test PYTEST_ARGS="tests/processing -x".
TEST_WORKERS ?= auto
TEST_THREADS ?= 1
PYTEST = OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile
test: $(VENV)/.installed
	$(PYTEST) -m "not slow and not quantization" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed
	$(PYTEST) -m "slow and not quantization" $(PYTEST_ARGS)

# On a machine with a GPU. The workers share it.
test-gpu: $(VENV)/.installed
	$(PYTEST) --dist worksteal tests/modeling_kivla/test_on_gpu.py tests/training/test_on_gpu.py $(PYTEST_ARGS)

# torchao lies beside the other packages, for these tests alone: transformers imports it wherever it is installed, and
# every command would begin with its warnings.
QUANTIZATION := $(abspath $(VENV))/quantization
test-quantization: $(VENV)/.installed $(QUANTIZATION)
	PYTHONPATH=$(QUANTIZATION) OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -q -m quantization $(PYTEST_ARGS)

$(QUANTIZATION): constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt --upgrade --target $@ torchao
	touch $@

# Processors as they are where torchvision is installed. It is of one build with torch, hence an environment of its own,
# of 7 GB: the torch of PyPI brings CUDA. TORCHVISION=FOLDER make test-torchvision: put it elsewhere.
TORCHVISION ?= $(abspath $(VENV))/torchvision
TORCHVISION_TESTS := tests/processing tests/modeling_kivla/test_pipeline.py
test-torchvision: $(TORCHVISION)/.installed
	OMP_NUM_THREADS=$(TEST_THREADS) $(TORCHVISION)/bin/python -m pytest -q -m "not quantization" $(or $(PYTEST_ARGS),$(TORCHVISION_TESTS))

$(TORCHVISION)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TORCHVISION)
	sed -e 's/^torch==.*/torch==2.14.1/' -e 's/^torchvision==.*/torchvision==0.29.1/' constraints.txt > $(TORCHVISION)/constraints.txt
	$(TORCHVISION)/bin/python -m pip install -q --disable-pip-version-check -c $(TORCHVISION)/constraints.txt torch torchvision
	$(TORCHVISION)/bin/python -m pip install -q --disable-pip-version-check -c $(TORCHVISION)/constraints.txt -e ".[video,sim,server,gguf,vlm,dev]"
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types of the public modules, as editors show them (`[tool.pyright]` in pyproject.toml).
types: $(VENV)/.installed
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# The site, into outputs/site. A link to nowhere is an error. (The variable: no advice about later versions of MkDocs.)
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[video,sim,server,gguf,docs,dev]"
	touch $@

clean:
	rm -rf $(VENV) outputs build *.egg-info .pytest_cache .ruff_cache
