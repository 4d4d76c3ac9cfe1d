# SPDX-License-Identifier: MIT
"""A LightningModule with synchronised metrics, trained by Lightning's Trainer."""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
import torch.distributed as dist
import torchmetrics
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

BATCH_ROWS = 8  # of all processes together
EPOCHS = 2


def made_up(count: int, seed: int) -> TensorDataset:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.square().sum(1))


class Module(lightning.LightningModule):
    def __init__(self, sharded: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(6, 15), nn.Tanh(), nn.Linear(15, 1))
        self.error = torchmetrics.MeanSquaredError()
        self.sharded = sharded
        self.losses: list[float] = []
        self.found: dict[str, Any] = {}

    def configure_model(self) -> None:
        if self.sharded:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def train_dataloader(self) -> DataLoader:
        # Lightning's own sampler would shuffle.
        world = {"num_replicas": self.trainer.world_size, "rank": self.global_rank}
        data = made_up(32, seed=1)
        sampler = DistributedSampler(data, **world, shuffle=False)
        return DataLoader(data, BATCH_ROWS // self.trainer.world_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(made_up(20, seed=2), BATCH_ROWS // self.trainer.world_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        loss = functional.mse_loss(self.net(x).squeeze(1), y)
        self.log("loss", loss, sync_dist=True, on_step=True, on_epoch=True, batch_size=len(x))
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        self.losses.append(self.trainer.callback_metrics["loss_step"].item())

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        x, y = batch
        guesses = self.net(x).squeeze(1)
        self.error(guesses, y)
        rows = len(x)
        # The default is the mean, which divides by a mean of int64 counts of rows.
        self.log("val_loss", functional.mse_loss(guesses, y), sync_dist=True, batch_size=rows)
        self.log("val_error", self.error, batch_size=rows)
        self.log("val_sum", guesses.sum(), sync_dist=True, reduce_fx="sum", batch_size=rows)
        self.log("val_max", guesses.max(), sync_dist=True, reduce_fx="max", batch_size=rows)
        # Counts whose sum over two ranks is odd.
        rank = float(self.global_rank)
        self.log("val_rank", rank, sync_dist=True, batch_size=3 + self.global_rank)

    def on_train_end(self) -> None:
        strategy = self.trainer.strategy
        self.found["ranks"] = self.all_gather(torch.tensor(self.global_rank)).flatten().tolist()
        self.found["word"] = strategy.broadcast(f"word of {self.global_rank}")
        self.found["state"] = {
            name: value.full_tensor() if isinstance(value, DTensor) else value.clone()
            for name, value in self.net.state_dict().items()
        }
        self.found["strategy"] = type(strategy).__name__
        if dist.is_initialized():
            self.found["name"] = dist.get_backend()
            self.found["runs_on"] = [
                group._get_backend(torch.device("cpu")).name()
                for group in dist.distributed_c10d._world.pg_map
            ]


def main() -> None:
    backend = {"process_group_backend": ARGS.backend} if ARGS.backend else {}
    strategy: Any = "auto"
    if ARGS.strategy == "ddp":
        strategy = DDPStrategy(**backend)
    if ARGS.strategy == "sharded":
        strategy = ModelParallelStrategy(ARGS.processes, tensor_parallel_size=1, **backend)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ARGS.processes,
        strategy=strategy,
        max_epochs=EPOCHS,
        default_root_dir=ARGS.work,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module(ARGS.strategy == "sharded")
    trainer.fit(module)
    module.found["losses"] = module.losses
    module.found["metrics"] = {name: v.item() for name, v in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        torch.save(module.found, ARGS.out)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", choices=["auto", "ddp", "sharded"], default="auto")
    parser.add_argument("--backend")
    ARGS = parser.parse_args()
    main()
