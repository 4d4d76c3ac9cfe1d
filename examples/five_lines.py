# SPDX-License-Identifier: MIT
"""A training loop of one process, and the five lines that make it one of many.

python examples/five_lines.py
torchrun --standalone --nproc-per-node 2 examples/five_lines.py
torchrun --standalone --nproc-per-node 4 examples/five_lines.py --tp 2 --pp 2

All of these take the same steps: only rounding differs. Without the lines that name ctx, and with
`loss.backward(); optimizer.step(); optimizer.zero_grad()` in place of ctx.step, this is an ordinary
script.
"""

import sys
import tempfile

import torch
from torch.utils.data import DataLoader, TensorDataset
from transformer import Transformer, token_loss

import pycomm

EPOCHS = 2


def sequences() -> TensorDataset:
    """Counts up by 1 to 5 from anywhere, modulo 32: inputs and what comes next."""
    begin, by = torch.arange(32)[:, None, None], torch.arange(1, 6)[None, :, None]
    counted = ((begin + by * torch.arange(17)) % 32).flatten(0, 1)
    return TensorDataset(counted[:, :-1], counted[:, 1:])


def main(folder: str) -> None:
    """Train, and say how well."""
    ctx = pycomm.init(pycomm.Layout.from_args())  # 1
    torch.manual_seed(0)
    model = Transformer(vocabulary=32, block_size=16, layers=2, heads=4, width=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(sequences(), batch_size=16, shuffle=True)

    model, optimizer = ctx.wrap(model, optimizer, loss=token_loss)  # 2
    loader = ctx.shard(loader)  # 3
    ctx.checkpoint(folder, every=10)  # 4

    for epoch in range(loader.epoch, EPOCHS):
        for inputs, targets in loader:
            loss = model(inputs, targets)
            ctx.step(loss)  # 5
        if ctx.rank == 0:
            print(f"epoch {epoch}: {ctx.steps} steps, loss of the last rows {loss.item():.4f}")
    ctx.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        # Where a run should go on from after a crash, give a folder that stays.
        main(sys.argv[1] if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else folder)
