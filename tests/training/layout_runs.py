# SPDX-License-Identifier: MIT
"""Training with the five lines on ranks, and the same with plain torch in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ranks import Rank
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformer import Transformer, token_loss

import pycomm
from pycomm.train.context import Context

VOCABULARY, LENGTH, ROWS, STEPS = 32, 8, 16, 20
# Sums in another order than one process: some thousand roundings of float64 and float32.
ROUNDING = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-12},
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
}


@dataclass
class Outcome:
    """What a run left on one rank.

    Attributes:
        losses: The mean loss of each step over all rows.
        norms: The gradients' norm before each step, where the run clips.
        state: The whole model's state_dict.
        extra: Whatever else a test compares.
    """

    losses: list[float]
    norms: list[float]
    state: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


def model_of(dtype: torch.dtype = torch.float64, layers: int = 2) -> Transformer:
    """Eight heads, so that 8 ranks can share them; the same weights at every call."""
    torch.manual_seed(3)
    model = Transformer(VOCABULARY, LENGTH, layers=layers, heads=8, width=16)
    with torch.no_grad():  # as small as a GPT's weights begin, all gradients would look alike
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return model.to(dtype)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with decay for matrices only."""
    decay = [p for p in model.parameters() if p.dim() == 2]
    free = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-3, eps=1e-6)


def rows_of(count: int = 6 * ROWS) -> TensorDataset:
    """Tokens and the next ones; an epoch is no multiple of a batch."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(VOCABULARY, (count + 4, LENGTH + 1), generator=generator)
    return TensorDataset(tokens[:, :-1], tokens[:, 1:])


def mean_over(ctx: Context, value: Tensor) -> float:
    """The mean of a value over replicas."""
    whole = value.detach().double().clone()
    torch.distributed.all_reduce(whole, group=ctx.mesh.get_group("dp"))
    return (whole / (ctx.layout.dp or 1)).item()


def train_each(me: Rank, many: Sequence[Mapping[str, Any]], steps: int = STEPS) -> list[Outcome]:
    """One layout after the other."""
    return [train(me, fields, steps) for fields in many]


def train(
    me: Rank,
    fields: Mapping[str, Any],
    steps: int = STEPS,
    folder: str | None = None,
    every: int | None = None,
    before_step: Callable[[Context], None] = lambda ctx: None,
) -> Outcome:
    """The five lines in a layout.

    Args:
        me: This rank.
        fields: The layout's, and dtype and layers of the model.
        steps: Of the optimizer, with those before a resume.
        folder: For checkpoints.
        every: Steps between them.
        before_step: Called before each micro-step's backward.
    """
    layout = pycomm.Layout(**{k: v for k, v in fields.items() if k not in ("dtype", "layers")})
    ctx = pycomm.init(layout, seed=7)
    model = model_of(fields.get("dtype", torch.float64), fields.get("layers", 2))
    example = rows_of()[:2][0] if layout.balance == "time" else None
    model, optimizer = ctx.wrap(model, optimizer_of(model), loss=token_loss, example=example)
    loader = ctx.shard(DataLoader(rows_of(), ROWS, shuffle=True))
    if folder is not None:
        ctx.checkpoint(folder, every=every)
    losses: list[float] = []
    norms: list[float] = []
    given: list[int] = []
    part = torch.zeros(())
    try:
        while ctx.steps < steps:
            for inputs, targets in loader:
                given += fingerprints(inputs)
                loss = model(inputs, targets)
                part = part + loss.detach() / layout.accumulate
                before_step(ctx)
                if ctx.step(loss):
                    losses.append(mean_over(ctx, part))
                    norms += [] if ctx.norm is None else [ctx.norm]
                    part = torch.zeros(())
                    if ctx.steps == steps:
                        break
    except SystemExit as ended:  # by a signal, with a checkpoint
        losses.append(mean_over(ctx, part))
        extra = {"exit": ended.code, "given": given, "replica": ctx.replica}
        return Outcome(losses, norms, {}, extra)
    ctx.finish()
    return Outcome(losses, norms, ctx.state_dict(), {"given": given, "replica": ctx.replica})


def fingerprints(inputs: Tensor) -> list[int]:
    """A number for each row, by which it can be told from others."""
    return [int((row * torch.arange(1, LENGTH + 1) ** 3).sum()) for row in inputs]


def order_of(steps: int) -> list[int]:
    """Samples in the order in which a run takes them."""
    count = len(rows_of())
    return [
        index
        for epoch in range(-(-steps * ROWS // count))
        for index in torch.randperm(
            count, generator=torch.Generator().manual_seed(1_000_003 * 7 + epoch)
        ).tolist()
    ]


def alone(fields: Mapping[str, Any], steps: int = STEPS) -> Outcome:
    """The same in this process without pycomm: micro-batches one after the other.

    Args:
        fields: dtype, layers, clip, and "parts", the micro-batches that a step's batch is cut into.
        steps: Of the optimizer.
    """
    model = model_of(fields.get("dtype", torch.float64), fields.get("layers", 2))
    optimizer = optimizer_of(model)
    dataset, parts = rows_of(), fields.get("parts", 1)
    order = order_of(steps)
    losses, norms = [], []
    for step in range(steps):
        inputs, targets = dataset[order[step * ROWS : (step + 1) * ROWS]]
        total = 0.0
        for some, wanted in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            loss = token_loss(model(some), wanted) / parts
            loss.backward()
            total += loss.item()
        losses.append(total)
        if fields.get("clip"):
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), fields["clip"])
            norms.append(float(norm))
        optimizer.step()
        optimizer.zero_grad()
    return Outcome(losses, norms, {k: v.clone() for k, v in model.state_dict().items()})


def expect_equal(
    found: Outcome, expected: Outcome, rtol: float = 0.0, atol: float = 0.0, what: str = ""
) -> None:
    """Losses, norms and the whole model agree: bit for bit by default."""
    check = {"rtol": rtol, "atol": atol}

    def text(name: str) -> Any:
        return lambda told: f"{what}, {name}: {told}"

    for name in ("losses", "norms"):
        given, wanted = (
            torch.tensor(getattr(o, name), dtype=torch.float64) for o in (found, expected)
        )
        torch.testing.assert_close(given, wanted, **check, msg=text(name))
    assert list(found.state) == list(expected.state)
    for name, value in found.state.items():
        torch.testing.assert_close(value, expected.state[name], **check, msg=text(name))
