# SPDX-License-Identifier: MIT
"""The arenas of running processes, and how large one made here would be; local, Linux only."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LINK = "/memfd:pycomm arena"
# ArenaHeader of csrc/transport/arena.h.
_HEADER = struct.Struct("<8sQ16sq7Q")
_MAGIC = b"pcARENA1"
_STATISTICS = (
    "capacity_bytes",
    "used_bytes",
    "used_peak_bytes",
    "touched_bytes",
    "quarantined_bytes",
    "blocks",
    "fallbacks",
)


def describe(loads: bool) -> dict[str, Any]:
    """Returns the capacity of an arena made here, and the arenas of this user's processes.

    Args:
        loads: The extension module can be asked.

    Returns:
        {"capacity_bytes": 0 for none, None when not known, "running": [{"pid": the process it
        belongs to, and the keys of pycomm.memory.statistics()}, ...]}
    """
    running = sorted(_running().values(), key=lambda one: one["pid"])
    capacity = None
    if loads:
        from pycomm.memory import statistics

        capacity = statistics()["capacity_bytes"]
    return {"capacity_bytes": capacity, "running": running}


def _running() -> dict[bytes, dict[str, int]]:
    """By token: peers hold descriptors of one arena, too."""
    found = {}
    for path in _descriptors():
        try:
            with path.open("rb") as file:
                magic, _, token, pid, *values = _HEADER.unpack(file.read(_HEADER.size))
        except (OSError, struct.error):
            continue  # it has ended, or belongs to somebody else
        if magic == _MAGIC and pid != os.getpid():
            found[token] = {"pid": pid, **dict(zip(_STATISTICS, values, strict=True))}
    return found


def _descriptors() -> Iterator[Path]:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for path in (process / "fd").iterdir():
                if os.readlink(path).startswith(_LINK):
                    yield path
        except OSError:
            continue
