# SPDX-License-Identifier: MIT
"""What torch's own operations take for the work of pycomm's GPU kernels, on the same machine.

    python benchmarks/gpu_torch_operations.py --json torch_operations.json

The rows stand beside those of ``build/gpu/gpu_kernels measure`` and have the same columns: `moved`
is what the job has to move at least, so an operation in several passes shows a low rate. Medians of
events around single calls; memory rotates through more than the L2 cache holds. With
``--symmetric-memory`` also torch's symmetric memory, 2 and 4 processes on one GPU.
Exit code 77: no GPU.
``--device cpu`` tries the program where there is none, and times nothing worth having.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pycomm.bench.machine import describe

Row = dict[str, Any]
ROTATION_BYTES = 1 << 30
WARM_UP = 5


def median_us(call: Callable[[int], object], device: torch.device, rounds: int) -> float:
    """Returns the median time of `call(round)` in microseconds, by events or the clock."""
    times = []
    for turn in range(rounds + WARM_UP):
        if device.type == "cuda":
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record()
            call(turn)
            end.record()
            end.synchronize()
            times.append(1e3 * begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call(turn)
            times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times[WARM_UP:])


def tensor_counts(elements: int) -> list[int]:
    """Returns the sizes of tensors that fill a bucket: two matrices, then a bias, and again."""
    counts: list[int] = []
    while (left := elements - sum(counts)) > 0:
        counts.append(min(left, 1024 if len(counts) % 3 == 2 else max(1, elements // 100)))
    return counts


class Bucket:
    """Tensors and flat memory of one turn: as many turns as the rotation holds."""

    def __init__(self, nbytes: int, device: torch.device, dtype: torch.dtype) -> None:
        elements = nbytes // 4
        counts = tensor_counts(elements)
        self.tensors = [torch.full((n,), 0.5, device=device) for n in counts]
        self.flat = torch.empty(elements, device=device, dtype=dtype)
        self.views = list(self.flat.split(counts))
        self.plain = torch.empty(elements, device=device)


def operations(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[Bucket], object], float]]:
    """Yields name, call, and the bytes to be moved as a multiple of the float32 bytes."""
    name = str(dtype).removeprefix("torch.")
    narrow = dtype.itemsize / 4
    yield (
        f"_foreach_copy_ to {name}",
        lambda b: torch._foreach_copy_(b.views, b.tensors),
        1 + narrow,
    )
    yield (
        f"_foreach_copy_ from {name}",
        lambda b: torch._foreach_copy_(b.tensors, b.views),
        1 + narrow,
    )
    if dtype == torch.float32:
        yield "cat", lambda b: torch.cat(b.tensors, out=b.flat), 2
        yield "copy_", lambda b: b.plain.copy_(b.flat), 2
        yield "add of 2", lambda b: torch.add(b.plain, b.flat, out=b.plain), 3
        return
    yield (
        f"cat, div_, to({name})",
        lambda b: b.flat.copy_(torch.cat(b.tensors, out=b.plain).div_(2).to(dtype)),
        1 + narrow,
    )
    yield f"to({name})", lambda b: b.flat.copy_(b.plain), 1 + narrow
    yield (
        f"to({name}), isfinite",
        lambda b: torch.isfinite(b.flat.copy_(b.plain)).all(),
        1 + narrow,
    )


def host_us(call: Callable[[], object], device: torch.device, times: int = 50) -> float:
    """Returns what one call costs the calling thread, in microseconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    took = time.perf_counter() - start
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e6 * took / times


def measure(device: torch.device, sizes: list[int], rounds: int) -> list[Row]:
    """Returns a row for each operation and size in bytes of float32."""
    rows = []
    for nbytes in sizes:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            turns = max(1, ROTATION_BYTES // (nbytes * 3)) if device.type == "cuda" else 1
            buckets = [Bucket(nbytes, device, dtype) for _ in range(turns)]
            for name, call, moved in operations(dtype):
                us = median_us(
                    lambda turn, call=call, buckets=buckets: call(buckets[turn % len(buckets)]),  # type: ignore[misc]
                    device,
                    rounds,
                )
                row = {"kernel": name, "tensors": len(buckets[0].tensors), "bytes": nbytes}
                row |= {"moved": int(moved * nbytes), "us": us, "gbs": moved * nbytes / us / 1e3}
                if nbytes <= 1 << 20:
                    row["host_us"] = host_us(lambda call=call, b=buckets[0]: call(b), device)  # type: ignore[misc]
                rows.append(row)
    return rows


def symmetric_rank(rank: int, ranks: int, port: int, results: Any) -> None:
    """Times torch's symmetric-memory all_reduce as one of `ranks` processes on GPU 0."""
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    import torch.distributed._symmetric_memory as symmetric

    torch.cuda.set_device(0)
    device = torch.device("cuda", 0)
    store = dist.TCPStore("127.0.0.1", port, ranks, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    group = dist.group.WORLD
    assert group is not None
    rows = []
    for nbytes in (64 << 10, 1 << 20, 25 << 20):
        tensor = symmetric.empty(nbytes // 4, device=device, dtype=torch.float32)
        symmetric.rendezvous(tensor, group)
        tensor.zero_()
        for name in ("one_shot_all_reduce", "two_shot_all_reduce_"):
            call = getattr(torch.ops.symm_mem, name)
            us = median_us(lambda _, c=call, t=tensor: c(t, "sum", group.group_name), device, 20)  # type: ignore[misc]
            rows.append({"kernel": f"symm_mem {name}", "ranks": ranks, "bytes": nbytes, "us": us})
    if rank == 0:
        results.put(rows)
    dist.destroy_process_group()


def symmetric_memory(ranks: int) -> list[Row]:
    """Returns the rows of symmetric memory, or one that says why there are none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=symmetric_rank, args=(rank, ranks, port, results), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 120
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    if late or any(process.exitcode for process in processes):
        codes = [process.exitcode for process in processes]
        return [{"kernel": "symm_mem", "ranks": ranks, "error": f"exit codes {codes}"}]
    rows: list[Row] = results.get()
    return rows


def main() -> int:
    """Measures, prints one line a row, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--json", type=Path, help="write rows and machine to this file")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--mib", default="1,25,64,128", help="sizes of buckets")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--symmetric-memory", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU that this torch can use", file=sys.stderr)
        return 77
    sizes = [int(float(size) * 2**20) for size in options.mib.split(",")]
    rows = measure(device, sizes, options.rounds)
    if options.symmetric_memory:
        rows += [row for ranks in (2, 4) for row in symmetric_memory(ranks)]
    for row in rows:
        print(json.dumps(row))
    if options.json:
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        record = {"machine": describe(), "device": name, "torch": torch.__version__, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
