# SPDX-License-Identifier: MIT
"""Read the flight recorder: `python -m pycomm flight DIR/pycomm_flight_*.json`.

A group records its last operations. PYCOMM_FLIGHT_DIR makes every rank leave its record there when
the group fails; dump() writes one on request.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def record(group: Any = None) -> dict[str, Any]:
    """Returns what this rank recorded of a group; local, does not block.

    Args:
        group: A process group on backend pycomm; None: the default group.

    Returns:
        {"rank", "world_size", "failure", "entries": [...]}, oldest entry first. An entry has
        sequence, collective, op, dtype, count (elements), root, peer, algorithm, state and its
        times in microseconds since the group was made, -1 where it has not happened.
    """
    import torch
    import torch.distributed as dist

    group = dist.group.WORLD if group is None else group
    return dict(json.loads(group._get_backend(torch.device("cpu")).flight_json()))


def dump(path: str | os.PathLike[str], group: Any = None) -> None:
    """Writes record() to a file, atomically; local."""
    target = Path(path)
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps(record(group), indent=1) + "\n")
    part.replace(target)


def compare(records: list[dict[str, Any]]) -> list[str]:
    """Returns one line for each thing the ranks' records disagree about; local."""
    lines = []
    for one in records:
        done = [
            e["sequence"] for e in one["entries"] if _is_collective(e) and e["state"] == "completed"
        ]
        pending = [e for e in one["entries"] if e["state"] not in ("completed",)]
        where = "; ".join(f"{e['collective']} #{e['sequence']} {e['state']}" for e in pending[:3])
        lines.append(
            f"rank {one['rank']}: last completed #{max(done, default=0)}"
            + (f"; {where}" if where else "")
            + (f"; failure: {one['failure']}" if one["failure"] else "")
        )
    calls: dict[int, dict[str, list[int]]] = {}
    for one in records:
        for entry in filter(_is_collective, one["entries"]):
            call = f"{entry['collective']}({entry['dtype']}[{entry['count']}], {entry['op']})"
            calls.setdefault(entry["sequence"], {}).setdefault(call, []).append(one["rank"])
    for sequence, by_call in sorted(calls.items()):
        if len(by_call) > 1:
            said = "; ".join(f"ranks {ranks}: {call}" for call, ranks in by_call.items())
            lines.append(f"#{sequence} differs: {said}")
    return lines


def _is_collective(entry: dict[str, Any]) -> bool:
    return entry["collective"] not in ("send", "recv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("files", nargs="+", type=Path, help="dumps, one for each rank")


def run(given: argparse.Namespace) -> int:
    """Prints where each rank is and where they part; returns the exit code."""
    try:
        records = [json.loads(path.read_text()) for path in given.files]
        print("\n".join(compare(sorted(records, key=lambda one: int(one["rank"])))))
    except (OSError, ValueError, KeyError) as error:
        print(
            f"flight: cannot read a dump: {error!r}; expected files that pycomm wrote",
            file=sys.stderr,
        )
        return 2
    return 0
