# SPDX-License-Identifier: MIT
"""The benchmarks of kernels and in-process paths run, once each and untimed, and compare right."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_micro_benchmark_runs() -> None:
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "--benchmark-disable", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "benchmarks"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and "skipped" not in done.stdout
