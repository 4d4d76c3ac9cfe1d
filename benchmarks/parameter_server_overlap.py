# SPDX-License-Identifier: MIT
"""How much of a parameter server's work one worker sees: seconds of a step, in three ways to step.

    python benchmarks/parameter_server_overlap.py --rounds 5 --json overlap.json

One process computes, another is two servers in threads, so that on two cores they run side by side.
"exposed" is what a step takes beyond computing alone, in the same process on the same batches. The
ways take turns, round after round; medians over rounds of the median step. Exit code: 0; 1 if no
way hides anything; 3 a rank failed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# In front: a report.py is in either folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import torch
import torch.distributed as dist
from gpt import BYTES, Gpt
from torch import nn
from torch.nn import functional

from pycomm.bench.machine import describe
from pycomm.bench.ranks import Context, RankError, run_ranks
from pycomm.parameter_server import Server, Worker

EXIT_HIDDEN, EXIT_RANK = 1, 3
SERVERS = 2
ALONE, AFTER, DURING, BEHIND = "computing alone", "step()", "step(loss)", "overlap=True"
WAYS = (ALONE, AFTER, DURING, BEHIND)


@dataclass(frozen=True)
class Job:
    """The model, the batch, and how often."""

    rounds: int = 5
    steps: int = 12  # of each way in each round
    rows: int = 8
    block_size: int = 64
    layers: int = 4
    width: int = 256


def gpt(job: Job) -> nn.Module:
    """The same model on all ranks."""
    torch.manual_seed(1)
    return Gpt(job.block_size, job.layers, 4, job.width, dropout=0.0)


def rank_main(context: Context, job: Job) -> None:
    """Rank 0 trains; rank 1 serves."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", context.store_port, is_master=False)
    for number, way in itertools.product(range(job.rounds), WAYS):
        context.step(f"round {number}, {way}")
        name = f"{number} {way}"
        if context.rank == 0:
            context.emit({"way": way, **train(job, way, store, name)})
        elif way != ALONE:
            serve(job, store, name)


def serve(job: Job, store: dist.Store, name: str) -> None:
    """All servers, until the worker has left."""
    adam = functools.partial(torch.optim.AdamW, lr=1e-4)
    how: dict[str, Any] = {"store": store, "servers": SERVERS, "name": name}
    servers = [Server(gpt(job), adam, index=i, **how).start() for i in range(SERVERS)]
    for server in servers:
        server.wait()
        server.close()


def train(job: Job, way: str, store: dist.Store, name: str) -> dict[str, Any]:
    """The median time of a step, and the model's bytes."""
    model = gpt(job)
    generator = torch.Generator().manual_seed(1)
    worker = None if way == ALONE else Worker(model, store, name=name, overlap=way == BEHIND)
    times = []
    for _ in range(job.steps):
        tokens = torch.randint(BYTES, (job.rows, job.block_size + 1), generator=generator)
        begin = time.monotonic()
        logits = model(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        if worker is not None and way == DURING:
            worker.step(loss)
        else:
            loss.backward()
            if worker is not None:
                worker.step()
            else:
                model.zero_grad()
        times.append(time.monotonic() - begin)
    if worker is not None:
        worker.close()
    model_bytes = 4 * sum(p.numel() for p in model.parameters())
    return {"step_s": statistics.median(times[2:]), "model_bytes": model_bytes}


def main() -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=Job.rounds)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    job = Job(rounds=given.rounds)
    machine = describe()
    try:
        told = list(run_ranks(2, rank_main, (job,), timeout_s=60))
    except RankError as error:
        print(f"parameter_server_overlap: {error}", file=sys.stderr)
        return EXIT_RANK
    rounds = {way: [one["step_s"] for one in told if one["way"] == way] for way in WAYS}
    alone = statistics.median(rounds[ALONE])
    exposed = {way: statistics.median(times) - alone for way, times in rounds.items()}
    print(f"{told[0]['model_bytes'] / 1e6:.1f} MB of parameters, {SERVERS} servers, one worker")
    for way, times in rounds.items():
        print(
            f"{way:>16}  {statistics.median(times) * 1e3:7.1f} ms a step "
            f"({min(times) * 1e3:.1f} to {max(times) * 1e3:.1f}), exposed {exposed[way] * 1e3:.1f}"
        )
    if given.json:
        stored = {"job": asdict(job), "command": " ".join(sys.argv), "machine": machine}
        given.json.write_text(json.dumps({**stored, "step_s": rounds}) + "\n")
    return 0 if min(exposed[DURING], exposed[BEHIND]) < exposed[AFTER] else EXIT_HIDDEN


if __name__ == "__main__":
    sys.exit(main())
