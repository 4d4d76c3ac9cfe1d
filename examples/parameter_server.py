# SPDX-License-Identifier: MIT
"""Train the small GPT through parameter servers: some processes keep parameters, others train.

    python examples/parameter_server.py                                   # 1 server, 2 workers
    python examples/parameter_server.py --servers 2 --workers 3 --mode ssp --staleness 2
    python examples/parameter_server.py --mode async --wire int8 --kill   # a worker dies; go on

All processes run on this host here. Elsewhere every process needs the address of server 0 only:
``Server(..., store="tcp://node0:29600", index=i)`` and ``Worker(..., store="tcp://node0:29600")``.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
from typing import Any

import torch
from gpt import BYTES, Gpt, Windows, load_text
from torch import Tensor, multiprocessing, nn
from torch.distributed import TCPStore
from torch.nn import functional

from pycomm.parameter_server import Server, Worker

BLOCK_SIZE, BATCH = 64, 8


def build() -> nn.Module:
    """The same model in every process."""
    torch.manual_seed(1)
    return Gpt(BLOCK_SIZE, layers=2, heads=4, width=64, dropout=0.0)


def loss_of(model: nn.Module, samples: Tensor) -> Tensor:
    """The mean loss in nats per byte; `samples` is (count, BLOCK_SIZE + 1)."""
    logits = model(samples[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten())


def serve(index: int, store: TCPStore, args: argparse.Namespace) -> None:
    """Keep a share of the parameters until the workers are through."""
    report = Server(
        build(),
        functools.partial(torch.optim.AdamW, lr=args.lr),
        store=store,
        index=index,
        servers=args.servers,
        workers=args.workers,
        mode=args.mode,
        staleness=args.staleness if args.mode == "ssp" else None,
        shards="hash",
    ).serve()
    print(
        f"server {index}: {report['updates']} updates, {report['died']} workers died, "
        f"updates that gradients had not seen: {report['staleness']}",
        flush=True,
    )


def work(rank: int, store: TCPStore, args: argparse.Namespace) -> None:
    """Train on this worker's samples."""
    model = build()
    text = Windows(load_text("manual", 500_000), BLOCK_SIZE, seed=1)
    with Worker(model, store, wire=args.wire, rank=rank) as worker:
        while worker.clock < args.steps:
            first = (worker.clock * args.workers + rank) * BATCH
            loss = loss_of(model, text.batch(first, BATCH))
            loss.backward()
            worker.step()  # in place of optimizer.step() and optimizer.zero_grad()
            if worker.clock % 20 == 0 and rank == 0:
                perplexity = min(loss.exp().item(), BYTES)
                print(f"step {worker.clock}: loss {loss.item():.3f}, perplexity {perplexity:.1f}")
            if args.kill and rank == args.workers - 1 and worker.clock == args.steps // 2:
                print(f"worker {rank} is killed at step {worker.clock}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)


def run(role: Any, index: int, port: int, args: argparse.Namespace) -> None:
    """What each process does first."""
    torch.set_num_threads(1)
    role(index, TCPStore("127.0.0.1", port, is_master=False), args)


def main() -> int:
    """Start all processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--servers", type=int, default=1)
    add("--workers", type=int, default=2)
    add("--mode", choices=("sync", "async", "ssp"), default="async")
    add("--staleness", type=int, default=2, help="steps, of ssp")
    add("--wire", default="fp32", help="format of gradients: fp32, bf16, fp16s, int8 or int4")
    add("--steps", type=int, default=100, help="of each worker")
    add("--lr", type=float, default=1e-3)
    add("--kill", action="store_true", help="kill the last worker half-way")
    args = parser.parse_args()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    roles = [(serve, i) for i in range(args.servers)] + [(work, i) for i in range(args.workers)]
    processes = [
        multiprocessing.get_context("spawn").Process(target=run, args=(*role, store.port, args))
        for role in roles
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    expected = [-signal.SIGKILL] if args.kill else []
    return int([process.exitcode for process in processes if process.exitcode] != expected)


if __name__ == "__main__":
    raise SystemExit(main())
