"""`make lab` and `make test` set themselves up: what they do and what they say, with a Python that only pretends."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ["sh", "make", "sed", "grep", "cksum", "rm", "touch", "dirname", "cat", "cp", "mkdir"]

# Answers as the Python that the setup scripts ask; every installation is written down in the file $INSTALLED.
PRETENDER = f"""#!/bin/sh
case "$*" in
    *version_info\\ *) exit ${{OLD:-0}} ;;
    *python_version*) echo ${{VERSION:-3.12.1}} ;;
    *version_info\\[1*) echo python3.12-venv ;;
    *"import venv"*) exit ${{NO_VENV:-0}} ;;
    "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"pip install"*) echo "$*" >> "$INSTALLED"; exit ${{NO_NETWORK:-0}} ;;
    "-m jupyterlab "*) echo "opened: $*" ;;
    scripts/learner_copies.py*) echo "copies: $*"; exit ${{READ_ONLY:-0}} ;;
    *socket*) exec {sys.executable} "$@" ;;
esac
"""


class Checkout:
    """A checkout with the Makefile and its scripts, on a machine whose only Python pretends."""

    def __init__(self, folder):
        self.folder = folder / "checkout"
        self.bin = folder / "bin"
        self.log = folder / "installed"
        for name in ["Makefile", "pyproject.toml", "scripts"]:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            self.folder.mkdir(exist_ok=True)
            copy(ROOT / name, self.folder / name)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.python("python3")

    def python(self, name):
        (self.bin / name).write_text(PRETENDER)
        (self.bin / name).chmod(0o755)

    def make(self, *arguments, **environment):
        """(exit status, everything said) of `make …`."""
        environment = {"PATH": str(self.bin), "INSTALLED": str(self.log), "LC_ALL": "C", **environment}
        done = subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode, done.stdout + done.stderr

    def installed(self):
        """What pip was asked for since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_first_time_installs_second_time_does_nothing(checkout):
    status, said = checkout.make("setup")
    assert (status, len(checkout.installed())) == (0, 1), said
    assert "making .venv with python3 (3.12.1)" in said
    assert "ready: packages installed, data checked" in said
    os.utime(checkout.folder / "pyproject.toml")  # newer, but the same
    assert checkout.make("setup") == (0, "")
    assert checkout.installed() == []


def test_python_too_old(checkout):
    status, said = checkout.make("lab", OLD="1", VERSION="3.9.2")
    assert status != 0
    assert "Python 3.11 or newer is needed. Tried: python3 (3.9.2) python3.13 (not there)" in said
    assert "PYTHON=" in said
    assert not (checkout.folder / ".venv").exists()


def test_no_python_at_all(checkout):
    (checkout.bin / "python3").unlink()
    status, said = checkout.make("test")
    assert status != 0
    assert "Python 3.11 or newer is needed. Tried: python3 (not there)" in said


def test_a_newer_python_is_found_beside_an_old_one(checkout):
    (checkout.bin / "python3").write_text("#!/bin/sh\nexit 1\n")
    checkout.python("python3.12")
    status, said = checkout.make("setup")
    assert status == 0
    assert "making .venv with python3.12" in said


def test_the_python_asked_for_is_taken_or_refused(checkout):
    checkout.python("mine")
    assert "making .venv with mine" in checkout.make("setup", "PYTHON=mine")[1]
    shutil.rmtree(checkout.folder / ".venv")
    status, said = checkout.make("setup", "PYTHON=/opt/none/python")
    assert status != 0
    assert "Tried: /opt/none/python (not there)." in said


def test_python_without_venv(checkout):
    status, said = checkout.make("setup", NO_VENV="1")
    assert status != 0
    assert "python3 has no venv module" in said
    assert "apt install python3.12-venv" in said


def empty(venv):
    venv.mkdir()


def no_python(venv):
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/pip").touch()


def python_gone(venv):
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/opt/gone/python3.11")


def a_file(venv):
    venv.write_text("not a folder")


@pytest.mark.parametrize("break_it", [empty, no_python, python_gone, a_file], ids=lambda it: it.__name__)
def test_half_made_venv_is_made_again(checkout, break_it):
    break_it(checkout.folder / ".venv")
    status, said = checkout.make("setup")
    assert status == 0, said
    assert ".venv is half made" in said
    assert len(checkout.installed()) == 1
    assert checkout.make("setup") == (0, "")


def test_interrupted_installation_is_made_again(checkout):
    checkout.make("setup")
    (checkout.folder / ".venv/.ready").unlink()
    (checkout.folder / ".venv/.unfinished").touch()
    (checkout.folder / ".venv/half a package").touch()
    status, said = checkout.make("setup")
    assert status == 0
    assert "interrupted" in said
    assert not (checkout.folder / ".venv/half a package").exists()


def test_an_environment_of_ones_own_is_kept(checkout):
    checkout.make("setup")
    (checkout.folder / ".venv/.ready").unlink()
    (checkout.folder / ".venv/mine").touch()
    status, _ = checkout.make("setup")
    assert status == 0
    assert (checkout.folder / ".venv/mine").exists()


def test_changed_requirements_are_installed(checkout):
    checkout.make("setup")
    checkout.installed()
    with open(checkout.folder / "pyproject.toml", "a") as file:
        file.write("# changed\n")
    status, said = checkout.make("setup", NO_NETWORK="1")
    assert status == 0
    assert "going on with what is installed" in said
    assert len(checkout.installed()) == 1
    assert "ready" in checkout.make("setup")[1]
    assert checkout.make("setup") == (0, "")


def test_moved_checkout_is_installed_again(checkout):
    checkout.make("setup")
    checkout.installed()
    checkout.folder = checkout.folder.rename(checkout.folder.parent / "moved here")
    status, said = checkout.make("setup")
    assert status == 0, said
    assert len(checkout.installed()) == 1
    assert checkout.make("setup") == (0, "")


def test_no_network_at_first(checkout):
    status, said = checkout.make("setup", NO_NETWORK="1")
    assert status != 0
    assert "the packages could not be installed" in said
    status, said = checkout.make("setup")
    assert status == 0
    assert "interrupted" not in said


def test_cpu_build_of_torch_on_request(checkout):
    status, said = checkout.make("setup", "TORCH=cpu")
    tool, torch, rest = checkout.installed()
    assert status == 0, said
    assert tool.endswith("uv")
    assert "-m uv pip install" in torch and "--torch-backend cpu" in torch
    assert "--torch-backend" not in rest
    assert checkout.make("setup") == (0, "")  # kept, not exchanged for the default
    assert checkout.make("setup", "TORCH=cpu") == (0, "")


def test_oldest_cpu_build_on_request(checkout):
    status, said = checkout.make("setup", "TORCH=cpu-oldest")
    _, torch, rest = checkout.installed()
    assert status == 0, said
    assert "--torch-backend cpu --resolution lowest-direct torch>=2.11 torchvision>=0.26" in torch
    assert "--resolution" not in rest
    assert checkout.make("setup") == (0, "")  # kept, not exchanged for the default
    with open(checkout.folder / "pyproject.toml", "a") as file:
        file.write("# changed\n")
    assert checkout.make("setup")[0] == 0
    assert "lowest-direct" in checkout.installed()[1]
    assert "making .venv again, with the CPU build" in checkout.make("setup", "TORCH=cpu")[1]
    assert "--resolution highest" in checkout.installed()[1]


def test_the_oldest_build_is_what_the_package_asks_for():
    asked = re.findall(r'"((?:torch|torchvision)>=[\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert len(asked) == 2
    assert all(f'"{bound}"' in (ROOT / "scripts/setup.sh").read_text() for bound in asked)


def test_cpu_build_after_the_default_is_made_again(checkout):
    checkout.make("setup")
    assert "making .venv again, with the CPU build" in checkout.make("setup", "TORCH=cpu")[1]
    assert checkout.make("setup", "TORCH=cpu") == (0, "")


def test_unknown_torch(checkout):
    status, said = checkout.make("setup", "TORCH=rocm")
    assert status != 0
    assert "TORCH is rocm" in said


def test_lab_opens_the_first_copy_and_passes_arguments_on(checkout):
    status, said = checkout.make("lab", "ARGS=--no-browser --ip=127.0.0.1 --IdentityProvider.token='a b'")
    assert status == 0, said
    assert "copies: scripts/learner_copies.py\n" in said
    assert "/lab/tree/learn/00_honest_meter.ipynb --no-browser --ip=127.0.0.1" in said
    assert "token=a b" in said


def test_lab_opens_the_solved_notebooks_on_request_and_makes_no_copies(checkout):
    status, said = checkout.make("lab", "SOLVED=1", "ARGS=--version")
    assert status == 0, said
    assert "/lab/tree/notebooks/00_honest_meter.ipynb --version" in said
    assert "copies:" not in said
    status, said = checkout.make("lab", "SOLVED=please")
    assert status != 0 and "opened:" not in said
    assert "SOLVED is please; give SOLVED=1" in said


def test_lab_stops_where_no_copies_can_be_made(checkout):
    status, said = checkout.make("lab", READ_ONLY="1")
    assert status != 0 and "opened:" not in said


@pytest.mark.parametrize("wanted", ["02_zero_pruning", "my notebook.ipynb", ""])
def test_reset_starts_one_notebook_anew(checkout, wanted):
    status, said = checkout.make("reset", f"NOTEBOOK={wanted}")
    assert status == 0, said
    assert said.endswith(f"copies: scripts/learner_copies.py --reset {wanted}\n")


@pytest.mark.parametrize("how", ["--port={}", "--port {}", "--ServerApp.port={}"])
def test_port_in_use_is_said(checkout, how):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = checkout.make("lab", f"ARGS={how.format(port)}")
    assert status != 0
    assert f"port {port} cannot be used" in said
    assert "opened:" not in said
    assert "opened:" in checkout.make("lab", f"ARGS={how.format(port)}")[1]


def test_the_scripts_are_plain_shell():
    for script in sorted((ROOT / "scripts").glob("*.sh")):
        assert subprocess.run(["sh", "-n", script]).returncode == 0
    assert os.access(ROOT / ".ci/run", os.X_OK)
