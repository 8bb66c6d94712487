#!/bin/sh
# Every check, one after the other; stops at the first that fails.
#   quick  as the only argument: the checks of a minute, without notebooks, browser and slow tests
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
export OMP_NUM_THREADS=1  # one test process on each core; torch's threads in each of them would only wait for one another

step() { echo "== $1"; shift; "$@"; }

step "lint" $python -m ruff check .
step "format" $python -m ruff format --check .
if [ "${1:-}" = quick ]; then
    step "quick tests" $python -m pytest -q -n auto --dist loadfile -m "not slow and not browser" tests
    exit 0
fi
step "tests" $python -m pytest -n auto --dist loadfile tests
export COMPRESSLAB_STRICT_CHECKS=1  # an exercise of a solved notebook that does not pass is an error
export TQDM_DISABLE=1  # a bar that a slow machine shows is no output to compare
step "notebooks" $python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=120 -n auto --dist loadfile notebooks
