# SPDX-License-Identifier: MIT
"""A training script of five lines, which depends neither on who starts it nor on how many it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pycomm

STEPS = 6


def train(out: str) -> None:
    """Trains in double precision, so that a wrong sum shows, and leaves the model."""
    ctx = pycomm.init(pycomm.Layout(clip=1.0), seed=3)
    torch.manual_seed(1)
    x = torch.randn(40, 6, dtype=torch.float64)
    dataset = TensorDataset(x, x.square().sum(1, keepdim=True))
    model = nn.Sequential(nn.Linear(6, 15), nn.Tanh(), nn.Linear(15, 1)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    model, optimizer = ctx.wrap(model, optimizer, loss=nn.functional.mse_loss)
    loader = ctx.shard(DataLoader(dataset, 8, shuffle=True))
    norms: list[float] = []
    while ctx.steps < STEPS:
        for inputs, targets in loader:
            ctx.step(model(inputs, targets))
            norms.append(ctx.norm or 0.0)
            if ctx.steps == STEPS:
                break
    state = ctx.state_dict()
    if ctx.rank == 0:
        found = {"state": state, "norms": norms, "world_size": ctx.world_size}
        torch.save({**found, "launcher": ctx.launch.launcher}, out)
    ctx.close()


def with_ray(out: str, work: str, workers: int) -> None:
    """The same function in Ray Train's workers."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def train_on_worker(config: dict[str, Any]) -> None:
        train(config["out"])

    ray.init(num_cpus=workers + 1, object_store_memory=100_000_000, _temp_dir=work)
    TorchTrainer(
        train_on_worker,
        train_loop_config={"out": str(Path(out).resolve())},
        torch_config=TorchConfig(backend="pycomm"),
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(storage_path=f"{work}/results"),
    ).fit()
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--ray", help="an empty folder of Ray's; without it no Ray")
    args = parser.parse_args()
    if args.ray:
        with_ray(args.out, args.ray, workers=2)
    else:
        train(args.out)


if __name__ == "__main__":
    main()
