# SPDX-License-Identifier: MIT
"""A small training run that draws on everything a checkpoint keeps, and disks that fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pycomm.checkpoint import Checkpointer
from pycomm.checkpoint.files import Files
from pycomm.data import ShardedLoader, ShardedSampler


def make_model(norm: Any = nn.BatchNorm1d) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), norm(10), nn.Dropout(0.3), nn.Linear(10, 1))


def make_run(
    rank: int = 0, world_size: int = 1, wrap: Any = None, norm: Any = None
) -> dict[str, Any]:
    """A state as scripts have it, at its beginning."""
    # The small batches of several ranks cannot be normalised over themselves.
    model = make_model(norm or (nn.BatchNorm1d if world_size == 1 else nn.LayerNorm))
    wrapped = model if wrap is None else wrap(model)
    groups = [
        {"params": [p for p in wrapped.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in wrapped.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.randn(38, 6, generator=generator))
    sampler = ShardedSampler(data, rank, world_size, batch_size=4 // world_size)
    return {
        "model": wrapped,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40),
        "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7),
        "data": ShardedLoader(data, sampler),
        "losses": [],
    }


def train(state: dict[str, Any], steps: int) -> Iterator[int]:
    """Train on; yields the number of steps done, after each."""
    model, optimizer, scaler = state["model"], state["optimizer"], state["scaler"]
    batches = iter(())
    for step in range(len(state["losses"]), steps):
        try:
            (x,) = next(batches)
        except StopIteration:
            batches = iter(state["data"])
            (x,) = next(batches)
        noise = float(np.random.random()) * 1e-3
        loss = model(x + noise).square().mean() * state["data"].weight
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        state["scheduler"].step()
        state["losses"].append(loss.item())
        yield step + 1


def finish(state: dict[str, Any], steps: int) -> list[float]:
    for _ in train(state, steps):
        pass
    return list(state["losses"])


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)


class FailingFiles(Files):
    """Fails at the operation of a number, counted from 0, with an error of the disk."""

    def __init__(self, at: int | None, number: int = errno.ENOSPC) -> None:
        self.at, self.number, self.done = at, number, 0
        self.log: list[str] = []

    def _count(self, what: str, path: Path) -> None:
        self.log.append(f"{what} {path.name}")
        self.done += 1
        if self.done - 1 == self.at:
            self.fail(path)

    def fail(self, path: Path) -> None:
        raise OSError(self.number, os.strerror(self.number), str(path))

    def make_folder(self, path: Path) -> None:
        self._count("make", path)
        super().make_folder(path)

    @contextmanager
    def create(self, path: Path) -> Iterator[IO[bytes]]:
        self._count("create", path)
        with super().create(path) as file:
            yield Counted(file, path, self)  # type: ignore[misc]

    def sync_file(self, path: Path) -> None:
        self._count("sync", path)
        super().sync_file(path)

    def sync_folder(self, path: Path) -> None:
        self._count("sync folder", path)
        super().sync_folder(path)

    def rename(self, path: Path, target: Path) -> None:
        self._count(f"to {target.name}", path)
        super().rename(path, target)

    def remove(self, path: Path) -> None:
        self._count("remove", path)
        super().remove(path)


class Counted:
    """A file whose writes count as operations; one that fails has written half."""

    def __init__(self, file: IO[bytes], path: Path, files: FailingFiles) -> None:
        self._file, self._path, self._files = file, path, files

    def write(self, data: Any) -> int:
        if self._files.done == self._files.at:
            self._file.write(bytes(data)[: len(data) // 2])
            self._file.flush()
        self._files._count("write", self._path)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def operations(folder: Path) -> list[str]:
    """The operations of a save that follows two others and removes the first of them."""
    files = FailingFiles(None)
    with Checkpointer(folder, keep=2, async_=False, files=files) as checkpointer:
        state = make_run()
        for step in train(state, 3):
            files.log.clear()
            checkpointer.save(step, state)
    return files.log
