#!/bin/sh
# Opens JupyterLab on the first notebook, on the learner's copy of it. Arguments are passed on to JupyterLab.
#   SOLVED  "1": no copies are made, and the notebook itself is opened, with its solutions
set -eu
cd "$(dirname "$0")/.."

port=
before=
for word in "$@"; do
    case "$word" in
        --port=* | --ServerApp.port=*) port=${word#*=} ;;
        *) if [ "$before" = --port ]; then port=$word; fi ;;
    esac
    before=$word
done

# JupyterLab moves on to the next free port by itself, and says so; a port that was asked for is not changed silently
if [ -n "$port" ]; then
    .venv/bin/python -c "import socket, sys; socket.create_server(('127.0.0.1', int(sys.argv[1]))).close()" "$port" \
        2> /dev/null || {
        echo "compresslab: port $port cannot be used: something else listens on it, or it is not allowed." >&2
        echo "compresslab: give another one (ARGS=--port=8890), or none, and the next free one is taken." >&2
        exit 1
    }
    set -- "$@" --ServerApp.port_retries=0
fi
case "${SOLVED:-}" in
    "" | 0)
        folder=learn
        .venv/bin/python scripts/learner_copies.py
        ;;
    1) folder=notebooks ;;
    *)
        echo "compresslab: SOLVED is $SOLVED; give SOLVED=1 for the notebooks with their solutions, or leave it out" >&2
        exit 1
        ;;
esac
exec .venv/bin/python -m jupyterlab --ServerApp.root_dir="$(pwd)" \
    "--LabApp.default_url=/lab/tree/$folder/00_honest_meter.ipynb" "$@"
