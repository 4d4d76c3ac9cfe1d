# SPDX-License-Identifier: MIT
"""What test_data_parallel.py trains twice, once wrapped by torch's DDP and once by DataParallel.

A scenario is a function of (rank, wrap) that returns the whole state after some steps; `wrap` turns
a module into its data-parallel form. DDP_OPTIONS has what DDP must be told and DataParallel finds
out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from reference_run import (
    accumulated_loss,
    adam,
    gpt,
    next_byte_loss,
    odd,
    pairs_of,
    rows_of,
    sgd,
    square_loss,
    tokens_of,
    train,
    whole_state,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Wrap = Callable[[nn.Module], nn.Module]
State = dict[str, Tensor]
SCENARIOS: dict[str, Callable[[int, Wrap], State]] = {}
DDP_OPTIONS: dict[str, dict[str, Any]] = {}


def scenario(**ddp_options: Any) -> Callable[[Any], Any]:
    def add(function: Callable[[int, Wrap], State]) -> Callable[[int, Wrap], State]:
        SCENARIOS[function.__name__] = function
        DDP_OPTIONS[function.__name__] = ddp_options
        return function

    return add


@scenario()
def a_gpt_with_tied_weights(rank: int, wrap: Wrap) -> State:
    model = wrap(gpt())
    return train(model, sgd(model.parameters()), tokens_of(rank)).state


@scenario()
def adam_after_clipping_the_norm(rank: int, wrap: Wrap) -> State:
    model = wrap(gpt())

    def clip(model: nn.Module) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    return train(model, adam(model.parameters()), tokens_of(rank), before_step=clip).state


@scenario()
def odd_sizes_and_a_frozen_layer(rank: int, wrap: Wrap) -> State:
    model = odd()
    model.second.weight.requires_grad_(False)
    model = wrap(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    return train(model, sgd(trained), rows_of(rank), square_loss).state


def wide() -> nn.Module:
    """Gradients of 156 KiB, which travel on their own, between small ones."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 1)
    )


@scenario()
def large_and_small_gradients(rank: int, wrap: Wrap) -> State:
    model = wrap(wide())
    return train(model, sgd(model.parameters()), rows_of(rank), square_loss).state


@scenario()
def gradients_that_stay_and_are_zeroed(rank: int, wrap: Wrap) -> State:
    model = wrap(wide())
    optimizer = sgd(model.parameters())
    for rows in rows_of(rank):
        optimizer.zero_grad(set_to_none=False)
        square_loss(model, rows).backward()
        optimizer.step()
    return whole_state(model)


@scenario()
def accumulation_without_sync(rank: int, wrap: Wrap) -> State:
    model = wrap(gpt())
    loss_of = functools.partial(accumulated_loss, without_reducing=lambda one: one.no_sync())
    return train(model, sgd(model.parameters()), pairs_of(rank), loss_of).state


@scenario()
def two_forwards_and_one_backward(rank: int, wrap: Wrap) -> State:
    model = wrap(wide())
    optimizer = sgd(model.parameters())
    for rows in rows_of(rank):
        optimizer.zero_grad()
        (square_loss(model, rows) + square_loss(model, rows * 2)).backward()
        optimizer.step()
    return whole_state(model)


@scenario()
def evaluation_in_between(rank: int, wrap: Wrap) -> State:
    model = wrap(gpt())

    def evaluate(model: nn.Module) -> None:
        with torch.no_grad():
            next_byte_loss(model, tokens_of(rank)[0])

    return train(model, sgd(model.parameters()), tokens_of(rank), before_step=evaluate).state


class Branches(nn.Module):
    """Uses the branch that the batch's first number chooses; the third is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(5, 150)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(150, 150), nn.Linear(150, 1)) for _ in range(3)
        )

    def forward(self, rows: Tensor) -> Tensor:
        return self.branches[int(rows[0, 0] > 0)](torch.tanh(self.trunk(rows)))


def branches() -> nn.Module:
    torch.manual_seed(0)
    return Branches()


@scenario(find_unused_parameters=True)
def parameters_that_some_ranks_or_all_leave_out(rank: int, wrap: Wrap) -> State:
    model = wrap(branches())
    state = train(model, sgd(model.parameters()), rows_of(rank, 8), square_loss).state
    # Never used: no gradient at all.
    assert all(p.grad is None for p in model.module.branches[2].parameters())
    return state


@scenario(find_unused_parameters=True)
def left_out_parameters_keep_an_older_gradient(rank: int, wrap: Wrap) -> State:
    model = wrap(branches())
    for rows in rows_of(rank, 8):
        square_loss(model, rows).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@scenario(find_unused_parameters=True)
def parameters_used_without_sync_only(rank: int, wrap: Wrap) -> State:
    model = wrap(branches())
    optimizer = sgd(model.parameters())
    for rows in rows_of(rank, 8):
        optimizer.zero_grad()
        with model.no_sync():
            square_loss(model, -rows).backward()
        square_loss(model, rows).backward()
        optimizer.step()
    return whole_state(model)


class MixedTypes(nn.Module):
    """float32 around bfloat16 and float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.middle = nn.Linear(8, 200).to(torch.bfloat16)
        self.precise = nn.Linear(200, 7).double()
        self.last = nn.Linear(7, 1)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.middle(torch.tanh(self.first(rows)).to(torch.bfloat16))
        return self.last(torch.tanh(self.precise(hidden.double())).float())


@scenario()
def mixed_dtypes(rank: int, wrap: Wrap) -> State:
    torch.manual_seed(0)
    model = wrap(MixedTypes())
    return train(model, sgd(model.parameters()), rows_of(rank), square_loss).state


@scenario()
def batch_norm_and_its_buffers(rank: int, wrap: Wrap) -> State:
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)))
    return train(model, sgd(model.parameters()), rows_of(rank), square_loss).state


class Checkpointed(nn.Module):
    """A chain of layers whose activations are computed again in backward."""

    def __init__(self, reentrant: bool, shared: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
        if shared:  # one layer in two checkpoints: its gradient comes in two parts
            self.layers[3] = self.layers[1]
        self.last = nn.Linear(5, 1)

    def forward(self, rows: Tensor) -> Tensor:
        x = rows.requires_grad_()
        for layer in self.layers:
            x = torch.tanh(checkpoint(layer, x, use_reentrant=self.reentrant))
        return self.last(x)


def checkpointed(rank: int, wrap: Wrap, reentrant: bool, shared: bool) -> State:
    torch.manual_seed(0)
    model = wrap(Checkpointed(reentrant, shared))
    return train(model, sgd(model.parameters()), rows_of(rank), square_loss).state


@scenario()
def checkpoints(rank: int, wrap: Wrap) -> State:
    return checkpointed(rank, wrap, reentrant=False, shared=False)


@scenario(static_graph=True)
def reentrant_checkpoints(rank: int, wrap: Wrap) -> State:
    return checkpointed(rank, wrap, reentrant=True, shared=False)


@scenario(static_graph=True)
def reentrant_checkpoints_that_share_a_layer(rank: int, wrap: Wrap) -> State:
    return checkpointed(rank, wrap, reentrant=True, shared=True)


@scenario()
def scaled_losses_with_a_step_that_overflows(rank: int, wrap: Wrap) -> State:
    model = wrap(wide())
    optimizer = sgd(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for step, rows in enumerate(rows_of(rank)):
        optimizer.zero_grad()
        bad = step == 1 and rank == 0  # one rank overflows, all must skip
        loss = square_loss(model, rows) * (float("inf") if bad else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return whole_state(model) | {"scale": torch.tensor(scaler.get_scale())}


@scenario()
def a_penalty_on_the_gradient_of_the_input(rank: int, wrap: Wrap) -> State:
    model = wrap(wide())

    def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
        rows = rows.clone().requires_grad_()
        output = model(rows)
        (slope,) = torch.autograd.grad(output.sum(), rows, create_graph=True)
        return output.square().mean() + slope.square().mean()

    return train(model, sgd(model.parameters()), rows_of(rank), loss_of).state


@dataclass
class Answer:
    parts: dict[str, list[Tensor]]


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(2))

    def forward(self, rows: Tensor) -> Answer:
        return Answer({"all": [head(rows) for head in self.heads]})


@scenario()
def outputs_within_containers(rank: int, wrap: Wrap) -> State:
    torch.manual_seed(0)
    model = wrap(Structured())

    def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
        return sum(part.square().mean() for part in model(rows).parts["all"])

    return train(model, sgd(model.parameters()), rows_of(rank), loss_of).state


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(1, 8, 3, padding=1)
        self.far = nn.Conv2d(8, 256, 3, padding=1)  # 72 KiB
        self.to(memory_format=torch.channels_last)

    def forward(self, rows: Tensor) -> Tensor:
        return self.far(torch.tanh(self.near(rows[:, None, None]))).mean((1, 2, 3))


@scenario()
def weights_that_are_not_contiguous(rank: int, wrap: Wrap) -> State:
    torch.manual_seed(0)
    model = wrap(ChannelsLast())
    return train(model, sgd(model.parameters()), rows_of(rank), square_loss).state


def differing(state: State, other: State) -> list[str]:
    """Names of what is not bitwise equal, NaNs included."""
    assert state.keys() == other.keys()

    def bits(tensors: Iterable[Tensor]) -> list[bytes]:
        return [one.reshape(-1).view(torch.uint8).numpy().tobytes() for one in tensors]

    pairs = zip(state, bits(state.values()), bits(other.values()), strict=True)
    return [name for name, a, b in pairs if a != b]
