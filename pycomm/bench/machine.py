# SPDX-License-Identifier: MIT
"""What a measurement ran on, stored beside every result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path


def describe() -> dict[str, object]:
    """Returns processor, cores, kernel, versions, command line, commit and time of this run."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": command_line(),
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def command_line() -> str:
    """Returns the command that started this process, without the path of the interpreter."""
    words = list(sys.orig_argv)
    words[0] = Path(words[0]).name
    return " ".join(words)


def _cpu_model() -> str:
    """Returns the processor's name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """Returns the commit of the checkout that holds this file, marked if modified, or None."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
