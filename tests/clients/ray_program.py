# SPDX-License-Identifier: MIT
"""A training function for Ray Train's TorchTrainer, and the same function in this process."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

BATCH_ROWS = 8  # of all workers together
EPOCHS = 3


def made_up() -> TensorDataset:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.square().sum(1))


def make_model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 15), nn.Tanh(), nn.Linear(15, 1))


def epoch(model: nn.Module, optimizer: Any, loader: DataLoader) -> torch.Tensor:
    """Returns the mean loss of this worker's rows."""
    losses = []
    for x, y in loader:
        loss = functional.mse_loss(model(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


def train_on_worker(config: dict[str, Any]) -> None:
    from ray import train

    context = train.get_context()
    model = train.torch.prepare_model(make_model())
    loader = DataLoader(made_up(), BATCH_ROWS // context.get_world_size())
    loader = train.torch.prepare_data_loader(loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(EPOCHS):
        loss = epoch(model, optimizer, loader)
        dist.all_reduce(loss)
        metrics = {
            "loss": loss.item() / context.get_world_size(),
            "name": dist.get_backend(),
            "runs_on": dist.group.WORLD._get_backend(torch.device("cpu")).name(),
            "world_size": context.get_world_size(),
        }
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.module.state_dict(), Path(folder) / "model.pt")
            train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


def alone() -> dict[str, Any]:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    loader = DataLoader(made_up(), BATCH_ROWS)
    losses = [epoch(model, optimizer, loader).item() for _ in range(EPOCHS)]
    return {"losses": losses, "state": model.state_dict()}


def with_ray(work: str, backend: str | None, workers: int) -> dict[str, Any]:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(
        num_cpus=workers + 1,
        object_store_memory=100_000_000,
        _temp_dir=work,
    )
    trainer = TorchTrainer(
        train_on_worker,
        torch_config=TorchConfig(backend=backend),
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(storage_path=f"{work}/results"),
    )
    outcome = trainer.fit()
    with outcome.checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "model.pt")
    losses = outcome.metrics_dataframe["loss"].tolist()
    ray.shutdown()
    return {"losses": losses, "state": state, **outcome.metrics}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", help="an empty folder of Ray's; without it no Ray")
    parser.add_argument("--backend")
    args = parser.parse_args()
    found = with_ray(args.work, args.backend, workers=2) if args.work else alone()
    torch.save(found, args.out)


if __name__ == "__main__":
    main()
