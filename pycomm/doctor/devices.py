# SPDX-License-Identifier: MIT
"""How the ranks of a group exchange tensors of their GPUs, and how fast; collective."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

SMALL_BYTES = 8
LARGE_BYTES = 16 << 20
TIMES = 9


def measure_devices() -> dict[str, Any] | None:
    """Connects the ranks' GPUs and times all_reduce between them; collective, blocking.

    Each rank takes the GPU number LOCAL_RANK, or its own rank, modulo those there are.

    Returns:
        None where no rank has a GPU that its pycomm serves. Else {"kind": "cuda", "devices": its
        name and index for each rank, or None, "mode": "S: 2 ranks share ...", and the medians
        "latency_us" of 8 bytes and "bandwidth_gbps", bytes of the tensor over the time, of 16 MiB};
        the last three None where some ranks have no GPU, or "error" says what went wrong.
    """
    mine = _device()
    devices: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(devices, str(mine) if mine else None)
    if not any(devices):
        return None
    facts: dict[str, Any] = {"kind": mine.type if mine else None, "devices": devices, "mode": None}
    facts.update({"latency_us": None, "bandwidth_gbps": None, "error": None})
    if mine is None or not all(devices):
        return facts
    try:
        small = _median_s(mine, SMALL_BYTES)
        large = _median_s(mine, LARGE_BYTES)
    except RuntimeError as error:  # a CommError, or one of the device's own
        facts["error"] = str(error)
        return facts
    assert dist.group.WORLD is not None
    backend: Any = dist.group.WORLD._get_backend(mine)
    facts.update(mode=backend.device_mode(), latency_us=round(small * 1e6, 2))
    facts["bandwidth_gbps"] = round(LARGE_BYTES / large / 1e9, 3)
    return facts


def _device() -> torch.device | None:
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None or not _served(kind.type):
        return None
    number = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    return torch.device(kind.type, number % torch.accelerator.device_count())


def _served(kind: str) -> bool:
    from pycomm.native import load

    if kind not in dist.Backend.backend_capability["pycomm"]:
        return False
    return kind != "cuda" or bool(load().build_info()["cuda"])


def _median_s(device: torch.device, size: int) -> float:
    """Seconds of an all_reduce from its call until the device has done it."""
    tensor = torch.zeros(size // 4, device=device)
    seconds = []
    for _ in range(TIMES):
        torch.accelerator.synchronize(device)
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(tensor)
        torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])  # the first connects
