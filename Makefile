# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
MS_VENV := .venv-mindspore
NP1_VENV := .venv-numpy1
DOCS_VENV := .venv-docs
BIN := $(VENV)/bin
SHARED := ../shared
# tests start hundreds of Pythons: none of them is to compile the program again
export PYTHONDONTWRITEBYTECODE =

SIDE_BY_SIDE := -n 4 --dist loadfile --no-loadscope-reorder

# Programs that judge what we write for them: each has tests/with_NAME, a marker, and an environment of its own.
JUDGES := torch hf peft deepspeed megatron
TORCH := torch==2.13.0
JUDGE_torch := $(TORCH) safetensors==0.5.3
JUDGE_hf := $(TORCH) transformers==5.24.0
JUDGE_peft := $(TORCH) peft==0.21.2 scikit-learn
JUDGE_deepspeed := $(TORCH) deepspeed==0.19.8
JUDGE_megatron := $(TORCH) megatron-core==0.16.1 psutil

.PHONY: help setup demo tutorial test test-oracle test-browser test-numpy1 test-package test-answers docs bench lint format clean $(JUDGES:%=test-%)

help:
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed 's/:.*## /\t/'

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[dev,cloud,ray]'
	touch $@

$(MS_VENV)/ready: Makefile
	$(PYTHON) -m venv $(MS_VENV)
	$(MS_VENV)/bin/python -m pip install -q --upgrade pip
	$(MS_VENV)/bin/python -m pip install -q mindspore==2.7.2 safetensors==0.5.3 'numpy<2' setuptools -e .
	$(MS_VENV)/bin/python -m pip install -q --no-deps --upgrade --target $(MS_VENV)/mindformers mindformers==2.1.0
	touch $@

$(NP1_VENV)/ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(NP1_VENV)
	$(NP1_VENV)/bin/python -m pip install -q --upgrade pip
	$(NP1_VENV)/bin/python -m pip install -q -e '.[test]' 'numpy==1.24.*'
	touch $@

$(DOCS_VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install -q --upgrade pip
	$(DOCS_VENV)/bin/python -m pip install -q -e '.[docs]'
	touch $@

$(JUDGES:%=.venv-%/ready): .venv-%/ready: Makefile
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q --upgrade pip
	DS_BUILD_OPS=0 .venv-$*/bin/python -m pip install -q $(JUDGE_$*) 'pytest>=8.3' safetensors -e .
	touch $@

setup: $(VENV)/ready ## make .venv with reshard and its development tools

demo: setup ## a real model through every family and back, LoRA too, with proof
	$(BIN)/python demo/demo.py

tutorial: setup ## what docs/tutorial.md does by hand: real weights cut, re-cut and merged
	$(BIN)/python demo/tutorial.py

test: setup ## all tests that need neither MindSpore nor a network; RESHARD_THOROUGH=4 for four times as many random cases
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-oracle: setup $(MS_VENV)/ready ## MindSpore judges what we write and read
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m oracle tests/oracle --mindspore $(MS_VENV)/bin/python

test-browser: setup ## reports in a real Chromium; installs one on Debian and its like where there is none
	command -v chromedriver >/dev/null || { apt-get update -q && apt-get install -qy chromium chromium-driver; }
	$(BIN)/python -m pytest -m browser tests/browser --browser

# Where NumPy computes: views of bytes, casts, scales, sums and products. Names, plans and headers are the same with any
# NumPy; what is drawn at random has been tried with today's.
OF_NUMPY := tests/golden tests/property tests/lora $(addprefix tests/unit/,families moving ops)

test-numpy1: $(NP1_VENV)/ready ## where NumPy computes, on the oldest, as MindSpore's process has it
	RESHARD_THOROUGH=1 $(NP1_VENV)/bin/python -m pytest $(SIDE_BY_SIDE) $(OF_NUMPY)

test-package: setup ## wheel and source distribution, each in an empty environment
	$(BIN)/python tests/package/try_it.py

test-torch: ## torch and safetensors load what we write
test-hf: ## transformers loads what we write
test-peft: ## PEFT merges adapters as we do
test-deepspeed: ## DeepSpeed loads what we write
test-megatron: ## Megatron-Core loads what we write
$(JUDGES:%=test-%): test-%: .venv-%/ready
	.venv-$*/bin/python -m pytest -m $* tests/with_$* --judge $* -W default -rs

test-answers: setup ## stored answers of other programs, where ../shared holds them
	@$(call compared,golden,.)
	@$(call compared,faults,.)

# folder, and which of its cases
compared = if [ -f $(SHARED)/$(1)/check.py ]; then \
		echo "$(SHARED)/$(1):"; \
		$(BIN)/python $(SHARED)/$(1)/check.py --reshard "$(CURDIR)/$(BIN)/reshard" --only '$(2)'; \
	else echo "$(SHARED)/$(1) is not there: its answers were not compared"; fi

lint: setup ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## let ruff rewrite
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS_VENV)/ready ## the documentation as a site in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

bench: setup ## time conversions against cp: the tables of docs/explanation/performance.md
	$(BIN)/python bench/page.py

clean: ## remove what make made
	rm -rf $(VENV) $(MS_VENV) $(NP1_VENV) $(DOCS_VENV) $(JUDGES:%=.venv-%) site demo/out demo/smollm2 bench/out
