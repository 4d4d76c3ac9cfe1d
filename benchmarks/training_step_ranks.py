# SPDX-License-Identifier: MIT
"""What a rank of training_step.py does: builds the model, then trains a few steps each turn.

The model is the GPT of examples/gpt.py with 29.7 million parameters, float32, plain SGD. Data,
weights and order are the same for every contender, so their losses must agree.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from turns import Contender, Seat

from pycomm.bench.ranks import Context

WIDTH, LAYERS, HEADS, BLOCK = 640, 6, 10, 64
LEARNING_RATE = 0.1
WARM_STEPS = 3  # DDP lays its buckets out again after the first; then memory is in place
SEED = 1
DATA_PARALLEL_BYTES = 4 << 20


@dataclass(frozen=True)
class Job:
    """What is trained and how long.

    Attributes:
        parallelism: "ddp", "fsdp2" or "tp".
        batch: Sequences of BLOCK bytes on each rank (of the whole group for tp).
        rounds: Turns of each contender.
        steps: Timed steps in a turn; one more before them is not timed.
        bucket_view: DDP's gradient_as_bucket_view.
        bucket_mb: DDP's bucket_cap_mb.
        start_when: File to wait for between set-up and the first timed step.
    """

    parallelism: str = "ddp"
    batch: int = 1
    rounds: int = 5
    steps: int = 4
    bucket_view: bool = False
    bucket_mb: float = 25.0
    start_when: Path | None = None


def thread_times() -> dict[str, tuple[float, float]]:
    """Seconds on a core and seconds ready but without one, by thread of this process."""
    times = {}
    for thread in os.listdir("/proc/self/task"):
        folder = Path("/proc/self/task", thread)
        try:
            name = (folder / "comm").read_text().strip()
            on_core, ready, _ = map(int, (folder / "schedstat").read_text().split())
        except OSError:  # it has just ended
            continue
        label = "main" if int(thread) == os.getpid() else f"{name} {thread}"
        times[label] = (1e-9 * on_core, 1e-9 * ready)
    return times


@dataclass
class Usage:
    """What a process has used so far."""

    threads: dict[str, tuple[float, float]]
    faults: int
    switches: int

    @classmethod
    def now(cls) -> Usage:
        """Reads the counters of this process."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(thread_times(), used.ru_minflt, used.ru_nvcsw + used.ru_nivcsw)

    def since(self, before: Usage, steps: int) -> dict[str, Any]:
        """What one step has used, threads of one name together."""
        threads: dict[str, list[float]] = {}
        for label, (on_core, ready) in self.threads.items():
            old = before.threads.get(label, (0.0, 0.0))
            name = label.rpartition(" ")[0] or label
            total = threads.setdefault(name, [0.0, 0.0])
            total[0] += 1e3 * (on_core - old[0]) / steps
            total[1] += 1e3 * (ready - old[1]) / steps
        return {
            "cpu_ms": {name: cpu for name, (cpu, _) in threads.items()},
            "ready_ms": {name: ready for name, (_, ready) in threads.items()},
            "faults": (self.faults - before.faults) / steps,
            "switches": (self.switches - before.switches) / steps,
        }


class Trainer:
    """One rank's model, wrapped for its contender. Making it is collective."""

    def __init__(self, job: Job, seat: Seat) -> None:
        """Joins the contender's group, if it has one, and builds the same model everywhere."""
        import torch
        import torch.distributed as dist

        sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
        from gpt import BYTES, Gpt, Windows, load_text

        self.job, self.seat, self.backend = job, seat, seat.contender.backend
        torch.set_num_threads(1)
        if self.backend == "fake":
            from torch.testing._internal.distributed.fake_pg import FakeStore

            dist.init_process_group(
                "fake", store=FakeStore(), rank=seat.rank, world_size=seat.world
            )
        elif self.backend:
            dist.init_process_group(
                self.backend,
                store=seat.store(),
                rank=seat.rank,
                world_size=seat.world,
                timeout=timedelta(seconds=120),
            )
        torch.manual_seed(SEED)
        self.text = Windows(load_text("manual", 1 << 20), BLOCK, SEED)
        self.vocabulary = BYTES
        self.model = self._wrapped(Gpt(BLOCK, LAYERS, HEADS, WIDTH, dropout=0.0))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)
        self.done = 0
        # What the fake backend leaves in gradients is whatever was in memory.
        self.blank = [torch.zeros_like(p) for p in self.model.parameters()] if self.fake else None

    @property
    def fake(self) -> bool:
        """Whether nothing is communicated although the wrapper asks for it."""
        return self.backend == "fake"

    def _wrapped(self, model: Any) -> Any:
        """The model as the contender trains it; without a group as it is."""
        if not self.backend:
            return model
        wrap: dict[str, Callable[[Any], Any]] = {
            "ddp": self._data_parallel,
            "fsdp2": self._fully_sharded,
            "tp": self._tensor_parallel,
        }
        return wrap[self.job.parallelism](model)

    def _data_parallel(self, model: Any) -> Any:
        from torch.nn.parallel import DistributedDataParallel

        import pycomm

        wrapper = os.environ.get("PYCOMM_BENCH_WRAPPER", "ddp")
        if wrapper == "pycomm":  # with a size given it tries no others
            size = int(os.environ.get("PYCOMM_BENCH_BUCKET_BYTES", DATA_PARALLEL_BYTES))
            return pycomm.DataParallel(model, bucket_bytes=size)
        wrapped = DistributedDataParallel(
            model,
            gradient_as_bucket_view=self.job.bucket_view or wrapper == "ddp_view",
            bucket_cap_mb=self.job.bucket_mb,
        )
        if self.fake:  # its all_reduce has no result
            from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook

            wrapped.register_comm_hook(None, noop_hook)
        return wrapped

    def _mesh(self) -> Any:
        import torch.distributed as dist

        return dist.init_device_mesh("cpu", (self.seat.world,))

    def _fully_sharded(self, model: Any) -> Any:
        from torch.distributed.fsdp import fully_shard

        mesh = self._mesh()
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def _tensor_parallel(self, model: Any) -> Any:
        """Columns, then rows, of both pairs of layers in a block; heads are shared out."""
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        plan = {
            "query_key_value": ColwiseParallel(),
            "attention_out": RowwiseParallel(),
            "mlp.0": ColwiseParallel(),
            "mlp.2": RowwiseParallel(),
        }
        mesh = self._mesh()
        for block in model.blocks:
            block.heads //= self.seat.world
            parallelize_module(block, mesh, plan)
        return model

    def step(self) -> float:
        """One training step on the next samples; returns this rank's loss before it."""
        from torch.nn import functional

        batch, world = self.job.batch, self.seat.world
        # The ranks of a tensor parallel group see the same samples.
        share = 0 if self.job.parallelism == "tp" else self.seat.rank
        samples = self.text.batch((self.done * world + share) * batch, batch)
        logits = self.model(samples[:, :-1])
        loss = functional.cross_entropy(
            logits.reshape(-1, self.vocabulary), samples[:, 1:].reshape(-1)
        )
        loss.backward()
        if self.blank:
            for parameter, zero in zip(self.model.parameters(), self.blank, strict=True):
                parameter.grad = zero
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        return float(loss.detach())


def rank_main(context: Context, contenders: Sequence[Contender], world: int, job: Job) -> None:
    """Trains when it is this contender's turn, and emits times, usage and losses of each turn."""
    seat = Seat(context, contenders, world)
    trainer = None
    losses: list[float] = []
    for number in seat.turns(job.rounds + 1, job.start_when):
        if trainer is None:  # round 0
            trainer = Trainer(job, seat)
            losses += [trainer.step() for _ in range(WARM_STEPS)]
            continue
        losses.append(trainer.step())
        before, times = Usage.now(), []
        for _ in range(job.steps):
            begin = time.perf_counter()
            losses.append(trainer.step())
            times.append(1e3 * (time.perf_counter() - begin))
        seat.emit({"round": number, "step_ms": times, **Usage.now().since(before, job.steps)})
    seat.emit(
        {
            "losses": losses,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )
    if trainer.backend:
        import torch.distributed as dist

        dist.destroy_process_group()
