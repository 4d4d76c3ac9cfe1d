# SPDX-License-Identifier: MIT
"""What each rank of training_modes.py does: one way of joining replicas, on the example's GPT."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

# In front: a report.py is in either folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import torch
import torch.distributed as dist
from gpt import Gpt, Windows, load_text
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

import pycomm
from pycomm.bench.ranks import Context
from pycomm.local_sgd import DiLoCo, LocalSGD
from pycomm.parameter_server import Server, Worker, same_as

Row = dict[str, Any]


@dataclass(frozen=True)
class Mode:
    """One way of joining replicas.

    Attributes:
        name: Its name in tables.
        kind: "sync", "local", "diloco" or "ps".
        every: Steps between rounds; of local and diloco.
        server: Arguments of the parameter server.
        lr: Times the job's learning rate; servers that step with each gradient make more steps.
        outer: Arguments of DiLoCo.
    """

    name: str
    kind: str
    every: int = 1
    server: tuple[tuple[str, Any], ...] = ()
    lr: float = 1.0
    outer: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Job:
    """The model and its training."""

    steps: int = 2000
    workers: int = 2
    batch_size: int = 64  # of all workers
    block_size: int = 32
    layers: int = 2
    heads: int = 4
    width: int = 32
    lr: float = 2e-3
    warmup: int = 30
    clip: float = 1.0
    seed: int = 1
    val_every: int = 100
    val_sequences: int = 512

    def lr_at(self, step: int) -> float:
        """The share of the learning rate: a linear rise, then a cosine down to a tenth."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def rank_main(context: Context, mode: Mode, job: Job) -> None:
    """Rank 0 is the parameter server where the mode has one, else it trains like the others."""
    torch.set_num_threads(1)
    store: dist.Store = dist.TCPStore("127.0.0.1", context.store_port, is_master=False)
    serves = mode.kind == "ps"
    rank = context.rank - serves
    torch.manual_seed(job.seed)
    model = Gpt(job.block_size, job.layers, job.heads, job.width, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.lr * mode.lr, betas=(0.9, 0.95))
    if rank < 0:
        context.emit({"rank": rank, "server": serve(model, optimizer, store, mode, job)})
        return
    if not serves:
        dist.init_process_group(
            "pycomm",
            store=store,
            rank=rank,
            world_size=job.workers,
            timeout=timedelta(seconds=300),
        )
    try:
        context.emit(
            {"rank": rank, **Trainer(context, mode, job, rank, model).train(optimizer, store)}
        )
    finally:
        if not serves:
            dist.destroy_process_group()


def serve(
    model: nn.Module, optimizer: torch.optim.Optimizer, store: dist.Store, mode: Mode, job: Job
) -> Row:
    """Keeps the parameters; returns the server's report."""

    def scheduler(optimizer: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, job.lr_at)

    return Server(
        model,
        same_as(optimizer, model),
        store=store,
        workers=job.workers,
        scheduler=scheduler,
        **dict(mode.server),
    ).serve()


class Trainer:
    """One worker, and what it notes down."""

    def __init__(self, context: Context, mode: Mode, job: Job, rank: int, model: nn.Module) -> None:
        """Reads the text; local."""
        self.context, self.mode, self.job, self.rank, self.model = context, mode, job, rank, model
        text = load_text("manual", 2_000_000)
        split = len(text) * 9 // 10
        self.text = Windows(text[:split], job.block_size, job.seed)
        self.val_text = Windows(text[split:], job.block_size, job.seed)
        self.count = job.batch_size // job.workers
        self.first = rank * self.count
        self.points: list[Row] = []  # validation: step, seconds, bytes, loss
        self.elements = sum(p.numel() for p in model.parameters())
        self.paused = 0.0

    def train(self, optimizer: torch.optim.Optimizer, store: dist.Store) -> Row:
        """Trains to the end. Collective as the mode is."""
        job = self.job
        model, join, finish, sent = self.joined(optimizer, store)
        begin = time.monotonic()
        with join:
            for step in range(job.steps):
                first = step * job.batch_size + self.first
                self.loss_of(model, self.text.batch(first, self.count)).backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), job.clip)
                finish()
                if (step + 1) % job.val_every == 0:
                    self.note(step + 1, begin, sent(step + 1))
        # Here, with equal models again, diloco and local may have made one more round.
        self.note(job.steps, begin, sent(job.steps))
        return {"points": self.points, "bytes_sent": sent(job.steps), "parameters": self.elements}

    def joined(
        self, optimizer: torch.optim.Optimizer, store: dist.Store
    ) -> tuple[nn.Module, AbstractContextManager[Any], Callable[[], None], Callable[[int], int]]:
        """The model to call, a context to train in, what ends a step, and bytes sent by steps."""
        mode, workers = self.mode, self.job.workers
        model_bytes = 4 * self.elements

        scheduler = LambdaLR(optimizer, self.job.lr_at)

        def step() -> None:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

        if mode.kind == "ps":
            worker = Worker(self.model, store, rank=self.rank)
            return self.model, worker, worker.step, lambda steps: worker.bytes_sent
        if mode.kind == "sync":
            parallel = pycomm.DataParallel(self.model)
            in_one = 2 * (workers - 1) * model_bytes // workers
            return parallel, nullcontext(), step, lambda steps: steps * in_one
        if mode.kind == "local":
            local: LocalSGD | DiLoCo = LocalSGD(self.model, optimizer, mode.every)
        else:
            local = DiLoCo(self.model, optimizer, mode.every, **dict(mode.outer))
        return self.model, local, step, lambda steps: local.bytes_sent

    def note(self, step: int, begin: float, sent: int) -> None:
        """Validates, on the first rank; the time it takes does not count."""
        paused = time.monotonic()
        self.context.step(f"{self.mode.name}, step {step}")
        if self.rank == 0:
            with torch.no_grad():
                parts = [
                    self.loss_of(self.model, self.val_text.batch(first, 64)).item()
                    for first in range(0, self.job.val_sequences, 64)
                ]
            seconds = paused - begin - self.paused
            loss = sum(parts) / len(parts)
            self.points.append({"step": step, "seconds": seconds, "bytes": sent, "loss": loss})
        self.paused += time.monotonic() - paused

    @staticmethod
    def loss_of(model: nn.Module, samples: Tensor) -> Tensor:
        """The mean loss in nats per byte of samples (count, block_size + 1)."""
        logits = model(samples[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten())
