# SPDX-License-Identifier: MIT
"""Some steps of all ranks in one file for ui.perfetto.dev, on one clock.

Every rank records with torch.profiler, whose events include pycomm's collectives. Rank 0 gathers
the events, puts them on its own clock, and gives each rank a row of its own.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from pycomm.train.clocks import ahead_of_rank_0


class Trace:
    """Records from start() to finish(), which writes; both are collective.

    Args:
        path: The file, gzipped if its name ends with .gz.
        group: The ranks.
    """

    def __init__(self, path: Path, group: dist.ProcessGroup) -> None:
        self._path, self._group = path, group
        self._profile = profile(activities=[ProfilerActivity.CPU])

    def start(self) -> None:
        """Begins to record; local."""
        self._profile.start()

    def finish(self) -> None:
        """Stops recording and writes the file; collective."""
        self._profile.stop()
        ahead = ahead_of_rank_0(self._group)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(file))
            mine = json.loads(file.read_text())
        begin_us = float(mine.get("baseTimeNanoseconds", 0)) / 1e3 - ahead * 1e6
        found: list[Any] = [None] * self._group.size()
        gathered = found if self._group.rank() == 0 else None
        dist.gather_object(
            (begin_us, mine["traceEvents"]), gathered, group=self._group, group_dst=0
        )
        if self._group.rank() == 0:
            _write(self._path, merged(found))


def merged(ranks: list[tuple[float, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Returns one Chrome trace of all ranks; local.

    Args:
        ranks: For each the time that its events count from, in us, and the events.
    """
    origin = min(begin for begin, _ in ranks)
    events: list[dict[str, Any]] = []
    for rank, (begin, own) in enumerate(ranks):
        events.append(
            {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}
        )
        for event in own:
            if event.get("ph") == "M" and event.get("name", "").startswith("process"):
                continue
            if not isinstance(event.get("pid"), int):  # the profiler's own notes
                continue
            event = {**event, "pid": rank}
            if "ts" in event:
                event["ts"] += begin - origin
            if "id" in event:  # arrows connect events of one rank
                event["id"] = f"{rank}.{event['id']}"
            events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _write(path: Path, trace: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(trace).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
