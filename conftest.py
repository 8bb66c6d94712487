"""Tests and notebooks write into a folder of their own, never into the journal of whoever runs them."""

import os
import shutil
import tempfile

HOME = tempfile.mkdtemp(prefix="compresslab-test-")
os.environ["COMPRESSLAB_HOME"] = HOME  # before anything imports compresslab; kernels and workers inherit it


def pytest_unconfigure():
    shutil.rmtree(HOME, ignore_errors=True)
