# SPDX-License-Identifier: MIT
"""Train a GPT on real text with any layout and mode: a training script on pycomm's five lines.

python examples/train_gpt.py --steps 200
torchrun --standalone --nproc-per-node 2 examples/train_gpt.py --accumulate 2
torchrun --standalone --nproc-per-node 4 examples/train_gpt.py --tp 2 --pp 2 --plot
torchrun --standalone --nproc-per-node 2 examples/train_gpt.py --mode diloco --sync-every 50

Run it again with the same --out and it goes on where it was, with as many processes as you like and
in another layout. The text is Python's manual, which comes with every Python, or --data FILE.
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformer import Transformer, token_loss

import pycomm
from pycomm.data import TokenDataset, load_tokenizer, prepare_text
from pycomm.train import Context


def prepared(args: argparse.Namespace, ctx: Context) -> Path:
    """Let rank 0 make tokens of the text, once, and return where they are. Collective."""
    tokens = args.out / "text.tokens"
    if ctx.rank == 0 and not tokens.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        source = args.data
        if source is None:
            from pydoc_data.topics import topics

            source = args.out / "manual.txt"
            source.write_text("\n\n".join(topics[name] for name in sorted(topics)))
        prepare_text(source, tokens, tokenizer=args.tokenizer, vocab_size=args.vocabulary)
    if ctx.world_size > 1:
        dist.barrier()
    return tokens


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Decay matrices only; biases, gains and embeddings of positions stay free."""
    named = list(model.named_parameters())
    decay = [p for name, p in named if p.dim() == 2 and "position" not in name]
    free = [p for name, p in named if p.dim() != 2 or "position" in name]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def warmup_and_cosine(step: int, warmup: int, steps: int) -> float:
    """Return what `--lr` is multiplied with: up in a line, then down to a tenth in a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def evaluate(
    ctx: Context, model: nn.Module, dataset: TokenDataset, rows: int, most: int
) -> dict[str, float]:
    """Score validation text, each replica its share of it. Collective.

    All replicas run as many batches, since sharded parameters come together in each forward.
    """
    model.eval()
    replicas = ctx.layout.dp or 1
    batches = max(1, min(most, len(dataset)) // (rows * replicas))
    totals = torch.zeros(3, dtype=torch.float64)  # loss, right ones, tokens
    for number in range(batches):
        first = (number * replicas + ctx.replica) * rows
        samples = [dataset[i % len(dataset)] for i in range(first, first + rows)]
        inputs, targets = (torch.stack(part) for part in zip(*samples, strict=True))
        logits = model(inputs)
        right = (logits.argmax(-1) == targets).sum()
        loss = token_loss(logits.float(), targets) * targets.numel()
        totals += torch.stack([loss, right, torch.tensor(targets.numel())]).double()
    loss, right, count = ctx.over_replicas(totals).tolist()
    model.train()
    loss /= count
    return {"val_loss": loss, "perplexity": math.exp(min(loss, 50)), "accuracy": right / count}


@torch.no_grad()
def generate(model: nn.Module, prompt: Tensor, args: argparse.Namespace) -> Tensor:
    """Go on with a prompt. Collective where the model is spread; all ranks draw the same tokens."""
    model.eval()
    generator = torch.Generator().manual_seed(args.seed)
    tokens = prompt
    for _ in range(args.sample):
        logits = model(tokens[None, -args.block_size :])[0, -1].float()
        if args.temperature == 0:
            drawn = logits.argmax(keepdim=True)
        else:
            best, which = logits.topk(min(args.top_k or len(logits), len(logits)))
            odds = (best / args.temperature).softmax(0)
            drawn = which[torch.multinomial(odds, 1, generator=generator)]
        tokens = torch.cat([tokens, drawn])
    model.train()
    return tokens


def train(args: argparse.Namespace, ctx: Context) -> None:
    """The run: from where it was left to `--steps`."""
    path = prepared(args, ctx)
    text = TokenDataset(path, args.block_size)
    validation = TokenDataset(path, args.block_size, "validation")
    torch.manual_seed(args.seed)
    size = {"layers": args.layers, "heads": args.heads, "width": args.width}
    model = Transformer(text.vocab_size, args.block_size, **size, dropout=args.dropout)
    optimizer = make_optimizer(model, args.lr)
    example = torch.stack([text[i][0] for i in range(2)])
    schedule = functools.partial(warmup_and_cosine, warmup=args.warmup, steps=args.steps)
    model, optimizer = ctx.wrap(
        model, optimizer, loss=token_loss, schedule=schedule, example=example
    )
    loader = ctx.shard(DataLoader(text, args.rows, shuffle=True))
    ctx.checkpoint(args.out / "checkpoints", every=args.save_every)
    watch = ctx.watch(
        args.out,
        every=args.log_every,
        tokens=args.rows * args.block_size,
        steps=args.steps,
        plot=args.plot,
        trace=tuple(args.trace) if args.trace else None,
    )
    rows = max(1, args.rows // (ctx.layout.dp or 1) // ctx.layout.accumulate)
    while ctx.steps < args.steps:
        for inputs, targets in loader:
            if ctx.step(model(inputs, targets)):
                if ctx.steps % args.val_every == 0 or ctx.steps == args.steps:
                    watch.note(evaluate(ctx, model, validation, rows, args.val_rows), ctx.steps)
                if ctx.steps == args.steps:
                    break
    ctx.finish()  # replicas that trained apart are one model now
    tokenizer = load_tokenizer(path)
    prompt = torch.from_numpy(tokenizer.encode(args.prompt)).long()
    sample = generate(model, prompt, args)
    state = ctx.state_dict()
    if ctx.rank == 0:
        torch.save(state, args.out / "model.pt")
        print(tokenizer.decode(sample.tolist()))


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pycomm.Layout.add_arguments(parser)
    add = parser.add_argument
    add("--data", type=Path, help="UTF-8 text; default: Python's manual")
    add("--out", type=Path, default=Path("gpt_out"), help="tokens, checkpoints, figures, model")
    add("--tokenizer", choices=("bpe", "byte", "char"), default="byte")
    add("--vocabulary", type=int, default=2048, help="entries of a bpe tokenizer")
    add("--steps", type=int, default=200)
    add("--rows", type=int, default=16, help="sequences of one step over all ranks")
    add("--block-size", type=int, default=64, help="tokens of a sequence")
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--width", type=int, default=128)
    add("--dropout", type=float, default=0.0)
    add("--lr", type=float, default=2e-3)
    add("--warmup", type=int, default=20, help="steps until the learning rate is --lr")
    add("--seed", type=int, default=0)
    add("--log-every", type=int, default=10)
    add("--val-every", type=int, default=50)
    add("--val-rows", type=int, default=64, help="sequences of an evaluation")
    add("--save-every", type=int, default=50)
    add("--plot", action="store_true", help="draw curves.png")
    add("--trace", type=int, nargs=2, metavar=("FIRST", "LAST"), help="steps for trace.json.gz")
    add("--prompt", default="The ")
    add("--sample", type=int, default=200, help="tokens to generate at the end")
    add("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    add("--top-k", type=int, default=50, help="draw among so many; 0: among all")
    args = parser.parse_args()
    with pycomm.init(pycomm.Layout.from_args(args), seed=args.seed) as ctx:
        train(args, ctx)


if __name__ == "__main__":
    main()
