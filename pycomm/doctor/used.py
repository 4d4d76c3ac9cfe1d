# SPDX-License-Identifier: MIT
"""What pycomm would use here, and why: conclusions from the doctor's findings."""

from __future__ import annotations

from typing import Any


def decisions(report: dict[str, Any]) -> list[dict[str, str]]:
    """Returns [{"for": ..., "what": ..., "why": ...}, ...]; empty if pycomm does not load.

    Args:
        report: The doctor's findings, all but the problems.
    """
    build, machine = report["build"], report["machine"]
    if not build["loads"]:
        return []
    transports, source = _setting(report, "PYCOMM_TRANSPORT")
    listed = "shm,tcp" if transports in ("auto", None) else str(transports)
    within = _transport_within(listed.split(","), machine["memfd"])
    chosen = report["network"]["chosen"]
    between = f"tcp on {chosen['name']}, {chosen['ip']}" if chosen else "none"
    if "tcp" not in listed.split(","):
        between = "none"
    given, cpu_source = _setting(report, "PYCOMM_CPU")
    best = "the best that this processor and build have"
    return [
        _used("CPU tensors", "pycomm", "it registered itself for cpu and cuda"),
        _used("CUDA tensors", *_cuda(report["gpus"], report["ranks"])),
        _used(
            "within a host",
            within,
            f"PYCOMM_TRANSPORT={listed}, the {source}"
            if source == "default"
            else f"PYCOMM_TRANSPORT={listed}",
        ),
        _used("between hosts", between, report["network"]["why"] or "no interface can be used"),
        _used(
            "reductions",
            f"{build['cpu_level']} kernels",
            best if cpu_source == "default" else f"PYCOMM_CPU={given}",
        ),
    ]


def _used(purpose: str, what: str, why: str) -> dict[str, str]:
    return {"for": purpose, "what": what, "why": why}


def _setting(report: dict[str, Any], name: str) -> tuple[Any, str]:
    for entry in report["settings"]:
        if entry["variable"] == name:
            return entry["value"], entry["source"]
    raise KeyError(name)


def _transport_within(listed: list[str], memfd: bool) -> str:
    able = [one for one in listed if one != "shm" or memfd]
    return able[0] if able else "none"


def _cuda(gpus: dict[str, Any], ranks: dict[str, Any] | None) -> tuple[str, str]:
    """(What serves them, why)."""
    if not gpus["devices"]:
        return "nothing", "torch sees no GPU"
    if not gpus["pycomm_cuda"]:
        why = "pycomm was built without nvcc; build it with the CUDA toolkit"
        return "nothing", f'{why}, or init_process_group("cpu:pycomm,cuda:nccl")'
    if gpus["pycomm_error"]:
        return "nothing", str(gpus["pycomm_error"])
    found = ranks and ranks.get("devices")
    if not found or not found["mode"]:
        return "pycomm", "the ranks choose how at their first collective on a GPU"
    mode, _, why = found["mode"].partition(": ")
    return f"pycomm, mode {mode}", why
