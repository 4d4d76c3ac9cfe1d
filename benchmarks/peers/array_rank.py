# SPDX-License-Identifier: MIT
"""NumPy arrays over pycomm.Communicator or over mpi4py.

`array_rank.py pycomm WORLD` forks its ranks; `array_rank.py mpi4py` is one rank of an mpiexec.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.peers import elements, rank
from benchmarks.peers.cells import Cell


class ArrayContender(rank.Contender):
    """What both have in common: zeros in NumPy arrays."""

    def allocate(self, dtype: str, count: int) -> tuple[Any, Any]:
        """Written once, so that no page is touched first while timed."""
        if dtype == "bfloat16":
            raise rank.Unsupported("NumPy has no bfloat16")
        array = np.empty(count, dtype)
        array[:] = 0
        return array, array.view(elements.word_type(dtype))


class Pycomm(ArrayContender):
    """Ours."""

    def __init__(self, communicator: Any) -> None:
        self.communicator = communicator
        self.version = f"pycomm.Communicator, NumPy {np.__version__}"

    def bind(self, cell: Cell, source: Any, target: Any) -> Callable[[], object]:
        """The method of the collective's name."""
        comm = self.communicator
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: comm.all_reduce(source),
            "broadcast": lambda: comm.broadcast(source),
            "all_gather": lambda: comm.all_gather(source, target),
            "reduce_scatter": lambda: comm.reduce_scatter(source, target),
            "all_to_all": lambda: comm.all_to_all(source, target),
            "barrier": lambda: comm.barrier(),
        }
        return calls[cell.collective]

    def barrier(self) -> None:
        """Over the same group."""
        self.communicator.barrier()


class Mpi4py(ArrayContender):
    """mpi4py's buffer interface, the upper-case methods."""

    def __init__(self, mpi: Any) -> None:
        self.mpi, self.communicator = mpi, mpi.COMM_WORLD
        library = mpi.Get_library_version().splitlines()[0].strip("\0")
        self.version = f"mpi4py on {library}"

    def bind(self, cell: Cell, source: Any, target: Any) -> Callable[[], object]:
        """Every call describes its arrays anew, as mpi4py's users do."""
        if cell.dtype == "float16":
            raise rank.Unsupported("mpi4py has no float16")
        comm, in_place = self.communicator, self.mpi.IN_PLACE
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: comm.Allreduce(in_place, source),
            "broadcast": lambda: comm.Bcast(source),
            "all_gather": lambda: comm.Allgather(source, target),
            "reduce_scatter": lambda: comm.Reduce_scatter_block(source, target),
            "all_to_all": lambda: comm.Alltoall(source, target),
            "barrier": lambda: comm.Barrier(),
        }
        return calls[cell.collective]

    def barrier(self) -> None:
        """Over the same communicator."""
        self.communicator.Barrier()


def _serve_pycomm(number: int, world: int) -> None:
    import pycomm

    store = f"file://{os.environ['PEERS_FOLDER']}/array"
    with pycomm.Communicator(number, world, store) as communicator:
        rank.Session(Pycomm(communicator), number, world).run()


def _serve_mpi4py() -> None:
    rank.pin_in_turn(int(os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]))
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank.Session(Mpi4py(MPI), world.Get_rank(), world.Get_size()).run()


if __name__ == "__main__":
    if sys.argv[1] == "mpi4py":
        sys.exit(_serve_mpi4py())
    import torch  # noqa: F401  once, before the ranks are forked

    size = int(sys.argv[2])
    sys.exit(rank.fork_ranks(size, lambda number: _serve_pycomm(number, size)))
