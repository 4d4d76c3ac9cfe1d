# SPDX-License-Identifier: MIT
"""torch, pycomm's extension module, and the GPUs both see; local."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pycomm
from pycomm.doctor.problems import Problem, broken

NVIDIA_SMI_TIMEOUT_S = 10.0


def describe_build() -> tuple[dict[str, Any], list[Problem]]:
    """Returns versions, and what the extension module was built with and for."""
    record = Path(pycomm.__file__).with_name("_build.json")
    facts: dict[str, Any] = {
        "pycomm": pycomm.__version__,
        "python": platform.python_version(),
        "torch": None,
        "torch_distributed": False,
        "built_for_torch": None,
        "loads": False,
    }
    if record.exists():
        facts["built_for_torch"] = json.loads(record.read_text())["torch_version"]
    problems: list[Problem] = []
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        remedy = "install torch 2.11 to 2.15, then pycomm from its source folder"
        return facts, [broken(f"torch cannot be imported: {error}", remedy)]
    facts["torch"] = torch.__version__
    facts["torch_distributed"] = dist.is_available()
    if not dist.is_available():
        remedy = "install a torch that was built with USE_DISTRIBUTED=1"
        problems.append(broken(f"torch {torch.__version__} has no torch.distributed", remedy))
        return facts, problems
    from pycomm.native import load

    try:
        module = load()
        facts.update(module.build_info(), compiler=module.compiler(), loads=True)
        facts.pop("torch_version")
    except Exception as error:  # whatever keeps a user's program from starting
        what, _, remedy = str(error).partition("; ")
        problems.append(broken(what, remedy or "rebuild pycomm in its source folder"))
    return facts, problems


def describe_gpus(build: dict[str, Any]) -> dict[str, Any]:
    """Returns the GPUs that torch sees, and what pycomm makes of them.

    Args:
        build: What describe_build returned.
    """
    facts: dict[str, Any] = {
        "torch_cuda": None,
        "devices": [],
        "driver": _nvidia_smi(),
        "pycomm_cuda": build.get("cuda", False),
        "pycomm_devices": build.get("cuda_devices"),
        "pycomm_error": build.get("cuda_error") or None,
    }
    if build["torch"] is None:
        return facts
    import torch

    facts["torch_cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            facts["devices"].append({"name": device.name, "memory_bytes": device.total_memory})
    return facts


def _nvidia_smi() -> str | None:
    """The driver's version, or None where there is no nvidia-smi or no driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split() if done.returncode == 0 else []
    return lines[0] if lines else None
