# SPDX-License-Identifier: MIT
"""Batches of a dataset shared out so that a step has the same samples whatever the layout.

Samples come in one endless order: epoch after epoch, each in an order of its own that depends on
the seed and the epoch alone. Step k takes the next batch of it, which may begin in one epoch and
end in the next, so that no sample is left out. Its rows are cut into micro-steps, and these
into one slice for each replica. So what has been consumed is one number, and a run can go on with
any layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pycomm.data.loader import shuffles
from pycomm.data.order import hashes
from pycomm.errors import UsageError
from pycomm.train.draws import seeded

_EPOCHS_APART = 1_000_003  # so that seeds 1, 2, ... share no epoch's order


class StepLoader:
    """Iterates over this replica's micro-batches, to the end of the epoch each time.

    Random numbers that the dataset draws, from torch, NumPy or Python, depend on the seed and the
    place of the micro-batch alone; these generators are left as they were.

    Args:
        loader: A DataLoader over a dataset with a length; what it was made with is kept, but its
            sampler, which must be sequential, or shuffle all samples.
        rows: Rows of one step's batch, over all replicas.
        micro_rows: Rows of one micro-step of one replica.
        replica: This replica, 0 and up.
        replicas: How many there are.
        seed: Of the order.

    Attributes:
        consumed: Samples that all replicas together have been given in whole steps.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        rows: int,
        micro_rows: int,
        replica: int,
        replicas: int,
        seed: int,
    ) -> None:
        dataset = loader.dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise UsageError("shard: expected a dataset with a length and items by index")
        if not len(dataset):
            raise UsageError("shard: the dataset is empty")
        self._loader, self._samples = loader, len(dataset)
        self._shuffled = shuffles(loader, "shard")
        self.rows, self._micro_rows = rows, micro_rows
        self._replica, self._replicas, self._seed = replica, replicas, seed
        self.consumed = 0
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def epoch(self) -> int:
        """The epoch that the next batch begins in, from 0."""
        return self.consumed // self._samples

    @property
    def _steps_left(self) -> int:
        left = (self.epoch + 1) * self._samples - self.consumed
        return -(-left // self.rows)

    def __len__(self) -> int:
        """Micro-batches that the next iteration gives."""
        return self._steps_left * self._micro_steps

    @property
    def _micro_steps(self) -> int:
        return self.rows // (self._micro_rows * self._replicas)

    def __iter__(self) -> Iterator[Any]:
        options = {
            name: getattr(self._loader, name)
            for name in (
                "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn",
                "multiprocessing_context", "prefetch_factor",
            )
        }  # fmt: skip
        begins = list(self._begins())
        batches = [
            [self._sample(begin + row) for row in range(self._micro_rows)] for begin in begins
        ]
        options["generator"] = torch.Generator().manual_seed(self._draws(begins[0]))
        micro_batches = iter(DataLoader(self._loader.dataset, batch_sampler=batches, **options))
        for number, begin in enumerate(begins, 1):
            # What a dataset draws must be the same on all ranks of a replica, and after a resume.
            with seeded(self._draws(begin)):
                batch = next(micro_batches)
            if number % self._micro_steps == 0:
                self.consumed += self.rows
            yield batch

    def _begins(self) -> Iterator[int]:
        """Places of the first rows of this replica's micro-batches to the end of the epoch."""
        for step in range(self._steps_left):
            for micro in range(self._micro_steps):
                first = self.consumed + step * self.rows
                yield first + (micro * self._replicas + self._replica) * self._micro_rows

    def _draws(self, begin: int) -> int:
        """The seed of what is drawn while a micro-batch is made."""
        return int(hashes(np.array([begin]), self._seed)[0] >> np.uint64(1))

    def _sample(self, place: int) -> int:
        epoch, index = divmod(place, self._samples)
        if not self._shuffled:
            return index
        if epoch != self._order[0]:
            generator = torch.Generator().manual_seed(_EPOCHS_APART * self._seed + epoch)
            self._order = epoch, torch.randperm(self._samples, generator=generator).tolist()
        return self._order[1][index]

    def state_dict(self) -> dict[str, int]:
        """Returns how far the run is; local."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there, with any number of replicas; local."""
        self.consumed = int(state["consumed"])


def loader_of(data: DataLoader[Any] | Dataset[Any], batch_size: int | None) -> DataLoader[Any]:
    """Returns a loader as it is, or one over a dataset, shuffled; local.

    Raises:
        UsageError: the rows of a batch are not known.
    """
    if isinstance(data, DataLoader):
        if batch_size is None and data.batch_size is None:
            raise UsageError("shard: the loader has no batch_size; give shard batch_size=")
        return data
    if batch_size is None:
        raise UsageError("shard: a dataset needs batch_size=, the rows of one step over all ranks")
    return DataLoader(data, batch_size, shuffle=True)
