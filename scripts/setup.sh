#!/bin/sh
# Sets up .venv in the checkout: makes it, repairs it, updates it. Silent and quick when there is nothing to do.
#   PYTHON  the Python to make it with, 3.11 or newer; if empty, the first one found
#   TORCH   "cpu": PyTorch's own CPU builds of torch and torchvision, which uv knows where to find; if empty, pip's usual;
#           "cpu-oldest": the oldest CPU builds that pyproject.toml allows
set -eu
cd "$(dirname "$0")/.."

python=.venv/bin/python
ready=.venv/.ready            # written last: what the environment was set up for
unfinished=.venv/.unfinished  # there while an installation runs, left behind when it is interrupted
here="folder $(pwd -P)"
wanted="pyproject.toml $(cksum < pyproject.toml)"

say() { echo "compresslab: $*"; }
stop() { say "$@" >&2; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2> /dev/null || echo "not there"; }
recorded() { [ -f "$ready" ] && grep -qxF "$1" "$ready"; }

find_python() {
    tried=
    no_venv=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if new_enough "$candidate"; then
            if "$candidate" -c 'import venv, ensurepip' 2> /dev/null; then echo "$candidate"; return; fi
            no_venv="${no_venv:-$candidate}"
        fi
        tried="$tried $candidate ($(version_of "$candidate"))"
    done
    if [ -n "$no_venv" ]; then
        minor=$("$no_venv" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')
        stop "$no_venv has no venv module, which the .venv is made with. On Debian and Ubuntu: apt install $minor"
    fi
    stop "Python 3.11 or newer is needed. Tried:$tried." \
        "Install one from https://www.python.org/downloads, or say where it is: make lab PYTHON=/path/to/python3.12"
}

make_venv() {
    chosen=$(find_python) || exit 1
    say "making .venv with $chosen ($(version_of "$chosen"))"
    rm -rf .venv
    "$chosen" -m venv .venv || { rm -rf .venv; stop "$chosen could not make a .venv; its words are above"; }
}

case "${TORCH:-}" in
    "" | cpu | cpu-oldest) ;;
    *) stop "TORCH is $TORCH; leave it out for pip's usual torch, or give TORCH=cpu (CPU build) or TORCH=cpu-oldest" ;;
esac

if [ ! -e .venv ]; then
    make_venv
elif [ -e "$unfinished" ]; then
    say "the last setup was interrupted and left .venv half made: making it again"
    make_venv
elif ! new_enough "$python" || ! "$python" -c 'import pip' 2> /dev/null; then
    say ".venv is half made, or its Python is gone or older than 3.11: making it again"
    make_venv
elif [ -n "${TORCH:-}" ] && [ -f "$ready" ] && ! recorded "torch $TORCH"; then
    say "TORCH=$TORCH: making .venv again, with the CPU build of torch"
    make_venv
elif recorded "$here" && recorded "$wanted"; then
    exit 0
fi

say "installing the packages into .venv; the first time takes some minutes and a few GB"
touch "$unfinished"
torch=${TORCH:-default}
for kind in cpu cpu-oldest; do
    if [ -z "${TORCH:-}" ] && recorded "torch $kind"; then torch=$kind; fi
done
pip="$python -m pip install --disable-pip-version-check"
cpu_torch() {  # uv knows the address of PyTorch's CPU builds
    resolution=$(if [ "$torch" = cpu-oldest ]; then echo lowest-direct; else echo highest; fi)
    $pip uv && "$python" -m uv pip install --python "$python" --torch-backend cpu --resolution "$resolution" \
        "torch>=2.11" "torchvision>=0.26"
}
if { [ "$torch" = default ] || cpu_torch; } &&
    $pip --editable ".[test]"; then
    rm -f "$ready"
elif recorded "$here"; then  # an update that failed: no network, most likely
    rm -f "$unfinished"
    say "pyproject.toml has changed, but the update did not work (no network?); going on with what is installed"
    exit 0
else
    rm -f "$unfinished"
    stop "the packages could not be installed; pip's words are above. Once that is mended, run the same command again"
fi

# JupyterLab's news pop-up would lie over the notebook's corner
"$python" -m jupyterlab.labextensions disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements" 2> /dev/null ||
    say "JupyterLab's news pop-up could not be switched off; close it by hand"
"$python" -c "
import compresslab as cl
for name in ('mnist', 'fashion_mnist'):
    cl.data.load(name)
" || stop "the data did not pass its check; the last line above says which file and what to do"
# The file format's coder is compiled at its first use and kept: some seconds that no slider then waits for
"$python" -c "
import compresslab as cl
cl.storage.loads(cl.storage.dumps(cl.weight_sharing.share(cl.zero_pruning.prune(cl.models.lenet_300_100(0), sparsity=0.9), bits=4)))
" || say "the coder could not be compiled beforehand; its first use will take some seconds longer"
printf '%s\n' "$here" "$wanted" "torch $torch" > "$ready"
rm -f "$unfinished"
say "ready: packages installed, data checked"
