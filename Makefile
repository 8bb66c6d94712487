# make lab     set up at the first time, then open the workbook in JupyterLab
# make test    set up at the first time, then run every check
#
# Options: ARGS="--port=8890 --no-browser"  passed on to jupyter lab
#          PYTHON=python3.12                the Python to set up with (3.11 or newer)
#          TORCH=cpu                        at the first time: PyTorch's own CPU builds, far smaller (Linux, no GPU)

PYTHON ?=
TORCH ?=
ARGS ?=
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup lab test baselines benchmarks clean

help:
	@sed -n -e '/^#/!q' -e 's/^# \{0,1\}//p' Makefile
	@echo "make setup, baselines (train the networks in data/baselines again), benchmarks, clean (remove .venv)"

setup:
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" sh scripts/setup.sh

lab: setup
	@sh scripts/lab.sh $(ARGS)

test: setup
	@sh scripts/test.sh

baselines: setup
	$(RUN) -m compresslab.baselines $(ARGS)

benchmarks: setup
	@for script in benchmarks/*.py; do \
		name=benchmarks.$$(basename $$script .py); echo "== $$name"; $(RUN) -m $$name $(ARGS) || exit 1; done

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
