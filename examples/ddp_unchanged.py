# SPDX-License-Identifier: MIT
"""Train a small GPT on real text with DistributedDataParallel; an ordinary script.

Nothing here knows a communication backend: ``--backend NAME`` goes to
``torch.distributed.init_process_group`` and that is all. Run it as::

    torchrun --nproc-per-node 2 examples/ddp_unchanged.py --backend pycomm --out out
    python examples/ddp_unchanged.py --backend gloo --steps 20     # one process

Same text, same order, whatever the number of processes: sample i of the run is a function of
(seed, i), and ``--batch-size`` is the *global* batch, cut first into ``--accumulate`` micro-steps
and then into one slice a rank. Losses of 1 and of N processes thus agree to rounding.

``--resume`` continues exactly: model, optimizer, step, data cursor and the RNG of each rank are in
the checkpoint. DDP lays its buckets out again after its first backward pass, which can change the
order of additions; two discarded passes before training put every run in the final layout.

How the communication share is measured. A backward pass under ``no_sync`` is compute only; one
without it also reduces the gradients. Their difference is what communication adds to the step:
the part not hidden behind compute, with the wait for the slowest rank. Micro-steps but the last
run under ``no_sync`` anyway; with ``--accumulate 1`` every 20th step is preceded by one such pass
whose gradients are thrown away. To this the time of the one small all_reduce that averages loss
and timings is added. Medians over steps, means over ranks; the first steps of a process are left
out. Gradients are zeroed in place, so that both kinds of pass add to existing memory.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpt import BYTES, Gpt, Windows, load_text
from report import Progress, Row, write_results
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

WARM_STEPS = 3  # first steps of a process, left out of the timings
PROBE_EVERY = 20  # steps between timing probes when there is no accumulation
VAL_SEQUENCES = 64  # sequences of the validation text that are scored each time


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """Decay matrices only; biases, gains and embeddings of positions stay free."""
    named = list(model.named_parameters())
    decay = [p for name, p in named if p.dim() == 2 and "position" not in name]
    free = [p for name, p in named if p.dim() != 2 or "position" in name]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Rise linearly over `--warmup` steps, then follow a cosine down to a tenth of `--lr`."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """Everything that one rank trains with; `rows` is the curve, one dict a step."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        """Build the model and join it to the other ranks' copies. Collective."""
        self.args, self.device = args, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        slices = self.world_size * args.accumulate
        if args.batch_size % slices:
            raise SystemExit(f"--batch-size {args.batch_size} is not a multiple of {slices} slices")
        self.micro_batch = args.batch_size // slices
        text = load_text(args.data, args.data_bytes)
        split = len(text) * 9 // 10
        self.train_text = Windows(text[:split], args.block_size, args.seed)
        self.val_text = Windows(text[split:], args.block_size, args.seed)
        torch.manual_seed(args.seed)
        self.model = Gpt(args.block_size, args.layers, args.heads, args.width, args.dropout)
        self.model.to(device)
        self.optimizer = make_optimizer(self.model, args.lr)
        torch.manual_seed(args.seed + 1 + self.rank)  # from here on dropout: each rank its own
        self.step = self.cursor = 0  # optimizer steps done, samples taken from the text
        self.rows: list[Row] = []
        self.val_losses: list[tuple[int, float]] = []
        if args.resume:
            self.load()
        self.first_step = self.step
        self.parallel = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        for _ in range(2):
            self.discarded_pass(synchronize=True)

    def clock(self) -> float:
        """Return the time in seconds when all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def loss(self, model: nn.Module, samples: Tensor) -> Tensor:
        """Return the mean loss in nats per byte; `samples` is (count, block_size + 1)."""
        samples = samples.to(self.device)
        logits = model(samples[:, :-1])
        return functional.cross_entropy(logits.reshape(-1, BYTES), samples[:, 1:].reshape(-1))

    def micro_step(self, index: int, synchronize: bool) -> tuple[Tensor, float]:
        """Add one micro-batch's gradients; return its loss and the backward pass's seconds."""
        first = self.cursor + (index * self.world_size + self.rank) * self.micro_batch
        samples = self.train_text.batch(first, self.micro_batch)
        with nullcontext() if synchronize else self.parallel.no_sync():
            loss = self.loss(self.parallel, samples) / self.args.accumulate
            start = self.clock()
            loss.backward()
            return loss.detach(), self.clock() - start

    def discarded_pass(self, synchronize: bool) -> float:
        """Time one backward pass and leave no trace: gradients zeroed, RNG put back."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            _, seconds = self.micro_step(0, synchronize)
        self.optimizer.zero_grad(set_to_none=False)
        return seconds

    def train_step(self) -> None:
        """Do one optimizer step and append its row. Collective."""
        args, local = self.args, []
        if args.accumulate == 1 and self.step % PROBE_EVERY == 0:
            local.append(self.discarded_pass(synchronize=False))
        start = self.clock()
        loss = torch.zeros((), device=self.device)
        for index in range(args.accumulate - 1):
            part, seconds = self.micro_step(index, synchronize=False)
            loss += part
            local.append(seconds)
        part, synced = self.micro_step(args.accumulate - 1, synchronize=True)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
        rate = learning_rate(self.step, args)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        before_reduce = self.clock()
        mine = [float(loss + part), synced, statistics.median(local) if local else 0.0]
        means = torch.tensor(mine, dtype=torch.float64, device=self.device) / self.world_size
        dist.all_reduce(means)
        end = self.clock()
        self.step += 1
        self.cursor += args.batch_size
        row: Row = {"step": self.step, "loss": means[0].item(), "gradient_norm": norm.item()}
        row |= {"learning_rate": rate, "step_s": end - start, "synced_backward_s": means[1].item()}
        row |= {"local_backward_s": means[2].item() if local else None}
        row |= {"loss_reduce_s": end - before_reduce}
        row |= {"timed": self.step > self.first_step + WARM_STEPS, "val_loss": None}
        self.rows.append(row)

    @torch.no_grad()
    def validate(self) -> None:
        """Average the loss over the same validation sequences, shared out to ranks. Collective."""
        self.model.eval()
        count = min(VAL_SEQUENCES, self.val_text.per_epoch)
        total = torch.zeros(2, dtype=torch.float64, device=self.device)  # sum of losses, sequences
        for index in range(self.rank, count, self.world_size):
            loss = self.loss(self.model, self.val_text.batch(index, 1))
            total += torch.tensor([float(loss), 1.0], dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        self.model.train()
        self.val_losses.append((self.step, (total[0] / total[1]).item()))
        if self.rows:
            self.rows[-1]["val_loss"] = self.val_losses[-1][1]

    @torch.no_grad()
    def sample(self, length: int) -> str:
        """Continue the start of the validation text by `length` bytes. Local."""
        self.model.eval()
        generator = torch.Generator().manual_seed(self.args.seed)
        tokens = self.val_text.text[: min(32, self.args.block_size)].long()
        for _ in range(length):
            window = tokens[-self.args.block_size :].to(self.device)
            odds = (self.model(window[None])[0, -1].float().cpu() / 0.8).softmax(0)
            tokens = torch.cat([tokens, torch.multinomial(odds, 1, generator=generator)])
        self.model.train()
        return bytes(tokens.tolist()).decode(errors="replace")

    def rng_state(self) -> Tensor:
        """Return the state of the generator that dropout draws from: uint8."""
        on_gpu = self.device.type == "cuda"
        return torch.cuda.get_rng_state(self.device) if on_gpu else torch.get_rng_state()

    def recipe(self) -> dict[str, Any]:
        """Return what a resumed run must share with the one it continues."""
        free = {"backend", "device", "out", "resume", "stop_after", "checkpoint_every", "log_every"}
        return {name: value for name, value in vars(self.args).items() if name not in free}

    def save(self) -> None:
        """Write the checkpoint so that a crash leaves the old or the new one. Collective."""
        state = self.rng_state().to(self.device)
        states = [torch.empty_like(state) for _ in range(self.world_size)]
        dist.all_gather(states, state)
        if self.rank != 0:
            return
        checkpoint = {"recipe": self.recipe(), "step": self.step, "cursor": self.cursor}
        checkpoint |= {"rows": self.rows, "val_losses": self.val_losses}
        checkpoint |= {"rng_states": [s.cpu() for s in states]}
        checkpoint |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        path = self.args.out / "checkpoint.pt"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def load(self) -> None:
        """Continue from `--out`/checkpoint.pt, which every rank reads. Local."""
        path = self.args.out / "checkpoint.pt"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        changed = {k for k, v in self.recipe().items() if checkpoint["recipe"].get(k) != v}
        if changed:
            raise SystemExit(f"{path} was written with other values of {sorted(changed)}")
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step, self.cursor = checkpoint["step"], checkpoint["cursor"]
        self.rows, self.val_losses = checkpoint["rows"], checkpoint["val_losses"]
        states = checkpoint["rng_states"]
        if len(states) == self.world_size:  # at another world size: same samples, other dropout
            on_gpu = self.device.type == "cuda"
            (torch.cuda.set_rng_state if on_gpu else torch.set_rng_state)(states[self.rank])


def run(args: argparse.Namespace, device: torch.device) -> None:
    """Train, keep the checkpoint fresh and leave the results in `--out`. Collective."""
    trainer = Trainer(args, device)
    end = min(args.steps, args.stop_after or args.steps)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    progress = None
    if trainer.rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        print(f"{args.backend}: {trainer.world_size} processes, {parameters:,} parameters", end="")
        print(f", steps {trainer.step} to {end} of {args.steps}", flush=True)
        tokens = args.batch_size * args.block_size
        progress = Progress(trainer.step, end, args.log_every, tokens)
    if trainer.step == 0:
        trainer.validate()
    while trainer.step < end:
        trainer.train_step()
        if progress is not None:
            progress.update(trainer.rows)
        if trainer.step % args.val_every == 0 or trainer.step == args.steps:
            trainer.validate()
        if trainer.step % args.checkpoint_every == 0 or trainer.step == end:
            trainer.save()
    if progress is not None:
        progress.close()
        facts = {"backend": args.backend, "world_size": trainer.world_size}
        facts |= {"parameters": parameters, "torch": torch.__version__}
        facts |= {"tokens_per_step": progress.tokens_per_step, "recipe": trainer.recipe()}
        write_results(args.out, facts, trainer.rows, trainer.val_losses)
        if trainer.step == args.steps:
            text = trainer.sample(args.sample_bytes)
            (args.out / "sample.txt").write_text(text)
            print(f"sample:\n{text}", flush=True)
    dist.barrier()


def parse_args() -> argparse.Namespace:
    """Read the command line; every default suits two processes on two CPU cores."""
    parser = argparse.ArgumentParser(
        description="Train a small GPT with DistributedDataParallel on any backend.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backend", default="pycomm", help="name for torch.distributed.init_process_group")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: GPUs in turn")
    add("--data", default="manual", help="manual, stdlib, or a file: Python's own prose or source")
    add("--data-bytes", type=int, default=2_000_000, help="use at most this many bytes of it")
    add("--out", type=Path, default=Path("out"), help="folder for checkpoint, curve and summary")
    add("--steps", type=int, default=200, help="optimizer steps in the schedule")
    add("--stop-after", type=int, help="stop after this step, with a checkpoint (default: never)")
    add("--resume", action="store_true", help="continue exactly from the checkpoint in --out")
    add("--batch-size", type=int, default=64, help="sequences an optimizer step, over all ranks")
    add("--accumulate", type=int, default=2, help="micro-steps an optimizer step")
    add("--block-size", type=int, default=64, help="bytes in a sequence")
    add("--layers", type=int, default=4, help="transformer blocks")
    add("--heads", type=int, default=4, help="attention heads; must divide --width")
    add("--width", type=int, default=192, help="channels of the residual stream")
    add("--dropout", type=float, default=0.0, help="share of activations dropped, 0 to 1")
    add("--lr", type=float, default=1.5e-3, help="highest learning rate")
    add("--warmup", type=int, default=20, help="steps of linear warm-up")
    add("--clip", type=float, default=1.0, help="largest gradient norm (2-norm over the model)")
    add("--seed", type=int, default=1, help="of weights, order of the text, dropout and sampling")
    add("--val-every", type=int, default=20, help="steps between validations")
    add("--checkpoint-every", type=int, default=50, help="steps between checkpoints")
    add("--log-every", type=int, default=10, help="steps between lines when not on a terminal")
    add("--sample-bytes", type=int, default=300, help="bytes of text to write at the end")
    return parser.parse_args()


def main() -> None:
    """Join the group that torchrun describes, or be a group of one, and train."""
    args = parse_args()
    device = torch.device("cpu")
    if args.device == "cuda":
        number = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cuda", number % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group(args.backend)
    else:
        dist.init_process_group(args.backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        run(args, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
