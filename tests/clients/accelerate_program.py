# SPDX-License-Identifier: MIT
"""A training loop on Hugging Face Accelerate, as its documentation writes it."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list, gather_object, set_seed
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

BATCH_ROWS = 8  # of all processes together
EPOCHS = 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--init", help="make the default group on this backend first")
    args = parser.parse_args()
    if args.init:
        dist.init_process_group(args.init)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
    )
    set_seed(7)
    rows = torch.randn(48, 6)
    unseen = torch.randn(29, 6)  # not a multiple of anything
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=12)
    pairs = TensorDataset(rows, rows.square().sum(1))
    train = DataLoader(pairs, batch_size=BATCH_ROWS, shuffle=True)
    test = DataLoader(TensorDataset(unseen, torch.arange(29)), batch_size=BATCH_ROWS)
    model, optimizer, train, test, schedule = accelerator.prepare(
        model, optimizer, train, test, schedule
    )
    losses, norms = [], []
    for _ in range(EPOCHS):
        for x, y in train:
            with accelerator.accumulate(model):
                loss = functional.mse_loss(model(x).squeeze(1), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norms.append(accelerator.clip_grad_norm_(model.parameters(), 5.0).item())
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(accelerator.reduce(loss.detach(), "mean").item())
    model.eval()
    gathered = []
    for x, index in test:
        with torch.no_grad():
            gathered.append(accelerator.gather_for_metrics((model(x).squeeze(1), index)))
    rank = accelerator.process_index
    ragged = accelerator.pad_across_processes(torch.full((rank + 1,), rank + 1), pad_index=0)
    plan = [f"plan of {rank}"]
    broadcast_object_list(plan)
    found = {
        "losses": losses,
        "norms": norms,
        "predictions": torch.cat([values for values, _ in gathered]),
        "indices": torch.cat([indices for _, indices in gathered]),
        "state": accelerator.get_state_dict(model),
        "ragged": accelerator.gather(ragged).tolist(),
        "objects": gather_object([{"rank": rank}]),
        "plan": plan,
        "kind": str(accelerator.distributed_type),
    }
    if dist.is_initialized():
        found["name"] = dist.get_backend()
        found["runs_on"] = dist.group.WORLD._get_backend(torch.device("cpu")).name()
    accelerator.wait_for_everyone()
    accelerator.save(found, args.out)
    accelerator.end_training()


if __name__ == "__main__":
    main()
