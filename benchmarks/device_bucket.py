# SPDX-License-Identifier: MIT
"""What packing a bucket on a device costs the host, recorded with the machine it ran on.

    cmake -G Ninja -S . -B build/core -DPYCOMM_BENCHMARKS=ON && cmake --build build/core
    python benchmarks/device_bucket.py --json device_bucket.json

Two parts, each for buckets of 10 to 150 tensors. First build/core/core_device_bucket, whose first
lines say what is measured: the tables alone. Then pycomm.DataParallel on the tests' fake GPU, two
ranks: what the range "pycomm:pack_bucket" takes in torch's profiler, from the last gradient of a
bucket to its all_reduce: events, addresses, the launch, param.grad. Every call of the device is
the fake's, so a launch of CUDA's is not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pycomm
from pycomm.bench.machine import describe

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "build" / "core" / "core_device_bucket"
SIZES = (10, 50, 150)
STEPS = 200

Row = dict[str, Any]


def tables(program: Path, tensors: int) -> list[Row]:
    """What core_device_bucket prints: of addresses that stay, and of some that change."""
    command = [str(program), f"tensors={tensors}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows = []
    for line in done.stdout.splitlines():
        case, count, median, least = line.split()
        rows.append(
            {"case": case, "tensors": int(count), "us": float(median), "least_us": float(least)}
        )
    return rows


class Made(torch.autograd.Function):
    """A gradient for each weight, in memory of its own, without a wait of the host."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> Tensor:
        """Something to call backward on."""
        ctx.save_for_backward(*weights)
        return torch.zeros(1, device=weights[0].device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """New zeros."""
        return tuple(torch.zeros_like(weight) for weight in ctx.saved_tensors)


class Weights(nn.Module):
    """Some weights, no two of a size, so that each gradient has its old place in every step."""

    def __init__(self, count: int, device: torch.device) -> None:
        super().__init__()
        self.all = nn.ParameterList(
            nn.Parameter(torch.zeros(64 + i, device=device)) for i in range(count)
        )

    def forward(self) -> Tensor:
        """Uses all of them."""
        result: Tensor = Made.apply(*self.all)
        return result


def packing(me: Any, tensors: int) -> list[float]:
    """Microseconds of each time that this rank packed its only bucket."""
    from fake_cuda.device_ranks import gpu, here

    model = pycomm.DataParallel(Weights(tensors, here()))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            model.zero_grad()
            model().backward()
            gpu().synchronize()
    events = [one.cpu_time_total for one in seen.events() if one.name == "pycomm:pack_bucket"]
    assert len(events) == STEPS
    return events[10:]


def in_steps(tensors: int) -> Row:
    """The same of whole buckets, on the slower rank."""
    from fake_cuda.device_ranks import run_on_devices

    found = run_on_devices(packing, 2, tensors, gpus="uuid=SHARED")
    us = max(found, key=statistics.median)
    return {
        "case": "data_parallel",
        "tensors": tensors,
        "us": statistics.median(us),
        "least_us": min(us),
    }


def main() -> int:
    """Runs both parts, prints a line for each row and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--json", type=Path, help="write rows and machine to this file")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="where the program is")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    rows = [row for tensors in SIZES for row in tables(options.program, tensors)]
    rows += [in_steps(tensors) for tensors in SIZES]
    for row in rows:
        print(*row.values())
    if options.json:
        record = {"machine": describe(), "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
