# SPDX-License-Identifier: MIT
"""What could go wrong with pycomm.DataParallel without anybody noticing."""

from __future__ import annotations

import copy
import functools
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from raising import Raises
from ranks import Rank, run_ranks
from torch import Tensor, nn

import pycomm


class Fragile(nn.Module):
    """Uses the layers it is told to, and raises between the last two when told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))

    def forward(self, rows: Tensor, layers: int = 4, now: bool = False) -> Tensor:
        for layer in self.layers[: layers - 1]:
            rows = torch.tanh(layer(rows))
        return self.layers[layers - 1](Raises.apply(rows, now))


class Shared(nn.Module):
    """The gradient of a 64 KiB parameter is, in the same memory, that of what it is added to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 256)
        self.place = nn.Parameter(torch.zeros(128, 256))
        self.last = nn.Linear(256, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(rows) + self.place.unsqueeze(0)))


class Chain(nn.Module):
    """Leaves out one layer of three when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, rows: Tensor, without: int = -1) -> Tensor:
        for index, layer in enumerate(self.layers):
            rows = torch.tanh(layer(rows)) if index != without else rows
        return rows


class Assigns(nn.Module):
    """Its buffer is a new tensor after each forward; one parameter is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.empty(0, dtype=torch.float64))
        self.layer = nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, rows: Tensor) -> Tensor:
        self.mean = self.mean / 2 + rows.detach().mean(0)
        return self.layer(rows) + self.empty.sum()


def mean_gradients(me: Rank, loss_of: Any, models: list[nn.Module]) -> list[Tensor]:
    """The mean over ranks, calculated here."""
    for model in models:
        model.zero_grad()
    sum(loss_of(models, rank) / me.world_size for rank in range(me.world_size)).backward()
    return [p.grad for model in models for p in model.parameters()]


def after_an_exception_in_the_first(me: Rank) -> list[bool]:
    model = pycomm.DataParallel(Fragile())
    rows = torch.ones(3, 5) * (me.rank + 1)
    with pytest.raises((ValueError, pycomm.UsageError)):
        model(rows, now=me.rank == 0).sum().backward()
    found = []
    for layers in (4, 3, 4):
        model.zero_grad()
        model(rows, layers).sum().backward()
        expected = mean_gradients(
            me, lambda m, r, n=layers: m[0](torch.ones(3, 5) * (r + 1), n).sum(), [Fragile()]
        )
        for p, mean in zip(model.parameters(), expected, strict=True):
            both = p.grad is not None and mean is not None
            found.append(torch.allclose(p.grad, mean) if both else p.grad is mean)
    return found


def with_shared_gradients(me: Rank) -> list[bool]:
    model, found = pycomm.DataParallel(Shared(), bucket_bytes=1), []
    rows = [torch.ones(1, 128, 5) * (rank + 1) for rank in range(me.world_size)]
    for _ in range(3):
        model.zero_grad()
        model(rows[me.rank]).square().sum().backward()
        expected = mean_gradients(me, lambda m, r: m[0](rows[r]).square().sum(), [Shared()])
        pairs = zip(model.parameters(), expected, strict=True)
        found += [torch.allclose(p.grad, mean, rtol=1e-4) for p, mean in pairs]
    return found


def with_two_wrappers(me: Rank) -> list[bool]:
    torch.manual_seed(0)
    plain = [Chain(), Chain()]
    torch.manual_seed(0)
    wrapped = [pycomm.DataParallel(Chain(), bucket_bytes=1) for _ in plain]
    found = []
    for step in range(3):

        def loss_of(models: list[nn.Module], rank: int, step: int = step) -> Tensor:
            without = 2 if rank == 0 and step > 0 else -1
            return models[1](models[0](torch.ones(4, 8) * (rank + 1)), without).square().sum()

        for model in wrapped:
            model.zero_grad()
        loss_of(wrapped, me.rank).backward()
        parameters = [p for model in wrapped for p in model.parameters()]
        pairs = zip(parameters, mean_gradients(me, loss_of, plain), strict=True)
        found += [torch.allclose(p.grad, mean, atol=1e-6) for p, mean in pairs]
    return found


class Half(nn.Module):
    """A layer, and then what raises when told to, or does something else within backward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.now = False

    def forward(self, rows: Tensor) -> Tensor:
        return torch.tanh(self.layer(Raises.apply(rows, self.now)))


def after_an_exception_between_two_wrappers(me: Rank) -> list[bool]:
    """Rank 0's backward ends after the second model and within the first."""
    torch.manual_seed(0)
    plain = [nn.Sequential(nn.Linear(8, 8), Half()), Half()]
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(8, 8), Half())
    wrapped = [pycomm.DataParallel(first), pycomm.DataParallel(Half())]

    def loss_of(models: list[nn.Module], rank: int) -> Tensor:
        return models[1](models[0](torch.ones(4, 8) * (rank + 1))).square().sum()

    found = []
    for step in range(5):
        for model in wrapped:
            model.zero_grad()
        first[1].now = step in (0, 2) and me.rank == 0
        if step in (0, 2):
            with pytest.raises((ValueError, pycomm.UsageError)):
                loss_of(wrapped, me.rank).backward()
            continue
        loss_of(wrapped, me.rank).backward()
        parameters = [p for model in wrapped for p in model.parameters()]
        pairs = zip(parameters, mean_gradients(me, loss_of, plain), strict=True)
        found += [torch.allclose(p.grad, mean, atol=1e-6) for p, mean in pairs]
    return found


class Meanwhile(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Within) -> Tensor:
        ctx.module = module
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.module.function()
        return gradient, None


class Within(nn.Module):
    """Calls a function in the midst of backward."""

    function: Any = staticmethod(lambda: None)

    def forward(self, rows: Tensor) -> Tensor:
        return Meanwhile.apply(rows, self)


def with_a_forward_in_another_thread(me: Rank) -> list[bool]:
    """While backward goes on: it is not taken for one that was interrupted."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), Within(), nn.Linear(8, 8))
    model, outputs, found = pycomm.DataParallel(copy.deepcopy(plain), bucket_bytes=1), [], []
    rows = [torch.ones(4, 8) * (rank + 1) for rank in range(me.world_size)]
    expected = mean_gradients(me, lambda m, r: m[0](rows[r]).square().sum(), [plain])

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: outputs.append(model(rows[me.rank])))
        thread.start()
        thread.join()

    for _ in range(3):
        model.zero_grad()
        loss = model(rows[me.rank]).square().sum()
        model.module[1].function = elsewhere
        loss.backward()
        pairs = zip(model.parameters(), expected, strict=True)
        found += [torch.allclose(p.grad, mean, rtol=1e-4) for p, mean in pairs]
    return [*found, len(outputs) == 3]


def while_sizes_are_tried(me: Rank) -> list[bool]:
    """To the end: the slowest rank decides, here against what is tried first."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 600), nn.Linear(600, 600), Within(), nn.Linear(600, 600))
    model, layouts, found = pycomm.DataParallel(copy.deepcopy(plain)), set(), []
    rows = [torch.ones(2, 5) * (rank + 1) for rank in range(me.world_size)]
    expected = mean_gradients(me, lambda m, r: m[0](rows[r]).square().sum(), [plain])
    default = model.bucket_bytes()[0]
    for _ in range(20):
        if model.bucket_bytes()[1]:
            break
        slow = me.rank == 1 and model.bucket_bytes()[0] == default
        model.module[2].function = functools.partial(time.sleep, 0.3 if slow else 0)
        model.zero_grad()
        model(rows[me.rank]).square().sum().backward()
        layouts.add(str(model.buckets()))
        pairs = zip(model.parameters(), expected, strict=True)
        found += [torch.allclose(p.grad, mean, rtol=1e-4) for p, mean in pairs]
    told: list[Any] = [None] * me.world_size
    dist.all_gather_object(told, (model.bucket_bytes(), model.buckets()))
    size, settled = told[0][0]
    agreed = told == told[:1] * me.world_size
    return [*found, agreed, settled, size != default, len(layouts) > 1]


def with_assigned_buffers(me: Rank) -> list[bool]:
    model = pycomm.DataParallel(Assigns(), bucket_bytes=1)
    for _ in range(2):
        model(torch.ones(2, 2) * (me.rank + 1)).sum().backward()
    with torch.no_grad():
        model(torch.zeros(2, 2))
    return [model.mean.equal(torch.full((2,), 0.75))]


class Conjugated(nn.Module):
    """Autograd hands over a gradient whose conjugation is yet to be carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, row: Tensor) -> Tensor:
        return (self.weight.conj() * row).real.sum()


def with_lazy_conjugates(me: Rank) -> list[bool]:
    model, found = pycomm.DataParallel(Conjugated()), []
    for _ in range(2):
        model.zero_grad()
        model(torch.full((3,), complex(1 + 2 * me.rank, 1))).backward()
        found.append(torch.equal(model.weight.grad, torch.full((3,), 2 + 1j)))
    return found


@pytest.mark.parametrize(
    "case",
    [
        after_an_exception_in_the_first,
        with_shared_gradients,
        with_two_wrappers,
        after_an_exception_between_two_wrappers,
        with_a_forward_in_another_thread,
        while_sizes_are_tried,
        with_assigned_buffers,
        with_lazy_conjugates,
    ],
)
def test_gradients_and_buffers_are_right_on_all_ranks(case: Any) -> None:
    for found in run_ranks(case, 2):
        assert all(found), found


def changed(me: Rank) -> list[str]:
    def convert(model: Any) -> None:
        model.double()

    def assign(model: Any) -> None:
        model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)

    def unfreeze(model: Any) -> None:
        model.module[0].requires_grad_(True)

    told = []
    for change in (convert, assign, unfreeze):
        plain = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1))
        plain[0].requires_grad_(False)
        model = pycomm.DataParallel(plain)
        change(model)
        with pytest.raises(pycomm.UsageError) as raised:
            model(torch.ones(2, 5, dtype=plain[0].weight.dtype))
        told.append(str(raised.value))
        model.requires_grad_(False)
        assert model.buckets() == [["1.bias", "1.weight"]]
    return told


def test_parameters_that_change_after_wrapping_are_named() -> None:
    for told in run_ranks(changed, 2):
        for text, name in zip(told, ["weight", "1.weight", "0.weight"], strict=True):
            assert f"parameter {name} " in text
