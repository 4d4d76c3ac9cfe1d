# SPDX-License-Identifier: MIT
"""One worker computes ten times slower: samples a second of each way of joining the workers.

    python benchmarks/slow_worker.py --seconds 2 --rounds 3 --json slow.json
    python benchmarks/slow_worker.py --workers 3 --modes "sync;sync, weighted"

The same processes train the example's GPT in one mode after the other, in rounds; medians over the
rounds. The slow worker sleeps until ten times the time has passed that its computing took when that
was measured at the start, so it is as slow in all modes and takes no core from the others. In
"sync, weighted" ranks begin with equal shares, measure how many samples a second each computes, and
share each step's samples out in that proportion before the time is taken. Ideals: all wait for the
slow one in sync and ssp, nobody in the others. A --json file that is there gets more rounds. Exit
code: 0; 1 if weighted shards are no faster than sync; 3 a rank failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

# In front: a report.py is in either folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import torch
import torch.distributed as dist
from gpt import Gpt, load_text
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import pycomm
from pycomm.bench.machine import describe
from pycomm.bench.ranks import Context, RankError, run_ranks
from pycomm.data import ShardedLoader, ShardedSampler
from pycomm.parameter_server import Server, Worker, same_as

EXIT_SLOW, EXIT_RANK = 1, 3
Row = dict[str, Any]
# Mode to the arguments of its parameter server, if it has one.
MODES: dict[str, Row | None] = {
    "sync": None,
    "sync, weighted": None,
    "ps-sync": {"mode": "sync"},
    "ps-ssp": {"mode": "ssp", "staleness": 2},
    "ps-async": {"mode": "async"},
}
WEIGHINGS = 4  # a step has a fixed cost besides that of its samples, so shares take some to settle


@dataclass(frozen=True)
class Job:
    """What is trained, and how slowly.

    Attributes:
        slow: How many times longer the last worker computes.
        samples: Of a step, at the mean over workers.
        seconds: Of each mode in each round.
    """

    workers: int = 2
    slow: float = 10.0
    seconds: float = 2.0
    rounds: int = 3
    samples: int = 32
    block_size: int = 64
    layers: int = 2
    heads: int = 4
    width: int = 64

    def ideal(self, mode: str) -> float:
        """Times the samples a second of sync, if nothing but computing took time."""
        if mode in ("sync", "ps-sync", "ps-ssp"):
            return 1.0
        return (self.workers - 1 + 1 / self.slow) / (self.workers / self.slow)


def rank_main(context: Context, job: Job, modes: list[str]) -> None:
    """Ranks 0 to workers - 1 train; the last is the parameter server."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", context.store_port, is_master=False)
    rank, world = context.rank, job.workers + 1
    how = {"store": store, "rank": rank, "world_size": world}
    dist.init_process_group("pycomm", timeout=timedelta(seconds=120), **how)
    group = dist.new_group(list(range(job.workers)))
    trainer = Trainer(job, rank, group) if rank < job.workers else None
    for number, mode in itertools.product(range(job.rounds), modes):
        context.step(f"round {number}, {mode}")
        dist.barrier()
        name = f"{number} {mode}"
        model = gpt(job)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        if trainer is not None:
            worker = None if MODES[mode] is None else Worker(model, store, rank=rank, name=name)
            row = trainer.train(mode, model, optimizer, worker)
            context.emit({"round": number, "mode": mode, "rank": rank, **row})
        elif (made := MODES[mode]) is not None:
            make = same_as(optimizer, model)
            server = Server(model, make, store=store, workers=job.workers, name=name, **made)
            told = {"server": server.serve(), "machine": describe()}
            context.emit({"round": number, "mode": mode, "rank": rank, **told})
    dist.barrier()
    dist.destroy_process_group()


def gpt(job: Job) -> nn.Module:
    """The same model on all ranks."""
    torch.manual_seed(1)
    return Gpt(job.block_size, job.layers, job.heads, job.width, dropout=0.0)


class Trainer:
    """One worker."""

    def __init__(self, job: Job, rank: int, group: Any) -> None:
        """Reads the text; local."""
        self.job, self.rank, self.group = job, rank, group
        text = load_text("manual", 2_000_000).long()
        rows = job.block_size + 1
        self.dataset = TensorDataset(text[: len(text) // rows * rows].view(-1, rows))
        # Seconds of computing so many samples, as measured: a line.
        few, many = (self.measured(count) for count in (4, job.samples))
        self.per_sample = (many - few) / (job.samples - 4)
        self.fixed = few - 4 * self.per_sample
        self.computed = 0.0  # seconds that computing took in the last step

    def measured(self, count: int) -> float:
        """Seconds of one forward and backward, while all workers compute; the median of some."""
        model, times = gpt(self.job), []
        for _ in range(12):
            begin = time.monotonic()
            self.loss_of(model, self.dataset[:count][0]).backward()
            times.append(time.monotonic() - begin)
        return statistics.median(times[2:])

    @staticmethod
    def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
        """The mean loss of rows (count, block_size + 1)."""
        logits = model(rows[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def train(
        self, mode: str, model: nn.Module, optimizer: torch.optim.Optimizer, worker: Worker | None
    ) -> Row:
        """Trains for the job's seconds. Collective as the mode is."""
        sampler = ShardedSampler(
            self.dataset, self.rank, self.job.workers, batch_size=self.job.samples
        )
        loader = ShardedLoader(self.dataset, sampler)
        called = pycomm.DataParallel(model, process_group=self.group) if worker is None else model
        batches = endless(loader)
        self.step(called, next(batches), loader.weight, optimizer, worker)  # sets everything up
        if "weighted" in mode:
            for _ in range(WEIGHINGS):
                (batch,) = next(batches)
                self.step(called, (batch,), loader.weight, optimizer, worker)
                weights = self.speeds(len(batch))
                sampler.reshard(self.rank, self.job.workers, weights=weights)
                batches = endless(loader)
        steps = samples = 0
        computed = 0.0
        begin = time.monotonic()
        while self.go_on(begin, worker is None):
            (batch,) = next(batches)
            self.step(called, (batch,), loader.weight, optimizer, worker)
            steps, samples = steps + 1, samples + len(batch)
            computed += self.computed
        seconds = time.monotonic() - begin
        if worker is not None:
            worker.close()
        each = computed / max(1, samples)
        return {"steps": steps, "samples": samples, "seconds": seconds, "sample_s": each}

    def step(
        self,
        model: nn.Module,
        batch: tuple[Tensor],
        weight: float,
        optimizer: torch.optim.Optimizer,
        worker: Worker | None,
    ) -> None:
        """One step; the slow worker's computing takes `slow` times as long."""
        begin = time.monotonic()
        loss = self.loss_of(model, batch[0])
        forward = time.monotonic() - begin
        if self.rank == self.job.workers - 1:
            usual = self.fixed + self.per_sample * len(batch[0])
            # Backward, twice as long as forward, comes after this, and may wait for others.
            end = begin + self.job.slow * usual - 2 / 3 * usual
            time.sleep(max(0.0, end - time.monotonic()))
        self.computed = time.monotonic() - begin + 2 * forward
        (loss * weight).backward()  # so the mean over ranks is that over samples
        if worker is not None:
            worker.step()
        else:
            optimizer.step()
            optimizer.zero_grad()

    def speeds(self, samples: int) -> list[float]:
        """Samples a second of each worker in its last step. Collective."""
        speeds = torch.empty(self.job.workers, dtype=torch.float64)
        mine = torch.tensor([samples / self.computed], dtype=torch.float64)
        dist.all_gather_single(speeds, mine, group=self.group)
        return speeds.tolist()

    def go_on(self, begin: float, together: bool) -> bool:
        """Whether there is time; where all step together, for all of them."""
        more = torch.tensor(time.monotonic() - begin < self.job.seconds)
        if together:
            dist.all_reduce(more, dist.ReduceOp.MIN, group=self.group)
        return bool(more)


def endless(loader: ShardedLoader) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    while True:
        yield from loader


def summed(told: list[Row], mode: str, job: Job) -> Row:
    """What all ranks have told of a mode, by rounds, as one row."""
    rates, steps, shares, each = [], [], [], []
    for number in range(job.rounds):
        this = [one for one in told if (one["round"], one["mode"]) == (number, mode)]
        workers = sorted((one for one in this if "steps" in one), key=lambda one: one["rank"])
        taken = sum(one["samples"] for one in workers)
        rates.append(taken / max(one["seconds"] for one in workers))
        steps.append([one["steps"] for one in workers])
        shares.append([round(one["samples"] / max(1, one["steps"]), 1) for one in workers])
        each.append([round(one["sample_s"] * 1e3, 3) for one in workers])
    servers = [one["server"] for one in told if one["mode"] == mode and "server" in one]
    row = {"rates": rates, "steps": steps, "samples_per_step": shares, "sample_ms": each}
    return {**row, "servers": servers}


def bound(server: Row) -> str:
    """How far ahead a server's workers were, and how long they waited."""
    lead = {int(ahead): count for ahead, count in server["lead"].items()}
    text = ", ".join(f"{ahead}: {lead.get(ahead, 0)}" for ahead in range(3))
    return (
        f"pulls by steps ahead of the slowest: {text}, more: "
        f"{sum(count for ahead, count in lead.items() if ahead > 2)}, at most {max(lead)}; "
        f"waited {server['waited_s']:.1f} s"
    )


def main() -> int:
    """Trains and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workers", type=int, default=Job.workers)
    add("--slow", type=float, default=Job.slow, help="times longer that the last worker computes")
    add("--seconds", type=float, default=Job.seconds, help="of each mode in each round")
    add("--rounds", type=int, default=Job.rounds)
    add("--modes", help="names, separated by semicolons; default: all")
    add("--json", type=Path)
    given = parser.parse_args()
    job = Job(given.workers, given.slow, given.seconds, given.rounds)
    modes = given.modes.split(";") if given.modes else list(MODES)
    stored: Row = {"job": asdict(job), "command": " ".join(sys.argv), "rows": {}}
    if given.json and given.json.exists():
        stored = json.loads(given.json.read_text())
        if stored["job"] != asdict(job):
            raise SystemExit(f"{given.json} holds another job; remove it or name another file")
    stored["machine"] = describe()
    try:
        told = list(run_ranks(job.workers + 1, rank_main, (job, modes), timeout_s=60))
    except RankError as error:
        print(f"slow_worker: {error}", file=sys.stderr)
        return EXIT_RANK
    for mode in modes:
        row, old = summed(told, mode, job), stored["rows"].get(mode, {})
        stored["rows"][mode] = {key: old.get(key, []) + row[key] for key in row}
    if given.json:
        given.json.write_text(json.dumps(stored) + "\n")
    medians = {mode: statistics.median(row["rates"]) for mode, row in stored["rows"].items()}
    for mode, rate in medians.items():
        row = stored["rows"][mode]
        of_sync = rate / medians["sync"] if "sync" in medians else float("nan")
        low, high = min(row["rates"]), max(row["rates"])
        print(
            f"{mode:>14}  {rate:7.1f} samples/s ({low:.1f} to {high:.1f}), {of_sync:.2f} of sync, "
            f"ideal {job.ideal(mode):.2f}; steps of the workers {row['steps'][-1]}, samples of a "
            f"step {row['samples_per_step'][-1]}, ms of computing one {row['sample_ms'][-1]}"
        )
        if row["servers"]:
            print(f"{'':>14}  {bound(row['servers'][-1])}")
    if medians.get("sync, weighted", float("inf")) <= medians.get("sync", 0.0):
        return EXIT_SLOW
    return 0


if __name__ == "__main__":
    sys.exit(main())
