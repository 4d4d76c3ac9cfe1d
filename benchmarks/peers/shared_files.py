# SPDX-License-Identifier: MIT
"""What MPI libraries leave in /dev/shm when their ranks are killed, and its removal.

Only files with the names that those libraries use, made since a given moment by this user, and that
no living process has mapped or open.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

FOLDER = Path("/dev/shm")
NAMES = re.compile(
    r"(mpich_shm|mpich_shar_tmp|Intel_MPI|vader_segment|sm_segment|impi_shm|psm2_shm)"
)


def in_use(folder: Path = FOLDER) -> set[str]:
    """Paths below folder that some process has mapped or open."""
    found: set[str] = set()
    prefix = str(folder) + "/"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            maps = (process / "maps").read_text()
            found.update(re.findall(rf"{re.escape(prefix)}\S+", maps))
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor)
                    if target.startswith(prefix):
                        found.add(target)
    return found


def remove_leftovers(since_ns: int, folder: Path = FOLDER) -> list[str]:
    """Removes them; returns their names."""
    removed: list[str] = []
    candidates = []
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            state = path.stat()
            mine = state.st_uid == os.getuid() and state.st_ctime_ns >= since_ns
            if mine and path.is_file() and NAMES.match(path.name):
                candidates.append(path)
    used = in_use(folder) if candidates else set()
    for path in candidates:
        if str(path) not in used:
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed
