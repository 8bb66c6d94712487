"""Tests and notebooks write into a folder of their own, never into the journal of whoever runs them."""

import os
import shutil
import tempfile

HOME = tempfile.mkdtemp(prefix="compresslab-test-")
os.environ["COMPRESSLAB_HOME"] = HOME  # before anything imports compresslab; kernels and workers inherit it
os.environ["COMPRESSLAB_BARS"] = "0"  # on a slow machine they would be among the outputs that are compared


def pytest_unconfigure():
    shutil.rmtree(HOME, ignore_errors=True)
