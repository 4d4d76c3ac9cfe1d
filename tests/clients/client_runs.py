# SPDX-License-Identifier: MIT
"""Starts programs that are written against other libraries, ends them for certain, reads results.

    pytestmark = needs("accelerate")

    def test_it(tmp_path):
        run_program(*TORCHRUN, *REPLACING_GLOO, PROGRAM, "--out", tmp_path / "found.pt")
        found = result(tmp_path / "found.pt")

The programs in this folder are named *_program.py, import nothing of pycomm, and leave what the
tests compare in a file. Each is run on pycomm, on Gloo, and in one process with the same data.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

WORLD_SIZE = 2
TIMEOUT_S = 150
# What a program's processes get to end by themselves after the one that was started has ended.
ENDING_S = 15
PROGRAMS = Path(__file__).parent

ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TORCHRUN += ["--local-addr", "localhost", "--nproc-per-node", str(WORLD_SIZE)]
REPLACING_GLOO = ["-m", "pycomm", "run", "--replace", "gloo"]

# No hub, no telemetry, nothing written outside the test's folder.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else a token is left in the home folder
}

# One process adds up the rows of a batch at once; ranks add means of halves of it.
ONE_PROCESS = {"rtol": 1e-5, "atol": 1e-6}


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips where a package is absent, without importing any of them."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(absent),
        reason=f"needs {', '.join(absent)}: pip install --no-build-isolation -e '.[clients]'",
    )


def run_program(
    *command: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
) -> str:
    """Runs a command; returns what it and its processes wrote, stdout and stderr together.

    Fails the test if the exit code is not 0, if it takes too long, or if a process that it started
    outlives it. Nothing outlives this call.
    """
    variable, value = "PYTEST_CLIENT_RUN", str(uuid.uuid4())
    mark = f"{variable}={value}"
    started = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **OFFLINE, **(env or {}), variable: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        text, _ = started.communicate(timeout=timeout_s)
        left = _living(mark, ENDING_S)
    except subprocess.TimeoutExpired:
        started.kill()
        _kill(mark)
        text, _ = started.communicate()
        pytest.fail(f"no end after {timeout_s:g} s: {command}\n{text[-6000:]}")
    finally:  # also after ^C
        _kill(mark)
        started.wait()
    assert started.returncode == 0, f"{command} ended with {started.returncode}\n{text[-6000:]}"
    assert not left, f"left running by {command}: {left}"
    return text


def _living(mark: str, patience_s: float) -> dict[int, str]:
    """Processes with this variable in their environment, once they have had time to end."""
    deadline = time.monotonic() + patience_s
    while (found := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _kill(mark: str) -> None:
    while pids := _marked(mark):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _marked(mark: str) -> dict[int, str]:
    """Command lines by pid; launchers start sessions of their own, but hand their variables on."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"\0{mark}\0" in "\0" + (folder / "environ").read_text(errors="replace"):
                words = (folder / "cmdline").read_text(errors="replace").split("\0")
                found[int(folder.name)] = " ".join(words)[:200]
        except OSError:  # ended just now, or another user's
            continue
    return found


def result(path: Path) -> dict[str, Any]:
    """What a program has left by torch.save."""
    return torch.load(path, weights_only=False)


def expect_same(
    given: Any, expected: Any, keys: Sequence[str], rtol: float = 0.0, atol: float = 0.0
) -> None:
    """These entries of two results are equal: numbers, tensors, dicts and lists of them."""
    for key in keys:
        torch.testing.assert_close(
            given[key],
            expected[key],
            rtol=rtol,
            atol=atol,
            msg=lambda text, k=key: f"{k}: {text}",
        )
