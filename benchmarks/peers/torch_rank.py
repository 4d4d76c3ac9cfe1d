# SPDX-License-Identifier: MIT
"""All ranks of torch.distributed on one backend: torch_rank.py BACKEND WORLD."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from benchmarks.peers import elements, rank
from benchmarks.peers.cells import Cell


class TorchContender(rank.Contender):
    """Calls as a script makes them: dist.all_reduce(tensor)."""

    def __init__(self, backend: str) -> None:
        self.version = f"{backend} in torch {torch.__version__}"

    def allocate(self, dtype: str, count: int) -> tuple[Any, Any]:
        """A tensor; bfloat16 is seen through an integer view."""
        tensor = torch.zeros(count, dtype=getattr(torch, dtype))
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        raw = tensor.view(integers[tensor.element_size()]).numpy()
        return tensor, raw.view(elements.word_type(dtype))

    def bind(self, cell: Cell, source: Any, target: Any) -> Callable[[], object]:
        """The synchronous call of torch.distributed."""
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: dist.all_reduce(source),
            "broadcast": lambda: dist.broadcast(source, 0),
            "all_gather": lambda: dist.all_gather_into_tensor(target, source),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(target, source),
            "all_to_all": lambda: dist.all_to_all_single(target, source),
            "barrier": dist.barrier,
        }
        return calls[cell.collective]

    def barrier(self) -> None:
        """Over the same group."""
        dist.barrier()


def _serve(backend: str, number: int, world: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.environ["PEERS_FOLDER"] + "/torch", world)
    dist.init_process_group(backend, store=store, rank=number, world_size=world)
    rank.Session(TorchContender(backend), number, world).run()
    dist.destroy_process_group()


if __name__ == "__main__":
    name, size = sys.argv[1], int(sys.argv[2])
    sys.exit(rank.fork_ranks(size, lambda number: _serve(name, number, size)))
