# make lab     set up at the first time, then open your copies of the notebooks (folder learn) in JupyterLab
# make reset NOTEBOOK=02   start one of your notebooks anew; the old one is laid beside it
# make check   lint, format and the quick tests, within 90 seconds
# make test    set up at the first time, then run every check
# make fuzz    load 200,000 damaged and hostile files; ARGS="--files 1000 --seed 1" for others
#
# Options: SOLVED=1                         make lab opens the notebooks themselves, with their solutions
#          ARGS="--port=8890 --no-browser"  passed on to jupyter lab
#          PYTHON=python3.12                the Python to set up with (3.11 or newer)
#          TORCH=cpu                        at the first time: PyTorch's own CPU builds, far smaller (Linux, no GPU);
#                                           cpu-oldest: the oldest of them that the package supports

PYTHON ?=
TORCH ?=
ARGS ?=
SOLVED ?=
NOTEBOOK ?=
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup lab reset check test fuzz baselines benchmarks clean

help:
	@sed -n -e '/^#/!q' -e 's/^# \{0,1\}//p' Makefile
	@echo "make setup, baselines (train the networks in data/baselines again), benchmarks, clean (remove .venv)"

setup:
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" sh scripts/setup.sh

lab: setup
	@SOLVED="$(SOLVED)" sh scripts/lab.sh $(ARGS)

reset: setup
	@$(RUN) scripts/learner_copies.py --reset "$(NOTEBOOK)"

check: setup
	@sh scripts/test.sh quick

test: setup
	@sh scripts/test.sh

fuzz: setup
	$(RUN) -m tests.storage.fuzzing --files 200000 $(ARGS)

baselines: setup
	$(RUN) -m benchmarks.records.baselines $(ARGS)

benchmarks: setup
	@for script in $$(ls benchmarks/*.py) records; do \
		name=benchmarks.$$(basename $$script .py); echo "== $$name"; $(RUN) -m $$name $(ARGS) || exit 1; done

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
