# SPDX-License-Identifier: MIT
"""Training in one process, which is the truth, and what ranks hand back to be compared with it.

    def plain(me: Rank) -> Run:                          # at module level; runs on every rank
        model = DistributedDataParallel(gpt())
        return train(model, sgd(model.parameters()), tokens_of(me.rank))

    def test_ddp_equals_one_process():
        expected = alone(gpt, [tokens_of(rank) for rank in range(3)])
        expect_equal(run_in_rank_order(plain, 3), expected)

`alone` computes the gradients of one share of the data after the other and combines them as the
ranks would: same kernels on the same shapes, additions in rank order. So equal means bit for bit,
unless a test says why not. Each rank has other data, so that a gradient that was not reduced shows.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from gpt import BYTES, Gpt
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from pycomm.native import load

STEPS = 4
BLOCK_SIZE = 8
# What wrappers put into the names of parameters.
WRAPPERS = ("module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")

Combine = Callable[[Sequence[Tensor]], Tensor]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass
class Run:
    """What training left on one rank.

    Attributes:
        losses: The loss of this rank's batch at each step, before the step.
        state: Whole parameters and buffers by name, without the prefixes of wrappers.
        collectives: What ran on pycomm: collectives, and with their op where they reduce, such as
            "all_gather" and "reduce_scatter avg"; empty in one process.
        extra: Whatever else a test compares.
    """

    losses: list[float]
    state: dict[str, Tensor]
    collectives: set[str] = field(default_factory=set)
    extra: Any = None


# ---- what is trained


def gpt() -> nn.Module:
    """A GPT of two blocks, 16 channels and two heads, the same weights at every call."""
    torch.manual_seed(0)
    return Gpt(block_size=BLOCK_SIZE, layers=2, heads=2, width=16, dropout=0.0)


def tokens_of(rank: int, steps: int = STEPS, count: int = 2) -> list[Tensor]:
    """This rank's batches, one for each step: (count, BLOCK_SIZE + 1) int64."""
    generator = torch.Generator().manual_seed(1000 + rank)
    shape = (count, BLOCK_SIZE + 1)
    return [torch.randint(BYTES, shape, generator=generator) for _ in range(steps)]


class Odd(nn.Module):
    """Layers whose sizes no world size of the tests divides, one without bias, one scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 11)
        self.second = nn.Linear(11, 7, bias=False)
        self.last = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def odd() -> nn.Module:
    """An `Odd`, the same weights at every call."""
    torch.manual_seed(0)
    return Odd()


def rows_of(rank: int, steps: int = STEPS, count: int = 3) -> list[Tensor]:
    """This rank's batches for `odd`, one for each step: (count, 5) float32."""
    generator = torch.Generator().manual_seed(2000 + rank)
    return [torch.randn(count, 5, generator=generator) for _ in range(steps)]


def square_loss(model: nn.Module, rows: Tensor) -> Tensor:
    """The mean squared distance of the model's output from the sum of each row."""
    return (model(rows).squeeze(-1) - rows.sum(-1)).square().mean()


def next_byte_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """The mean loss over a batch of `tokens_of`."""
    logits = model(tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def pairs_of(rank: int, steps: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Two batches of `tokens_of` for each step, for `accumulated_loss`."""
    batches = tokens_of(rank, 2 * steps)
    return list(zip(batches[::2], batches[1::2], strict=True))


def accumulated_loss(
    model: nn.Module,
    two_batches: tuple[Tensor, Tensor],
    without_reducing: Callable[[nn.Module], Any] = lambda model: contextlib.nullcontext(),
) -> Tensor:
    """Runs backward on the first batch, without reducing; the caller does it on the second."""
    with without_reducing(model):
        next_byte_loss(model, two_batches[0]).backward()
    return next_byte_loss(model, two_batches[1])


def sgd(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """With momentum, so that a wrong gradient is seen at later steps too."""
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)


def adam(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


# ---- one process


def scale_then_add(gradients: Sequence[Tensor], divisor: int = 0) -> Tensor:
    """The mean as DDP computes it: each rank scales its own, then they are added in rank order."""
    factor = 1 / (divisor or len(gradients))
    return functools.reduce(torch.add, [gradient * factor for gradient in gradients])


def add_then_divide(gradients: Sequence[Tensor]) -> Tensor:
    """The mean as ReduceOp.AVG computes it."""
    return functools.reduce(torch.add, gradients) / len(gradients)


def alone(
    make_model: Callable[[], nn.Module],
    shares: Sequence[Sequence[Any]],
    make_optimizer: Callable[..., torch.optim.Optimizer] = sgd,
    combine: Combine = scale_then_add,
    loss_of: Loss = next_byte_loss,
    before_step: Callable[[nn.Module], Any] = lambda model: None,
) -> list[Run]:
    """Trains in this process on the data of all ranks; returns what each rank should hand back.

    Buffers are treated as by DDP: each step begins with those of rank 0. `extra` of each Run is the
    state dict of the optimizer.

    Args:
        make_model: Makes the model, the same at every call.
        shares: For each rank its batches; a rank that has fewer takes no part in the last steps.
        make_optimizer: Makes the optimizer of some parameters.
        combine: Makes one gradient of those of the ranks that take part, which come in rank order.
        loss_of: The loss of a model on a batch.
        before_step: Is called with the model when its gradients are ready, for example to clip.
    """
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    losses: list[list[float]] = [[] for _ in shares]
    buffers = [_copies(model.buffers()) for _ in shares]
    for batches in itertools.zip_longest(*shares):
        gradients = []
        of_rank_0 = buffers[0]
        for rank, batch in enumerate(batches):
            if batch is None:
                continue
            for buffer, value in zip(model.buffers(), of_rank_0, strict=True):
                buffer.copy_(value)
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            losses[rank].append(loss.item())
            gradients.append([parameter.grad for parameter in model.parameters()])
            buffers[rank] = _copies(model.buffers())
        _set_gradients(model, gradients, combine)
        before_step(model)
        optimizer.step()
    runs = []
    for rank, of_rank in enumerate(losses):
        named = [name for name, _ in model.named_buffers()]
        state = whole_state(model) | dict(zip(named, buffers[rank], strict=True))
        runs.append(Run(of_rank, state, extra=copy.deepcopy(optimizer.state_dict())))
    return runs


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _set_gradients(
    model: nn.Module, gradients: Sequence[Sequence[Tensor | None]], combine: Combine
) -> None:
    """Gives each parameter one gradient made of the ranks'; none where no rank used it."""
    for parameter, of_ranks in zip(model.parameters(), zip(*gradients, strict=True), strict=True):
        zero = torch.zeros_like(parameter)
        present = any(gradient is not None for gradient in of_ranks)
        filled = [zero if gradient is None else gradient for gradient in of_ranks]
        parameter.grad = combine(filled) if present else None


# ---- ranks


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Any],
    loss_of: Loss = next_byte_loss,
    before_step: Callable[[nn.Module], Any] = lambda model: None,
) -> Run:
    """Trains on this rank's batches as any script would; collective as the model is."""
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        losses.append(loss.item())
        before_step(model)
        optimizer.step()
    return Run(losses, whole_state(model), collectives_run())


def run_in_rank_order(
    function: Callable[..., Run], world_size: int, *args: Any, transport: str | None = None
) -> list[Run]:
    """`run_ranks` with the algorithms that add in rank order, in one fold.

    They are the default at most sizes, but a choice by speed must not decide these tests.
    """
    env = {"PYCOMM_ALGO": "all_reduce=direct,reduce_scatter=direct"}
    return run_ranks(function, world_size, *args, transport=transport, env=env)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by plain name, each whole; collective if any is a DTensor."""
    state = {}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        state[plain] = whole.detach().clone()
    return state


def collectives_run() -> set[str]:
    """What this rank's groups have run, `Run.collectives`; fails if a group is not pycomm's."""
    names = set()
    groups = [
        g for g in dist.distributed_c10d._world.pg_map if g is not dist.GroupMember.NON_GROUP_MEMBER
    ]
    assert groups, "no process group"
    for group in groups:
        backend = group._get_backend(torch.device("cpu"))
        assert type(backend) is load().Backend, f"{group} has {backend}"
        for entry in json.loads(backend.flight_json())["entries"]:
            reduces = "reduce" in entry["collective"]
            names.add(f"{entry['collective']} {entry['op']}" if reduces else entry["collective"])
    return names


# ---- comparing


def expect_equal(
    runs: Sequence[Run], references: Sequence[Run], rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Each rank's losses, parameters and buffers are those of its reference: bitwise by default."""
    assert len(runs) == len(references)
    for rank, (run, reference) in enumerate(zip(runs, references, strict=True)):
        assert run.collectives, f"rank {rank}: nothing ran on pycomm"
        assert run.state.keys() == reference.state.keys()
        check = {"rtol": rtol, "atol": atol, "equal_nan": True}
        losses = torch.tensor(run.losses, dtype=torch.float64)
        expected = torch.tensor(reference.losses, dtype=torch.float64)
        torch.testing.assert_close(
            losses, expected, **check, msg=lambda text, r=rank: f"rank {r}, losses: {text}"
        )
        for name, value in run.state.items():
            torch.testing.assert_close(
                value,
                reference.state[name],
                **check,
                msg=lambda text, r=rank, n=name: f"rank {r}, {n}: {text}",
            )
