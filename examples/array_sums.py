# SPDX-License-Identifier: MIT
"""Collectives on NumPy arrays, without torch.distributed: a histogram of data no rank has whole.

python examples/array_sums.py
mpiexec -n 3 python examples/array_sums.py
torchrun --standalone --nproc-per-node 3 examples/array_sums.py

Calls are those of mpi4py's upper-case methods under other names: docs/array.md has a table.
"""

import numpy as np

import pycomm


def main() -> None:
    """Counts random numbers in bins, each rank its own, and adds the counts."""
    with pycomm.Communicator() as comm:  # as MPI.COMM_WORLD: from the launcher
        mine = np.random.default_rng(comm.rank).normal(size=100_000)

        # The bins span all ranks' numbers: two reductions under way at once.
        low, high = mine.min(keepdims=True), mine.max(keepdims=True)
        works = [
            comm.all_reduce(low, op="min", async_op=True),
            comm.all_reduce(high, op="max", async_op=True),
        ]
        for work in works:
            work.wait()

        counts, _ = np.histogram(mine, bins=8, range=(low[0], high[0]))
        total = comm.reduce(counts, root=0)  # in place on rank 0

        # Every rank's mean on every rank, in the order of the ranks.
        means = comm.all_gather(mine.mean(keepdims=True), np.empty(comm.world_size))
        if total is not None:
            print(f"{total.sum()} numbers from {low[0]:.2f} to {high[0]:.2f}: {total.tolist()}")
            print(f"means of the ranks: {means.round(4).tolist()}")


if __name__ == "__main__":
    main()
